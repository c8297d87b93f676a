"""summary.md: what a comparison found, as a page."""

from __future__ import annotations

from typing import Any

from analognoise.comparison.stored import Stored
from analognoise.printing import counted


def page(
    found: Stored,
    *,
    title: str,
    extent: str,
    more: str = "",
    body: list[str],
    sharp: list[str],
    about: list[str],
    end: str,
) -> str:
    """The content of summary.md.

    Args:
        found: what the folder holds.
        title: stands behind the task's name.
        extent: what each number of chips is for.
        more: further settings, for the first sentence.
        body: the tables.
        sharp: the section on sharpness.
        about: what the models are, after the methods.
        end: the last sentence.
    """
    settings, failed = found.settings, found.failed
    seeds, unit = len(settings["training_seeds"]), found.layout.unit
    chips = settings[f"{unit}s"]
    lines = [
        f"# {settings['task']}: {title}",
        "",
        f"{settings['description'].rstrip('.')}. {counted(seeds, 'training seed')}, "
        f"{counted(chips, unit)} {extent}, "
        f"{counted(settings['epochs'], 'epoch')}{more}.",
        "",
        *body,
    ]
    if failed:
        lines += ["## Failed trainings", ""]
        lines += [
            *(f"- {failure.sentence}" for failure in failed),
            "",
            "A method with a failed training has no figures in the tables; results.csv has its other seeds.",
            "",
        ]
    lines += [*sharp, "## Methods", ""]
    for method in settings["methods"]:
        values = ", ".join(f"{key} = {_number(value)}" for key, value in method["hyperparameters"].items())
        lines.append(
            f"- {method['name']}: {values or 'no hyperparameters'}; {counted(method['epochs'], 'epoch')}, lr "
            f"{_number(method['lr'])}, "
            f"{counted(method['gradients_per_step'], 'gradient')} per step"
        )
    lines += about
    if found.run.get("warnings"):
        lines += ["", "## Warnings", "", *(f"- {text}" for text in found.run["warnings"])]
    return "\n".join([*lines, "", end, ""])


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
