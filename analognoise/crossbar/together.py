"""Several small tiles in one set of operations: calls for each would take as long as what is computed.

A built-in law computes every device by itself, and each tile's normals come from its own streams. So the
numbers are those of one tile after the other, bit for bit, as long as each tile fills the vector units: what
is left over at the end of a tensor is computed by other instructions, which may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from analognoise.crossbar.tile import CrossbarTile, ProgrammedTile
from analognoise.devices.laws import law_of
from analognoise.devices.profile import DeviceProfile
from analognoise.seeds import Stream, nanoseconds

_SMALL = 1 << 16  # devices of a tile that others join
_TOGETHER = 1 << 17  # devices that are computed at once: they stay in the cache
_GRAIN = 32  # floats that torch's kernels take in one go: two registers of 512 bits

T = TypeVar("T")


class Request(NamedTuple):
    """What :meth:`CrossbarTile.program` is to be called with."""

    tile: CrossbarTile
    weights: Tensor
    stream: Stream
    layer_max: Tensor | None


def program_all(requests: Iterable[Request]) -> Iterator[ProgrammedTile]:
    """The programmed tile of each request, in their order."""
    for profile, group in _groups(requests, lambda request: _joins(request.tile, request.weights)):
        if profile is None:
            yield from (request.tile.program(*request[1:]) for request in group)
            continue
        prepared = [request.tile.targets(request.weights, request.layer_max) for request in group]
        targets = [target for _, target in prepared]
        streams = [request.stream for request in group]
        state, coefficients = law_of(profile).write(_joined(targets), partial(_normals, targets, streams))
        states = _apart(state, targets)
        exponents = [None] * len(group) if coefficients is None else _apart(coefficients, targets)
        for request, (scale, _), own, nu in zip(group, prepared, states, exponents, strict=True):
            yield ProgrammedTile(profile, request.tile.compensation, own, nu, scale, request.stream)


def conductances_all(tiles: Iterable[ProgrammedTile], seconds: float) -> Iterator[Tensor | None]:
    """:meth:`ProgrammedTile.conductances_at` a drift time for each tile, in their order; None for one that
    does better to compute them by itself.
    """
    for profile, group in _groups(tiles, _drifts_with_others):
        if profile is None:
            yield from (None for _ in group)
            continue
        states = [tile.state for tile in group]
        exponents = [tile.coefficients for tile in group if tile.coefficients is not None]
        streams = [tile.stream.at(time_ns=nanoseconds(seconds)) for tile in group]
        nu = _joined(exponents) if exponents else None
        draw = partial(_normals, states, streams)
        now = law_of(profile).conductances(_joined(states), nu, seconds, draw)
        yield from (part.view(own.shape) for part, own in zip(_split(now, states), states, strict=True))


def _groups(
    items: Iterable[T], profile_of: Callable[[T], tuple[DeviceProfile | None, int]]
) -> Iterator[tuple[DeviceProfile | None, list[T]]]:
    """Neighbours of one profile, not too many at once; None for what stays alone."""
    group: list[T] = []
    shared, total = None, 0
    for item in items:
        profile, devices = profile_of(item)
        if group and (profile is None or profile is not shared or total + devices > _TOGETHER):
            yield shared, group
            group, total = [], 0
        group.append(item)
        shared, total = profile, total + devices
    if group:
        yield shared, group


def _joins(tile: CrossbarTile, weights: Tensor) -> tuple[DeviceProfile | None, int]:
    """Whose law a tile can be programmed by together with others, and how many devices it has."""
    if type(tile) is not CrossbarTile:
        return None, 0
    profile, devices = tile.profile, 2 * weights.numel()
    pairs = profile.mapping.cell in (None, "pair") and not profile.mapping.pairs
    plain = pairs and profile.law is None and profile.faults is None and not tile.collapse_pairs
    fits = weights.is_cpu and devices <= _SMALL and devices % _GRAIN == 0
    return (profile if plain and fits else None), devices


def _drifts_with_others(tile: ProgrammedTile) -> tuple[DeviceProfile | None, int]:
    if type(tile) is not ProgrammedTile:
        return None, 0
    devices = tile.state.numel()
    fits = tile.state.is_cpu and tile.drawn_on.type == "cpu" and devices <= _SMALL and devices % _GRAIN == 0
    plain = tile.profile.law is None and tile.faults is None
    return (tile.profile if plain and fits else None), devices


def _normals(likes: Sequence[Tensor], streams: Sequence[Stream], process: str) -> Tensor:
    """The numbers of each stream, as many as each tensor has elements, one after the other."""
    found = torch.empty(sum(like.numel() for like in likes))
    for part, stream in zip(_split(found, likes), streams, strict=True):
        stream.at(process=process).normal_(part)
    return found


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _split(flat: Tensor, likes: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return flat.split([like.numel() for like in likes])


def _apart(flat: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a tensor, each with memory of its own."""
    return [part.clone().view(like.shape) for part, like in zip(_split(flat, likes), likes, strict=True)]
