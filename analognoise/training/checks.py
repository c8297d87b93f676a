"""Checks of what training methods are given; every message names the method."""

from __future__ import annotations

import inspect
import math
from numbers import Integral, Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from analognoise.errors import MethodError
from analognoise.processes import Processes

_SHARDED = (
    "sharded over processes (FSDP, DTensor), and each would see its own shard only: keep parameters whole, "
    "as torch.nn.parallel.DistributedDataParallel does, or train with a plain torch optimizer"
)


def check_number(method: str, name: str, value: Any, *, above: bool = False, most: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number, at least 0 (above 0 if ``above``) and at most ``most``.

    Raises:
        MethodError: otherwise.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or value > most or (above and value == 0):
        wanted = ("a number above 0" if above else "a number, at least 0") + (
            f" and at most {most:g}" if most < math.inf else ""
        )
        raise MethodError(f"{method}: {name} must be {wanted}, found {value!r}")


def check_steps(method: str, name: str, value: Any) -> None:
    """Raise unless ``value`` is a whole number of steps, at least 0.

    Raises:
        MethodError: otherwise.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise MethodError(f"{method}: {name} must be a whole number of steps, at least 0, found {value!r}")


def check_sync(method: str, sync: Any, model: nn.Module) -> None:
    """Raise unless ``sync`` is "all" or "worker", and processes that are to differ can be told apart.

    Raises:
        MethodError: otherwise.
    """
    if sync not in ("all", "worker"):
        raise MethodError(f"{method}: sync must be 'all' or 'worker', found {sync!r}")
    many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if sync == "worker" and many and not Processes(model).wrapped:
        raise MethodError(
            f"{method}: sync='worker' needs the model as wrapped in DistributedDataParallel, whose averaging "
            f"it leaves out in the first pass, found {type(model).__name__}"
        )


def check_gradient(method: str, name: str, gradient: Tensor) -> None:
    """Raise unless a gradient is dense and real.

    Raises:
        MethodError: naming the parameter.
    """
    if gradient.layout is not torch.strided or gradient.is_complex():
        kind = f"complex ({gradient.dtype})" if gradient.is_complex() else f"sparse ({gradient.layout})"
        raise MethodError(
            f"{method}: the gradient of parameter {name!r} is {kind}; it must be dense and real"
        )


def check_base(method: str, base: Any, model: Any) -> None:
    """Raise unless ``base`` is an optimizer instance that can be wrapped and ``model`` a module with its
    parameters in place.

    Raises:
        MethodError: otherwise.
    """
    if isinstance(base, type):
        raise MethodError(
            f"{method}: base must be an optimizer instance such as {base.__name__}(model.parameters()), "
            f"found the class {base.__name__}"
        )
    if not isinstance(base, Optimizer):
        raise MethodError(
            f"{method}: base must be a torch.optim.Optimizer instance, found {type(base).__name__}"
        )
    if not isinstance(model, nn.Module):
        raise MethodError(f"{method}: model must be a torch.nn.Module, found {type(model).__name__}")
    closure = inspect.signature(type(base).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise MethodError(
            f"{method}: base {type(base).__name__} calls the closure itself and cannot be wrapped: "
            "use SGD or Adam, for example"
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise MethodError(
                f"{method}: parameter {name!r} has no shape yet: run one batch through the model first"
            )
        # A process would take the norm, and draw the noise, of its own shard alone.
        if hasattr(parameter, "full_tensor"):
            raise MethodError(f"{method}: parameter {name!r} is {_SHARDED}")
    for name, module in model.named_modules():
        if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
            raise MethodError(f"{method}: module {name or '(the model)'!r} is {_SHARDED}")
