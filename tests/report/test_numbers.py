"""Numbers for people: one minus sign everywhere."""

from __future__ import annotations

from types import SimpleNamespace

from analognoise.comparison.sharpness import _interval
from analognoise.printing import number
from analognoise.report.numbers import Numbers, one_value
from analognoise.report.one_model import figure


def test_tables_write_a_minus_sign_before_numbers_and_a_hyphen_in_exponents() -> None:
    row = SimpleNamespace(correlation=-0.3, low=-0.69, high=0.18)
    assert _interval(row) == "−0.30 [−0.69, 0.18]"
    assert Numbers("loss", percent=False, decimals=2).value(-1.48) == "−1.48"
    assert (one_value("loss", -1.48), figure("loss", -1.48)) == ("−1.48", "−1.48")
    assert number(-1.5e-7, ".4g") == "−1.5e-07"
    assert (number(0.4, ".1f"), number(float("nan"), ".4g")) == ("0.4", "nan")
