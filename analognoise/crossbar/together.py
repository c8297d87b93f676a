"""Several small tiles in one set of operations: calls for each would take as long as what is computed.

A built-in law computes every device by itself, and each tile's normals come from its own streams. So the
numbers are those of one tile after the other, bit for bit, as long as each tile fills the vector units: what
is left over at the end of a tensor is computed by other instructions, which may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, groupby, pairwise, repeat
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from analognoise.crossbar.compensation import factor, read_outs
from analognoise.crossbar.mapping import scales_of, to_range, tops
from analognoise.crossbar.tile import CrossbarTile, ProgrammedTile, Reading, as_block
from analognoise.devices.laws import law_of
from analognoise.devices.profile import DeviceProfile
from analognoise.seeds import Stream, nanoseconds, normals

_SMALL = 1 << 16  # devices of a tile that others join
_TOGETHER = 1 << 20  # devices that are mapped, and read, at once: by operations that round in one way only
_IN_CACHE = 1 << 17  # devices of which the law is computed at once: they stay in the cache
_OF_ONE_THREAD = 1 << 15  # of which torch gives no part to another thread: parts end within a vector
_GRAIN = 32  # floats that torch's kernels take in one go: two registers of 512 bits
_ALL = slice(None)

T = TypeVar("T")
Shape = Sequence[int]


class Request(NamedTuple):
    """What :meth:`CrossbarTile.program` is to be called with, and where the weights of its reading go, by the
    number of the tile in its layer: asked for when they are there, for memory.
    """

    tile: CrossbarTile
    weights: Tensor
    stream: Stream
    layer_max: Tensor | None
    out: Callable[[int], Tensor | None] = lambda number: None


class Programmed(NamedTuple):
    """A programmed tile, and what it computes with right after; None where the tile is to be asked."""

    tile: ProgrammedTile
    reading: Reading | None


class Place(NamedTuple):
    """A programmed tile, and where the weights of its reading go."""

    tile: ProgrammedTile
    out: Tensor | None = None


def program_all(requests: Iterable[Request]) -> Iterator[Programmed]:
    """The programmed tile of each request, in their order; of those that come with a reading the weights are
    written.
    """
    for profile, group in _groups(requests, _joins):
        if profile is None:
            yield from (Programmed(request.tile.program(*request[1:4]), None) for request in group)
            continue
        scales, target, layout = _targets(group, profile)
        law, streams = law_of(profile), [request.stream for request in group]
        states: list[Tensor] = []
        exponents: list[Tensor | None] = []
        devices = []
        for piece, own in zip(layout.pieces, target.split_with_sizes(layout.piece_sizes), strict=True):
            state, nu = law.write(own, partial(normals, streams[piece], layout.sizes[piece]))
            states += layout.split(state, piece)
            exponents += layout.split(nu, piece) if nu is not None else repeat(None, len(streams[piece]))
            devices.append(law.programmed(state, nu))
        tiles = [
            ProgrammedTile(profile, request.tile.compensation, state, nu, scale, stream)
            for request, state, nu, scale, stream in zip(
                group, states, exponents, scales, streams, strict=True
            )
        ]
        outs = [request.out(stream.tile) for request, stream in zip(group, streams, strict=True)]
        yield from map(Programmed, tiles, _readings(tiles, outs, layout, devices, None))


def read_all(places: Iterable[Place], seconds: float) -> Iterator[Reading | None]:
    """:meth:`ProgrammedTile.reading` at a drift time of each tile, in their order, its weights written; None
    for one that does better by itself.
    """
    for profile, group in _groups(places, _drifts_with_others):
        if profile is None:
            yield from repeat(None, len(group))
            continue
        tiles, outs = [tile for tile, _ in group], [out for _, out in group]
        law, layout = law_of(profile), _layout_of([tile.state.shape for tile in tiles])
        devices = []
        for piece in layout.pieces:
            own = tiles[piece]
            draw = partial(
                normals, [tile.stream for tile in own], layout.sizes[piece], time_ns=nanoseconds(seconds)
            )
            exponents = [tile.coefficients for tile in own if tile.coefficients is not None]
            nu = _joined(exponents) if exponents else None
            devices.append(law.conductances(_joined([tile.state for tile in own]), nu, seconds, draw))
        yield from _readings(tiles, outs, layout, devices, seconds)


def _targets(group: Sequence[Request], profile: DeviceProfile) -> tuple[Sequence[Tensor], Tensor, _Layout]:
    """The scale of each tile, and the targets of all in one dimension with their layout."""
    blocks = [as_block(request.weights) for request in group]
    layout = _layout_of([(2, *block.shape) for block in blocks])
    flat = torch.cat([block.reshape(-1) for block in blocks])
    if profile.mapping.scale == "column":
        parts, shapes = layout.columns(flat), [(*block.shape[:2], 1) for block in blocks]
        top = [tops(part, profile) for part in parts]
    else:
        parts, shapes = [part.view(1, 1, -1) for part in layout.weights(flat)], [(1, 1, 1)] * len(blocks)
        top = [tops(part, profile, own.layer_max) for part, own in zip(parts, group, strict=True)]
    scale = scales_of(torch.cat(top, dim=1), profile)
    torch._foreach_div_(parts, scale.split_with_sizes([part.shape[1] for part in parts], dim=1))
    # Of each tile w / s and -w / s, as of a pair's devices.
    pairs = zip(layout.weights(flat), layout.weights(flat.neg()), strict=True)
    net = torch.cat(list(chain.from_iterable(pairs)))
    return _split(scale.view(-1), shapes), to_range(net, profile), layout


def _readings(
    tiles: Sequence[ProgrammedTile],
    outs: Sequence[Tensor | None],
    layout: _Layout,
    devices: Sequence[Tensor],
    seconds: float | None,
) -> Iterator[Reading]:
    """What :meth:`ProgrammedTile.reading` makes of conductances, given one tile after the other in the pieces
    of the layout; its weights are written.
    """
    profile, compensation = tiles[0].profile, tiles[0].compensation
    held = list(zip(devices, layout.pieces, strict=True))
    if profile.surroundings is not None or not _one_pair(profile):
        pairs = [pair for flat, piece in held for pair in layout.split(flat, piece)]
        readings = [tile.reading(seconds, pair) for tile, pair in zip(tiles, pairs, strict=True)]
        _write([reading.weights for reading in readings], outs)
        return iter(readings)
    scales = [tile.scale for tile in tiles]
    halves = [half for flat, piece in held for half in layout.halves(flat, piece)]
    nets = torch._foreach_sub(halves[::2], halves[1::2])
    weights = [net.view(shape[1:]) for net, shape in zip(nets, layout.shapes, strict=True)]
    torch._foreach_mul_(weights, scales)
    if seconds is None:
        now, shapes = read_outs(weights, compensation)
        for tile, value in zip(tiles, _split(now, shapes), strict=True):
            tile.reference = value
    elif compensation != "none":
        now, shapes = read_outs(weights, compensation)
        alpha = _split(factor(_joined([tile.reference for tile in tiles]), now), shapes)
        torch._foreach_mul_(weights, alpha)
        scales = list(torch._foreach_mul(scales, alpha))
    _write(weights, outs)
    return map(Reading, weights, scales, repeat(None))


def _groups(
    items: Iterable[T], profile_of: Callable[[T], tuple[DeviceProfile | None, str, int]]
) -> Iterator[tuple[DeviceProfile | None, list[T]]]:
    """Neighbours of one profile and compensation, not too many at once; None for what stays alone."""
    group: list[T] = []
    shared, common, total = None, "", 0
    for item in items:
        profile, compensation, devices = profile_of(item)
        other = profile is not shared or compensation != common
        if group and (profile is None or other or total + devices > _TOGETHER):
            yield shared, group
            group, total = [], 0
        group.append(item)
        shared, common, total = profile, compensation, total + devices
    if group:
        yield shared, group


def _joins(request: Request) -> tuple[DeviceProfile | None, str, int]:
    """Whose law a tile can be programmed by together with others, its compensation, and how many devices it
    has.
    """
    tile, weights = request.tile, request.weights
    if type(tile) is not CrossbarTile:
        return None, "", 0
    profile, devices = tile.profile, 2 * weights.numel()
    plain = profile.law is None and profile.faults is None and not tile.collapse_pairs
    fits = weights.is_cpu and devices <= _SMALL and devices % _GRAIN == 0
    return (profile if _one_pair(profile) and plain and fits else None), tile.compensation, devices


def _drifts_with_others(place: Place) -> tuple[DeviceProfile | None, str, int]:
    tile = place.tile
    if type(tile) is not ProgrammedTile:
        return None, "", 0
    profile, devices = tile.profile, tile.state.numel()
    fits = tile.state.is_cpu and tile.drawn_on.type == "cpu" and devices <= _SMALL and devices % _GRAIN == 0
    plain = profile.law is None and tile.faults is None
    return (profile if plain and fits else None), tile.compensation, devices


def _one_pair(profile: DeviceProfile) -> bool:
    return profile.mapping.cell in (None, "pair") and not profile.mapping.pairs


def _write(weights: Sequence[Tensor], outs: Sequence[Tensor | None]) -> None:
    asked = [(own, out) for own, out in zip(weights, outs, strict=True) if out is not None]
    if asked:
        torch._foreach_copy_([out for _, out in asked], [own for own, _ in asked])


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers in one dimension; not copied where they lie one after the other, as :func:`program_all`
    leaves them.
    """
    first, end = tensors[0], tensors[0].data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous():
            return torch.cat([tensor.reshape(-1) for tensor in tensors])
        end += tensor.nbytes
    memory = first.untyped_storage()
    if end > memory.data_ptr() + memory.nbytes():  # neighbours by chance
        return torch.cat([tensor.reshape(-1) for tensor in tensors])
    return first.as_strided(((end - first.data_ptr()) // first.element_size(),), (1,))


def _split(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    parts = flat.split_with_sizes([prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class _Layout:
    """How the devices of tiles lie one after the other, and which tiles the law is computed of at once.

    Args:
        shapes: of the devices of each tile, pairs first.
        most: devices of which the law is computed at once.
    """

    def __init__(self, shapes: Sequence[Shape], most: int) -> None:
        self.shapes = shapes
        self.sizes = [prod(shape) for shape in shapes]
        self._weights = [size // 2 for size in self.sizes]
        runs = groupby(shapes, key=lambda shape: shape[-1])
        self._runs = [(sum(prod(shape[1:-1]) for shape in run), rows) for rows, run in runs]
        ends, total = [0], 0
        for place, size in enumerate(self.sizes):
            if total and total + size > most:
                ends.append(place)
                total = 0
            total += size
        self.pieces = [slice(*edge) for edge in pairwise([*ends, len(shapes)])]
        self.piece_sizes = [sum(self.sizes[piece]) for piece in self.pieces]

    def split(self, flat: Tensor, piece: slice = _ALL) -> list[Tensor]:
        """The devices of each tile of a piece, out of those in one dimension."""
        parts = flat.split_with_sizes(self.sizes[piece])
        return [part.view(shape) for part, shape in zip(parts, self.shapes[piece], strict=True)]

    def halves(self, flat: Tensor, piece: slice = _ALL) -> tuple[Tensor, ...]:
        """The first and the second device of the pairs of each tile, in one dimension."""
        return flat.split_with_sizes([half for half in self._weights[piece] for _ in range(2)])

    def weights(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The weights of each tile, out of those of all in one dimension."""
        return flat.split_with_sizes(self._weights)

    def columns(self, flat: Tensor) -> list[Tensor]:
        """The same, of neighbours with as many rows the columns of all, ``[1, columns, rows]``."""
        parts = flat.split_with_sizes([prod(run) for run in self._runs])
        return [part.view(1, *run) for part, run in zip(parts, self._runs, strict=True)]


def _layout_of(shapes: Sequence[Shape]) -> _Layout:
    return _layout(tuple(shapes), _IN_CACHE if torch.get_num_threads() == 1 else _OF_ONE_THREAD)


_layout = lru_cache(maxsize=64)(_Layout)
