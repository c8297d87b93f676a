"""``analognoise profiles …``: the profiles that ship, and files of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analognoise import options as o
from analognoise.cli.shared import examples, new_app, note, show
from analognoise.errors import ProfileError

_Replace = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]
app = new_app(help="Device profiles: those that ship, and files of your own.")


@app.command("list", epilog=examples("profiles list"))
def profiles_list(as_json: o.AsJson = False) -> None:
    """List the profiles that ship with analognoise."""
    from analognoise.jobs.catalog import list_devices

    show(list_devices(), as_json)


@app.command(
    "show",
    epilog=examples(
        "profiles show pcm-ibm", "profiles show my.toml --plot my.png", "profiles show my.toml --json"
    ),
)
def profiles_show(
    profile: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile's name or TOML file.")],
    plot: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Draw the device in four panels: .png, .pdf or .svg."),
    ] = None,
    changed: o.ChangedFields = None,
    scale: o.ScaledEffects = None,
    force: _Replace = False,
    as_json: o.AsJson = False,
) -> None:
    """Show a profile: its fields, its source, and what a device of it does.

    Noise at five conductances, and what is left of them from 1 s to 10 years after programming, within the
    profile's validity. --plot draws programming error, drift, retention and read noise.
    """
    from analognoise.devices.whatif import Changes
    from analognoise.jobs.card import show_device

    show(show_device(profile, Changes.parse(changed or (), scale or ()), plot, force), as_json)


@app.command("check", epilog=examples("profiles check my.toml", "profiles check *.toml --json"))
def profiles_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="TOML files, or names.")],
    as_json: o.AsJson = False,
) -> None:
    """Check profile files, and say everything that is wrong in them, as FILE:LINE:COLUMN: problem."""
    from analognoise.jobs.profiles import check_profiles

    result = check_profiles(files)
    show(result, as_json)
    if result.error:
        raise ProfileError(result.error)


@app.command("new", epilog=examples("profiles new my-device.toml"))
def profiles_new(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write it; ends in .toml.")],
    force: _Replace = False,
    as_json: o.AsJson = False,
) -> None:
    """Begin a profile of your own: every section with units and what it means, valid as it stands."""
    from analognoise.jobs.profiles import start_profile

    show(start_profile(file, force), as_json)


@app.command("schema", epilog=examples("profiles schema > profile.schema.json"))
def profiles_schema() -> None:
    """Print the JSON Schema of profile files, for editors that complete and check while one types."""
    from analognoise.jobs.profiles import Schema

    show(Schema(), as_json=True)


@app.command(
    "fit",
    epilog=examples(
        "profiles fit measurements.csv -o my-device.toml",
        "profiles fit reads.csv -o my.toml --t-0 20s --t-read 1us --curve nu_mean=log",
    ),
)
def profiles_fit(
    measurements: Annotated[
        Path,
        typer.Argument(
            metavar="MEASUREMENTS.csv",
            help="Columns device,target_uS,time_s,conductance_uS; or device,target_uS and one for each "
            "age, as in 20s,1h,1d.",
        ),
    ],
    out: o.ProfileFile,
    name: o.ProfileName = None,
    t_0: o.FitStart = None,
    t_read: o.FitReadTime = None,
    g_max: o.FitMax = None,
    g_min: o.FitMin = None,
    curve: o.FitCurves = None,
    target_unit: o.TargetUnit = None,
    conductance_unit: o.ConductanceUnit = None,
    duplicates: o.Duplicates = "refuse",
    clamp_negative: o.ClampNegative = False,
    confidence: o.Confidence = 0.95,
    seed: o.Seed = 0,
    force: _Replace = False,
    as_json: o.AsJson = False,
) -> None:
    """Fit a profile to conductances measured on devices of your own.

    Separates programming error, drift and read noise, chooses a curve for each by cross-validation, says how
    well each is known and what the measurements cannot tell. Writes the profile, and a picture beside it.
    """
    from analognoise.jobs.fit import fit_device

    result = fit_device(
        measurements,
        out,
        name=name,
        t_0=t_0,
        t_read=t_read,
        g_max=g_max,
        g_min=g_min,
        curves=curve or (),
        target_unit=target_unit,
        conductance_unit=conductance_unit,
        duplicates=duplicates,
        clamp_negative=clamp_negative,
        confidence=confidence,
        seed=seed,
        force=force,
        say=note,
    )
    show(result, as_json)
