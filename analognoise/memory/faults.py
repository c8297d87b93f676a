"""Faults of a digital memory: bits that flip, cells that are stuck.

Which cells are faulty belongs to the chip: it follows from the stream's key and the bit position alone, not
from what is stored. Each cell draws two uniform numbers, u for flips and v for being stuck, and each kind is
a range of them that grows with its rate. So a chip's faults at a rate are among those at a larger rate, and
among those of all positions when some are chosen.

For what is stored once and read back, "flip-0-to-1" and "stuck-at-1" at one rate have the same distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from analognoise.errors import FaultError, nearest
from analognoise.memory.words import bit_positions, check_encoding, check_words
from analognoise.seeds import Stream

KINDS = ("flip", "flip-0-to-1", "flip-1-to-0", "stuck-at-0", "stuck-at-1")
_STEP = 2.0**-24  # of uniform numbers


@dataclass(frozen=True)
class FaultModel:
    """What is wrong with the bits of a memory.

    Attributes:
        flip: probability that a bit is read as its opposite.
        flip_0_to_1: probability that a bit that holds 0 is read as 1, beside ``flip``.
        flip_1_to_0: probability that a bit that holds 1 is read as 0, beside ``flip``.
        stuck_at_0: probability that a cell holds 0 for good.
        stuck_at_1: probability that a cell holds 1 for good. A stuck cell does not flip.
        positions: bits that can be faulty: numbers from 0 (least significant), "lsb", "msb" or "sign" (the
            same bit); None for all.
        encoding: "twos-complement" or "sign-magnitude".

    Probabilities are those of a single cell, and are resolved in steps of 2^-24.

    Raises:
        FaultError: for a probability outside [0, 1], flips or stuck cells of more than 1 in all, an unknown
            encoding, or positions that no word of 8 bits has.
    """

    flip: float = 0.0
    flip_0_to_1: float = 0.0
    flip_1_to_0: float = 0.0
    stuck_at_0: float = 0.0
    stuck_at_1: float = 0.0
    positions: tuple[int | str, ...] | None = None
    encoding: str = "twos-complement"

    def __post_init__(self) -> None:
        for kind in KINDS:
            object.__setattr__(self, _field(kind), check_rate(getattr(self, _field(kind)), kind))
        both = {
            "flip + flip_0_to_1": self.flip + self.flip_0_to_1,
            "flip + flip_1_to_0": self.flip + self.flip_1_to_0,
            "stuck_at_0 + stuck_at_1": self.stuck_at_0 + self.stuck_at_1,
        }
        for names, total in both.items():
            if total > 1 + 1e-12:
                raise FaultError(f"{names} is {total:g}: one cell has one fault, so give at most 1 together")
        check_encoding(self.encoding)
        if self.positions is not None:
            given: Any = self.positions
            several = isinstance(given, Iterable) and not isinstance(given, str)
            kept = tuple(given) if several else (given,)
            bit_positions(kept, 8)
            object.__setattr__(self, "positions", kept)

    @classmethod
    def of(
        cls,
        kind: str | Mapping[str, float],
        rate: float,
        *,
        positions: Iterable[int | str] | int | str | None = None,
        encoding: str = "twos-complement",
    ) -> FaultModel:
        """Faults of one kind at a rate, or of several.

        Args:
            kind: "flip", "flip-0-to-1", "flip-1-to-0", "stuck-at-0" or "stuck-at-1"; or for a mixture a share
                of the rate by kind, as in ``{"stuck-at-0": 0.5, "stuck-at-1": 0.5}``; shares add up to 1.
            rate: probability of a single bit.
            positions: as the attribute.
            encoding: as the attribute.

        Raises:
            FaultError: when the kind is unknown, or as above.
        """
        rate = check_rate(rate, "rate")
        rates = {_field(name): share * rate for name, share in shares_of(kind).items()}
        return cls(**rates, positions=positions, encoding=encoding)  # type: ignore[arg-type]

    @property
    def rates(self) -> dict[str, float]:
        """Probability by kind, those above 0."""
        found = {kind: float(getattr(self, _field(kind))) for kind in KINDS}
        return {kind: rate for kind, rate in found.items() if rate}

    def __str__(self) -> str:
        rates = " ".join(f"{kind}={rate:g}" for kind, rate in self.rates.items()) or "no faults"
        where = "" if self.positions is None else f" bits {','.join(map(str, self.positions))}"
        return f"{rates}{where} {self.encoding}"


def _field(kind: str) -> str:
    return kind.replace("-", "_")


assert {_field(kind) for kind in KINDS} == {item.name for item in fields(FaultModel)[: len(KINDS)]}


def check_rate(rate: object, name: str) -> float:
    """A probability as a float.

    Raises:
        FaultError: when it is no number from 0 to 1.
    """
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0 <= float(rate) <= 1:  # NaN is not, too
        raise FaultError(f"{name} is {rate!r}: give a probability of at least 0 and at most 1")
    return float(rate)


def fault_rates(rates: Any) -> tuple[float, ...]:
    """Fault rates, increasing.

    Args:
        rates: one or several numbers from 0 to 1, or text such as ``"1e-4,1e-2"``.

    Raises:
        FaultError: when there is none, one is no such number, or one is there twice.
    """
    if isinstance(rates, str):
        given: list[Any] = [_number(part.strip()) for part in rates.split(",") if part.strip()]
    else:
        given = list(rates) if isinstance(rates, Iterable) else [rates]
    if not given:
        raise FaultError("rates is empty: name at least one fault rate, as in 1e-4,1e-2")
    found = sorted(check_rate(rate, "the fault rate") for rate in given)
    twice = next((one for one, other in pairwise(found) if one == other), None)
    if twice is not None:
        raise FaultError(f"rates holds {twice:g} twice: leave one out")
    return tuple(found)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def faults_label(faults: FaultModel) -> str:
    """Kind, bit positions and encoding in short, without the rate: ``flip``, ``flip (bits 0,sign)``,
    ``stuck-at-0:0.5+stuck-at-1:0.5 (sign-magnitude)``; two's complement is not said.
    """
    shares = faults.rates
    total = math.fsum(shares.values())
    kinds = "+".join(
        kind if len(shares) == 1 else f"{kind}:{share / total:g}" for kind, share in shares.items()
    )
    notes = [] if faults.positions is None else [f"bits {','.join(map(str, faults.positions))}"]
    notes += [] if faults.encoding == "twos-complement" else [faults.encoding]
    return f"{kinds} ({'; '.join(notes)})" if notes else kinds


def shares_of(kind: str | Mapping[str, float]) -> dict[str, float]:
    """The share of the rate that each kind of fault has, in the order of :data:`KINDS`.

    Raises:
        FaultError: for an unknown kind, or shares that are no numbers from 0 to 1, or do not add up to 1.
    """
    given = kind if isinstance(kind, Mapping) else {kind: 1.0}
    for name in given:
        if not isinstance(name, str) or name not in KINDS:
            hint = nearest(name, KINDS) if isinstance(name, str) else ""
            raise FaultError(f"unknown kind of fault {name!r}{hint}: known are {', '.join(KINDS)}")
    shares = {name: check_rate(given[name], f"the share of {name}") for name in KINDS if name in given}
    if not any(shares.values()):
        raise FaultError("the mixture of faults is empty: give at least one kind a share above 0")
    total = math.fsum(shares.values())
    if not math.isclose(total, 1.0, rel_tol=1e-6):
        raise FaultError(
            f"the shares of {', '.join(shares)} add up to {total:g}: give shares of the rate that add up to 1"
        )
    return shares


def faulty_words(words: Tensor, bits: int, faults: FaultModel, stream: Stream) -> Tensor:
    """What a chip reads where words were stored.

    Needs little memory beside the result: words are worked on in pieces.

    Args:
        words: ``uint8`` words of any shape and device, as :func:`analognoise.memory.words.encode` gives them.
        bits: of a word, 2 to 8.
        faults: what is wrong with the memory.
        stream: the key of this memory on its chip (root seed, layer, chip); the n-th word in row-major order
            has the n-th number of the stream of each bit position.

    Raises:
        FaultError: when the words are not ``uint8``, or a position is outside the word.
    """
    check_words(words)
    positions = bit_positions(faults.positions, bits)
    found = words.clone(memory_format=torch.contiguous_format)
    flat = found.view(-1)
    up, down = faults.flip + faults.flip_0_to_1, faults.flip + faults.flip_1_to_0
    for position in positions:
        bit = 1 << position
        at = stream.at(step=position)
        if up or down:
            for part, u in _pieces(flat, at.at(process="memory-flip")):
                holds = part.bitwise_and(bit) != 0
                flips = u < up if up == down else torch.where(holds, u < down, u < up)
                part.bitwise_xor_(flips.to(torch.uint8).mul_(bit))
        if faults.stuck_at_0 or faults.stuck_at_1:
            for part, v in _pieces(flat, at.at(process="memory-stuck")):
                if faults.stuck_at_0:
                    part.bitwise_and_(~(v < faults.stuck_at_0).to(torch.uint8).mul_(bit))
                if faults.stuck_at_1:  # from the other end, so that both kinds grow without meeting
                    part.bitwise_or_((1.0 - _STEP - v < faults.stuck_at_1).to(torch.uint8).mul_(bit))
    return found


def _pieces(flat: Tensor, stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """Stretches of words with their uniform numbers."""
    start = 0
    for numbers in stream.uniform_pieces(flat.numel(), flat.device):
        yield flat[start : start + numbers.numel()], numbers
        start += numbers.numel()


def count_changed_bits(before: Tensor, after: Tensor, bits: int) -> tuple[int, ...]:
    """How many words differ in each bit, from the least significant one.

    Raises:
        FaultError: when the words are not ``uint8``.
    """
    check_words(before)
    check_words(after)
    changed = before ^ after
    return tuple(int((changed & (1 << position)).count_nonzero()) for position in range(bits))


def expected_rate(faults: FaultModel, ones: float) -> float:
    """The probability that a single bit is read wrongly, where a share ``ones`` of the bits holds 1.

    From the definitions: a cell is stuck with probability s₀ + s₁ and else flips, so
    (1 − o)·(s₁ + (1 − s₀ − s₁)·(f + f₀₁)) + o·(s₀ + (1 − s₀ − s₁)·(f + f₁₀)).
    """
    free = 1 - faults.stuck_at_0 - faults.stuck_at_1
    up = faults.stuck_at_1 + free * (faults.flip + faults.flip_0_to_1)
    down = faults.stuck_at_0 + free * (faults.flip + faults.flip_1_to_0)
    return math.fsum(((1 - ones) * up, ones * down))
