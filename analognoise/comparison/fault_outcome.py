"""What a comparison on faulty memories found, made from the files in its folder alone."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from analognoise.comparison.fault_job import MemoryRow, variant_of
from analognoise.comparison.folder import MODELS, read_record
from analognoise.comparison.outcome import Comparison, finish, picture, plain, summarised
from analognoise.comparison.page import page
from analognoise.comparison.settings import stem_of
from analognoise.comparison.sharpness import correlations, sharpness_markdown
from analognoise.comparison.stored import Stored, stored
from analognoise.evaluation.statistics import mean_interval
from analognoise.report.layout import FAULTS, Layout
from analognoise.report.numbers import one_value
from analognoise.report.table import grid, markdown_table

COMMAND, NOUN = "faults", "a comparison on faulty memories"
ALL = "all models"


@dataclass(frozen=True)
class FaultComparison(Comparison):
    """A finished comparison on faulty memories; as :class:`Comparison`, with other columns.

    Attributes:
        models: one row per trained model: bits, sparsity, method, training_seed, unquantized and quantized
            metric (without faults), activation_sparsity measured over the test data.
    """

    models: pd.DataFrame = None  # type: ignore[assignment]  # a default, as those before it have

    layout: ClassVar[Layout] = FAULTS

    def _print_tables(self, console: Console) -> None:
        super()._print_tables(console)
        console.print(Markdown("\n".join(_models_markdown(self.models, self.summary, self.confidence))))

    def _about(self) -> list[str]:
        return _about(self.run)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return super().to_dict() | {"models": plain(self.models)}


def conclude_faults(
    folder: str | os.PathLike[str], *, reused_models: int = 0, reused_rows: int = 0, write: bool = True
) -> FaultComparison:
    """Summarise the rows in such a comparison's folder, and write summary, text and picture (again).

    Args:
        folder: output folder of :func:`analognoise.compare_faults`.
        reused_models: for the result.
        reused_rows: for the result.
        write: whether the files are; without, the result names those that are there.

    Raises:
        ResultsError: when the folder is not such a comparison's, or a file in it is damaged.
    """
    found = stored(
        folder,
        lambda settings: settings["memories"],
        "rates",
        command=COMMAND,
        noun=NOUN,
        row=MemoryRow,
        layout=FAULTS,
        writes=write,
    )
    rows = found.results
    variants = [variant_of(int(b), str(s)) for b, s in zip(rows["bits"], rows["sparsity"], strict=True)]
    broken = {(failure.method, failure.profile) for failure in found.failed}
    pairs = zip(rows["method"], variants, strict=True)
    sound = found.sound(pd.Series([pair in broken for pair in pairs], index=rows.index, dtype=bool))
    of = rows.groupby("faults", sort=False)[["bits", "sparsity"]].first()
    lacking = [
        (str(on), method)
        for on, bits, choice in of.itertuples(name=None)
        for method, variant in broken
        if variant == variant_of(bits, choice)
    ]
    summary = summarised(found, sound, lacking).join(of, on="faults")
    models = _models(found)
    sharp = found.sharpness(rows.assign(variant=variants))
    if not sharp.table.empty:
        # Of one bit width and sparsity there are few models; of all, sparse and dense ones are compared, too.
        kinds = [f"{ALL}, {name.split(', ', 2)[2]}" for name in rows["faults"]]
        every = rows.assign(variant=variants, faults=kinds)
        related = correlations(sharp.table, every, found.confidence, FAULTS, found.higher_is_better)
        related = pd.concat([sharp.related, related], ignore_index=True)
        text = sharpness_markdown(sharp.table, related, found.confidence, FAULTS)
        sharp = sharp._replace(related=related, text=text)
    return finish(
        FaultComparison,
        found,
        summary,
        pictures={"over_rate": picture(found, summary, "rate")},
        sharp=sharp,
        text=_text(found, summary, models, sharp.text),
        reused_models=reused_models,
        reused_rows=reused_rows,
        models=models,
    )


def _models(found: Stored) -> pd.DataFrame:
    """What is known of each trained model."""
    key = ["bits", "sparsity", "method", "training_seed"]
    models = found.results.groupby(key, sort=False)[["unquantized", "quantized"]].first().reset_index()
    measured = []
    for bits, sparsity, method, seed in models[key].itertuples(index=False, name=None):
        stem = stem_of(method, seed, variant_of(bits, sparsity))
        record = read_record(found.path / MODELS / f"{stem}.json") or {}
        measured.append((record.get("activation_sparsity") or {}).get("overall", math.nan))
    return models.assign(activation_sparsity=measured)


def _models_markdown(models: pd.DataFrame, summary: pd.DataFrame, confidence: float) -> list[str]:
    """The section on what was stored: metrics without faults, and how sparse the activations are."""
    metric = str(summary["metric"].iloc[0])

    def mean(values: pd.Series) -> str:
        known = values.dropna()
        if known.empty:
            return "–"
        interval = mean_interval(known, confidence)
        text = one_value(metric, interval.mean)
        return (
            text if interval.n == 1 else f"{text} ± {one_value(metric, (interval.high - interval.low) / 2)}"
        )

    rows = [["bits, sparsity, method", "float", "quantized", "zero activations"]]
    for (bits, sparsity, method), part in models.groupby(["bits", "sparsity", "method"], sort=False):
        share = part["activation_sparsity"].mean()
        rows.append(
            [
                f"{bits} bits, {sparsity}, {method}",
                mean(part["unquantized"]),
                mean(part["quantized"]),
                "–" if math.isnan(share) else f"{100 * share:.1f} %",
            ]
        )
    seeds = "Mean over training seeds" + (
        f" ± {100 * confidence:g} % interval" if models["training_seed"].nunique() > 1 else ""
    )
    return [
        "## The models without faults",
        "",
        f"{seeds}; float: with the weights and activations before quantization; zero activations: share of "
        "the activation layers' outputs that are zero, over the test data.",
        "",
        grid(rows),
        "",
    ]


def _about(run: dict[str, Any]) -> list[str]:
    """What is in faulty memory."""
    return [
        f"In faulty memory: the weights' integers of {', '.join(run['model']['stored'])}. Protected: scales, "
        "biases and all else.",
    ]


def _text(found: Stored, summary: pd.DataFrame, models: pd.DataFrame, sharp: list[str]) -> str:
    rates = ", ".join(map(FAULTS.label, found.settings["rates"]))
    table = markdown_table(summary, confidence=found.confidence, heading=2)
    return page(
        found,
        title="quantized networks in faulty memories",
        extent="for each model, kind of fault and rate",
        body=[table.rstrip(), "", *_models_markdown(models, summary, found.confidence)],
        sharp=sharp,
        about=["", "## What is stored", "", *_about(found.run)],
        end=f"Fault rates: {rates}. Settings and versions: run.json.",
    )
