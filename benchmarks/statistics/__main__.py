"""Whether the statistics hold and what they save: ``python -m benchmarks.statistics --help``."""

from __future__ import annotations

import json
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.statistics import controls as candidates
from benchmarks.statistics import coverage as intervals
from benchmarks.statistics import sampling as by_margin

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


@app.callback()
def main() -> None:
    """Checks of the statistics by simulation."""


@app.command()
def coverage(
    runs: Annotated[int, typer.Option(help="Simulated evaluations of each case.")] = 2000,
    pilot: Annotated[int, typer.Option(help="Chips of the first stage.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Coverage of intervals whose number of chips is chosen on the way."""
    found = intervals.measure(runs, pilot)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        Console().print(intervals.table(found, runs))


@app.command()
def sampling(
    chips: Annotated[int, typer.Option(help="Chips of each evaluation.")] = 100,
    samples: Annotated[int, typer.Option(help="Samples of the large data set.")] = 10_000,
    repeats: Annotated[int, typer.Option(help="Rounds, of which the median time counts.")] = 1,
    as_json: AsJson = False,
) -> None:
    """What sampling by digital margin saves, and that it does not bias."""
    torch.set_num_threads(1)
    found = by_margin.measure(chips, samples, repeats)
    if as_json:
        print(json.dumps(by_margin.as_dicts(found), indent=1))
    else:
        Console().print(by_margin.table(found, chips))


@app.command()
def controls(
    chips: Annotated[int, typer.Option(help="Chips of each case; half fit, half judge.")] = 400,
    samples: Annotated[int, typer.Option(help="Samples of the wide network's data set.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """What explains a chip's accuracy, what it costs, and what it would gain as a control variate."""
    torch.set_num_threads(1)
    found = candidates.measure(chips, samples)
    if as_json:
        print(json.dumps(candidates.as_dicts(found), indent=1))
    else:
        Console().print(candidates.table(found, chips))


if __name__ == "__main__":
    app()
