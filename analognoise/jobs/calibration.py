"""Ranges of converters for a job: from data that the user names, or from what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from analognoise.calibration import calibrate_, needs_calibration
from analognoise.errors import AnalogNoiseError, DataError
from analognoise.evaluation.metrics import Forward
from analognoise.jobs.setup import Say
from analognoise.tasks import Task, load_data


def calibrate_all(
    analogs: Sequence[nn.Module],
    named: str | None,
    task: Task | None,
    test: Any,
    *,
    batch_size: int | None,
    seed: int,
    forward: Forward | None,
    say: Say,
) -> str | None:
    """Calibrate what needs it, and say from which data.

    Args:
        analogs: converted models.
        named: ``module:callable`` of the user's that returns batches (``--calibration``).
        task: its training data are taken where nothing is named.
        test: batches for a model of the user's own where nothing is named; labels are not used.
        batch_size: of the data that are named.
        seed: of the task's order of training data.
        forward: ``forward(model, batch)``.
        say: gets a line for the user.

    Returns:
        What the ranges come from, in words; None where no converter needs data.

    Raises:
        DataError: when data are named that nothing needs, or the model cannot compute them.
        CalibrationError: when the data give a layer no range.
    """
    waiting = [analog for analog in analogs if needs_calibration(analog)]
    if not waiting:
        if named is not None:
            raise DataError(
                f"--calibration {named}: no converter takes its range from data, and no recalibration is "
                "asked for; leave it out, or ask for one, for example by --periphery standard-8bit or "
                "--compensation batchnorm"
            )
        return None
    if named is not None:
        data: Any = load_data(named, batch_size=batch_size, own_forward=forward is not None)
        source = f"data {named!r}"
    elif task is not None:
        data, source = task.train(seed, task.batch_size), f"training data of task {task.name!r}"
    else:
        data, source = test, "the test data (name training data with --calibration)"
    say(f"ranges of the converters: from {source}")
    for analog in waiting:
        try:
            calibrate_(analog, data, forward=forward)
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        except AnalogNoiseError:
            raise
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise DataError(
                f"calibration, {source}: the model cannot compute them ({type(error).__name__}: {first})"
            ) from error
    return source
