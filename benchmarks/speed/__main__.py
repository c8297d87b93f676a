"""Speed as ratios measured in one run: ``make bench``, or ``python -m benchmarks.speed --help``.

``python -m benchmarks.speed targets`` measures the table of docs/speed.md.
"""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from typing import Annotated

import torch
import typer
from rich.console import Console

from analognoise.errors import DataError
from analognoise.jobs.setup import torch_device
from benchmarks.speed import evaluation, peer, periphery, programming, targets
from benchmarks.speed.workloads import WORKLOADS

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    chips: Annotated[int, typer.Option(help="Chips of the drift evaluation.")] = 25,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are taken over them.")] = 7,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time drift evaluation, programming and periphery; exit with 1 when one costs more than its limit."""
    torch.set_num_threads(threads)
    if context.invoked_subcommand is not None:
        return
    evaluations = evaluation.measure(chips, repeats)
    onto_chip = programming.measure(repeats)
    surrounded = periphery.measure(repeats)
    if as_json:
        settings = {"chips": chips, "times": evaluation.TIMES, "threads": threads}
        print(
            json.dumps(
                {**settings, "evaluation": evaluations, "programming": onto_chip, "periphery": surrounded},
                indent=1,
            )
        )
    else:
        console = Console()
        console.print(evaluation.table(evaluations, chips))
        console.print(programming.table(onto_chip))
        console.print(periphery.table(surrounded))
    ratio = evaluations["analognoise"]["ratio"]
    if ratio > evaluation.LIMIT:
        print(f"over the limit: {ratio:.2f} × the plain passes, {evaluation.LIMIT} wanted", file=sys.stderr)
        raise typer.Exit(1)
    ratio = periphery.slowest_converters(surrounded)
    if ratio > periphery.LIMIT:
        wanted = f"{periphery.LIMIT} wanted"
        print(f"over the limit: {ratio:.2f} × the evaluation without converters, {wanted}", file=sys.stderr)
        raise typer.Exit(1)


@app.command(name="targets")
def table(
    workloads: Annotated[str, typer.Option(help="Some of W1,W2,W3,W4.")] = ",".join(WORKLOADS),
    rows: Annotated[str, typer.Option(help=f"Some of {';'.join(targets.ROWS)}.")] = ";".join(targets.ROWS),
    repeats: Annotated[int, typer.Option(help="Rounds; medians are taken over them.")] = 5,
    chips: Annotated[int, typer.Option(help="Chips of an evaluation, at six times each.")] = 10,
    samples: Annotated[
        int | None, typer.Option(help="Samples of an evaluation, instead of each workload's.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where torch computes: cpu, cuda, …")] = "cpu",
) -> None:
    """Print the table of speed targets as Markdown, row by row as it is measured."""
    try:
        place = torch_device(device)
    except DataError as error:
        raise typer.BadParameter(str(error)) from None
    if not peer.installed():
        print("aihwkit is not installed: its column stays empty", file=sys.stderr)
    found = []
    for name in workloads.split(","):
        work = WORKLOADS[name].on(place)
        measured = {
            "pass": partial(targets.passes, name, work, repeats),
            "programming": partial(targets.programming, name, work, repeats),
            "training": partial(targets.training, name, work, repeats),
            "memory": partial(targets.peak_memory, name, work),
            "evaluation": partial(targets.evaluation, name, work, repeats, chips, samples, False),
            "evaluation, 8 bits": partial(targets.evaluation, name, work, repeats, chips, samples, True),
        }
        for row in rows.split(";"):
            found += measured[row]()
    print(targets.markdown(found, "python -m benchmarks.speed " + shlex.join(sys.argv[1:]), place))


if __name__ == "__main__":
    app()
