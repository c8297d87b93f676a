"""How weights lie on an array."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """How one weight Parameter lies on the array.

    Attributes:
        groups: independent blocks (convolution groups); 1 for most layers.
        columns: outputs of a block.
        channels: inputs of a block, or input channels.
        kernel: kernel positions per channel; rows are ``channels × kernel``.
    """

    groups: int
    columns: int
    channels: int
    kernel: int = 1

    @property
    def rows(self) -> int:
        """Rows of a block."""
        return self.channels * self.kernel
