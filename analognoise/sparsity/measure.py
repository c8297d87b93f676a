"""How sparse a model's activations are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from analognoise.batches import to_device
from analognoise.chip import digital, evaluating
from analognoise.compiled import eager
from analognoise.errors import DataError, SparsityError
from analognoise.halving import InParts, until_it_fits
from analognoise.metrics import Forward, default_forward
from analognoise.printing import as_text
from analognoise.seeds import rng_preserved
from analognoise.sparsity.conversion import activation_layers


@dataclass(frozen=True)
class LayerSparsity:
    """One activation layer, at one of its calls in a forward.

    Attributes:
        name: qualified name; with ``(call 2)`` behind it where a forward calls the layer again.
        outputs: outputs per sample.
        sparsity: fraction of the outputs that are exactly zero, over all samples.
    """

    name: str
    outputs: float
    sparsity: float

    @property
    def dead(self) -> bool:
        """Whether every output is zero for every sample."""
        return self.sparsity == 1.0


@dataclass(frozen=True)
class ActivationSparsity:
    """The activation sparsity of a model on given data.

    Attributes:
        layers: by call, in the order of a forward.
        overall: fraction of zeros over all outputs of these layers, so that layers count by their size.
        samples: number of samples.
    """

    layers: tuple[LayerSparsity, ...]
    overall: float
    samples: int

    @property
    def dead(self) -> tuple[str, ...]:
        """Layers whose outputs are all zero for every sample."""
        return tuple(layer.name for layer in self.layers if layer.dead)

    def __str__(self) -> str:
        table = Table(
            title=f"activation sparsity {100 * self.overall:.1f} % over {self.samples} samples",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        for heading in ("layer", "outputs per sample", "zeros (%)"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for layer in self.layers:
            note = "  DEAD" if layer.dead else ""
            table.add_row(layer.name + note, f"{layer.outputs:g}", f"{100 * layer.sparsity:.1f}")
        return as_text(table)


class _Counter:
    """Counts zeros by layer and call; numbers stay on the device until the end."""

    def __init__(self) -> None:
        self.zeros: dict[tuple[str, int], list[Tensor]] = {}
        self.outputs: dict[tuple[str, int], int] = {}
        self._calls: dict[str, int] = {}

    def begin(self) -> None:
        """A new batch begins."""
        self._calls = {}

    def note(self, name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise DataError(
                f"layer {name or '(the model)'!r} gives a {type(output).__name__}, expected a tensor: leave "
                "it out by naming the others in layers="
            )
        call = self._calls[name] = self._calls.get(name, 0) + 1
        self.zeros.setdefault((name, call), []).append((output == 0).sum())
        self.outputs[name, call] = self.outputs.get((name, call), 0) + output.numel()


def activation_sparsity(
    model: nn.Module,
    data: Any,
    *,
    layers: str | Iterable[str] | None = None,
    forward: Forward | None = None,
) -> ActivationSparsity:
    """The fraction of activation layers' outputs that are exactly zero, by layer and in all.

    Measured in eval mode with the digital weights; mode, buffers and global random generators are left as
    found. A layer whose outputs are all zero for every sample gives a warning with its name: what stands
    behind it does not see the input. A batch that memory does not suffice for is halved.

    Args:
        model: any module with activation layers.
        data: a loader or list of batches.
        layers: names or patterns; None takes every activation layer but softmax, sigmoid and gated ones.
        forward: ``forward(model, batch) -> output``; by default as in :func:`analognoise.evaluate_drift`.

    Raises:
        SparsityError: when there is no such layer, or a forward calls none of them.
        DataError: when the data have no batch, or one does not fit in memory and cannot be halved.
    """
    chosen = activation_layers(model, layers)
    run = forward or default_forward
    some = next((tensor for tensor in (*model.parameters(), *model.buffers())), torch.empty(0))
    kept = [(tensor, tensor.clone()) for tensor in model.buffers()]
    counter = _Counter()
    in_parts = isinstance(data, InParts)  # gives its batches in parts itself
    memory: InParts = data if in_parts else InParts()

    def restore() -> None:
        for tensor, content in kept:
            tensor.copy_(content)

    def count() -> int:
        counter.zeros, counter.outputs = {}, {}  # of a pass that was given up
        samples = 0
        for number, batch in enumerate(data if in_parts else memory.parts(data)):
            counter.begin()
            moved = to_device(batch, some.device, copy=True)
            try:
                run(model, moved)
            except DataError as error:
                raise DataError(f"batch {number}: {error}") from None
            samples += _samples(moved)
        return samples

    with ExitStack() as stack:
        for context in (torch.no_grad(), rng_preserved(0), evaluating(model), digital(model), eager()):
            stack.enter_context(context)
        for name, module in chosen.items():

            def note(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
                counter.note(name, output)

            stack.callback(module.register_forward_hook(note).remove)
        try:
            samples = until_it_fits(count, memory, restore)
        finally:
            restore()
    return _report(counter, samples)


def _report(counter: _Counter, samples: int) -> ActivationSparsity:
    if not samples:
        raise DataError("the data has no batch: sparsity is measured on at least one")
    if not counter.outputs:
        raise SparsityError("a forward calls none of the activation layers, so there is nothing to measure")
    zeros = {key: int(torch.stack(parts).sum()) for key, parts in counter.zeros.items()}
    found = tuple(
        LayerSparsity(
            (name or "(the model)") + (f" (call {call})" if (name, 2) in counter.outputs else ""),
            outputs / samples,
            zeros[name, call] / outputs if outputs else 0.0,
        )
        for (name, call), outputs in counter.outputs.items()
    )
    report = ActivationSparsity(found, sum(zeros.values()) / max(sum(counter.outputs.values()), 1), samples)
    for name in report.dead:
        warnings.warn(
            f"activation layer {name!r} is dead: all its outputs are zero for every one of {samples} "
            "samples, so nothing behind it sees the input; a weaker sparsity may help",
            stacklevel=3,
        )
    return report


def _samples(batch: Any) -> int:
    parts = (
        batch.values() if hasattr(batch, "values") else batch if isinstance(batch, (tuple, list)) else [batch]
    )
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), 1)
