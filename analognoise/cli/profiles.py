"""``analognoise profiles …``: the profiles that ship, and files of the user's own."""

from __future__ import annotations

from typing import Annotated

import typer

from analognoise import options as o
from analognoise.cli.shared import examples, new_app, show

app = new_app(help="Device profiles: those that ship, and files of your own.")


@app.command("list", epilog=examples("profiles list"))
def profiles_list(as_json: o.AsJson = False) -> None:
    """List the profiles that ship with analognoise."""
    from analognoise.jobs.catalog import list_devices

    show(list_devices(), as_json)


@app.command("show", epilog=examples("profiles show pcm-ibm", "profiles show my.toml --json"))
def profiles_show(
    profile: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile's name or TOML file.")],
    changed: o.ChangedFields = None,
    scale: o.ScaledEffects = None,
    as_json: o.AsJson = False,
) -> None:
    """Show a profile: its fields, its source, and what one device of it does."""
    from analognoise.devices.whatif import Changes
    from analognoise.jobs.catalog import show_device

    show(show_device(profile, Changes.parse(changed or (), scale or ())), as_json)


@app.command("check", epilog=examples("profiles check my.toml"))
def profiles_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="TOML files, or names.")],
    as_json: o.AsJson = False,
) -> None:
    """Check profile files; the first that is wrong is an error that names the field."""
    from analognoise.jobs.catalog import check_devices

    show(check_devices(files), as_json)
