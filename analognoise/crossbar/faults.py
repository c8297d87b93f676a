"""Faults of an array: stuck devices, dead lines, and the columns that spare ones take the place of.

They are drawn once for each tile of a chip, from streams of their own: the noise of the healthy devices is
the same with faults and without.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from analognoise.devices.faults import stuck_devices
from analognoise.devices.profile import DeviceProfile
from analognoise.seeds import Stream


@dataclass(frozen=True)
class StuckDevices:
    """The devices of a tile that keep one conductance for good.

    Attributes:
        places: int64 ``[n]``, increasing: indices into the flattened ``[devices, groups, columns, rows]``.
        conductances: float32 ``[n]``, in the profile's unit; 0 where no current flows.
    """

    places: Tensor
    conductances: Tensor

    def put(self, conductances: Tensor) -> Tensor:
        """The conductances ``[devices, groups, columns, rows]`` with the stuck ones in place; a copy."""
        flat = conductances.reshape(-1).index_copy(0, self.places, self.conductances)
        return flat.view(conductances.shape)

    def where(self, shape: tuple[int, ...]) -> Tensor:
        """Which devices ``[devices, groups, columns, rows]`` are stuck."""
        found = torch.zeros(shape, dtype=torch.bool, device=self.places.device)
        found.view(-1)[self.places] = True
        return found

    def to(self, device: torch.device) -> StuckDevices:
        """The same on another torch device."""
        return StuckDevices(self.places.to(device), self.conductances.to(device))


def draw_faults(target: Tensor, scale: Tensor, profile: DeviceProfile, stream: Stream) -> StuckDevices | None:
    """The faults of a tile, after the swap of columns; None where there are none.

    Args:
        target: target conductances ``[devices, groups, columns, rows]``; they decide which columns are worst.
        scale: weight units per conductance unit, which broadcasts to ``[groups, columns, rows]``.
        profile: the device, with a section ``[faults]``.
        stream: the key of the tile on its chip.
    """
    faults = profile.faults
    if faults is None:
        return None
    devices, groups, columns, rows = target.shape
    spares = faults.spare_columns

    def draw(process: str, shape: tuple[int, ...]) -> Tensor:
        return stream.at(process=process).uniforms(shape, target.device)

    def draw_spare(process: str, shape: tuple[int, ...]) -> Tensor:
        return draw(f"spare-{process}", shape)

    mapped = mapped_beside = None
    if faults.map is not None:
        array = int(stream.at(process="fault-map").uniform() * faults.map.shape[0])
        mapped, mapped_beside = _cut(faults.map.states[array].to(target.device), target, profile)
    stuck = stuck_devices(faults, profile.conductance, (devices, groups, columns, rows), draw, mapped)
    if faults.dead_columns:
        dead = draw("fault-column", (devices, groups, columns, 1)) < faults.dead_columns
        stuck.masked_fill_(dead, 0.0)
    dead_rows = draw("fault-row", (groups, 1, rows)) < faults.dead_rows if faults.dead_rows else None
    if dead_rows is not None:
        stuck.masked_fill_(dead_rows, 0.0)
    if spares:
        # A spare column crosses the rows of all groups.
        shape = (devices, groups, spares, rows)
        beside = stuck_devices(faults, profile.conductance, shape, draw_spare, mapped_beside)
        if faults.dead_columns:
            dead = draw_spare("fault-column", (devices, 1, spares, 1)) < faults.dead_columns
            beside.masked_fill_(dead, 0.0)
        if dead_rows is not None:
            beside.masked_fill_(dead_rows, 0.0)
        _swap_columns(stuck, beside, target, scale, profile)
    flat = stuck.view(-1)
    places = flat.isnan().logical_not_().nonzero().squeeze(1)
    return StuckDevices(places, flat[places]) if len(places) else None


def _cut(states: Tensor, target: Tensor, profile: DeviceProfile) -> tuple[Tensor, Tensor]:
    """States of the devices ``[devices, groups, columns, rows]`` that a block takes up of an array, from the
    corner at row 0 and column 0, and of the spare ones.

    Args:
        states: ``[devices, array's rows, array's columns]``.
        target: gives the shape of the block.
        profile: says which columns the array has.
    """
    _, groups, columns, rows = target.shape
    offset = profile.mapping.cell == "offset-column"
    width, across = profile.tile.columns, states.transpose(1, 2)
    own, beside = [], []
    for group in range(groups):
        lines = across[..., group * rows : (group + 1) * rows]
        first = group * (columns - offset)
        own.append(
            torch.cat((lines[:, first : first + columns - offset], lines[:, width : width + offset]), 1)
        )
        beside.append(lines[:, width + offset :])
    return torch.stack(own, 1), torch.stack(beside, 1)


def _swap_columns(
    stuck: Tensor, beside: Tensor, target: Tensor, scale: Tensor, profile: DeviceProfile
) -> None:
    """Let spare columns take the place of those whose stuck devices do most harm, in place.

    What a chip can do that reads back each column after programming: the error of a column is the sum of the
    squared errors of its weights (the variance of its output for independent inputs of variance 1). The
    worst column moves to the spare one in which its error is least, if it is less there, then the next.
    """
    signs = torch.tensor(profile.mapping.signs, dtype=torch.float32, device=target.device)
    columns = target.shape[2] - (profile.mapping.cell == "offset-column")
    wanted = target[:, :, :columns]

    def errors(conductances: Tensor) -> Tensor:
        wrong = torch.nan_to_num(conductances - wanted, nan=0.0)
        return torch.tensordot(signs, wrong, 1).mul_(scale).square_().sum(2).flatten()

    now = errors(stuck[:, :, :columns]).tolist()
    there = [errors(beside[:, :, k : k + 1]).tolist() for k in range(beside.shape[2])]
    free = list(range(len(there)))
    for place in sorted(range(len(now)), key=lambda i: -now[i]):
        if not free or now[place] == 0:
            return
        best = min(free, key=lambda k: there[k][place])
        if there[best][place] < now[place]:
            group, column = divmod(place, columns)
            stuck[:, group, column] = beside[:, group, best]
            free.remove(best)
