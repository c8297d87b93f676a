"""Randomness as data: every draw has a stream, and every stream a key that says what it is for.

A key is a 128-bit hash of (root seed, process, layer, tile, chip, time, step). Two keys that differ in any
part give unrelated numbers, and the same key gives the same numbers whatever was drawn before, in whatever
order, on however many workers. Global generators are never used.

torch's CPU generator keeps only 32 bits of a seed. So its whole state (624 words of a Mersenne Twister) is
filled from Philox, a counter-based generator that takes all 128 bits of the key (Salmon et al., SC 2011); the
numbers then come from torch's vectorised sampler. On other devices torch's own Philox takes the lower 64
bits.
"""

from __future__ import annotations

import hashlib
import operator
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Long draws are cut into chunks with a key each, so that chunks can be drawn side by side without changing a
# number.
_CHUNK = 1 << 20
_WORDS = 624
_LOW = (1 << 64) - 1
# Types whose repr is a key's part as it is.
_PLAIN = frozenset({int, str, type(None)})
# Bytes before the state words in torch's serialised generator: seed, words left, seeded flag, next word.
_HEADER = 24


@dataclass(frozen=True)
class Stream:
    """One stream of random numbers.

    Attributes:
        root: the user's seed.
        process: what the numbers are for, e.g. ``"program"``, ``"drift"``, ``"read"``, ``"training-noise"``.
        layer: qualified name of the layer at conversion, or of the parameter.
        tile: index of the tile in the layer.
        chip: chip number.
        time_ns: drift time in integer nanoseconds, for what is drawn anew at each time.
        step: training step or batch number, for what is drawn anew at each.
    """

    root: int
    process: str
    layer: str = ""
    tile: int = 0
    chip: int = 0
    time_ns: int | None = None
    step: int | None = None

    def at(self, **changes: object) -> Stream:
        """The same stream with some parts of its key replaced."""
        parts = self.__dict__ | changes
        if len(parts) > len(self.__dict__):
            raise TypeError(f"a stream has no {', '.join(changes.keys() - self.__dict__.keys())}")
        # dataclasses.replace takes several times as long, for every tile and time.
        other = object.__new__(Stream)
        other.__dict__.update(parts)
        return other

    def key(self, chunk: int = 0) -> int:
        """The 128-bit key of this stream's ``chunk``-th stretch of numbers."""
        return int.from_bytes(_key(self.__dict__, chunk), "little")

    def generator(self, device: torch.device | str = "cpu", chunk: int = 0) -> torch.Generator:
        """A fresh generator at the beginning of the stream."""
        return _start(torch.Generator(device=device), _key(self.__dict__, chunk))

    def normal(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, float32, of the given shape."""
        return self._fill(torch.empty(shape, dtype=torch.float32, device=device), torch.Tensor.normal_)

    def normal_(self, out: Tensor) -> Tensor:
        """The numbers of :meth:`normal`, written into a contiguous float32 tensor."""
        return self._fill(out.view(-1), torch.Tensor.normal_).view(out.shape)

    @staticmethod
    def pieces(flat: Tensor, most: int) -> list[Tensor]:
        """A tensor of one dimension cut where :meth:`normal_pieces` can go on: so many numbers at a time, a
        multiple of 16, which torch makes at once.
        """
        return [piece for stretch in flat.split(_CHUNK) for piece in stretch.split(most)]

    def normal_pieces(self, outs: Sequence[Tensor]) -> Iterator[Tensor]:
        """The numbers of :meth:`normal`, written into tensors on the processor, each given back once it is
        filled; nothing else is to be drawn in this thread meanwhile.

        Args:
            outs: what :meth:`pieces` gave.
        """
        generator, start = _spare(torch.device("cpu")), 0
        for out in outs:
            if start % _CHUNK == 0:
                _start(generator, _key(self.__dict__, start // _CHUNK))
            yield out.normal_(generator=generator)
            start += out.numel()

    def following(self, device: torch.device | str = "cpu") -> Callable[[tuple[int, ...]], Tensor]:
        """Draws standard normal numbers of one shape after another, the first those of :meth:`normal` where
        they are few; a new key for each would cost more than few numbers do.
        """
        generator = self.generator(device)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device).normal_(generator=generator)

        return draw

    def uniforms(self, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Uniform numbers in [0, 1), float32 in steps of 2^-24, of the given shape."""
        return self._fill(torch.empty(shape, dtype=torch.float32, device=device), torch.Tensor.uniform_)

    def uniform_pieces(self, count: int, device: torch.device | str = "cpu") -> Iterator[Tensor]:
        """The numbers of ``uniforms((count,))``, a stretch at a time, for what would not fit in memory."""
        for chunk, start in enumerate(range(0, count, _CHUNK)):
            part = torch.empty(min(_CHUNK, count - start), dtype=torch.float32, device=device)
            yield part.uniform_(generator=_start(_spare(part.device), _key(self.__dict__, chunk)))

    def _fill(self, out: Tensor, fill: Callable[..., Tensor]) -> Tensor:
        generator = _spare(out.device)
        if out.numel() <= _CHUNK:
            return fill(out, generator=_start(generator, _key(self.__dict__)))
        for chunk, part in enumerate(out.view(-1).split(_CHUNK)):
            fill(part, generator=_start(generator, _key(self.__dict__, chunk)))
        return out

    def uniform(self) -> float:
        """One uniform number in [0, 1)."""
        return (self.key() >> 75) / (1 << 53)


def normals(
    streams: Sequence[Stream], sizes: Sequence[int], process: str, time_ns: int | None = None
) -> Tensor:
    """As many numbers of each stream as are asked for, one after the other, on the processor; each as by
    :meth:`Stream.normal`.

    Args:
        streams: where process and time are filled in, as by :meth:`Stream.at`.
        sizes: how many numbers of each.
        process: what they are for.
        time_ns: drift time, for what is drawn anew at each.
    """
    found = torch.empty(sum(sizes))
    generator = _spare(found.device)
    changes = {"process": process, "time_ns": time_ns}
    for stream, part in zip(streams, found.split_with_sizes(sizes), strict=True):
        if part.numel() <= _CHUNK:  # calls count where streams are short
            part.normal_(generator=_start(generator, _key(stream.__dict__ | changes)))
        else:
            stream.at(**changes).normal_(part)
    return found


def _key(parts: dict[str, object], chunk: int = 0) -> bytes:
    """The 128 bits of a key, of a stream's parts in their order and the stretch of its numbers."""
    values = (*parts.values(), chunk)
    if not _PLAIN.issuperset(map(type, values)):
        values = tuple([value if type(value) in _PLAIN else _plain(value) for value in values])
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()


class _Spare(threading.local):
    """Generators and states to write into, for draws that end before the next begins; new ones cost more."""

    def __init__(self) -> None:
        self.generators: dict[torch.device, torch.Generator] = {}
        self.philox = np.random.Philox(key=0)
        self.beginning: Any = self.philox.state
        self.key = self.beginning["state"]["key"].view(np.uint8).data
        self.state = torch.Generator().get_state()
        self.words = self.state.numpy()[_HEADER : _HEADER + 8 * _WORDS].view(np.uint64)


_SPARE = _Spare()


def _spare(device: torch.device) -> torch.Generator:
    generator = _SPARE.generators.get(device)
    if generator is None:
        generator = _SPARE.generators[device] = torch.Generator(device=device)
    return generator


def _start(generator: torch.Generator, key: bytes) -> torch.Generator:
    """Set a generator to the beginning of a key's numbers."""
    if generator.device.type == "cpu":
        _SPARE.key[:] = key
        _SPARE.philox.state = _SPARE.beginning
        _SPARE.words[:] = _SPARE.philox.random_raw(_WORDS // 2).view(np.uint32)
        return generator.set_state(_SPARE.state)
    return generator.manual_seed(int.from_bytes(key, "little") & _LOW)


def _plain(part: object) -> object:
    """A key's part as a plain value: what equals the integer 0 must give the numbers of 0."""
    if type(part) in _PLAIN:
        return part
    if isinstance(part, tuple):
        plain = type(part) is tuple and _PLAIN.issuperset(map(type, part))
        return part if plain else tuple(map(_plain, part))
    if isinstance(part, list):
        return list(map(_plain, part))
    if isinstance(part, np.generic):
        part = part.item()
    try:
        return operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        return part


def nanoseconds(seconds: float) -> int:
    """A drift time in the integer nanoseconds that keys hold."""
    return round(seconds * 1e9)


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any values with a stable ``repr``, for code that takes a plain integer.

    Numbers of NumPy, True and False count as the plain numbers that they equal.
    """
    digest = hashlib.blake2b(repr(_plain(parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def rng_preserved(seed: int | None = None) -> Iterator[None]:
    """Leave the global generators of Python, NumPy and torch (all devices) as found; inside, start them from
    ``seed`` if one is given.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % (1 << 32))  # noqa: NPY002
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
