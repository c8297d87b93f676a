"""Drift times."""

import numpy as np
import pytest

from analognoise.errors import UnitError
from analognoise.units import approximate_time, format_time, parse_time, parse_times, short_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25s", 25.0),
        ("1h", 3600.0),
        ("1d", 86400.0),
        ("1mo", 2592000.0),
        ("1y", 31536000.0),
        ("1.5 hours", 5400.0),
        ("2e3 s", 2000.0),
        ("90", 90.0),
        ("3 min", 180.0),
        ("1W", 604800.0),
        (".5d", 43200.0),
        (86400, 86400.0),
        (0, 0.0),
    ],
)
def test_parse(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "bad", ["1 fortnight", "h", "", "one day", "-1s", "1 d 2 h", float("nan"), float("inf"), -1.0]
)
def test_bad_times_are_named(bad):
    with pytest.raises(UnitError, match=r"drift time") as caught:
        parse_time(bad)
    assert repr(bad) in str(caught.value)


def test_a_bad_unit_lists_the_known_ones():
    with pytest.raises(UnitError, match=r"unknown unit 'fortnight'.*s, min, h, d, w, mo, y"):
        parse_time("1 fortnight")
    with pytest.raises(UnitError, match=r"did you mean 'day'"):
        parse_time("3 dayz")


def test_lists_are_sorted_and_distinct():
    assert parse_times("1d, 1s,24h") == (1.0, 86400.0)
    assert parse_times(["1y", 1]) == (1.0, 31536000.0)
    assert parse_times(60) == (60.0,)
    with pytest.raises(UnitError, match="no drift time"):
        parse_times(" , ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 s"),
        (3600, "1 h"),
        (86400, "1 day"),
        (172800, "2 days"),
        (2592000, "1 month"),
        (31536000, "1 year"),
        (315360000, "10 years"),
        (129600, "36 h"),
        (90, "90 s"),
        (0, "0 s"),
        (0.5, "0.5 s"),
        (120, "2 min"),
    ],
)
def test_format(seconds, text):
    assert format_time(seconds) == text
    assert parse_time(short_time(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2592000.0, "1mo"),
        (129600, "36h"),
        (0.25, "0.25s"),
        (1e-9, "1e-09s"),
        (0.1 + 0.2, "0.30000000000000004s"),
        (999_999 * 31_536_000.0, "999999y"),
        (1e6 * 31_536_000.0, "3.1536e+13s"),
        (1e20, "1e+20s"),
    ],
)
def test_short_times_are_exact(seconds, text):
    assert short_time(seconds) == text
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (280000, "3.2 days"),
        (86400, "1 day"),
        (5e9, "159 years"),
        (4000, "1.1 h"),
        (0.25, "0.25 s"),
        (2592000 * 7, "7 months"),
    ],
)
def test_approximate(seconds, text):
    assert approximate_time(seconds) == text


def test_numbers_of_other_packages_and_nothing_at_all():
    assert parse_times(np.float32(3)) == (3.0,)
    assert parse_times(np.array([2.0, 1.0])) == (1.0, 2.0)
    assert parse_time(np.int64(5)) == 5.0
    for nothing in (None, [None], [[1.0]]):
        with pytest.raises(UnitError, match="is neither a number of seconds nor a text"):
            parse_times(nothing)
