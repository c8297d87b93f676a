"""What of a model runs on tiles and what stays digital, in words.

A model here is the plain values of a description (``Description.to_dict()``, or what ``run.json`` holds).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analognoise.printing import counted
from analognoise.report.table import grid


def share_on_tiles(model: Mapping[str, Any]) -> str:
    """One line: ``"97.3 % of the multiply-accumulates and 99.1 % of the parameters are on tiles: …"``."""
    share = model["mac_share"]
    macs = "" if share is None else f"{100 * share:.1f} % of the multiply-accumulates and "
    layers, engine = len(model["layers"]), model.get("engine", "analognoise")
    uncounted = ", ".join(map(repr, model.get("uncounted", ())))  # descriptions of older runs have none
    around = " / ".join(dict.fromkeys(filter(None, (layer.get("periphery") for layer in model["layers"]))))
    unknown = f" (multiply-accumulates of {uncounted} cannot be counted)" if uncounted else ""
    return (
        f"{macs}{100 * model['parameter_share']:.1f} % of the parameters are on tiles: "
        f"{counted(layers, 'layer')}, {counted(model['tiles'], 'tile')}, "
        f"{counted(model['devices'], 'device')}{unknown}"
        + ("" if engine == "analognoise" else f", simulated by {engine}")
        + (", pairs merged after programming" if model.get("collapse_pairs") else "")
        + (f"; periphery: {around}" if around else "")
    )


def compensation_line(model: Mapping[str, Any]) -> str:
    """One or two sentences: which drift compensation, what it costs a chip, and what it leaves out."""
    text = f"Drift compensation: {model['compensation']}{_cost(model.get('compensation_cost'))}."
    left = model.get("not_recalibrated")
    if left:
        text += f" Not recalibrated, as their outputs are more than one product: {', '.join(left)}."
    return text


def _cost(cost: Mapping[str, Any] | None) -> str:
    """What a compensation costs; descriptions of older runs do not say it."""
    if cost is None or not cost["numbers"]:
        return ""
    once, each = cost["after_programming"], cost["each_time"]
    parts = [f"{counted(once, 'product')} of a vector with a tile after programming"] if once else []
    if each is not None:
        what = "" if once else " products of a vector with a tile"
        inputs = f" (as {each / cost['one_input']:.3g} inputs of the model)" if cost["one_input"] else ""
        parts.append(f"{each:,}{what} at each drift time{inputs}")
    else:
        parts.append("at each drift time a number of reads that cannot be counted")
    kept = counted(cost["numbers"], "number")
    return f", at the cost to each chip of {', '.join(parts)}, and of {kept} kept"


def digital_parts(model: Mapping[str, Any], most: int | None = None) -> str:
    """Everything that holds weights or multiplies and stays digital, with its counts, the largest first.

    Args:
        model: a description's plain values.
        most: name at most so many parts, and add up the rest; None names all.
    """
    parts = [part for part in model["digital"] if part["parameters"] or part["macs"]]
    parts.sort(key=lambda part: (-(part["macs"] or 0), -part["parameters"]))
    if not parts:
        return "nothing"
    shown = parts if most is None or len(parts) <= most else parts[: most - 1]
    words = [f"{part['name'] or 'the model'} ({_counts([part])})" for part in shown]
    rest = parts[len(shown) :]
    if rest:
        words.append(f"{len(rest)} more ({_counts(rest)})")
    return ", ".join(words)


def _counts(parts: list[Mapping[str, Any]]) -> str:
    parameters, macs = sum(part["parameters"] for part in parts), sum(part["macs"] or 0 for part in parts)
    found = [counted(parameters, "parameter")] if parameters else []
    return ", ".join([*found, f"{macs:,} MACs"] if macs else found)


def analog_lines(models: Mapping[str, Mapping[str, Any]], most: int = 8) -> list[str]:
    """For the terminal: a line per profile with the share on tiles, one with what stays digital.

    Args:
        models: by profile.
        most: as for :func:`digital_parts`.
    """
    lines = [f"{profile}: {share_on_tiles(model)}." for profile, model in models.items()]
    lines += [f"{profile}: {compensation_line(model)}" for profile, model in _with_cost(models)]
    for profiles, model in _by_digital(models):
        where = f" on {profiles}" if len(models) > 1 else ""
        lines.append(f"Digital{where}: {digital_parts(model, most)}.")
    return lines


def analog_markdown(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same as lines of GitHub Markdown, with a table of everything that stays digital, and why."""
    lines = ["## What is analog", ""]
    lines += [f"- {profile}: {share_on_tiles(model)}" for profile, model in models.items()]
    lines += [f"- {profile}: {compensation_line(model)}" for profile, model in _with_cost(models)]
    for profiles, model in _by_digital(models):
        rows = [["digital", "parameters", "MACs", "why"]]
        for part in model["digital"]:
            macs = "–" if part["macs"] is None else f"{part['macs']:,}"
            name = part["name"] or "the model"
            rows.append([name, f"{part['parameters']:,}", macs, part["reason"].replace("|", "\\|")])
        where = f"Digital on {profiles}:" if len(models) > 1 else "Digital:"
        lines += ["", *([where, "", grid(rows)] if len(rows) > 1 else [f"{where} nothing."])]
    return lines


def _with_cost(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The models of which a compensation's cost is known; descriptions of older runs do not say it."""
    return [(profile, model) for profile, model in models.items() if model.get("compensation_cost")]


def _by_digital(models: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Profiles under which the same stays digital, joined, with the first one's model."""
    groups: list[tuple[list[str], Mapping[str, Any]]] = []
    for profile, model in models.items():
        alike = next((names for names, other in groups if other["digital"] == model["digital"]), None)
        if alike is None:
            groups.append(([profile], model))
        else:
            alike.append(profile)
    return [(", ".join(names), model) for names, model in groups]
