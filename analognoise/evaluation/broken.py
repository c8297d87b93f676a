"""Data that break a model: NaN or infinite values that reach its output, found before the work begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.batches import tensors, to_device
from analognoise.chip import evaluating
from analognoise.errors import DataError
from analognoise.evaluation.metrics import Forward, default_forward
from analognoise.halving import in_parts
from analognoise.seeds import rng_preserved


def refuse_broken(
    model: nn.Module,
    data: Iterable[Any],
    measure: Callable[[Any, Any], Sequence[Tensor | float]],
    what: str,
    forward: Forward | None = None,
) -> None:
    """Raise if a batch holds NaN or infinite values that show in what is measured.

    A model may be made to ignore them, so each batch that holds any is passed through the model; no other is.

    Args:
        model: digital; it is left as found, and need not be trained.
        data: batches.
        measure: ``measure(output, batch)``, numbers that must be finite.
        what: what the data are, in the message.
        forward: ``forward(model, batch) -> output``.

    Raises:
        DataError: naming the batch.
    """
    device = next(model.parameters(), torch.empty(0)).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    run = forward or default_forward

    def measures_finite(batch: Any) -> bool:
        return all(math.isfinite(float(number)) for number in measure(run(model, batch), batch))

    try:
        with rng_preserved(0), torch.no_grad(), evaluating(model):
            for number, given in enumerate(data):
                batch = to_device(given, device, copy=True)
                bad = sum(_bad(tensor) for tensor in tensors(batch))
                if not bad or all(in_parts(measures_finite, batch)):
                    continue
                raise DataError(
                    f"{what}, batch {number}: {bad} value{'s are' if bad > 1 else ' is'} NaN or infinite, "
                    "and so is what the model makes of the batch: repair these samples or leave them out"
                )
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _bad(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    return int((~torch.isfinite(tensor)).sum())
