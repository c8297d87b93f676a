"""What a comparison on analog chips found, made from the files in its folder alone."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from analognoise.comparison.outcome import Comparison, finish, picture, summarised
from analognoise.comparison.page import page
from analognoise.comparison.stored import Stored, stored
from analognoise.crossbar.compensation import name_chips
from analognoise.report.onchip import analog_markdown
from analognoise.report.summary import sections
from analognoise.report.table import markdown_table
from analognoise.units import format_time


def conclude(
    folder: str | os.PathLike[str], *, reused_models: int = 0, reused_rows: int = 0, write: bool = True
) -> Comparison:
    """Summarise the rows in a comparison's folder and write summary, text and pictures (again).

    Args:
        folder: output folder of :func:`analognoise.comparison.compare`.
        reused_models: for the result.
        reused_rows: for the result.
        write: whether the files are; without, the result names those that are there.

    Raises:
        ResultsError: when the folder is not a comparison's, or a file in it is damaged.
    """
    found = stored(folder, _asked_for, "times_s", writes=write)
    broken = {failure.method for failure in found.failed}
    sound = found.sound(found.results["method"].isin(broken))
    summary = summarised(found, sound, product(set(sound["profile"]), broken))
    sharp = found.sharpness()
    return finish(
        Comparison,
        found,
        summary,
        pictures=_pictures(found, summary),
        sharp=sharp,
        text=_text(found, summary, sharp.text),
        reused_models=reused_models,
        reused_rows=reused_rows,
    )


def _asked_for(settings: dict[str, Any]) -> list[str]:
    """Devices with compensations."""
    return [name_chips(p, c) for p in settings["profiles"] for c in settings["compensation"].split(",")]


def _pictures(found: Stored, summary: pd.DataFrame) -> dict[str, Path]:
    kinds: dict[str, list[str]] = {"time": [], "level": []}
    for profile in dict.fromkeys(summary["profile"]):
        drifts = any(time > 0 for time in summary.loc[summary["profile"] == profile, "time_s"])
        kinds["time" if drifts else "level"].append(profile)
    paths = {}
    timed = summary[summary["profile"].isin(kinds["time"])]
    if len(timed):
        paths["over_time"] = picture(found, timed, "time")
    still = summary[summary["profile"].isin(kinds["level"])]
    if len(still) and any(section.kind == "level" for section in sections(still)):
        paths["over_level"] = picture(found, still, "level")
    return paths


def _text(found: Stored, summary: pd.DataFrame, sharp: list[str]) -> str:
    settings = found.settings
    table = markdown_table(
        summary, compensation=settings["compensation"], confidence=found.confidence, heading=2
    )
    times = ", ".join(format_time(seconds) for seconds in settings["times_s"])
    return page(
        found,
        title="training methods on analog chips",
        extent="for each model and device",
        more=f", drift compensation: {settings['compensation']}",
        body=[table.rstrip(), ""],
        sharp=sharp,
        about=["", *analog_markdown(found.run["model"]["profiles"])],
        end=f"Drift times: {times}. Settings, versions and profiles: run.json.",
    )
