"""The processes of a training under ``torch.nn.parallel.DistributedDataParallel``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from analognoise.seeds import derive_seed


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside a ``DistributedDataParallel``; any other module itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


class Processes:
    """The processes over which a model's gradients are averaged; one if it is not wrapped.

    Args:
        model: a ``DistributedDataParallel``, a module with some inside, or any other.
    """

    def __init__(self, model: nn.Module) -> None:
        self._wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]

    @property
    def wrapped(self) -> bool:
        """Whether there is a wrapper at all."""
        return bool(self._wrappers)

    @property
    def _group(self) -> Any:
        return self._wrappers[0].process_group

    @property
    def count(self) -> int:
        """Number of processes."""
        return dist.get_world_size(self._group) if self._wrappers else 1

    @property
    def rank(self) -> int:
        """Number of this process among them, from 0."""
        return dist.get_rank(self._group) if self._wrappers else 0

    @property
    def reuses_gradients(self) -> bool:
        """Whether the next pass writes into the memory of gradients that were taken from ``.grad``."""
        return any(wrapper.gradient_as_bucket_view for wrapper in self._wrappers)

    @property
    def static(self) -> bool:
        """Whether a wrapper takes every pass to have the same graph: torch then averages in all of them."""
        return any(wrapper.static_graph for wrapper in self._wrappers)

    def own_seed(self, seed: int) -> int:
        """A seed of this process's own; that of process 0 is ``seed``, so that one process draws as ever."""
        return derive_seed("process", seed, self.rank) if self.rank else seed

    @contextmanager
    def unaveraged(self) -> Iterator[None]:
        """Passes inside leave each process its own gradient."""
        with ExitStack() as stack:
            for wrapper in self._wrappers:
                stack.enter_context(wrapper.no_sync())
            yield

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, by rank; all must call it. Values go by pickle: plain or on the CPU."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self._group)
        return found

    def add_(self, tensor: Tensor) -> None:
        """Add a tensor up over the processes, in place; all must call it."""
        if self.count > 1:
            dist.all_reduce(tensor, group=self._group)

    @torch.no_grad()
    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of parameters that the wrapper does not know; one without counts as 0, and
        one that no process has stays without.
        """
        if self.count == 1 or not parameters:
            return
        given = [0.0 if parameter.grad is None else 1.0 for parameter in parameters]
        whole = torch.cat(
            [
                *(
                    (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).double()
                    for p in parameters
                ),
                torch.tensor(given, dtype=torch.float64, device=parameters[0].device),
            ]
        )
        self.add_(whole)
        sizes = [parameter.numel() for parameter in parameters]
        *parts, present = whole.split([*sizes, len(parameters)])
        for parameter, part, number in zip(parameters, parts, present.tolist(), strict=True):
            if number:
                parameter.grad = (part / self.count).view_as(parameter).to(parameter.dtype)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Give every process the buffers of the first one, as the wrapper does before a forward."""
        for wrapper in self._wrappers:
            if wrapper.broadcast_buffers and self.count > 1:
                source = dist.get_global_rank(wrapper.process_group, 0)
                for buffer in wrapper.module.buffers():
                    dist.broadcast(buffer, source, group=wrapper.process_group)
