"""How methods look in pictures: hues that colour-blind readers can tell apart, a second cue beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# The palette of Okabe and Ito (2008, "Color Universal Design"); a wine red for its yellow, too pale on white.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
Dash = str | tuple[int, tuple[float, ...]]
DASHES: tuple[Dash, ...] = ("-", (0, (4, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))

# Methods met most keep their hue from one picture to the next.
_USUAL = ("sgd", "samson-inf", "sam", "rwp", "noise", "samson-2", "asam", "profile-noise")
_ALIASES = {"samson": ("samson-inf",), "clip": ("sgd", "clip")}
_DASH = {"": 0, "clip": 1, "clip+noise": 2, "noise": 3}


@dataclass(frozen=True)
class Style:
    """One method's look.

    Attributes:
        color: hue of line, band and markers.
        marker: shape at each evaluated point.
        dash: line style.
        hollow: whether markers are filled with white.
    """

    color: str
    marker: str
    dash: Dash
    hollow: bool

    @property
    def text_color(self) -> str:
        """The hue, darkened enough to be read as small text on white."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        brightness = 0.299 * red + 0.587 * green + 0.114 * blue
        factor = min(1.0, 115 / max(brightness, 1.0))
        return "#" + "".join(f"{round(factor * channel):02x}" for channel in (red, green, blue))


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """A different look for each method.

    Methods of one family (``sam``, ``sam+clip``) share a hue and differ in dashes, as long as there are no
    more families than hues; ``clip`` counts as ``sgd+clip``. With more families, hues repeat with other
    dashes.
    """
    families: dict[str, list[tuple[str, str]]] = {}
    for method in methods:
        name, *extra = method.split(":")[0].split("+")
        base, *implied = _ALIASES.get(name, (name,))
        families.setdefault(base, []).append(("+".join(sorted({*implied, *extra})), method))
    if len(families) > len(PALETTE):
        return {method: _style(i, i // len(PALETTE)) for i, method in enumerate(methods)}
    free = [hue for hue, usual in enumerate(_USUAL) if usual not in families]
    hues = {base: _USUAL.index(base) if base in _USUAL else free.pop(0) for base in families}
    found = {}
    for base, members in families.items():
        taken: set[int] = set()
        for variant, method in members:
            wanted = _DASH.get(variant, 0)
            dash = next((dash for dash in (wanted, *range(len(DASHES))) if dash not in taken), wanted)
            taken.add(dash)
            found[method] = _style(hues[base], dash)
    return {method: found[method] for method in methods}


def _style(hue: int, dash: int) -> Style:
    dash %= len(DASHES)
    return Style(PALETTE[hue % len(PALETTE)], MARKERS[hue % len(PALETTE)], DASHES[dash], hollow=dash > 0)
