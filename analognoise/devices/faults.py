"""Devices that do not work: the section ``[faults]`` of a profile, yield maps, and the draw of stuck devices.

A stuck device keeps one conductance whatever is written to it: no programming noise, no drift, no read noise.
Stuck on and stuck off are what most of the literature on faulty arrays knows (for example Xia et al.,
"Fault-tolerant training with on-line fault detection", DAC 2017); devices stuck in between are seen as well.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationInfo, model_validator
from torch import Tensor

from analognoise.devices.base import Frozen
from analognoise.devices.problems import Problem, show
from analognoise.devices.sections import Conductance, TileSize, WeightMapping

GOOD, AT_G_MIN, AT_G_MAX, AT_RANDOM, OPEN = range(5)
"""What a yield map says of a device; an open one carries no current."""

Draw = Callable[[str, tuple[int, ...]], Tensor]
"""Uniform numbers in [0, 1) of a shape, by what they are for."""

Share = Annotated[float, Field(ge=0, le=1)]


class YieldMap(Frozen):
    """The state of every device of one array or of several, as measured.

    In the file of the profile it is the name of a ``.npy`` file beside it. It is kept as text, so that the
    profile holds its content and not the file's name: runs of equal states, ``"98x0 1x2"``.
    """

    shape: Annotated[tuple[int, int, int, int], Field(strict=False)] = Field(
        description="arrays, devices of a weight, rows, columns"
    )
    runs: str = Field(description="runs of equal states")
    _file: str = PrivateAttr("")

    @classmethod
    def of(cls, states: np.ndarray, file: str = "") -> YieldMap:
        """The map of states ``[arrays, devices, rows, columns]``, or of one array without the first axis."""
        flat = states.reshape(-1)
        starts = np.flatnonzero(np.diff(flat, prepend=-1))
        lengths = np.diff(starts, append=flat.size)
        runs = " ".join(f"{length}x{flat[start]}" for start, length in zip(starts, lengths, strict=True))
        found = cls(shape=(1, *states.shape)[-4:], runs=runs)
        found._file = file
        return found

    @cached_property
    def states(self) -> Tensor:
        """uint8 ``[arrays, devices, rows, columns]``."""
        numbers = np.array(self.runs.replace("x", " ").split(), dtype=np.int64).reshape(-1, 2)
        return torch.from_numpy(np.repeat(numbers[:, 1].astype(np.uint8), numbers[:, 0]).reshape(self.shape))

    @model_validator(mode="after")
    def _check_runs(self) -> Self:
        try:
            good = bool((self.states <= OPEN).all())
        except (ValueError, OverflowError, MemoryError):
            good = False
        if not good:
            right = 'states 0 to 4, as in "98x0 1x2", as many as shape says'
            raise Problem("runs", f"is {show(self.runs)} but must hold {right}")
        return self

    def check(self, needed: tuple[int, int, int]) -> None:
        """Nothing, where an array of the map has this many devices of a weight, rows and columns.

        Raises:
            Problem: where it has not.
        """
        if self.shape[1:] != needed:
            name = f'is "{self._file}", of shape' if self._file else "has the shape"
            raise Problem(
                "faults.map",
                f"{name} {list(self.shape[1:])} but must have the shape {list(needed)}: devices of a weight, "
                "tile.rows, and tile.columns with any offset column and the spare_columns",
            )


def _read_map(value: Any, info: ValidationInfo) -> Any:
    """The map in the ``.npy`` file of that name; anything but text as it is."""
    if not isinstance(value, str):
        return value
    folder = (info.context or {}).get("folder")
    if folder is None:
        raise Problem(
            "",
            f"is {show(value)} but nothing lies beside a profile that is not read from a file: name the map "
            "in a copy of the profile's file",
        )
    try:
        content = folder.joinpath(value).read_bytes()
    except OSError as error:
        raise Problem(
            "", f"is {show(value)}, which cannot be read beside the profile ({error.strerror})"
        ) from None
    try:
        states = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, MemoryError):
        raise Problem(
            "", f"is {show(value)}, which is no .npy file of numbers: numpy.save writes one"
        ) from None
    what = (
        f"states {GOOD} (good), {AT_G_MIN} (stuck at g_min), {AT_G_MAX} (at g_max), {AT_RANDOM} (at random) "
        f"and {OPEN} (open)"
    )
    if states.dtype.kind not in "iub" or states.ndim not in (3, 4) or not states.size:
        raise Problem(
            "",
            f"is {show(value)}, an array of {states.dtype} of shape {list(states.shape)}, but must be one of "
            f"whole numbers [devices of a weight, rows, columns], or several such, that hold the {what}",
        )
    wrong = np.argwhere((states < GOOD) | (states > OPEN))
    if wrong.size:
        place = tuple(int(i) for i in wrong[0])
        raise Problem(
            "", f"is {show(value)}, which holds {states[place]} at {list(place)} but must hold the {what}"
        )
    return YieldMap.of(states.astype(np.uint8), value)


class Faults(Frozen):
    """Shares of devices and lines that do not work; all independent of each other.

    With a map, the shares are of the devices that it says are good.
    """

    stuck_at_g_min: Share = Field(default=0.0, description="share of devices stuck at g_min")
    stuck_at_g_max: Share = Field(default=0.0, description="share of devices stuck at g_max")
    stuck_at_random: Share = Field(
        default=0.0, description="share of devices stuck at a conductance that is uniform from g_min to g_max"
    )
    dead_rows: Share = Field(default=0.0, description="share of rows that are open: no current from them")
    dead_columns: Share = Field(
        default=0.0, description="share of column lines, one for each device of a weight, that are open"
    )
    map: Annotated[YieldMap | None, BeforeValidator(_read_map, json_schema_input_type=str | None)] = Field(
        default=None, description="name of a .npy file beside the profile"
    )
    spare_columns: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="columns beside those of [tile] that take the place of the worst"
    )

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        total = self.stuck_at_g_min + self.stuck_at_g_max + self.stuck_at_random
        if total > 1 + 1e-9:
            field = next(
                name
                for name in ("stuck_at_random", "stuck_at_g_max", "stuck_at_g_min")
                if name in self.model_fields_set
            )
            raise Problem(
                field,
                f"is {getattr(self, field):g} and all shares of stuck devices are {total:g} together, but "
                "must be at most 1",
            )
        return self

    def check_map(self, tile: TileSize, mapping: WeightMapping) -> None:
        """Nothing, where the map fits the tile.

        Raises:
            Problem: where it does not.
        """
        if self.map is not None:
            columns = tile.columns + (mapping.cell == "offset-column") + self.spare_columns
            self.map.check((len(mapping.signs), tile.rows, columns))


def stuck_devices(
    faults: Faults, conductance: Conductance, shape: tuple[int, ...], draw: Draw, mapped: Tensor | None = None
) -> Tensor:
    """The conductance of every device that is stuck, NaN for every device that is not.

    Args:
        faults: the section.
        conductance: gives g_min and g_max.
        shape: of the result.
        draw: uniform numbers for "fault" (which devices) and "fault-level" (their conductances).
        mapped: states of a yield map, of that shape.
    """
    low, high = conductance.g_min, conductance.g_max
    chance = draw("fault", shape)
    stuck = torch.full_like(chance, torch.nan)
    # From both ends, so that a larger share of one kind keeps the faults of a smaller.
    stuck.masked_fill_(chance >= 1 - faults.stuck_at_g_max, high)
    random = chance < faults.stuck_at_g_min + faults.stuck_at_random
    stuck.masked_fill_(chance < faults.stuck_at_g_min, low)
    random &= chance >= faults.stuck_at_g_min
    if mapped is not None:
        random = torch.where(mapped == GOOD, random, mapped == AT_RANDOM)
        for state, value in ((AT_G_MIN, low), (AT_G_MAX, high), (OPEN, 0.0)):
            stuck.masked_fill_(mapped == state, value)
    if random.any():
        stuck = torch.where(random, draw("fault-level", shape).mul_(high - low).add_(low), stuck)
    return stuck
