"""What was read from an aihwkit configuration, and what could not be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analognoise.devices.profile import DeviceProfile


@dataclass(frozen=True)
class NotCarriedOver:
    """A field of an aihwkit configuration that a profile does not hold.

    Attributes:
        field: where it stands, as in ``"mapping.learn_out_scaling"``.
        value: what it is.
        reason: why it was left out, or what to use instead.
    """

    field: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r} is not carried over: {self.reason}"


class NotCarriedOverWarning(UserWarning):
    """Names a field of an aihwkit configuration that a profile does not hold.

    Attributes:
        item: the field, its value and the reason.
    """

    def __init__(self, item: NotCarriedOver) -> None:
        super().__init__(str(item))
        self.item = item


@dataclass(frozen=True)
class Import:
    """What was read from an aihwkit configuration.

    Attributes:
        profile: the device.
        compensation: the drift compensation, for ``convert_to_analog(..., compensation=...)``.
        not_carried_over: what neither of them holds.
    """

    profile: DeviceProfile
    compensation: str
    not_carried_over: tuple[NotCarriedOver, ...]
