"""What a task is: a model to build, data to train, validate and test on, and the settings that suit them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.errors import DataError
from analognoise.seeds import Stream, derive_seed, rng_preserved


class TensorBatches:
    """Batches ``(inputs, targets)`` out of tensors held in memory; can be iterated any number of times.

    For small data this is several times faster than a ``DataLoader``, which collates one sample after the
    other. The last batch holds what is left over. With a ``seed`` the order is shuffled anew in every epoch,
    by a stream of its own (``seeds.Stream``): the global generators are neither read nor moved. Iterating
    goes on to the next epoch; ``set_epoch`` chooses one.

    Args:
        inputs: shape ``(samples, ...)``.
        targets: shape ``(samples, ...)``.
        batch_size: samples in a batch, at least 1.
        seed: shuffle by this seed; None keeps the order.

    Raises:
        DataError: when the tensors differ in length, hold no sample, or ``batch_size`` is not a whole number
            above 0.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, *, seed: int | None = None) -> None:
        if len(inputs) != len(targets) or not len(inputs):
            raise DataError(
                "inputs and targets must hold the same number of samples, at least one: found "
                f"{len(inputs)} and {len(targets)}"
            )
        given: Any = batch_size
        if not isinstance(given, Integral) or isinstance(given, bool) or given < 1:
            raise DataError(f"batch_size must be a whole number of at least 1, found {batch_size!r}")
        self.inputs, self.targets, self.batch_size, self.seed = inputs, targets, batch_size, seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.inputs) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch (counted from 0) at the next iteration."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.seed is None:
            yield from zip(
                self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True
            )
            return
        generator = Stream(self.seed, "shuffle", step=self.epoch).generator()
        self.epoch += 1
        order = torch.randperm(len(self.inputs), generator=generator).to(self.inputs.device)
        for index in order.split(self.batch_size):
            yield self.inputs.index_select(0, index), self.targets.index_select(0, index)


@dataclass(frozen=True)
class Task:
    """A model, its data and the settings that suit them. Every piece may be the user's own.

    Attributes:
        name: what tables and files call it.
        description: one sentence.
        build: ``build(seed)`` gives a fresh model, initialised from the seed.
        train: ``train(seed, batch_size)`` gives the training batches, shuffled by the seed; anything with a
            length that can be iterated once an epoch. If it has ``set_epoch`` that is called before each.
        validation: fixed batches to choose hyperparameters on, or None.
        test: fixed batches to report on, or None for a task that only trains.
        epochs: default number of epochs.
        lr: default learning rate at the start (SGD, momentum 0.9, cosine schedule).
        batch_size: default batch size; None leaves it to ``train``.
        metric: "accuracy", "loss", "perplexity", or a callable ``(output, batch) -> (sum, count)``. One whose
            small values are good says so by an attribute, ``higher_is_better = False``.
        loss: ``loss(output, target)``, a scalar.
        forward: ``forward(model, batch) -> output``; by default ``model(x)`` of a batch ``(x, y)``.
        n_classes: number of classes, if the task has any.
    """

    name: str
    description: str
    build: Callable[[int], nn.Module]
    train: Callable[[int, int | None], Iterable[Any]]
    validation: Iterable[Any] | None
    test: Iterable[Any] | None
    epochs: int = 40
    lr: float = 0.05
    batch_size: int | None = 64
    metric: str | Callable[[Any, Any], tuple[float, float]] = "accuracy"
    loss: Callable[[Any, Any], Tensor] = functional.cross_entropy
    forward: Callable[[nn.Module, Any], Any] | None = None
    n_classes: int | None = None

    def model(self, seed: int) -> nn.Module:
        """What ``build`` gives for the seed, the same in every call.

        A ``build`` that leaves its seed alone draws from the global generators: they start from the seed
        (as those of a model that is named, not built by a task), and are left as found.
        """
        with rng_preserved(derive_seed("user model", seed)):
            return self.build(seed)
