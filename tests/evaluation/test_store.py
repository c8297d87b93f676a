"""results.csv: what is written, what survives a kill, what is refused."""

from __future__ import annotations

import codecs
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analognoise.errors import ResultsError
from analognoise.evaluation.row_text import header_of, read_results
from analognoise.evaluation.rows import Row, rows_to_frame
from analognoise.evaluation.store import ResultStore

HEADER = header_of(Row)
COLUMNS = tuple(HEADER.strip().split(","))


def row(chip: int = 0, time_s: float = 1.0, **changes: object) -> Row:
    base = Row("run1", "pcm-ibm", "sam+clip:rho=0.1", 3, chip, time_s, "accuracy", 331.0, 360.0, 0.0, 0.95)
    changed = replace(base, **changes)
    return changed if "value" in changes else replace(changed, value=changed.sum / changed.count)


def block(chip: int) -> list[Row]:
    return [row(chip, t, sum=330 + chip / 7 - t / 1e9) for t in (1.0, 3600.0, 86400.0)]


def test_columns_and_exact_numbers(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with ResultStore(path) as store:
        store.append([row(), row(0, 0.1 + 0.2, run_id="run2", sum=9e-299, training_seed=None, method="")])
    lines = path.read_text().splitlines()
    assert lines[0] == ("run_id,profile,method,training_seed,chip,time_s,metric,sum,count,value,digital")
    assert lines[1] == "run1,pcm-ibm,sam+clip:rho=0.1,3,0,1,accuracy,331,360,0.9194444444444444,0.95"
    assert lines[2] == "run2,pcm-ibm,,,0,0.30000000000000004,accuracy,9e-299,360,2.5e-301,0.95"
    assert ResultStore(path).rows == store.rows  # every number comes back to the last bit


def test_numpy_numbers_are_plain_numbers(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultStore(path).append(
        [row(value=np.float64(0.25), sum=np.float32(90), count=np.int64(360), chip=np.int64(2))]
    )
    assert path.read_text().splitlines()[1].endswith(",2,1,accuracy,90,360,0.25,0.95")


def test_names_with_commas_and_quotes_come_back(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    odd = row(method='noise,"0.1"', profile="größe, µS")
    ResultStore(path).append([odd])
    assert ResultStore(path).rows == [odd]


def test_frame_types(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultStore(path).append([row(), row(run_id="run2", training_seed=None)])
    frame = read_results(path)
    assert tuple(frame.columns) == COLUMNS
    assert frame["training_seed"].iloc[0] == 3
    assert frame["training_seed"].isna().iloc[1]
    assert frame["value"].dtype == frame["time_s"].dtype == np.float64
    pd.testing.assert_frame_equal(frame, rows_to_frame([row(), row(run_id="run2", training_seed=None)]))
    assert list(rows_to_frame([]).columns) == list(COLUMNS)


def test_nothing_is_created_before_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.csv"
    with ResultStore(path, "run1") as store:
        store.append([])
        assert not path.parent.exists()
        store.append([row()])
        assert path.exists()


def test_rows_are_there_before_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    store = ResultStore(path, "run1")
    for chip in range(3):
        store.append(block(chip))
        assert len(path.read_text().splitlines()) == 1 + 3 * (chip + 1)
    assert ("run1", 2, 3600.0) in store
    assert ("run1", 3, 1.0) not in store
    assert store.get("run1", 1, 1.0) == block(1)[0]
    assert store.get("other", 1, 1.0) is None


def fill(path: Path, chips: int) -> None:
    """What an evaluation does: add what is missing, chip by chip."""
    with ResultStore(path, "run1") as store:
        for chip in range(chips):
            store.append([r for r in block(chip) if r.key not in store])


def test_cut_anywhere_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = tmp_path / "whole.csv"
    fill(whole, 3)
    content = whole.read_bytes()
    path = tmp_path / "cut.csv"
    ends = [place for place, byte in enumerate(content) if byte == ord("\n")]
    lengths = {*range(0, len(content), 7), *ends, *(end + 1 for end in ends), *(end + 2 for end in ends)}
    for length in sorted(length for length in lengths if length < len(content)):
        path.write_bytes(content[:length])
        cut_in_line = length > 0 and content[length - 1 : length] != b"\n"
        with warnings.catch_warnings(record=True) as notices:
            warnings.simplefilter("always")
            fill(path, 3)
        assert path.read_bytes() == content, length
        assert [("cut short" in str(n.message), str(path) in str(n.message)) for n in notices] == (
            [(True, True)] if cut_in_line else []
        )


def test_reading_alone_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    fill(path, 2)
    cut = path.read_bytes()[:-5]
    path.write_bytes(cut)
    with pytest.warns(UserWarning, match=r"line 7\) was cut short"):
        assert len(ResultStore(path, "run1")) == 5
    with pytest.warns(UserWarning, match="cut short"):
        assert len(read_results(path)) == 5
    assert path.read_bytes() == cut


KILLED = """
import sys
from analognoise.evaluation.rows import Row
from analognoise.evaluation.store import ResultStore
chip = 0
with ResultStore(sys.argv[1], "run1") as store:
    while True:
        values = [(t, 1 / (chip + t)) for t in (1.0, 60.0)]
        new = [Row("run1", "p", "", None, chip, t, "loss", v, 1, v, 0.5) for t, v in values]
        store.append([r for r in new if r.key not in store])
        chip += 1
        print(chip, flush=True)
"""


def test_a_killed_writer_leaves_a_file_to_go_on_with(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    reported = 0
    for _ in range(25):
        reported = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = ResultStore(path, "run1")
    assert len(store) >= 2 * reported  # what was reported is on the disk
    assert [r.chip for r in store.rows[::2]] == list(range(len(store.rows[::2])))
    known = list(store.rows)
    more = replace(known[-1], time_s=120.0, chip=0)
    store.append([more])
    assert ResultStore(path, "run1").rows == [*known, more]


@pytest.mark.parametrize(
    ("line", "damage", "words"),
    [
        (1, "run_id,profile,chip", "line 1.*expected the columns"),
        (3, "", "found 0 fields, expected 11"),
        (3, "run1,p,,,0,1,accuracy,1,2", "found 9 fields, expected 11"),
        (3, "run1,p,,,0,x,accuracy,1,2,0.5,0.5", "time_s is 'x'"),
        (3, "run1,p,,,0,-1,accuracy,1,2,0.5,0.5", "time_s is -1"),
        (3, "run1,p,,,0.5,1,accuracy,1,2,0.5,0.5", "chip is '0.5'"),
        (3, "run1,p,,one,0,1,accuracy,1,2,0.5,0.5", "training_seed is 'one'"),
        (3, "run1,p,,,0,1,accuracy,nan,2,0.5,0.5", "sum is 'nan'"),
        (3, "run1,p,,,0,1,accuracy,1,0,0.5,0.5", "count is 0"),
        (3, "run1,p,,,0,1,accuracy,1,2,,0.5", "value is ''"),
        (3, ",p,,,0,1,accuracy,1,2,0.5,0.5", "run_id is empty"),
        (3, 'run1,"p,,,0,1,accuracy,1,2,0.5,0.5', "unexpected end"),
        (3, "run1,p,,,0,1,accuracy,1,2,0.5,0.5\0\0", "NUL byte"),
        (4, "other,p,,,0,1,accuracy,1,2,0.5,0.5", "holds run other, but this is run run1"),
    ],
)
def test_damage_is_named_by_its_line(tmp_path: Path, line: int, damage: str, words: str) -> None:
    path = tmp_path / "results.csv"
    fill(path, 2)
    lines = path.read_text().splitlines()
    lines[line - 1] = damage
    path.write_text("\n".join(lines) + "\n")
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=words) as error:
        ResultStore(path, "run1")
    assert str(path) in str(error.value)
    assert f"line {line}" in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "line", "words"),
    [
        (lambda lines: lines[:5] + lines[6:], 8, "chip 2 at 3600 s of run run1, but chip 1 at 3600 s should"),
        (lambda lines: lines[:1] + lines[2:], 4, "chip 1 at 1 s of run run1, but chip 0 at 1 s should"),
        (lambda lines: [*lines[:2], lines[5], *lines[2:5], *lines[6:]], 3, "chip 1 at 3600 s .* chip 0 at"),
        ((",1,1,acc", ",7,1,acc"), 5, "chip 7 at 1 s .* chip 1 at 1 s"),
        ((",1,86400,", ",1,86401,"), 7, "chip 1 at 86401 s .* chip 0 at 86401 s"),
        ((",1,3600,", ",1,03600,"), 6, "written as b'run1"),
        ((",1,3600,", ",1, 3600,"), 6, "written as b'run1"),
        ((",1,3600,", ',1,"3600",'), 6, "written as b'run1"),
        (lambda lines: [*lines[:5], lines[5] + " ", *lines[6:]], 6, "written as b'run1"),
    ],
    ids=["a line less", "no first", "order", "chip", "time", "zero", "blank", "quotes", "blank at the end"],
)
def test_lines_that_are_missing_out_of_place_or_written_otherwise(
    tmp_path: Path, damage: Any, line: int, words: str
) -> None:
    path = tmp_path / "results.csv"
    fill(path, 3)
    sound = path.read_text()
    path.write_text(
        sound.replace(*damage) if isinstance(damage, tuple) else "\n".join(damage(sound.split("\n")))
    )
    before = path.read_bytes()
    told = f"results.csv, line {line}: found .*{words}.*restore the file"
    for read in (lambda: ResultStore(path, "run1"), lambda: read_results(path)):
        with pytest.raises(ResultsError, match=told):
            read()
    assert path.read_bytes() == before


def test_chips_and_times_that_were_added_later_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    rows = [row(chip, t) for chips, t in ((2, 1.0), (3, 60.0), (1, 9.0)) for chip in range(chips)]
    with ResultStore(path) as store:
        store.append([*rows, row(2), row(0, run_id="run2"), row(3)])
    assert len(ResultStore(path)) == len(rows) + 3


def test_a_row_twice_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    fill(path, 1)
    with path.open("a") as file:
        file.write(path.read_text().splitlines()[2] + "\n")
    with pytest.raises(ResultsError, match=r"line 5: chip 0 at 3600 s.*already, in line 3"):
        ResultStore(path, "run1")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(HEADER.encode() + b"run1,\xff\xfe,,,0,1,accuracy,1,2,0.5,0.5\n")
    with pytest.raises(ResultsError, match="line 2"):
        ResultStore(path)


@pytest.mark.parametrize("content", ["hello", "a,b,c\n1,2,3\n", "\n"])
def test_another_file_is_not_touched(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.csv"
    path.write_text(content)
    with pytest.raises(ResultsError, match="line 1"):
        ResultStore(path)
    assert path.read_text() == content


def test_runs_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with ResultStore(path) as store:
        store.append([row(), row(run_id="run2")])
        store.append([row(1, run_id="run2")])
        assert [r.chip for r in store.of_run("run2")] == [0, 1]
    with pytest.raises(ResultsError, match="holds run run2, but"):
        ResultStore(path, "run1")


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ([row(run_id="run2")], "holds run run1, not run2"),
        ([row(1), row(1)], "already has chip 1"),
        ([row(0)], "already has chip 0 at 1 s"),
        ([row(1, value=math.nan)], "value of chip 1 at 1 s is nan"),
        ([row(1, method="a\nb")], "line break"),
    ],
)
def test_rows_that_do_not_belong(tmp_path: Path, new: list[Row], words: str) -> None:
    path = tmp_path / "results.csv"
    store = ResultStore(path, "run1")
    store.append([row()])
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=words):
        store.append(new)
    assert path.read_bytes() == before
    store.append([row(1)])  # the store is still sound
    assert len(ResultStore(path, "run1")) == 2


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first, second = ResultStore(path, "run1"), ResultStore(path, "run1")
    first.append([row()])
    with pytest.raises(ResultsError, match="another process"):
        second.append([row(1)])
    first.close()
    with pytest.raises(ResultsError, match="changed by another process"):
        second.append([row(1)])
    first.append([row(1)])
    assert len(ResultStore(path)) == 2


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="is a folder"):
        ResultStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="not a folder"):
        ResultStore(tmp_path / "file" / "results.csv")
    with pytest.raises(ResultsError, match="does not exist"):
        read_results(tmp_path / "nothing.csv")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: codecs.BOM_UTF8 + raw, "line 1: begins with a byte order mark"),
        (lambda raw: raw.replace(b"\n", b"\r\n"), "line 1: holds a carriage return"),
        (lambda raw: raw[:-1] + b"\r\n", "line 7: holds a carriage return"),
        (lambda raw: raw.replace(b"accuracy", b"accu\0racy", 1), "line 2: holds a NUL byte"),
        (lambda raw: raw + b"\0" * 64 + b"\n", "line 8: holds a NUL byte"),
        (lambda raw: HEADER.encode() + raw, "line 2: time_s is 'time_s'"),
        (lambda raw: raw[:250] + raw[300:], r"line \d: "),
    ],
)
def test_what_spreadsheets_and_disks_do_is_named(tmp_path: Path, damage: Any, words: str) -> None:
    path = tmp_path / "results.csv"
    fill(path, 2)
    path.write_bytes(damage(path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=words):
        ResultStore(path, "run1")
    assert path.read_bytes() == before


def test_a_block_of_nul_at_the_end_is_a_cut_line(tmp_path: Path) -> None:
    # What a file system may leave of an append after a crash of the machine.
    path = tmp_path / "results.csv"
    fill(path, 2)
    content = path.read_bytes()
    path.write_bytes(content + b"\0" * 64)
    with pytest.warns(UserWarning, match="cut short"):
        fill(path, 2)
    with pytest.warns(UserWarning, match="cut short"), ResultStore(path, "run1") as store:
        store.append(block(2))
    assert path.read_bytes()[: len(content)] == content
    assert len(ResultStore(path, "run1")) == 9


def test_a_disk_that_fills_up_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    fill(path, 2)
    content = path.read_bytes()
    with ResultStore(path, "run1") as store:
        store.claim()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 20, before[1]))
        try:
            with pytest.raises(ResultsError, match=r"File too large\): what is in it \(6 rows\) is sound"):
                store.append(block(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == content
        store.append(block(2))
    fill(tmp_path / "whole.csv", 3)
    assert path.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_what_is_known_of_the_disk_is_said_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "results.csv"
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with (
        ResultStore(path, "run1") as store,
        pytest.raises(ResultsError, match=r"needs about 0\.15 MB for 1,000 rows, .* has 0\.01 MB left"),
    ):
        store.claim(1000)
    assert not path.exists()


def test_a_claim_holds_the_file_and_leaves_no_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with ResultStore(path, "run1") as first:
        first.claim()
        with pytest.raises(ResultsError, match="another process is writing"):
            ResultStore(path, "run1").claim()
    assert not path.exists()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("0.9194444444444444", "0.9194444444444445", "value is 0.9194444444444445, which the sum 331.0 over"),
        ("331", "332", "value is 0.9194444444444444, which the sum 332.0 over the count 360.0 does not make"),
        ("360", "390", "value is 0.9194444444444444, which the sum 331.0 over the count 390.0"),
        ("pcm-ibm", "pcm-ibn", "profile is 'pcm-ibn', but 'pcm-ibm' in line 2 of the same run"),
        (",3,", ",4,", "training_seed is 4, but 3 in line 2"),
        ("0.95", "0.96", "digital is 0.96, but 0.95 in line 2"),
    ],
)
def test_a_changed_digit_is_found(tmp_path: Path, old: str, new: str, told: str) -> None:
    path = tmp_path / "results.csv"
    ResultStore(path).append([row(0), row(1)])
    *before, last, end = path.read_text().split("\n")
    damaged = "\n".join([*before, last.replace(old, new, 1), end])
    path.write_text(damaged)
    with pytest.raises(ResultsError, match=rf"line 3: {told}"):
        ResultStore(path)
    assert path.read_text() == damaged


def test_the_value_of_a_perplexity_is_an_exponential(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultStore(path).append([row(metric="perplexity", value=math.exp(331 / 360))])
    assert len(ResultStore(path)) == 1
    path.write_text(path.read_text().replace(",331,", ",332,"))
    with pytest.raises(ResultsError, match=r"line 2: value is 2\.5"):
        ResultStore(path)


def test_a_half_line_goes_also_where_nothing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    ResultStore(path).append([row()])
    whole = path.read_bytes()
    path.write_bytes(whole + b"run1,pcm")
    with pytest.warns(UserWarning, match="cut short"):
        store = ResultStore[Row](path)
    assert store.cut_short
    store.claim()
    assert not store.cut_short
    store.close()
    assert path.read_bytes() == whole


def test_an_interrupt_while_the_first_rows_are_written_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.csv"

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    store: ResultStore[Row] = ResultStore(path, "run1")
    store.claim()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.append(block(0))
    store.close()
    assert ResultStore(path, "run1").rows == block(0)
