"""Speed as ratios measured in one run: ``make bench``, or ``python -m benchmarks.speed --help``."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.speed import evaluation, periphery, programming


def main(
    chips: Annotated[int, typer.Option(help="Chips of the drift evaluation.")] = 25,
    repeats: Annotated[int, typer.Option(help="Rounds; medians are taken over them.")] = 7,
    threads: Annotated[int, typer.Option(help="Torch threads.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time drift evaluation, programming and periphery; exit with 1 when one costs more than its limit."""
    torch.set_num_threads(threads)
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


if __name__ == "__main__":
    typer.run(main)
