"""What ``analognoise evaluate`` shows of a model's chips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import RenderableType

from analognoise.evaluation.lifetime import Lifetime
from analognoise.evaluation.report import DriftReport
from analognoise.jobs.output import Output, plain
from analognoise.jobs.report import no_lifetime
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
