"""Tasks: a model, its data and the settings that suit them."""

from __future__ import annotations

from collections.abc import Callable

from analognoise.errors import DataError, nearest
from analognoise.tasks import digits
from analognoise.tasks.base import Task, TensorBatches
from analognoise.tasks.loading import load_callable, load_data, load_model
from analognoise.tasks.weights import load_for_chip, load_quantized, load_weights, save_weights

TASKS: dict[str, Callable[[], Task]] = {"digits": digits.task}

__all__ = [
    "TASKS",
    "Task",
    "TensorBatches",
    "get_task",
    "load_callable",
    "load_data",
    "load_for_chip",
    "load_model",
    "load_quantized",
    "load_weights",
    "save_weights",
]


def get_task(name: str | Task) -> Task:
    """A task by name (``"digits"``), or from the user's own ``package.module:callable`` that returns a
    :class:`Task`.

    Raises:
        DataError: when the name is unknown, or the callable cannot be loaded or returns something else.
    """
    if isinstance(name, Task):
        return name
    if ":" not in name:
        if name not in TASKS:
            raise DataError(
                f"unknown task {name!r}{nearest(name, TASKS)}: known are {', '.join(TASKS)}, or "
                "package.module:callable "
                "of your own that returns an analognoise.tasks.Task"
            )
        return TASKS[name]()
    function = load_callable(name, what="task")
    try:
        task = function()
    except Exception as problem:
        raise DataError(f"task {name!r} failed: {type(problem).__name__}: {problem}") from problem
    if not isinstance(task, Task):
        raise DataError(
            f"task {name!r} returned {type(task).__name__}: it must return an analognoise.tasks.Task"
        )
    return task
