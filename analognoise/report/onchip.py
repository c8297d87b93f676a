"""What of a model runs on tiles and what stays digital, in words.

Both functions take the plain values of a description (``Description.to_dict()``, or ``run.json``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def share_on_tiles(model: Mapping[str, Any]) -> str:
    """One line: ``"97.3 % of the multiply-accumulates and 99.1 % of the parameters are on tiles: …"``."""
    share = model["mac_share"]
    macs = "" if share is None else f"{100 * share:.1f} % of the multiply-accumulates and "
    layers = len(model["layers"])
    return (
        f"{macs}{100 * model['parameter_share']:.1f} % of the parameters are on tiles: "
        f"{layers} layer{'s' * (layers != 1)}, {model['tiles']:,} tiles, {model['devices']:,} devices"
    )


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
    found = [f"{parameters:,} parameter{'s' * (parameters != 1)}"] if parameters else []
    return ", ".join([*found, f"{macs:,} MACs"] if macs else found)
