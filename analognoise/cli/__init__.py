"""The command line: reads options, calls `analognoise.jobs`, prints. Nothing is computed here.

Data go to standard output, everything else to standard error. Wrong use, and every error about input, ends
with one sentence and exit status 2. torch is imported only by commands that need it, so that ``--help``
answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

from analognoise import __version__
from analognoise.cli import lookups, profiles, runs, sweeps
from analognoise.cli.shared import Interrupted, new_app
from analognoise.errors import AnalogNoiseError

_INTERRUPTED = 130
app = new_app(
    add_completion=False,
    help="Which accuracy a PyTorch model keeps on analog in-memory-computing chips over time, "
    "and how to train it so that it keeps more.",
)
# Without a name its commands stand beside the others.
app.add_typer(runs.app)
app.add_typer(sweeps.app)
app.add_typer(lookups.app)
app.add_typer(profiles.app, name="profiles")


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
    count = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and count != "1":
        raise AnalogNoiseError(
            f"torchrun started this command as {count} processes, each of which would do the whole work: "
            "start it without torchrun, or train in Python by analognoise.fit with DistributedDataParallel "
            "(docs/methods.md)"
        )


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    name = "warning" if category is UserWarning else category.__name__
    print(f"{name}: {message}", file=sys.stderr)


def _fail(text: str) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return 2


def _open_streams() -> None:
    """Give output that is closed (``>&-``) a place to go: Python has no stream for it, and the next file that
    is opened would be what the libraries' own messages are written to.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where a training of several broke down, 2 for
    wrong use or wrong input, 130 when interrupted, 143 when
    terminated.

    Args:
        arguments: without the program's name; None takes those of the process.
    """
    _open_streams()
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
    except Interrupted as stop:
        print(stop.sentence(sys.argv[1:] if arguments is None else arguments), file=sys.stderr)
        return 128 + stop.signal
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    if status == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    return status if isinstance(status, int) else 0
