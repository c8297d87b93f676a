"""``analognoise sensitivity``: which layers of a model its chips cost most."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from analognoise.calibration import ranges
from analognoise.conversion import check_finite, convert_to_analog, keeping_digital
from analognoise.description import Description
from analognoise.devices.whatif import Changes
from analognoise.errors import ResultsError
from analognoise.evaluation.checks import MOST_CHIPS, whole_number
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.row_text import read_rows
from analognoise.evaluation.rows import Row
from analognoise.evaluation.sensitivity import layer_sensitivity
from analognoise.evaluation.sensitivity_report import SensitivityReport
from analognoise.evaluation.store import ResultStore
from analognoise.files import write_whole
from analognoise.jobs.calibration import calibrate_all
from analognoise.jobs.data import checked_test_data, load_forward, metric_of
from analognoise.jobs.folder import RESULTS_FILE, RUN_FILE, JobFolder, unasked
from analognoise.jobs.output import Output, plain
from analognoise.jobs.placements import contents, load_placements
from analognoise.jobs.setup import Say, WhatIf, build_model, either_trained, torch_threads, weights_of
from analognoise.jobs.sharing import sharing
from analognoise.printing import counted
from analognoise.report.sensitivity_plot import save_sensitivity

TABLE_FILE, TEXT_FILE, PICTURE_FILE = "sensitivity.csv", "sensitivity.md", "sensitivity.png"
FILES = (RESULTS_FILE, TABLE_FILE, TEXT_FILE, PICTURE_FILE)


@dataclass(frozen=True)
class Ranked(Output):
    """A model's layers by what they cost.

    Attributes:
        report: the ranking.
        folder: where everything was written.
    """

    report: SensitivityReport
    folder: Path

    def parts(self) -> Iterable[RenderableType]:
        """A table per drift time, and where the files are."""
        yield self.report.summary()
        yield ""
        yield f"results: {self.folder} ({', '.join(FILES[1:])})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        report = self.report
        return {
            "profile": report.everything[0].profile,
            "metric": report.metric,
            "digital": report.digital,
            "chips": report.chips,
            "seed": report.seed,
            "run_id": report.run_id,
            "reused_rows": report.reused,
            "all_layers": plain(report.total),
            "layers": plain(report.frame),
            "model": report.description.to_dict() | {"not_read": list(report.not_read)},
            "folder": str(self.folder),
        }


def rank_layers(
    *,
    profile: str,
    out: Path,
    changes: WhatIf = ((), (), None),
    task: str | None = None,
    model: str | None = None,
    data: str | None = None,
    weights: Path | None = None,
    times: str | None = "1d",
    chips: int = 10,
    metric: str | None = None,
    forward: str | None = None,
    seed: int = 0,
    compensation: str = "global",
    digital: Sequence[str] = (),
    calibration: str | None = None,
    batch_size: int | None = None,
    device: str = "cpu",
    threads: int = 1,
    workers: int = 1,
    scheduler: str | None = None,
    force: bool = False,
    say: Say = print,
) -> Ranked:
    """Rank layers, store all in a folder, and go on where a run stopped.

    Args:
        profile: a name, a file, or ``PATTERN=PROFILE,…`` for a device by layer.
        out: folder for everything.
        changes: of the profile, as ``--set``, ``--scale`` and ``--periphery`` take them.
        digital: patterns of layer names that stay digital throughout.
        workers: processes that share the layers; they change no result.
        scheduler: address of a Dask scheduler whose workers share them.
        task, model, data, weights, times, chips, metric, forward, seed, compensation, calibration,
            batch_size, device, threads, force, say: as for :func:`analognoise.jobs.evaluate.evaluate_model`.

    Raises:
        AnalogNoiseError: of the class that fits, before anything is written.
    """
    changed = Changes.parse(*changes)
    (placement,) = load_placements([profile], changed)
    seconds = placement.times(times)
    whole_number("--chips", chips, 1, MOST_CHIPS)
    found = either_trained(task, model, weights, seed)
    measured = metric_of(metric, found)
    run = load_forward(forward, found)
    folder = JobFolder(out, "sensitivity", FILES, force, (RESULTS_FILE,))
    with torch_threads(threads), sharing(workers, scheduler) as executor, ExitStack() as stack:
        network = build_model(found, model, weights, seed, device, for_chip=True)
        check_finite(network)
        measure = Metric.of(measured).measure
        shared = checked_test_data(network, found, data, batch_size, device, measure, run)
        kept = keeping_digital(network, digital)
        # Only to hear now whether it converts, before --force removes anything.
        whole = convert_to_analog(network, placement.profile, filter_fn=kept, compensation=compensation)
        source = calibrate_all(
            [whole], calibration, found, shared, batch_size=batch_size, seed=seed, forward=run, say=say
        )
        stack.enter_context(folder.held())
        folder.open()
        store: ResultStore[Row] = stack.enter_context(ResultStore(out / RESULTS_FILE))
        report = layer_sensitivity(
            network,
            placement.profile,
            shared,
            times=seconds,
            chips=chips,
            seed=seed,
            metric=measured,
            forward=run,
            filter_fn=kept,
            compensation=compensation,
            ranges=ranges(whole),
            out=store,
            executor=executor,
            progress=sys.stderr.isatty(),
        )
        if report.reused:
            say(f"sensitivity: reused {report.reused} of {counted(len(report.measured), 'result')} in {out}")
        others = [row for row in store.rows if row.chip >= chips or row.time_s not in report.times]
        if others:
            say(f"sensitivity: {unasked(others, report.times, chips)}")
        _write(out, report)
        settings = {
            "task": found.name if found else None,
            "model": model,
            "data": data,
            "weights": weights_of(weights),
            "profiles": {item.name: item.digest for item in placement.devices.values()},
            "by_layer": placement.by_layer,
            "digital": list(digital),
            "times_s": list(report.times),
            "chips": report.chips,
            "seed": report.seed,
            "metric": report.metric,
            "higher_is_better": report.higher_is_better,
            "compensation": compensation,
            "confidence": report.confidence,
            "device": device,
            "threads": threads,
            **changed.to_dict(),
            **({} if source is None else {"calibration": source}),
        }
        models = {
            report.everything[0].profile: report.description.to_dict() | {"not_read": list(report.not_read)}
        }
        folder.finish(
            settings, run_id=report.run_id, profiles=contents([placement]), model={"profiles": models}
        )
    return Ranked(report, out)


def _write(folder: Path, report: SensitivityReport) -> None:
    report.to_csv(folder / TABLE_FILE, overwrite=True)
    title = "# Which layers cost most on analog chips\n\n"
    write_whole(folder / TEXT_FILE, (title + report.summary().markdown()).encode())
    save_sensitivity(folder / PICTURE_FILE, report.frame, report.facts)


def rank_again(folder: Path, run: dict[str, Any], write: bool) -> Ranked:
    """A ranking out of the rows in its folder.

    Args:
        folder: what ``sensitivity`` wrote.
        run: its run.json.
        write: whether to write table and picture again.

    Raises:
        ResultsError: when a file of it is damaged, or cannot be written.
    """
    try:
        settings = run["settings"]
        (model,) = run["model"]["profiles"].values()
        description = Description.from_dict(model)
        facts = {name: settings[name] for name in ("metric", "higher_is_better", "seed", "confidence")} | {
            "run_id": run["run_id"],
            "not_read": tuple(model["not_read"]),
        }
        times, chips = [float(time) for time in settings["times_s"]], int(settings["chips"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(
            f"{folder / RUN_FILE} lacks what a report needs ({error}): run sensitivity again"
        ) from error
    rows: list[Row] = read_rows(folder / RESULTS_FILE)
    if not rows:
        raise ResultsError(f"{folder / RESULTS_FILE} holds no rows: run sensitivity again")
    report = SensitivityReport.of_rows(rows, description, times, chips, digital=rows[0].digital, **facts)
    if write:
        _write(folder, report)
    return Ranked(report, folder)
