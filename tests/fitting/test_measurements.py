"""What can be read, and what is refused in which words."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analognoise.errors import DataError
from analognoise.fitting.cells import Ages, Cells, Levels
from analognoise.fitting.checks import check_duplicates, check_enough, check_units
from analognoise.fitting.measurements import Measurements, read_measurements
from analognoise.fitting.words import describe, when

LONG = """device,target_uS,time_s,conductance_uS
a,10,20,9.5
a,10,20,9.7
a,10,3600,8.1
b,0,20,0.1
"""


def written(folder: Path, text: str, name: str = "m.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(measured: Measurements) -> list[tuple[float, float, float]]:
    columns = (measured.target[measured.state], measured.time, measured.conductance)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_long_form(tmp_path: Path) -> None:
    measured = read_measurements(written(tmp_path, LONG))
    assert rows(measured) == [(10, 20, 9.5), (10, 20, 9.7), (10, 3600, 8.1), (0, 20, 0.1)]
    assert (measured.devices, measured.rows, measured.unit) == (2, 4, "uS")
    assert measured.state.tolist() == [0, 0, 0, 1]


def test_wide_form_repeated_headings_are_repeated_reads(tmp_path: Path) -> None:
    measured = read_measurements(
        written(tmp_path, "device,target_uS,20s,20s,1h\na,10,9.5,9.7,8.1\nb,0,0.1,,\n")
    )
    assert rows(measured) == rows(read_measurements(written(tmp_path, LONG)))


def test_frames_give_the_same_as_files(tmp_path: Path) -> None:
    path = written(tmp_path, LONG)
    assert rows(read_measurements(pd.read_csv(path))) == rows(read_measurements(path))
    wide = written(tmp_path, "device,target_uS,20s,20s,1h\na,10,9.5,9.7,8.1\nb,0,0.1,,\n", "w.csv")
    assert rows(read_measurements(pd.read_csv(wide))) == rows(read_measurements(path))


def test_units_come_from_the_headings(tmp_path: Path) -> None:
    text = "time_h,conductance_nS,device,target_mS,chip\n1,9500,a,0.01,3\n"
    measured = read_measurements(written(tmp_path, text))
    assert rows(measured) == [pytest.approx((10, 3600, 9.5))]
    assert measured.unused == ("chip",)
    measured = read_measurements(written(tmp_path, LONG), target_unit="nS", conductance_unit="mS")
    assert rows(measured)[0] == pytest.approx((0.01, 20, 9500))
    measured = read_measurements(written(tmp_path, "device,target_nA,time_s,conductance_uA\na,5,1,0.004\n"))
    assert (measured.unit, rows(measured)) == ("nA", [(5, 1, 4)])


def test_separators_comments_empty_lines_and_gzip(tmp_path: Path) -> None:
    text = "# of last week\n\n" + LONG.replace("b,", "# more\n\nb,").replace(",", ";")
    assert rows(read_measurements(written(tmp_path, text))) == rows(
        read_measurements(written(tmp_path, LONG))
    )
    path = tmp_path / "m.csv.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert rows(read_measurements(path)) == rows(read_measurements(written(tmp_path, LONG)))


def test_a_device_programmed_to_two_targets_is_two_states(tmp_path: Path) -> None:
    measured = read_measurements(written(tmp_path, LONG.replace("b,", "a,")))
    assert measured.devices == 1
    assert sorted(measured.target.tolist()) == [0, 10]
    assert rows(measured) == [(10, 20, 9.5), (10, 20, 9.7), (10, 3600, 8.1), (0, 20, 0.1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.csv is empty: it must begin with a line of headings"),
        ("device,target_uS,time_s,conductance_uS\n", "m.csv holds no reads"),
        (
            "device,target_uS,time_s,condutance_uS\na,1,1,1\n",
            "no column conductance_uS .did you mean 'condutance_uS'",
        ),
        ("device,target_uS,time_s\na,1,1\n", "no column conductance_uS: it has device, target_uS, time_s"),
        ("target_uS,time_s,conductance_uS\n1,1,1\n", "has no column device"),
        (
            "device,target,time_s,conductance_uS\na,1,1,1\n",
            "'target' without a unit that is known: name it target_uS",
        ),
        (
            "device,target_uS,time,conductance_uS\na,1,1,1\n",
            "'time' without a unit that is known: name it\n? ?time_s",
        ),
        ("device,target_uS,time_s,conductance_nA\na,1,1,1\n", "give both in siemens or both in amperes"),
        ("device,target_uS,target_nS,time_s,conductance_uS\na,1,1,1,1\n", "keep one of them"),
        (
            LONG + "b,0,3600,-0.02\n",
            "m.csv, line 6: conductance_uS is -0.02 but must be a number of at least 0",
        ),
        (LONG + "\n# x\nb,0,1,nan\n", "m.csv, line 8: conductance_uS is nan but must be"),
        (LONG + "b,0,1,\nb,0,1,\n", "line 6: conductance_uS is empty but must be a number"),
        (LONG + "b,0,1,inf\n", "line 6: conductance_uS is inf"),
        (LONG + "b,0,1,1 uS\n", "line 6: conductance_uS is 1 uS but"),
        (LONG + "b,-1,1,1\n", "line 6: target_uS is -1 but"),
        (LONG + "b,1,-5,1\n", "line 6: time_s is -5 but .*: count from the end of programming"),
        (LONG + ",1,1,1\n", "line 6: device is empty but must name the device"),
        (LONG + "b,1,1,1,1\n", "line 6: has 5 cells but the heading has 4"),
        (LONG + "b,1\n", "line 6: time_s is empty"),
        ("device,target_uS,20s,1h\na,1,0.9,x\n", "line 2: 1h is x but"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_measurements(written(tmp_path, text))


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv cannot be read: No such file"):
        read_measurements(tmp_path / "gone.csv")
    path = tmp_path / "m.xlsx"
    path.write_bytes(b"PK\x03\x04\xff\xfe\x00\x80binary")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_measurements(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_measurements(tmp_path)


def test_wrong_cells_of_a_frame_are_named_by_row() -> None:
    frame = pd.DataFrame(
        {"device": ["a", "b"], "target_uS": 1.0, "time_s": 1.0, "conductance_uS": [1.0, -2.0]}
    )
    with pytest.raises(DataError, match="the frame, row 1: conductance_uS is -2"):
        read_measurements(frame)


def test_negative_reads_count_as_zero_if_asked(tmp_path: Path) -> None:
    measured = read_measurements(written(tmp_path, LONG + "b,0,20,-0.02\n"), clamp_negative=True)
    assert (measured.conductance[-1], measured.clamped) == (0.0, 1)


def scaled(target: float, conductance: float, time: float = 1.0) -> Measurements:
    generator = np.random.default_rng(0)
    state = np.arange(100)
    aims = np.linspace(1, 25, 100)
    return Measurements(
        where="m.csv",
        unit="uS",
        state=state,
        time=np.full(100, 20.0 * time),
        conductance=aims * generator.normal(1, 0.05, 100) * conductance,
        target=aims * target,
        devices=100,
    )


def test_values_a_thousand_times_off_are_asked_about() -> None:
    check_units(scaled(1, 1), said=False)
    with pytest.raises(DataError, match=r"conductance_uS is about 1e\+03 times target_uS .*: is it in nS\?"):
        check_units(scaled(1, 1e3), said=False)
    with pytest.raises(DataError, match=r"is about 0\.001 times .*: is it in mS\?.*--conductance-unit uS"):
        check_units(scaled(1, 1e-3), said=False)
    with pytest.raises(DataError, match=r"2\.5e-05 microsiemens, which no device has"):
        check_units(scaled(1e-6, 1e-6), said=False)
    check_units(scaled(1, 1e3), said=True)
    with pytest.raises(DataError, match="more than ten years: are they in ms"):
        check_units(scaled(1, 1, 1e9), said=True)


def test_ages_that_nobody_measures_are_asked_about() -> None:
    for time, words in (
        (2e7, "reach 4e\\+08 s, more than ten years"),
        (1e-9, "begin at 2e-08 s, earlier than"),
    ):
        with pytest.raises(DataError, match=words):
            check_units(scaled(1, 1, time), said=False)


@pytest.mark.parametrize(("share", "states"), [(20, 5), (2, 50)])
def test_devices_in_another_unit_than_the_others_are_named(tmp_path: Path, share: int, states: int) -> None:
    path = tmp_path / "m.csv"
    factor = [1000 if index % share == 1 else 1 for index in range(100)]
    rows = [f"d{index},{5 + index / 10},20,{factor[index] * (5 + index / 10)}" for index in range(100)]
    path.write_text("# two units\ndevice,target_uS,time_s,conductance_uS\n" + "\n".join(rows) + "\n")
    words = (
        rf"{states} of 100 reads \(of {states} devices; the first is 'd1' at line 4\) are about 1000 times "
        r"target_uS, the others are not: are they in nS\?"
    )
    with pytest.raises(DataError, match=words):
        check_units(read_measurements(path), said=False)
    check_units(read_measurements(path), said=True)


def test_a_cell_too_many_in_every_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("device,target_uS,time_s,conductance_uS\na,1,20,1.1,9\nb,1,20,1.2,9\n")
    with pytest.raises(DataError, match=r"m\.csv, line 2: has 5 cells but the heading has 4"):
        read_measurements(path)


def repeated(values: np.ndarray, copies: int = 1) -> Measurements:
    """Ten reads each of 200 devices."""
    state = np.repeat(np.arange(200), 10)
    return Measurements(
        where="m.csv",
        unit="uS",
        state=np.tile(state, copies),
        time=np.full(2000 * copies, 20.0),
        conductance=np.tile(values, copies),
        target=np.linspace(1, 25, 200),
        devices=200,
    )


@pytest.mark.parametrize("decimals", [0, 1, 2, 4, 15])
def test_rows_that_stand_twice_are_found_and_equal_rounded_reads_are_none(decimals: int) -> None:
    generator = np.random.default_rng(0)
    aims = np.repeat(np.linspace(1, 25, 200), 10)
    values = np.round(aims * (1 + 0.03 * generator.standard_normal(2000)), decimals)
    measured = repeated(values)
    assert check_duplicates(measured, "refuse") is measured
    if decimals < 2:
        return  # here equal reads are the rule
    doubled = repeated(values, 2)
    with pytest.raises(DataError, match="of 4,000 reads are there several times"):
        check_duplicates(doubled, "refuse")
    assert check_duplicates(doubled, "keep") is doubled
    dropped = check_duplicates(doubled, "drop")
    assert dropped.rows + dropped.dropped == 4000
    assert dropped.rows == len(set(zip(measured.state.tolist(), values.tolist(), strict=True)))


def test_reads_within_two_percent_of_time_are_of_one_age() -> None:
    ages, index = Ages.of(np.array([20.0, 20.3, 20.41, 100.0, 20.0, 3600.0]))
    assert index.tolist() == [0, 0, 1, 2, 0, 3]
    assert ages.seconds.tolist() == pytest.approx([(20 + 20.3 + 20) / 3, 20.41, 100, 3600])


def test_cells_are_means_and_squares_of_the_reads(tmp_path: Path) -> None:
    cells, ages = Cells.of(read_measurements(written(tmp_path, LONG)), offset=0.0)
    assert cells.state.tolist() == [0, 0, 1]
    assert cells.reads.tolist() == [2, 1, 1]
    assert cells.mean.tolist() == pytest.approx([9.6, 8.1, 0.1])
    assert cells.squares.tolist() == pytest.approx([0.02, 0, 0])
    assert ages.seconds.tolist() == [20, 3600]


def test_levels_are_targets_where_these_are_few() -> None:
    few = Levels.of(np.repeat([0.0, 5.0, 25.0], 20))
    assert few.target.tolist() == [0, 5, 25]
    many = Levels.of(np.linspace(0, 25, 1000))
    assert not many.exact
    assert many.states.min() >= 10
    assert (np.diff(many.target) > 0).all()


def test_hints_about_capitals_and_decimal_commas(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("device,Target_US,time_s,conductance_uS\na,1,20,1.1\n")
    with pytest.raises(DataError, match="column 'Target_US' without a unit that is known: name it target_uS"):
        read_measurements(path)
    path.write_text("device,target_NA,time_s,conductance_nA\na,1,20,1.1\n")
    with pytest.raises(DataError, match="name it target_nA"):
        read_measurements(path)
    path.write_text("device;target_uS;time_s;conductance_uS\na;2,0;20;1,1\n")
    with pytest.raises(DataError, match=r"target_uS is 2,0 \(numbers have a point, as in 0\.5\) but must be"):
        read_measurements(path)


def test_words_about_one_are_in_the_singular_and_ages_are_short() -> None:
    facts = {"file": "m.csv", "reads": 40, "devices": 20, "programmed": 20, "targets": 1, "ages": 1}
    facts |= {"smallest_target": 8.0, "largest_target": 8.0, "ages_s": [20.0], "most_repeats": 2}
    assert describe(facts) == "m.csv: 40 reads of 20 devices at one target, 8, 20 s, up to 2 reads at one age"
    assert [when(60.0 * count) for count in (16700, 335, 45)] == ["12 days", "5.6 h", "45 min"]
    assert [when(seconds) for seconds in (200.0, 5400.0, 864000.0)] == ["200 s", "90 min", "10 days"]
    one = replace(scaled(1, 1), target=np.array([1.0]))
    with pytest.raises(DataError, match="holds 1 programmed device, but"):
        check_enough(one)
