"""Several small tiles in one set of operations: calls for each would take as long as what is computed.

A built-in law computes every device by itself, and each tile's normals come from its own streams. So the
numbers are those of one tile after the other, bit for bit, as long as each tile fills the vector units: what
is left over at the end of a tensor is computed by other instructions, which may round otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise, repeat
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from analognoise.crossbar.compensation import factor, read_out
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

T = TypeVar("T")
Shape = Sequence[int]


class Request(NamedTuple):
    """What :meth:`CrossbarTile.program` is to be called with."""

    tile: CrossbarTile
    weights: Tensor
    stream: Stream
    layer_max: Tensor | None


class Programmed(NamedTuple):
    """A programmed tile, and what it computes with right after; None where the tile is to be asked."""

    tile: ProgrammedTile
    reading: Reading | None


def program_all(requests: Iterable[Request]) -> Iterator[Programmed]:
    """The programmed tile of each request, in their order."""
    for profile, group in _groups(requests, _joins):
        if profile is None:
            yield from (Programmed(request.tile.program(*request[1:]), None) for request in group)
            continue
        scales, target, shapes = _targets(group, profile)
        law = law_of(profile)
        states: list[Tensor] = []
        exponents: list[Tensor | None] = []
        devices = []
        pieces = _pieces(shapes)
        sizes = [sum(map(prod, shapes[piece])) for piece in pieces]
        for piece, own in zip(pieces, target.split_with_sizes(sizes), strict=True):
            draw = partial(_normals, [request.stream for request in group[piece]], shapes[piece], None)
            state, nu = law.write(own, draw)
            states += _split(state, shapes[piece])
            exponents += [None] * len(shapes[piece]) if nu is None else _split(nu, shapes[piece])
            devices.append(law.programmed(state, nu))
        tiles = [
            ProgrammedTile(profile, request.tile.compensation, state, nu, scale, request.stream)
            for request, state, nu, scale in zip(group, states, exponents, scales, strict=True)
        ]
        yield from map(Programmed, tiles, _readings(tiles, devices, None))


def read_all(tiles: Iterable[ProgrammedTile], seconds: float) -> Iterator[Reading | None]:
    """:meth:`ProgrammedTile.reading` at a drift time of each tile, in their order; None for one that does
    better by itself.
    """
    for profile, group in _groups(tiles, _drifts_with_others):
        if profile is None:
            yield from repeat(None, len(group))
            continue
        law, shapes = law_of(profile), [tile.state.shape for tile in group]
        devices = []
        for piece in _pieces(shapes):
            own = group[piece]
            draw = partial(_normals, [tile.stream for tile in own], shapes[piece], nanoseconds(seconds))
            exponents = [tile.coefficients for tile in own if tile.coefficients is not None]
            nu = _joined(exponents) if exponents else None
            devices.append(law.conductances(_joined([tile.state for tile in own]), nu, seconds, draw))
        yield from _readings(group, devices, seconds)


def _targets(group: Sequence[Request], profile: DeviceProfile) -> tuple[list[Tensor], Tensor, list[Shape]]:
    """The scale of each tile, and the targets of all in one dimension with the shape of each."""
    blocks = [as_block(request.weights) for request in group]
    shapes: list[Shape] = [(2, *block.shape) for block in blocks]
    top = [tops(block, profile, request.layer_max) for block, request in zip(blocks, group, strict=True)]
    scales = _split(scales_of(_joined(top), profile), [part.shape for part in top])
    # The weights of each tile twice, over its scales, once with the other sign: as of a pair's devices.
    flat = [block.reshape(-1) for block in blocks]
    net = torch.cat([half for block in flat for half in (block, block)])
    torch._foreach_div_(_split(net, shapes), scales)
    torch._foreach_neg_(_halves(net, shapes)[1::2])
    return scales, to_range(net, profile), shapes


def _readings(
    tiles: Sequence[ProgrammedTile], devices: Sequence[Tensor], seconds: float | None
) -> Iterator[Reading]:
    """What :meth:`ProgrammedTile.reading` makes of conductances, given one tile after the other in the
    pieces of :func:`_pieces`.
    """
    profile, compensation = tiles[0].profile, tiles[0].compensation
    shapes = [tile.state.shape for tile in tiles]
    held = list(zip(devices, [shapes[piece] for piece in _pieces(shapes)], strict=True))
    if profile.surroundings is not None or not _one_pair(profile):
        pairs = [pair for flat, own in held for pair in _split(flat, own)]
        return (tile.reading(seconds, pair) for tile, pair in zip(tiles, pairs, strict=True))
    scales = [tile.scale for tile in tiles]
    halves = [half for flat, own in held for half in _halves(flat, own)]
    nets = torch._foreach_sub(halves[::2], halves[1::2])
    weights = [net.view(shape[1:]) for net, shape in zip(nets, shapes, strict=True)]
    torch._foreach_mul_(weights, scales)
    now = [read_out(net, compensation) for net in weights]
    if seconds is None:
        for tile, value in zip(tiles, now, strict=True):
            tile.reference = value
    elif compensation != "none":
        alphas = factor(_joined([tile.reference for tile in tiles]), _joined(now))
        alpha = _split(alphas, [value.shape for value in now])
        torch._foreach_mul_(weights, alpha)
        scales = list(torch._foreach_mul(scales, alpha))
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


def _drifts_with_others(tile: ProgrammedTile) -> tuple[DeviceProfile | None, str, int]:
    if type(tile) is not ProgrammedTile:
        return None, "", 0
    profile, devices = tile.profile, tile.state.numel()
    fits = tile.state.is_cpu and tile.drawn_on.type == "cpu" and devices <= _SMALL and devices % _GRAIN == 0
    plain = profile.law is None and tile.faults is None
    return (profile if plain and fits else None), tile.compensation, devices


def _one_pair(profile: DeviceProfile) -> bool:
    return profile.mapping.cell in (None, "pair") and not profile.mapping.pairs


def _normals(streams: Sequence[Stream], shapes: Sequence[Shape], time_ns: int | None, process: str) -> Tensor:
    """Standard normals of every tile for a process."""
    streams = [stream.at(process=process, time_ns=time_ns) for stream in streams]
    return normals(streams, [prod(shape) for shape in shapes])


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


def _halves(flat: Tensor, shapes: Sequence[Shape]) -> tuple[Tensor, ...]:
    """The first and the second device of the pairs of each tile, in one dimension."""
    return flat.split_with_sizes([half for shape in shapes for half in (prod(shape) // 2,) * 2])


def _pieces(shapes: Sequence[Shape]) -> list[slice]:
    """Which tiles the law is computed of at once."""
    ends, total = [0], 0
    most = _IN_CACHE if torch.get_num_threads() == 1 else _OF_ONE_THREAD
    for place, shape in enumerate(shapes):
        size = prod(shape)
        if total and total + size > most:
            ends.append(place)
            total = 0
        total += size
    return [slice(*edge) for edge in pairwise([*ends, len(shapes)])]
