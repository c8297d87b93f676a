"""The commands that show what is there: report, methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analognoise import options as o
from analognoise.cli.shared import examples, new_app, show

app = new_app()


@app.command(epilog=examples("report runs/digits"))
def report(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="What compare, faults, noise-sweep, evaluate or sensitivity wrote.",
            parser=o.path,
        ),
    ],
    as_json: o.AsJson = False,
) -> None:
    """Make the table and the picture again from a run's results.csv, without computing anything else."""
    from analognoise.jobs.again import report_again

    result, unwritten = report_again(folder)
    show(result, as_json)
    if unwritten is not None:
        raise unwritten


@app.command(epilog=examples("methods", "methods --json"))
def methods(as_json: o.AsJson = False) -> None:
    """List the training methods and their hyperparameters.

    A method is written as its name, then +clip or +noise where it has not got them, then hyperparameters:
    sam+clip:rho=0.1:clip=2.
    """
    from analognoise.jobs.catalog import list_methods

    show(list_methods(), as_json)
