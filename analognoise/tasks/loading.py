"""The user's own models, data and tasks, named as ``package.module:callable``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from analognoise.errors import AnalogNoiseError, DataError, ModelError, nearest
from analognoise.printing import kind_of
from analognoise.seeds import derive_seed, rng_preserved


def load_callable(
    spec: str, *, error: type[AnalogNoiseError] = DataError, what: str = "callable"
) -> Callable[..., Any]:
    """Import the callable that ``package.module:callable`` names; the present folder is searched first.

    Args:
        spec: module and attribute (dots allowed in both).
        error: class of the error raised.
        what: what the callable is for, in messages.

    Raises:
        AnalogNoiseError: of class ``error``, when the text has another form, the module is not found or fails
            while it is imported, the attribute is missing, or is not callable.
    """
    module_name, colon, path = spec.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")]):
        raise error(
            f"{what} {spec!r} is not of the form package.module:callable, for example mypackage.models:build"
        )
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
    try:
        with rng_preserved():
            found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        if problem.name is not None and (module_name + ".").startswith(problem.name + "."):
            raise error(
                f"{what} {spec!r}: there is no module {problem.name!r} in {folder!r} or among the installed "
                "packages"
            ) from problem
        raise error(f"{what} {spec!r}: importing {module_name!r} failed: {problem}") from problem
    except (Exception, SystemExit) as problem:
        raise error(
            f"{what} {spec!r}: importing {module_name!r} failed: {type(problem).__name__}: {problem}"
        ) from problem
    for name in path.split("."):
        if not hasattr(found, name):
            raise error(
                f"{what} {spec!r}: {module_name!r} has no attribute {name!r}{nearest(name, dir(found))}"
            )
        found = getattr(found, name)
    if not callable(found) or isinstance(found, nn.Module):
        raise error(
            f"{what} {spec!r} is {_kind(found)}, not a callable: write a function that returns what is wanted"
        )
    return found


def load_model(spec: str, *, seed: int = 0) -> nn.Module:
    """A model from the callable ``spec`` names, built under the seed; it gets ``seed=`` if it takes it.

    Raises:
        ModelError: when the callable cannot be loaded or fails, or returns something else than a
            ``torch.nn.Module``.
    """
    function = load_callable(spec, error=ModelError, what="model")
    with rng_preserved(derive_seed("user model", seed)):
        model = _call(function, spec, "model", ModelError, seed=seed)
    if not isinstance(model, nn.Module):
        raise ModelError(f"model {spec!r} returned {_kind(model)}: it must return a torch.nn.Module")
    return model


def load_data(
    spec: str, *, seed: int = 0, batch_size: int | None = None, own_forward: bool = False
) -> Iterable[Any]:
    """Batches from the callable ``spec`` names; it gets ``seed=`` and ``batch_size=`` if it takes them.

    Args:
        spec: as :func:`load_callable` reads it.
        seed: for the callable, and of what it draws.
        batch_size: for the callable.
        own_forward: whether a function of the user's hands the batches to the model: any batches will do.

    Raises:
        DataError: when the callable cannot be loaded or fails, takes no ``batch_size`` though one is given,
            or returns something that is not batches ``(x, y)`` or dicts, or can be iterated only once.
    """
    function = load_callable(spec, what="data")
    if batch_size is not None and not takes_batch_size(spec):
        raise DataError(
            f"data {spec!r} takes no argument 'batch_size': set the batch size in it, or let it take one"
        )
    options = {} if batch_size is None else {"batch_size": batch_size}
    with rng_preserved(derive_seed("user data", seed)):
        data = _call(function, spec, "data", DataError, seed=seed, **options)
        check_batches(data, f"data {spec!r}", own_forward)
    return data


def takes_batch_size(spec: str) -> bool:
    """Whether the callable that gives batches takes how many samples are in one.

    Raises:
        DataError: when it cannot be loaded.
    """
    return "batch_size" in _parameters(load_callable(spec, what="data"))


def check_batches(data: Any, name: str, own_forward: bool = False) -> None:
    """Raise unless ``data`` gives batches ``(x, y)`` or dicts of tensors, more than once; any batches where a
    function of the user's hands them to the model.

    Raises:
        DataError: saying what ``name`` is instead.
    """
    wanted = "it must give batches (inputs, targets) or dicts of tensors, for example a torch DataLoader"
    if isinstance(data, (str, bytes, Tensor, Mapping, nn.Module)) or not isinstance(data, Iterable):
        raise DataError(f"{name} gave {_kind(data)}: {wanted}")
    iterator = iter(data)
    if iterator is data:
        raise DataError(
            f"{name} gave {_kind(data)}, which can be iterated only once: return a list or a DataLoader"
        )
    try:
        batch = next(iterator)
    except StopIteration:
        raise DataError(f"{name} gave {_kind(data)} without a batch: {wanted}") from None
    arrays = (Tensor, np.ndarray)
    if isinstance(batch, Mapping):
        fits = any(isinstance(value, arrays) for value in batch.values())
    else:
        fits = isinstance(batch, (tuple, list)) and len(batch) >= 2 and isinstance(batch[0], arrays)
    if not (fits or own_forward):
        raise DataError(
            f"{name} gave {_kind(data)} whose batches are {_kind(batch)}: {wanted}; any other batch needs a "
            "forward of your own (--forward)"
        )


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


def _call(
    function: Callable[..., Any], spec: str, what: str, error: type[AnalogNoiseError], **options: Any
) -> Any:
    parameters = _parameters(function)
    taken = {name: value for name, value in options.items() if name in parameters}
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in taken
    ]
    if needed:
        raise error(
            f"{what} {spec!r} needs the argument {needed[0]!r}, which nobody gives: give it a default"
        )
    try:
        return function(**taken)
    except (Exception, SystemExit) as problem:
        raise error(f"{what} {spec!r} failed: {type(problem).__name__}: {problem}") from problem


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(type(item).__name__ for item in value[:3])
        return f"a {type(value).__name__} of {len(value)} ({inner}{', …' if len(value) > 3 else ''})"
    return kind_of(value)
