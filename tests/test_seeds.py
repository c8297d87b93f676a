"""Streams: moments, independence of 64-bit keys, global generators left alone."""

import math
import random

import numpy as np
import pytest
import torch

from analognoise.seeds import Stream, derive_seed, nanoseconds, rng_preserved


def test_moments_of_a_long_stream():
    n = 3_000_000  # three chunks
    z = Stream(7, "program").normal((n,)).double()
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)


def test_first_numbers_of_many_keys_are_normal_and_independent():
    """A generator that is badly filled from its key shows in the first numbers of neighbouring keys."""
    n = 20_000
    first = torch.stack([Stream(0, "read", chip=chip).normal((2,)) for chip in range(n)]).double()
    assert first.mean(0).abs().max() < 4 / math.sqrt(n)
    assert (first.var(0) - 1).abs().max() < 4 * math.sqrt(2 / n)
    assert abs(torch.corrcoef(first.T)[0, 1]) < 4 / math.sqrt(n)
    lagged = torch.corrcoef(torch.stack((first[1:, 0], first[:-1, 0])))[0, 1]
    assert abs(lagged) < 4 / math.sqrt(n)


def test_the_key_holds_more_than_32_bits_of_the_seed():
    a, b = Stream(5, "x"), Stream(5 + (1 << 32), "x")
    assert a.key() != b.key()
    assert not torch.equal(a.normal((8,)), b.normal((8,)))


@pytest.mark.parametrize(
    "change",
    [{"root": 1}, {"process": "q"}, {"layer": "l"}, {"tile": 1}, {"chip": 1}, {"time_ns": 0}, {"step": 0}],
)
def test_every_part_of_the_key_matters(change):
    stream = Stream(0, "p")
    assert stream.key() != stream.at(**change).key()
    assert torch.equal(stream.normal((100,)), Stream(0, "p").normal((100,)))


def test_a_shorter_draw_is_the_beginning_of_a_longer_one_across_chunks():
    stream = Stream(2, "p")
    long = stream.normal(((1 << 20) + 40,))
    assert torch.equal(stream.normal((1 << 20,)), long[: 1 << 20])


def test_what_is_drawn_on_and_on_is_the_stream_from_its_beginning():
    stream = Stream(5, "product", layer="a", step=(1, 0))
    draw = stream.following()
    pieces = [draw((4, 16)), draw((3, 2, 16)), draw((32,))]
    whole = torch.cat([piece.flatten() for piece in pieces])
    assert torch.equal(whole, stream.normal((192,)))  # torch makes 16 at a time
    assert torch.equal(stream.following()((5, 7)), stream.normal((5, 7)))


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    numpy_before = np.random.get_state()[1].copy()
    Stream(0, "p").normal((1000,))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


def test_rng_preserved_restores_all_three_generators_even_after_an_error():
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with pytest.raises(RuntimeError), rng_preserved(seed=(1 << 40) + 5):  # noqa: PT012
        torch.rand(5), np.random.rand(5), random.random()
        raise RuntimeError
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()
    assert random.random() == expected[2]


@pytest.mark.parametrize("part", ["root", "tile", "chip", "time_ns", "step"])
@pytest.mark.parametrize("zero", [np.int64(0), np.uint8(0), np.array(0), torch.tensor(0), False, np.False_])
def test_what_equals_an_integer_gives_its_numbers(part, zero):
    plain = Stream(0, "p", time_ns=0, step=0)
    assert plain.at(**{part: zero}).key() == plain.key(np.int64(0)) == plain.key()
    assert derive_seed("a", zero, (zero, 1.0)) == derive_seed("a", 0, (0, 1.0))
    assert derive_seed([zero]) == derive_seed([0]) != derive_seed(0)
    assert plain.at(step=torch.Size((2, 3))).key() == plain.at(step=(2, 3)).key()


def test_numpy_floats_are_floats():
    assert derive_seed("a", np.float64(0.1)) == derive_seed("a", 0.1) != derive_seed("a", np.float32(0.1))


def test_keys_stay_what_they_were():
    """Stored results and chips rest on these numbers."""
    assert Stream(7, "program", "fc", 1, 2, 3, 4).key(5) == 250961096145186981389222814319707547194
    assert Stream(0, "p").key() == 16960135853542285805974329040846726530
    assert derive_seed("evaluation", 7, (1, 3600.0)) == 1042550901512006857
    assert derive_seed("evaluation", 7, "digital") == 5850867560906012523


def test_uniform_and_derived_seeds():
    values = [Stream(0, "u", step=step).uniform() for step in range(10_000)]
    assert abs(np.mean(values) - 0.5) < 4 * math.sqrt(1 / 12 / 10_000)
    assert 0 <= min(values) < max(values) < 1
    assert derive_seed("a", 1) != derive_seed("a", 2)
    assert 0 <= derive_seed("a", 1) < 1 << 63
    assert nanoseconds(1.5e-9 * 2) == 3
