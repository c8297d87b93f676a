"""``analognoise profiles fit``: a profile from measurements of one's own device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import RenderableType

from analognoise.errors import DataError, ResultsError
from analognoise.fitting import FittedCurve, ProfileFit, fit_profile
from analognoise.fitting.checks import Duplicates
from analognoise.fitting.result import check_free
from analognoise.fitting.words import describe
from analognoise.jobs.output import Output, plain
from analognoise.jobs.setup import Say
from analognoise.printing import number

_RIVALS = 3  # forms shown beside the chosen one


@dataclass(frozen=True)
class FitReport(Output):
    """A fitted profile, and where it was written.

    Attributes:
        fit: the profile with all that is known about it.
        profile_file: the TOML file.
        picture: the PNG file.
    """

    fit: ProfileFit
    profile_file: Path
    picture: Path

    def parts(self) -> Iterable[RenderableType]:
        """The curves with their intervals, what cannot be told, and where the files are."""
        fit = self.fit
        yield f"measured: {describe(dict(fit.facts))}"
        yield ""
        g_max = fit.profile.conductance.g_max
        yield f"Curves of x = G / {g_max:g}, with {100 * fit.confidence:g} % intervals"
        yield ""
        for curve in fit.curves:
            yield from _lines(curve)
            yield ""
        for title, sentences in (
            ("Noticed", fit.remarks),
            ("What these measurements cannot tell", fit.not_told),
        ):
            if sentences:
                yield f"{title}:"
                yield from (f"- {sentence}" for sentence in sentences)
                yield ""
        yield f"profile: {self.profile_file} (fill in its source; 'analognoise profiles show' shows it)"
        yield f"picture: {self.picture}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        files = {"profile_file": str(self.profile_file), "picture": str(self.picture)}
        return {**plain(self.fit.to_dict()), **files}


def fit_device(
    measurements: Path,
    out: Path,
    *,
    name: str | None = None,
    t_0: str | None = None,
    t_read: str | None = None,
    g_max: float | None = None,
    g_min: float | None = None,
    curves: Sequence[str] = (),
    target_unit: str | None = None,
    conductance_unit: str | None = None,
    duplicates: str = "refuse",
    clamp_negative: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
    force: bool = False,
    say: Say = print,
) -> FitReport:
    """Fit a profile to a CSV file; write it, and a picture beside it.

    Args:
        measurements: the file.
        out: the profile's file; the picture has the same name with ``.png``.
        curves: forms to take, as in ``nu_mean=log``.
        force: whether files that are there are replaced.
        say: tells the user what is going on.
        name, t_0, t_read, g_max, g_min, target_unit, conductance_unit, duplicates, clamp_negative,
            confidence, seed: as for :func:`analognoise.fitting.fit_profile`.

    Raises:
        AnalogNoiseError: of the class that fits, before anything is written.
    """
    if out.suffix.lower() != ".toml":
        raise ResultsError(f"-o {out} must end in .toml, as every profile does")
    picture = out.with_suffix(".png")
    for file in (out, picture):
        check_free(file, force)
    if not out.parent.is_dir():
        raise ResultsError(f"-o {out}: folder {out.parent} does not exist")
    kind = next((kind for kind in get_args(Duplicates) if kind == duplicates), None)
    if kind is None:
        raise DataError(
            f"--duplicates {duplicates!r} is not known: write one of {', '.join(get_args(Duplicates))}"
        )
    forms = {}
    for item in curves:
        key, sign, form = item.partition("=")
        if not sign:
            raise DataError(f"--curve {item!r} does not say which form: write for example nu_mean=log")
        forms[key.strip()] = form.strip()
    say(f"fitting {measurements} …")
    fit = fit_profile(
        measurements,
        name=name or out.stem,
        t_0=t_0,
        t_read=t_read,
        g_max=g_max,
        g_min=g_min,
        curves=forms,
        target_unit=target_unit,
        conductance_unit=conductance_unit,
        duplicates=kind,
        clamp_negative=clamp_negative,
        confidence=confidence,
        seed=seed,
    )
    fit.plot(picture, force=force)
    fit.save(out, force=force)
    return FitReport(fit, out, picture)


def _lines(curve: FittedCurve) -> Iterable[str]:
    """The curve, its numbers with intervals, and how well it fits beside what else was tried."""
    yield f"{curve.field}: {curve.form}"
    rows = [(item.name, item.value, item.low, item.high) for item in curve.parameters] or [
        (f"at x = {level.x:.3g}", level.value, level.low, level.high) for level in curve.levels
    ]
    width = max(len(name) for name, *_ in rows)
    for name, value, low, high in rows:
        yield f"  {name:{width}}  {number(value, '.4g'):>10}  ({number(low, '.4g')} … {number(high, '.4g')})"
    if curve.parameters:
        yield f"  deviance {curve.deviance:.3g} for {curve.freedom} degrees of freedom"
    rivals = [item for item in curve.candidates if item.label != curve.form][:_RIVALS]
    if rivals:
        others = ", ".join(f"{item.error:+.2g} {item.label}" for item in rivals)
        yield f"  cross-validated error of others: {others}"
