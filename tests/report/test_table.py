from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analognoise.errors import ResultsError
from analognoise.report import markdown_table, print_summary, summary_csv, terminal_table

Frames = Callable[..., pd.DataFrame]


def cells(table: Table) -> list[list[Text]]:
    """The table's texts by row, headings left out."""
    columns = [list(column.cells) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def headings(table: Table) -> list[str]:
    return [str(column.header) for column in table.columns]


def printed(frame: pd.DataFrame, width: int, **options: object) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_summary(frame, console, **options)  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


def markdown_rows(text: str) -> list[list[str]]:
    """Cells of all table lines, split at pipes that are not escaped."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [
        [c.strip().replace("\0", "|") for c in line.replace("\\|", "\0").strip("|").split("|")]
        for line in lines
    ]


def styles_at(text: Text, part: str) -> set[str]:
    """All styles that lie on a part of a text, its own included."""
    start = text.plain.index(part)
    spans = [str(span.style) for span in text.spans if span.start <= start and span.end >= start + len(part)]
    return {word for style in [str(text.style), *spans] for word in [style] if word}


def test_headings_start_with_method_and_digital_then_times(two: pd.DataFrame) -> None:
    found = headings(terminal_table(two))
    assert found == ["method", "digital", "1 s", "1 h", "1 day", "1 month", "1 year"]


def test_cells_hold_percent_half_width_mark_and_change(two: pd.DataFrame) -> None:
    first, second = ([text.plain for text in row] for row in cells(terminal_table(two)))
    assert first[:3] == ["sgd", "96.0 ± 0.6", "95.1 ± 1.0 ★\n−0.9"]
    assert (
        first[6] == " 80.0 ± 1.0 ★\n−16.0"
    )  # padded to the width of "−16.0", so that points stand below points
    assert second[0] == "sam+clip"
    assert second[2:4] == ["95.0 ± 1.0\n−1.0", "94.5 ± 1.0 ★\n−1.5"]
    assert second[6] == " 90.0 ± 1.0 ★\n −6.0"


def test_an_interval_to_one_side_shows_how_far_it_reaches(two: pd.DataFrame) -> None:
    alike = two[two["method"] == "sgd"].assign(mean=1.0, low=0.97, high=1.0)
    assert cells(terminal_table(alike))[0][2].plain.startswith("100.0 ± 3.0")
    assert "100.0 ± 3.0" in markdown_table(alike)


def test_change_that_rounds_to_zero_has_no_sign(summary: Frames) -> None:
    frame = summary({"sgd": [0.9602, 0.9598], "sam": [0.961, 0.95]}, times=[1.0, 2.0], digital=0.96)
    first = [text.plain for text in cells(terminal_table(frame))[0]]
    assert first[2].split() == ["96.0", "±", "1.0", "0.0"]
    assert first[3].split()[-1] == "0.0"
    assert cells(terminal_table(frame))[1][2].plain.split()[-1] == "+0.1"


def test_best_is_bold_and_the_change_dim(two: pd.DataFrame) -> None:
    rows = cells(terminal_table(two))
    assert "bold" in styles_at(rows[0][2], "95.1 ± 1.0 ★")
    assert styles_at(rows[0][2], "−0.9") >= {"dim not bold"}
    assert "bold" not in styles_at(rows[1][2], "95.0 ± 1.0")
    assert "bold" in styles_at(rows[1][6], "90.0 ± 1.0 ★")
    assert "bold" not in styles_at(rows[0][6], "80.0 ± 1.0 ★")


def test_marks_are_exactly_the_frame_s(two: pd.DataFrame) -> None:
    rows = cells(terminal_table(two))
    marks = {(str(row[0]), c): "★" in row[2 + c].plain for row in rows for c in range(5)}
    for index, row in enumerate(two.itertuples()):
        assert marks[(row.method, index % 5)] == row.marked


def test_caption_says_what_the_numbers_mean(two: pd.DataFrame) -> None:
    caption = str(terminal_table(two, compensation="global").caption)
    assert caption.splitlines() == [
        "Mean ± 95 % Student-t interval over 3 training seeds, 25 chips each; below it: change from digital.",
        "★ not significantly worse than the best (bold) of its column, "
        "paired by training seed, Holm-corrected, 5 %.",
        "Not in the intervals: the test set's own sampling, a standard error of up to 1.2.",
        "Drift compensation: global.",
    ]
    caption = str(terminal_table(two.drop(columns="test_error"), confidence=0.9).caption)
    assert "90 % Student-t" in caption
    assert "10 %." in caption
    assert "sampling" not in caption
    assert "compensation" not in caption


def test_different_numbers_of_seeds_are_given_as_a_range(two: pd.DataFrame) -> None:
    two.loc[two["method"] == "sgd", "n"] = 2
    assert "over 2–3 training seeds, 25 chips each" in str(terminal_table(two).caption)


def test_one_training_seed_has_chips_as_unit_and_marks_only_the_best(summary: Frames) -> None:
    means = {"sgd": [0.95, 0.9], "sam": [0.94, 0.93]}
    frame = summary(means, [1.0, 60.0], unit="chip", n=25, marked=["sgd", "sam"], tested=False)
    frame[["digital_low", "digital_high"]] = math.nan
    table = terminal_table(frame)
    rows = [[text.plain for text in row] for row in cells(table)]
    assert rows[0][1:] == ["96.0", "95.0 ± 1.0 ★\n−1.0", "90.0 ± 1.0\n−6.0"]
    assert rows[1][2:] == ["94.0 ± 1.0\n−2.0", "93.0 ± 1.0 ★\n−3.0"]
    caption = str(table.caption)
    assert "over 25 chips;" in caption
    assert "One trained model: the interval says nothing about training it again." in caption
    assert "Bold and ★: best of its column; testing the others needs two training seeds." in caption
    assert "significantly" not in caption


def test_nan_interval_is_a_plain_mean_with_a_note(summary: Frames) -> None:
    frame = summary({"sgd": [0.95]}, [3600.0], half=math.nan, unit="chip", n=1)
    table = terminal_table(frame)
    assert [text.plain for text in cells(table)[0]] == ["sgd", "96.0 ± 0.6", "95.0\n−1.0"]
    assert "Mean over 1 chip, too few for an interval" in str(table.caption)


def test_failed_methods_are_called_failed(two: pd.DataFrame) -> None:
    two.loc[two["method"] == "sgd", ["mean", "low", "high", "std"]] = math.nan
    table = terminal_table(two)
    assert [text.plain for text in cells(table)[0]] == ["sgd", "96.0 ± 0.6", *["failed"] * 5]
    assert "Failed (training or evaluation broke down): sgd." in str(table.caption)
    assert markdown_rows(markdown_table(two))[2] == ["sgd", "96.0 ± 0.6", *["failed"] * 5]
    two["digital"] = math.nan
    assert cells(terminal_table(two))[0][1].plain == "failed"


def test_times_not_evaluated_are_a_dash(two: pd.DataFrame) -> None:
    table = terminal_table(two.drop(index=1))
    assert cells(table)[0][3].plain == "–"
    assert markdown_rows(markdown_table(two.drop(index=1)))[2][3] == "–"


def test_other_metrics_are_plain_numbers_with_three_digits(summary: Frames) -> None:
    means = {"sgd": [0.4567], "sam": [0.3]}
    loss = summary(means, [1.0], metric="loss", half=0.02, digital=0.25, lower_is_better=True)
    table = terminal_table(loss)
    assert str(table.title) == "Loss on pcm-ibm"
    first = [text.plain for text in cells(table)[0]]
    assert first[1:] == ["0.250 ± 0.006", " 0.457 ± 0.020\n+0.207"]
    means = {"sgd": [24.53], "sam": [23.0]}
    frame = summary(means, [1.0], metric="perplexity", half=0.2, digital=23.0, lower_is_better=True)
    assert [text.plain.split("\n")[0] for text in cells(terminal_table(frame))[0]][2] == "24.5 ± 0.2"
    narrow = summary(means, [1.0], metric="perplexity", half=0.004, digital=23.0, lower_is_better=True)
    assert cells(terminal_table(narrow))[0][2].plain.startswith("24.530 ± 0.004")


def test_narrow_intervals_in_percent_get_a_second_decimal(summary: Frames) -> None:
    frame = summary({"sgd": [0.98765]}, [1.0], half=0.0004)
    assert (
        cells(terminal_table(frame))[0][2].plain == "98.77 ± 0.04\n+2.77"
    )  # 98.765 as a float is a little more


def test_noise_levels_are_columns_in_order(levels: Frames) -> None:
    frame = levels({"sgd": [0.8, 0.95], "sam": [0.85, 0.94]}, [10, 2.5])
    table = terminal_table(frame)
    assert headings(table) == ["method", "digital", "2.5 %", "10 %"]
    assert str(table.title) == "Accuracy on gaussian (%)"
    assert [text.plain.split()[0] for text in cells(table)[0]] == ["sgd", "96.0", "95.0", "80.0"]


def test_a_single_drift_free_profile_has_one_column(summary: Frames) -> None:
    for time_s in (0.0, math.nan):
        frame = summary({"sgd": [0.95]}, [time_s], profile="gaussian@5%")
        assert headings(terminal_table(frame)) == ["method", "digital", "programmed"]
        assert str(terminal_table(frame).title) == "Accuracy on gaussian@5% (%)"
    assert headings(terminal_table(summary({"sgd": [0.95]}, [86400.0])))[2] == "1 day"


def test_a_profile_without_a_level_is_no_member_of_the_family(summary: Frames, levels: Frames) -> None:
    plain = summary({"sgd": [0.9]}, [0.0], profile="gaussian")
    frame = pd.concat([plain, levels({"sgd": [0.8, 0.95]}, [10, 2.5])], ignore_index=True)
    text = markdown_table(frame)
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "### Accuracy on gaussian (%)",
        "### Accuracy on gaussian (%)",
    ]
    assert markdown_rows(text)[0] == ["method", "digital", "programmed"]
    assert markdown_rows(text)[3] == ["method", "digital", "2.5 %", "10 %"]


def test_levels_with_drift_keep_their_time_axis(summary: Frames) -> None:
    parts = [summary({"sgd": [0.9, 0.8]}, [1.0, 60.0], profile=f"pcm-ibm@{p}%") for p in (5, 10)]
    frame = pd.concat(parts, ignore_index=True)
    heads = [row for row in markdown_rows(markdown_table(frame)) if row[0] == "method"]
    assert heads == [["method", "digital", "1 s", "1 min"]] * 2
    at_one_time = frame[frame["time_s"] == 60.0]
    assert str(terminal_table(at_one_time).title) == "Accuracy on pcm-ibm after 1 min (%)"


@pytest.mark.parametrize("width", [80, 120])
def test_prints_all_numbers_within_the_width(two: pd.DataFrame, levels: Frames, width: int) -> None:
    long = two.replace("sam+clip", "samson-inf+clip")
    frame = pd.concat([long, levels({"sgd": [0.9, 0.8]}, [5, 10])], ignore_index=True)
    text = printed(frame, width, compensation="none")
    assert max(map(len, text.splitlines())) <= width
    for number in ("96.0", "95.1 ", "±", "−16.0", "samson-inf+clip", "1 month", "Accuracy on gaussian (%)"):
        assert number in text
    assert "…" not in text
    assert text.count("Drift compensation: none.") == 2


def test_half_widths_move_below_the_means_when_the_terminal_is_narrow(two: pd.DataFrame) -> None:
    text = cells(terminal_table(two, width=70))[0][2]
    assert text.plain == "95.1 ★\n± 1.0\n−0.9"
    assert cells(terminal_table(two, width=120))[0][2].plain == "95.1 ± 1.0 ★\n−0.9"


def test_markdown_has_the_same_columns_in_every_row(two: pd.DataFrame, levels: Frames) -> None:
    odd = two.replace("sgd", "a|b")
    frame = pd.concat([odd, levels({"sgd": [0.9, 0.8], "sam": [0.91, 0.7]}, [5, 10])], ignore_index=True)
    text = markdown_table(frame, compensation="global")
    rows = markdown_rows(text)
    assert [len(row) for row in rows] == [7] * 4 + [4] * 4
    assert rows[2][0] == "a|b"
    assert set(rows[1][0]) == {"-"}
    assert all(rule.endswith("-:") for rule in rows[1][1:])
    lengths = [len(line) for line in text.splitlines() if line.startswith("|")]
    assert len(set(lengths[:4])) == 1  # aligned in the source too
    assert len(set(lengths[4:])) == 1
    assert text.count("- Drift compensation: global.") == 2
    assert text.endswith(".\n")


def test_markdown_cells(two: pd.DataFrame) -> None:
    rows = markdown_rows(markdown_table(two))
    assert rows[2][:3] == ["sgd", "96.0 ± 0.6", "**95.1 ± 1.0** ★ (−0.9)"]
    assert rows[3][2] == "95.0 ± 1.0 (−1.0)"
    assert rows[3][6] == "**90.0 ± 1.0** ★ (−6.0)"
    assert markdown_table(two, heading=2).startswith("## Accuracy on pcm-ibm (%)\n\n| method")


def test_one_method_is_neither_bold_nor_marked(summary: Frames) -> None:
    frame = summary({"": [0.95, 0.9]}, [1.0, 60.0])
    rows = markdown_rows(markdown_table(frame))
    assert rows[2] == ["model", "96.0 ± 0.6", "95.0 ± 1.0 (−1.0)", "90.0 ± 1.0 (−6.0)"]
    assert "★" not in markdown_table(frame)


def test_csv_keeps_every_digit(two: pd.DataFrame, tmp_path: Path) -> None:
    two["mean"] = two["mean"] / 3
    shuffled = two[[*reversed(two.columns)]].assign(extra=1)
    path = summary_csv(shuffled, tmp_path / "summary.csv")
    assert b"\r" not in path.read_bytes()
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert list(rows[0]) == [*two.columns, "extra"]
    for column in ("mean", "low", "digital", "time_s"):
        assert [float(row[column]) for row in rows] == list(two[column])
    assert [row["method"] for row in rows] == list(two["method"])
    assert {row["best"] for row in rows} == {"True", "False"}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]


def test_csv_that_cannot_be_written_says_where(two: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"cannot write .*absent.summary\.csv: No such file or directory"):
        summary_csv(two, tmp_path / "absent" / "summary.csv")
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames_are_refused(two: pd.DataFrame, summary: Frames) -> None:
    with pytest.raises(ResultsError, match=r"lacks the column 'digital': it has profile, method"):
        terminal_table(two.drop(columns="digital"))
    with pytest.raises(ResultsError, match="no rows"):
        markdown_table(two.iloc[:0])
    with pytest.raises(ResultsError, match="mixes the metrics accuracy, loss"):
        terminal_table(two.assign(metric=["accuracy"] * 5 + ["loss"] * 5))
    with pytest.raises(
        ResultsError, match=r"more than one row for profile 'pcm-ibm', method 'sgd', time 1 s"
    ):
        terminal_table(pd.concat([two, two.iloc[:1]]))
    both = pd.concat([two, summary({"sgd": [0.9]}, [1.0], profile="mine")])
    with pytest.raises(ResultsError, match=r"the summary has 2 \(pcm-ibm, mine\)"):
        terminal_table(both)
    same = pd.concat([summary({"sgd": [0.9]}, [0.0], profile=f"gaussian@{p}%") for p in ("5", "5.0")])
    with pytest.raises(ResultsError, match="same noise level"):
        terminal_table(same)


@pytest.mark.parametrize(("width", "tables"), [(80, 1), (60, 2), (45, 5)])
def test_long_names_break_between_hyperparameters_and_leave_the_figures_whole(
    two: pd.DataFrame, width: int, tables: int
) -> None:
    long = "samson-inf+clip:rho=0.2719:clip=1.63:lr=0.02977"
    text = printed(two.replace({"method": {"sgd": long}}), width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert words.count("digital") == tables
    for piece in ("samson-inf+clip:", "rho=0.2719:clip=1.63:", "lr=0.02977"):
        assert words.count(piece) == tables
    values = [f"{100 * mean:.1f}" for mean in two["mean"]]
    assert all(value in words for value in values)
    assert all(text.count(time) == 1 for time in ("1 s", "1 h", "1 day", "1 month", "1 year"))
