"""``analognoise faults`` and ``analognoise noise-sweep``: comparisons with progress on the terminal."""

from __future__ import annotations

from typing import Any

from analognoise.comparison import compare_faults, noise_sweep
from analognoise.errors import QuantizationError
from analognoise.jobs.compare import Compared, with_progress
from analognoise.jobs.setup import Say


def compare_on_faults(
    task: str,
    *,
    bits: str,
    workers: int | None = None,
    scheduler: str | None = None,
    say: Say = print,
    **settings: Any,
) -> Compared:
    """Compare methods on faulty memories, saying what is reused and what fails, with a progress bar.

    Args:
        task: a task's name, or ``module:callable``.
        bits: as the user wrote them.
        workers: processes; None takes one per core.
        scheduler: address of a Dask scheduler whose workers share the work.
        say: gets lines for the user.
        settings: as :func:`analognoise.compare_faults`.

    Raises:
        AnalogNoiseError: as :func:`analognoise.compare_faults`.
    """
    parts = [part.strip() for part in bits.split(",") if part.strip()]
    wrong = next((part for part in parts if not (part.isascii() and part.isdigit())), None)
    if wrong is not None:
        raise QuantizationError(f"bits must be whole numbers from 2 to 8, found {wrong!r}")
    return with_progress(
        compare_faults,
        task,
        bits=[int(part) for part in parts],
        workers=workers,
        scheduler=scheduler,
        say=say,
        **settings,
    )


def compare_under_noise(
    task: str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    say: Say = print,
    **settings: Any,
) -> Compared:
    """Compare methods under noisy computation, likewise.

    Args:
        task: a task's name, or ``module:callable``.
        workers: processes; None takes one per core.
        scheduler: address of a Dask scheduler whose workers share the work.
        say: gets lines for the user.
        settings: as :func:`analognoise.noise_sweep`.

    Raises:
        AnalogNoiseError: as :func:`analognoise.noise_sweep`.
    """
    return with_progress(noise_sweep, task, workers=workers, scheduler=scheduler, say=say, **settings)
