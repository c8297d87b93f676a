"""What ``analognoise evaluate`` shows of a model's chips, and what ``report`` shows again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType

from analognoise.description import Description
from analognoise.errors import ResultsError
from analognoise.evaluation.cost import CompensationCost
from analognoise.evaluation.lifetime import Lifetime
from analognoise.evaluation.report import DriftReport
from analognoise.evaluation.row_text import read_rows
from analognoise.evaluation.rows import Row, rows_to_frame
from analognoise.evaluation.sampling import Sampled
from analognoise.jobs.folder import RESULTS_FILE, RUN_FILE
from analognoise.jobs.output import Output, plain
from analognoise.jobs.report import no_lifetime, precisions, write_summary
from analognoise.jobs.single_chips import with_single_chips
from analognoise.report.numbers import one_value
from analognoise.units import format_time


@dataclass(frozen=True)
class Evaluated(Output):
    """What a model does on chips.

    Attributes:
        reports: one per profile.
        floor: share of the digital metric that the lifetimes are about; None takes 5 % worse than digital.
        quantile: share of chips that may be worse than what is shown for single chips; None shows nothing.
        yield_at: level whose yield is shown; None shows none.
        folder: where everything was written, or None.
    """

    reports: tuple[DriftReport, ...]
    floor: float | None
    quantile: float | None
    yield_at: float | None
    folder: Path | None

    def lifetime(self, report: DriftReport, quantile: float | None = None) -> Lifetime | None:
        """How long the mean, or a quantile, stays good enough; None for a device on which nothing depends on
        time, and where nothing can be relative to the digital metric.
        """
        if report.times == (0.0,) or report.digital <= 0:
            return None
        floor = self.floor if self.floor is not None else 0.95 if report.higher_is_better else 1.05
        return report.lifetime(floor, quantile)

    def _single_chips(self, report: DriftReport) -> tuple[pd.DataFrame, list[str]]:
        settings = {
            "quantile": self.quantile,
            "yield_at": self.yield_at,
            "higher_is_better": report.higher_is_better,
            "confidence": report.confidence,
        }
        return with_single_chips(report.summary().frame, report.frame, settings)

    def parts(self) -> Iterable[RenderableType]:
        """A table per profile, and lifetimes below."""
        for report in self.reports:
            yield report.summary()
            life = self.lifetime(report)
            if life is not None:
                level = one_value(report.metric, life.floor)
                yield f"Lifetime, until the mean {report.metric} crosses {level}: {life}"
                if self.quantile is not None:
                    who = f"{100 * self.quantile:.4g} % of chips"
                    yield f"Lifetime, until {who} cross {level}: {self.lifetime(report, self.quantile)}"
            elif report.times != (0.0,):
                yield no_lifetime(report.metric, report.digital)
            yield from self._single_chips(report)[1]
            yield ""
        if self.folder is not None:
            yield f"results: {self.folder}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = []
        for report in self.reports:
            life = self.lifetime(report)
            frame = self._single_chips(report)[0]
            found.append(
                {
                    "profile": report.rows[0].profile,
                    "metric": report.metric,
                    "digital": report.digital,
                    "chips": report.chips,
                    "seed": report.seed,
                    "run_id": report.run_id,
                    "reused_rows": report.reused,
                    "over_time": plain(frame),
                    "lifetime": None if life is None else plain(asdict(life)),
                    "model": report.describe,
                }
            )
            if self.quantile is not None and life is not None:
                found[-1]["lifetime_of_quantile"] = plain(vars(self.lifetime(report, self.quantile)))
            if report.sampling is not None:
                found[-1]["sampling"] = report.sampling.to_dict()
            if report.precision is not None:
                reached = dict(
                    zip(map(format_time, report.times), report.precision.reached(frame), strict=True)
                )
                found[-1]["precision"] = report.precision.to_dict() | {"reached": reached}
        return {"evaluations": found, "folder": None if self.folder is None else str(self.folder)}


def evaluated_again(folder: Path, run: dict[str, Any], write: bool) -> Evaluated:
    """An evaluation out of the rows in its folder.

    Args:
        folder: what ``evaluate`` wrote.
        run: its run.json.
        write: whether to write summary, table and pictures again.

    Raises:
        ResultsError: when a file of it is damaged, or cannot be written.
    """
    rows: list[Row] = read_rows(folder / RESULTS_FILE)
    try:
        settings, models = run["settings"], run["model"]["profiles"]
        reports = tuple(_report(name, rows, settings, model) for name, model in models.items())
        floor, quantile, yield_at = (settings.get(name) for name in ("floor", "quantile", "yield_at"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultsError(
            f"{folder / RUN_FILE} lacks what a report needs ({error}): evaluate again"
        ) from error
    if lacking := [name for name, report in zip(models, reports, strict=True) if not report.rows]:
        raise ResultsError(f"{folder / RESULTS_FILE} holds no rows of {lacking[0]!r}: evaluate again")
    if write:
        frame = pd.concat([report.frame for report in reports], ignore_index=True)
        write_summary(folder, frame, settings, models)
    return Evaluated(reports, floor, quantile, yield_at, folder)


def _report(name: str, rows: Sequence[Row], settings: dict[str, Any], model: dict[str, Any]) -> DriftReport:
    """The report of one profile, of what the last call asked for: earlier ones may have asked for more."""
    own = [row for row in rows if row.profile == name and row.chip < int(settings["chips"])]
    asked = {float(time) for time in settings["times_s"]}
    own = [row for row in own if row.time_s in asked] or [row for row in own if row.time_s == 0]
    own.sort(key=lambda row: (row.chip, row.time_s))
    precision = precisions(settings).get(name)
    if precision is not None and own:
        own = [own[number] for number in precision.kept(rows_to_frame(own)).index]
    times = tuple(sorted({row.time_s for row in own}))
    sampled, cost = settings.get("sampling", {}).get(name), model["compensation_cost"]
    if sampled is not None:
        samples = {time: sampled["samples"][format_time(time)] for time in times}
        sampled = Sampled(sampled["kind"], samples, sampled["of"])
    return DriftReport(
        rows=tuple(own),
        times=times,
        metric=settings["metric"],
        higher_is_better=settings["higher_is_better"],
        digital=own[0].digital if own else float("nan"),
        seed=settings["seed"],
        run_id=own[0].run_id if own else "",
        description=Description.from_dict(model),
        not_read=tuple(model["not_read"]),
        reused=len(own),
        confidence=settings["confidence"],
        compensation=model["compensation"],
        cost=None if cost is None else CompensationCost(**cost),
        left_out=tuple(model["not_recalibrated"]),
        precision=precision,
        sampling=sampled,
    )
