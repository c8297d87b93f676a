"""The command line: reads options, calls `analognoise.jobs`, prints. Nothing is computed here.

Data go to standard output, everything else to standard error. Wrong use, and every error about input, ends
with one sentence and exit status 2. torch is imported only by commands that need it, so that ``--help``
answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from analognoise import __version__
from analognoise import options as o
from analognoise.errors import AnalogNoiseError, DataError
from analognoise.units import DEFAULT_TIMES

_TIMES = ",".join(DEFAULT_TIMES)
_GO_ON = "interrupted: run the same command again to go on"
_INTERRUPTED = 130
_APP: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    add_completion=False,
    help="Which accuracy a PyTorch model keeps on analog in-memory-computing chips over time, "
    "and how to train it so that it keeps more.",
    **_APP,
)
profiles_app = typer.Typer(help="Device profiles: those that ship, and files of your own.", **_APP)
app.add_typer(profiles_app, name="profiles")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"analognoise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def _examples(*lines: str) -> str:
    return "\n\n".join(["[bold]Examples[/]", *(f"analognoise {line}" for line in lines)])


@app.command(
    epilog=_examples(
        "compare --profile pcm-ibm --out runs/digits",
        "compare --profile gaussian@5%,gaussian@10% --methods sgd,noise+clip,sam:rho=0.1 --out runs/noise",
        "compare --task mine:task --profile my.toml --chips 10 --times 1h,1y --out runs/mine",
    )
)
def compare(
    profile: o.ProfileList,
    out: o.OutFolder,
    task: o.DefaultTask = "digits",
    methods: o.MethodList = "sgd,noise,rwp,sam,asam,samson",
    times: o.Times = _TIMES,
    chips: o.Chips = 25,
    seeds: o.Seeds = "3",
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    workers: o.Workers = None,
    compensation: o.Compensation = "global",
    digital: o.Digital = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Train a model by several methods, put each on simulated chips, let them drift, and compare.

    Writes results.csv, summary.csv, summary.md, accuracy_over_time.png, models/ and run.json. The same
    command again reuses what is there, and goes on where a killed run stopped.
    """
    from analognoise.jobs.compare import compare_methods

    with _interruptible(_GO_ON):
        result = compare_methods(
            task,
            profiles=_split(profile),
            methods=_split([methods]),
            times=times,
            chips=chips,
            out=out,
            seeds=_seeds(seeds),
            epochs=epochs,
            lr=lr,
            workers=workers,
            compensation=compensation,
            digital=digital or (),
            force=force,
            say=_note,
        )
    _show(result, as_json)


@app.command(
    epilog=_examples(
        "train --task digits --method samson --out runs/samson",
        "train --model mine:build --data mine:train_loader --validation mine:val_loader --method sam+clip "
        "--out runs/mine",
        "train --model mine:build --weights model.safetensors --data mine:train_loader --epochs 5 --lr 0.005 "
        "--out runs/tuned",
    )
)
def train(
    out: o.OutFolder,
    task: o.TaskName = None,
    model: o.ModelName = None,
    data: o.TrainData = None,
    validation: o.ValidationData = None,
    method: o.Method = "sgd",
    weights: o.Weights = None,
    profile: o.TrainingProfile = None,
    digital: o.Digital = None,
    epochs: o.Epochs = None,
    lr: o.Rate = None,
    batch_size: o.BatchSize = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    threads: o.Threads = 1,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Train one model by one method, from scratch or from given weights.

    Writes model.safetensors, history.csv (loss and validation accuracy of every epoch) and run.json.
    """
    from analognoise.jobs.train import train_model

    with _interruptible("interrupted: nothing was kept"):
        result = train_model(
            task=task,
            model=model,
            data=data,
            validation=validation,
            method=method,
            weights=weights,
            profile=profile,
            digital=digital or (),
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            device=device,
            threads=threads,
            out=out,
            force=force,
            say=_note,
        )
    _show(result, as_json)


@app.command(
    epilog=_examples(
        "evaluate --task digits --weights runs/samson/model.safetensors --profile pcm-ibm",
        "evaluate --model mine:build --weights model.safetensors --data mine:test_loader --profile my.toml "
        "--times 1h,1y --out runs/mine-on-chips",
        "evaluate --model mine:build --weights model.safetensors --data mine:test_loader "
        "--profile 'features.*=pcm-ibm,head=ideal' --digital 'stem*'",
    )
)
def evaluate(
    profile: o.LayerProfileList,
    task: o.TaskName = None,
    model: o.ModelName = None,
    data: o.TestData = None,
    weights: o.Weights = None,
    times: o.Times = _TIMES,
    chips: o.Chips = 25,
    metric: o.Metric = None,
    forward: o.Forward = None,
    floor: o.Floor = None,
    seed: o.Seed = 0,
    compensation: o.Compensation = "global",
    digital: o.Digital = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    threads: o.Threads = 1,
    out: o.MaybeOutFolder = None,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Program a model onto many chips, let them drift, and report its accuracy over time.

    With --out it writes results.csv, summary.csv, summary.md, a picture and run.json; a run that was killed
    goes on, and more chips or times are added to what is there.
    """
    from analognoise.jobs.evaluate import evaluate_model

    with _interruptible("interrupted: nothing was kept" if out is None else _GO_ON):
        result = evaluate_model(
            profiles=_profiles(profile),
            task=task,
            model=model,
            data=data,
            weights=weights,
            times=times,
            chips=chips,
            metric=metric,
            forward=forward,
            floor=floor,
            seed=seed,
            compensation=compensation,
            digital=digital or (),
            batch_size=batch_size,
            device=device,
            threads=threads,
            out=out,
            force=force,
            say=_note,
        )
    _show(result, as_json)


@app.command(
    epilog=_examples(
        "sensitivity --task digits --weights runs/samson/model.safetensors --profile pcm-ibm "
        "--out runs/layers",
        "sensitivity --model mine:build --weights model.safetensors --data mine:test_loader "
        "--profile my.toml --digital 'head*' --times 1h,1y --out runs/my-layers",
    )
)
def sensitivity(
    profile: o.OneLayerProfile,
    out: o.OutFolder,
    task: o.TaskName = None,
    model: o.ModelName = None,
    data: o.TestData = None,
    weights: o.Weights = None,
    times: o.Times = "1d",
    chips: o.Chips = 10,
    metric: o.Metric = None,
    forward: o.Forward = None,
    seed: o.Seed = 0,
    compensation: o.Compensation = "global",
    digital: o.Digital = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    threads: o.Threads = 1,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Rank a model's layers by what each costs on chips: alone on tiles, and as the only one kept digital.

    Writes sensitivity.csv, sensitivity.md, sensitivity.png, results.csv and run.json; a run that was killed
    goes on, and more chips or times are added to what is there.
    """
    from analognoise.jobs.sensitivity import rank_layers

    with _interruptible(_GO_ON):
        result = rank_layers(
            profile=profile,
            task=task,
            model=model,
            data=data,
            weights=weights,
            times=times,
            chips=chips,
            metric=metric,
            forward=forward,
            seed=seed,
            compensation=compensation,
            digital=digital or (),
            batch_size=batch_size,
            device=device,
            threads=threads,
            out=out,
            force=force,
            say=_note,
        )
    _show(result, as_json)


@app.command(epilog=_examples("report runs/digits"))
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What compare or evaluate wrote.")],
    as_json: o.AsJson = False,
) -> None:
    """Make the table and the picture again from a run's results.csv, without computing anything else."""
    from analognoise.jobs.report import report_again

    _show(report_again(folder), as_json)


@app.command(epilog=_examples("methods", "methods --json"))
def methods(as_json: o.AsJson = False) -> None:
    """List the training methods and their hyperparameters.

    A method is written as its name, then +clip or +noise where it has not got them, then hyperparameters:
    sam+clip:rho=0.1:clip=2.
    """
    from analognoise.jobs.catalog import list_methods

    _show(list_methods(), as_json)


@profiles_app.command("list", epilog=_examples("profiles list"))
def profiles_list(as_json: o.AsJson = False) -> None:
    """List the profiles that ship with analognoise."""
    from analognoise.jobs.catalog import list_devices

    _show(list_devices(), as_json)


@profiles_app.command("show", epilog=_examples("profiles show pcm-ibm", "profiles show my.toml --json"))
def profiles_show(
    profile: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A profile's name or TOML file.")],
    as_json: o.AsJson = False,
) -> None:
    """Show a profile: its fields, its source, and what one device of it does."""
    from analognoise.jobs.catalog import show_device

    _show(show_device(profile), as_json)


@profiles_app.command("check", epilog=_examples("profiles check my.toml"))
def profiles_check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="TOML files, or names.")],
    as_json: o.AsJson = False,
) -> None:
    """Check profile files; the first that is wrong is an error that names the field."""
    from analognoise.jobs.catalog import check_devices

    _show(check_devices(files), as_json)


class _Interrupted(Exception):
    """Ctrl-C, with what there is to say about it."""


@contextmanager
def _interruptible(text: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise _Interrupted(text) from None


def _split(values: list[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _profiles(values: list[str]) -> list[str]:
    """As ``_split``, but PATTERN=PROFILE,PATTERN=PROFILE is one device by layer and stays whole."""
    return [part for value in values for part in ([value] if "=" in value else _split([value]))]


def _seeds(text: str) -> tuple[int, ...]:
    """``3`` means 0, 1, 2; ``0,4,7`` and ``4,`` mean themselves."""
    parts = [part.strip() for part in text.split(",")]
    if not any(parts) or not all(part.isascii() and part.isdigit() for part in parts if part):
        raise DataError(
            f"--seeds {text!r} is neither a number of seeds nor a list of them: write for example 3 or 0,1,7"
        )
    if len(parts) == 1:
        if int(text) < 1:
            raise DataError(f"--seeds must be at least 1, found {text}")
        return tuple(range(int(text)))
    return tuple(int(part) for part in parts if part)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(result: Any, as_json: bool) -> None:
    """Print what a job found: as JSON, or for people."""
    if as_json:
        print(json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False))
        return
    result.show(Console(highlight=False))


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    name = "warning" if category is UserWarning else category.__name__
    print(f"{name}: {message}", file=sys.stderr)


def _fail(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for wrong use or wrong input, 130 when interrupted.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            status = app(args=arguments, prog_name="analognoise", standalone_mode=False)
        sys.stdout.flush()
    except AnalogNoiseError as error:
        return _fail(str(error))
    except typer.TyperException as error:
        # Without a message it is the help that a bare command shows.
        return _fail(error.format_message()) if error.format_message() else 2
    except BrokenPipeError:
        # Whoever read the output has had enough, as in `analognoise … | head`. Nothing is left to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
    except _Interrupted as stop:
        print(stop, file=sys.stderr)
        return _INTERRUPTED
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0
