"""Faults of memory bits: tables checked by hand, counts within binomial bounds, what chips promise."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from analognoise.errors import FaultError
from analognoise.memory.faults import (
    KINDS,
    FaultModel,
    count_changed_bits,
    expected_rate,
    faults_label,
    faulty_words,
)
from analognoise.memory.words import ENCODINGS, decode, encode
from analognoise.seeds import Stream

TWOS, SIGN = ENCODINGS
CHIP = Stream(0, "", "fc", chip=3)
TAIL = 1e-6  # of a binomial distribution, on either side


def words_of(size: int, bits: int = 8) -> Tensor:
    """Random words, each bit 1 in half of them."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 1 << bits, (size,), dtype=torch.uint8, generator=generator)


def inside(count: int, trials: int, rate: float) -> bool:
    low, high = stats.binom.ppf([TAIL, 1 - TAIL], trials, rate)
    return bool(low <= count <= high)


# 4-bit words; codes before, then after a fault in every chosen cell (rate 1).
#   two's complement:  5 = 0101, -6 = 1010, 0 = 0000, -1 = 1111
#   sign-magnitude:    5 = 0101, -6 = 1110, 0 = 0000, -7 = 1111
@pytest.mark.parametrize(
    ("encoding", "kind", "positions", "before", "after"),
    [
        (TWOS, "flip", None, [5, -6, 0, -1], [-6, 5, -1, 0]),
        (TWOS, "flip", 0, [5, -6, 0, -1], [4, -5, 1, -2]),
        (TWOS, "flip", 2, [5, -6, 0, -1], [1, -2, 4, -5]),
        (TWOS, "flip", "msb", [5, -6, 0, -1], [-3, 2, -8, 7]),
        (TWOS, "flip-0-to-1", None, [5, -6, 0, -1], [-1, -1, -1, -1]),
        (TWOS, "flip-0-to-1", "sign", [5, -6, 0, -1], [-3, -6, -8, -1]),
        (TWOS, "flip-0-to-1", 1, [5, -6, 0, -1], [7, -6, 2, -1]),
        (TWOS, "flip-1-to-0", None, [5, -6, 0, -1], [0, 0, 0, 0]),
        (TWOS, "flip-1-to-0", "msb", [5, -6, 0, -1], [5, 2, 0, 7]),
        (TWOS, "stuck-at-0", [0, 3], [5, -6, 0, -1], [4, 2, 0, 6]),
        (TWOS, "stuck-at-1", [0, 3], [5, -6, 0, -1], [-3, -5, -7, -1]),
        (SIGN, "flip", None, [5, -6, 0, -7], [-2, 1, -7, 0]),
        (SIGN, "flip", "lsb", [5, -6, 0, -7], [4, -7, 1, -6]),
        (SIGN, "flip", "sign", [5, -6, 0, -7], [-5, 6, 0, 7]),
        (SIGN, "flip-0-to-1", None, [5, -6, 0, -7], [-7, -7, -7, -7]),
        (SIGN, "flip-0-to-1", "msb", [5, -6, 0, -7], [-5, -6, 0, -7]),
        (SIGN, "flip-1-to-0", [1, 2], [5, -6, 0, -7], [1, 0, 0, -1]),
        (SIGN, "stuck-at-0", "sign", [5, -6, 0, -7], [5, 6, 0, 7]),
        (SIGN, "stuck-at-1", 3, [5, -6, 0, -7], [-5, -6, 0, -7]),
        (SIGN, "stuck-at-1", 0, [5, -6, 0, -7], [5, -7, 1, -7]),
    ],
)
def test_table(encoding: str, kind: str, positions: object, before: list, after: list) -> None:
    faults = FaultModel.of(kind, 1.0, positions=positions, encoding=encoding)  # type: ignore[arg-type]
    words = encode(torch.tensor(before), 4, encoding)
    found = faulty_words(words, 4, faults, CHIP)
    assert decode(found, 4, encoding).tolist() == after
    assert decode(words, 4, encoding).tolist() == before  # what is stored stays


# Words 0 to 15 at rate 0.2: by hand from the uniform numbers below 0.2 in CHIP's streams. For flips bit 0 has
# them at word 8; bit 1 at 6, 7 and 13; bit 2 at 3, 4, 10, 13 and 15; bit 3 at 9.
@pytest.mark.parametrize(
    ("kind", "golden"),
    [
        ("flip", [1, 9, 6, 3, 4, 3, 6, 3, 8, 9, 10, 15, 8, 13, 12, 13]),
        ("flip-0-to-1", [1, 9, 6, 3, 4, 7, 6, 7, 8, 9, 10, 15, 12, 13, 14, 15]),
        ("flip-1-to-0", [0, 1, 2, 3, 4, 1, 6, 3, 8, 9, 10, 11, 8, 13, 12, 13]),
        ("stuck-at-0", [0, 1, 2, 1, 4, 5, 6, 7, 8, 8, 10, 3, 12, 13, 14, 15]),
        ("stuck-at-1", [2, 3, 2, 7, 4, 13, 6, 7, 8, 9, 10, 11, 12, 15, 14, 15]),
    ],
)
def test_one_chip_bit_for_bit(kind: str, golden: list) -> None:
    # stored in the order of two's complement codes, -8 to 7
    words = encode(torch.arange(-8, 8), 4, TWOS)
    found = faulty_words(words, 4, FaultModel.of(kind, 0.2), CHIP)
    assert found.roll(8).tolist() == golden


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [1e-5, 1e-3, 1e-1])
def test_counts_within_binomial_bounds_at_ten_million_bits(kind: str, rate: float) -> None:
    words = words_of(1_250_000)
    ones = sum(int((words & (1 << i)).count_nonzero()) for i in range(8))
    changed = count_changed_bits(words, faulty_words(words, 8, FaultModel.of(kind, rate), CHIP), 8)
    trials = {"flip": 10_000_000, "flip-0-to-1": 10_000_000 - ones, "stuck-at-1": 10_000_000 - ones}
    assert inside(sum(changed), trials.get(kind, ones), rate)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_position_is_as_likely(kind: str) -> None:
    words = words_of(1_250_000)
    faults = FaultModel.of(kind, 0.01)
    changed = count_changed_bits(words, faulty_words(words, 8, faults, CHIP), 8)
    ones = [int((words & (1 << i)).count_nonzero()) for i in range(8)]
    can = {"flip": [1_250_000] * 8, "flip-0-to-1": [1_250_000 - n for n in ones]}
    can["stuck-at-1"] = can["flip-0-to-1"]
    expected = [0.01 * n for n in can.get(kind, ones)]
    chi = sum((found - mean) ** 2 / (0.99 * mean) for found, mean in zip(changed, expected, strict=True))
    assert stats.chi2.sf(chi, 8) > 1e-4


def test_only_the_chosen_bits_are_faulty_and_they_are_those_of_all_positions() -> None:
    words = words_of(100_000)
    every = faulty_words(words, 8, FaultModel(flip=0.1), CHIP)
    some = faulty_words(words, 8, FaultModel(flip=0.1, positions=("msb", 2)), CHIP)
    assert torch.equal(words ^ some, (words ^ every) & 0b10000100)


def test_a_mixture_has_each_kind_at_its_rate() -> None:
    faults = FaultModel(0.02, 0.01, 0.03, 0.04, 0.05)
    zeros, ones = torch.zeros(500_000, dtype=torch.uint8), torch.full((500_000,), 255, dtype=torch.uint8)
    up = sum(count_changed_bits(zeros, faulty_words(zeros, 8, faults, CHIP), 8))
    down = sum(count_changed_bits(ones, faulty_words(ones, 8, faults, CHIP), 8))
    assert expected_rate(faults, 0.0) == pytest.approx(0.05 + 0.91 * 0.03)
    assert expected_rate(faults, 1.0) == pytest.approx(0.04 + 0.91 * 0.05)
    assert inside(up, 4_000_000, expected_rate(faults, 0.0))
    assert inside(down, 4_000_000, expected_rate(faults, 1.0))
    shares = FaultModel.of({"stuck-at-1": 0.25, "flip": 0.75}, 0.1)
    assert shares.rates == pytest.approx({"flip": 0.075, "stuck-at-1": 0.025})


@pytest.mark.parametrize("kind", KINDS)
def test_faults_at_a_rate_are_among_those_at_a_larger_one(kind: str) -> None:
    stored = torch.full((200_000,), 0 if kind in ("flip", "flip-0-to-1", "stuck-at-1") else 255).byte()
    before = torch.zeros_like(stored)
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        now = faulty_words(stored, 8, FaultModel.of(kind, rate), CHIP) ^ stored
        assert torch.equal(before & now, before)
        assert now.count_nonzero() > before.count_nonzero()
        before = now


def test_stuck_cells_do_not_depend_on_what_is_stored() -> None:
    faults = FaultModel(stuck_at_0=0.02, stuck_at_1=0.03)
    zeros, ones = torch.zeros(100_000, dtype=torch.uint8), torch.full((100_000,), 255, dtype=torch.uint8)
    high = faulty_words(zeros, 8, faults, CHIP)  # ones where stuck at 1
    low = ~faulty_words(ones, 8, faults, CHIP)  # ones where stuck at 0
    assert not (high & low).any()
    words = words_of(100_000)
    assert torch.equal(faulty_words(words, 8, faults, CHIP), (words & ~low) | high)


def test_chips_layers_and_seeds_are_independent() -> None:
    words = torch.zeros(250_000, dtype=torch.uint8)
    faults = FaultModel(flip=0.1)
    base = faulty_words(words, 8, faults, CHIP)
    assert torch.equal(base, faulty_words(words, 8, faults, CHIP))
    for changed in ({"chip": 4}, {"layer": "conv1"}, {"root": 1}):
        other = faulty_words(words, 8, faults, CHIP.at(**changed))
        both = sum(int((base & other & (1 << i)).count_nonzero()) for i in range(8))
        assert inside(both, 2_000_000, 0.01)  # independent: 0.1 · 0.1
    flips, stuck = (faulty_words(words, 8, FaultModel.of(kind, 0.1), CHIP) for kind in ("flip", "stuck-at-1"))
    both = sum(int((flips & stuck & (1 << i)).count_nonzero()) for i in range(8))
    assert inside(both, 2_000_000, 0.01)
    positions = sum(int((base & base >> 1 & (1 << i)).count_nonzero()) for i in range(7))
    assert inside(positions, 1_750_000, 0.01)


def test_fewer_words_are_the_first_of_many_and_shape_does_not_matter() -> None:
    words = words_of(3 << 19)  # more than one piece
    faults = FaultModel(flip=0.05, stuck_at_0=0.01)
    found = faulty_words(words, 8, faults, CHIP)
    assert torch.equal(faulty_words(words[:1000], 8, faults, CHIP), found[:1000])
    assert torch.equal(faulty_words(words.view(3, -1), 8, faults, CHIP).view(-1), found)
    turned = words[:1000].view(10, 100).t()
    again = faulty_words(turned, 8, faults, CHIP)
    assert torch.equal(again, faulty_words(turned.contiguous(), 8, faults, CHIP))
    assert faulty_words(words[:0], 8, faults, CHIP).numel() == 0


def test_rates_of_0_and_1() -> None:
    words = words_of(1000)
    assert torch.equal(faulty_words(words, 8, FaultModel(), CHIP), words)
    assert torch.equal(faulty_words(words, 8, FaultModel(flip=1.0), CHIP), ~words)
    halves = faulty_words(words, 8, FaultModel(stuck_at_0=0.5, stuck_at_1=0.5), CHIP)
    assert torch.equal(halves, faulty_words(~words, 8, FaultModel(stuck_at_0=0.5, stuck_at_1=0.5), CHIP))


def test_uniform_pieces_are_the_stream() -> None:
    stream = Stream(5, "memory-flip", "a", step=2)
    count = (1 << 20) + 17
    pieces = list(stream.uniform_pieces(count))
    assert max(piece.numel() for piece in pieces) == 1 << 20
    assert torch.equal(torch.cat(pieces), stream.uniforms((count,)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"flip": 1.5}, "flip is 1.5: give a probability"),
        ({"flip": -0.1}, "flip is -0.1"),
        ({"stuck_at_0": math.nan}, "stuck-at-0 is nan"),
        ({"stuck_at_1": "0.1"}, "stuck-at-1 is '0.1'"),
        ({"flip": 0.6, "flip_0_to_1": 0.6}, "flip \\+ flip_0_to_1 is 1.2"),
        ({"stuck_at_0": 0.6, "stuck_at_1": 0.6}, "stuck_at_0 \\+ stuck_at_1 is 1.2"),
        ({"encoding": "gray"}, "unknown encoding 'gray'"),
        ({"positions": (8,)}, "bit position 8 is outside"),
        ({"positions": ()}, "names no bit"),
        ({"positions": 1.0}, r"bit position 1\.0 is outside"),
    ],
)
def test_impossible_faults_are_named(arguments: dict, said: str) -> None:
    with pytest.raises(FaultError, match=said):
        FaultModel(**arguments)


def test_impossible_kinds_are_named() -> None:
    with pytest.raises(FaultError, match=r"unknown kind of fault 'flips'.*did you mean 'flip'"):
        FaultModel.of("flips", 0.1)
    with pytest.raises(FaultError, match="rate is 2"):
        FaultModel.of("flip", 2)
    with pytest.raises(FaultError, match="the share of flip is 3"):
        FaultModel.of({"flip": 3}, 0.1)
    with pytest.raises(FaultError, match="mixture of faults is empty"):
        FaultModel.of({}, 0.1)
    with pytest.raises(FaultError, match=r"the shares of stuck-at-0, stuck-at-1 add up to 2: give shares"):
        FaultModel.of({"stuck-at-0": 1, "stuck-at-1": 1}, 0.1)
    with pytest.raises(FaultError, match="bit position 7 is outside a word of 4 bits"):
        faulty_words(words_of(10, 4), 4, FaultModel(flip=0.1, positions=(7,)), CHIP)


def test_model_is_a_value() -> None:
    one = FaultModel.of("flip", 1e-3, positions="msb", encoding=SIGN)
    assert one == FaultModel(flip=1e-3, positions=("msb",), encoding=SIGN)
    assert hash(one) == hash(FaultModel(flip=1e-3, positions=("msb",), encoding=SIGN))
    assert str(one) == "flip=0.001 bits msb sign-magnitude"


@pytest.mark.parametrize(
    ("kind", "options", "label"),
    [
        ("flip", {}, "flip"),
        ("flip", {"positions": (0, "sign")}, "flip (bits 0,sign)"),
        ("stuck-at-1", {"encoding": SIGN, "positions": 3}, "stuck-at-1 (bits 3; sign-magnitude)"),
        ({"stuck-at-1": 0.25, "stuck-at-0": 0.75}, {}, "stuck-at-0:0.75+stuck-at-1:0.25"),
    ],
)
def test_label(kind: object, options: dict, label: str) -> None:
    assert faults_label(FaultModel.of(kind, 0.2, **options)) == label  # type: ignore[arg-type]
