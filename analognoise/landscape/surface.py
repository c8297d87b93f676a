"""The loss on fixed data as one function of a model's parameters: value, gradient, Hessian products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from analognoise.chip import digital
from analognoise.compiled import eager
from analognoise.errors import DataError, MethodError
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.surroundings import Buffers, left_as_found, seed_all
from analognoise.metrics import NotFiniteError, default_forward
from analognoise.seeds import derive_seed
from analognoise.training.checks import check_base, check_gradient
from analognoise.training.measure import Loss, labels_in, loss_of
from analognoise.training.wrapper import as_numbers, forget_casts

Vector = list[Tensor]


class Surface:
    """The mean loss over the data's labels, as a function of the parameters that are moved.

    Made inside :func:`opened`. Every pass sees the same function: the same batches, and random numbers that
    begin anew from (seed, batch number).

    Attributes:
        model: whose loss it is.
        names: names of the parameters that are moved.
        parameters: those parameters: all that require a gradient, or of these the weights.
        base: an optimizer over them, for the climbs of the training methods; it never steps.
        passes: passes over the data so far.
        loss: the loss at the weights as they were given.
    """

    def __init__(
        self,
        model: nn.Module,
        data: EvaluationData,
        buffers: Buffers,
        *,
        perturb: str,
        loss: Loss,
        forward: Callable[[nn.Module, Any], Any] | None,
        seed: int,
    ) -> None:
        self.model = model
        self._data, self._buffers = data, buffers
        self._loss, self._forward = loss, forward or default_forward
        self._seed = seed
        chosen = _chosen(model, perturb)
        self.names, self.parameters = list(chosen), list(chosen.values())
        self.base = torch.optim.SGD(self.parameters, lr=0.0)
        check_base("sharpness", self.base, model)
        self.passes = 0
        self.loss = math.nan
        self.loss = self.value()

    @property
    def size(self) -> int:
        """How many numbers are moved."""
        return sum(parameter.numel() for parameter in self.parameters)

    def value(self) -> float:
        """The loss at the present weights."""
        with torch.no_grad():
            return self._mean(list(self._batches()))

    def gradient(self) -> Vector:
        """The gradient at the present weights; zero for a parameter that the loss does not depend on."""
        return self._add_up(lambda loss: self._gradient(loss, create_graph=False), "the gradient")

    def hessian_product(self, vector: Vector) -> Vector:
        """H v at the present weights, in the type that ``vector`` has."""

        def product(loss: Tensor) -> Vector:
            gradients = self._gradient(loss, create_graph=True)
            curved = [(g, v.to(g.dtype)) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
            _refuse_once_differentiable(gradients)
            if not curved:  # a loss that is linear in the weights
                return [torch.zeros_like(parameter) for parameter in self.parameters]
            outputs, directions = zip(*curved, strict=True)
            return list(torch.autograd.grad(outputs, self.parameters, directions, materialize_grads=True))

        try:
            return self._add_up(product, "a product with the Hessian")
        except RuntimeError as error:
            if not _no_second_derivative(error):
                raise
            raise MethodError(
                f"sharpness: {type(self.model).__name__} has an operator without second derivative "
                f"({error}); the kinds sam, asam, samson and random need none"
            ) from error

    def zeros(self) -> Vector:
        """A vector of zeros, in single precision at least."""
        return [
            torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))
            for parameter in self.parameters
        ]

    def _gradient(self, loss: Tensor, create_graph: bool) -> Vector:
        if not loss.requires_grad:
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        gradients = torch.autograd.grad(
            loss, self.parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        for name, gradient in zip(self.names, gradients, strict=True):
            check_gradient("sharpness", name, gradient)
        return list(gradients)

    def _add_up(self, part: Callable[[Tensor], Vector], what: str) -> Vector:
        total = self.zeros()
        count = 0
        with torch.enable_grad():
            for loss, size in self._batches():
                parts = part(loss)
                count += size
                with torch.no_grad():
                    for sum_, term in zip(total, parts, strict=True):
                        sum_.add_(term.to(sum_.dtype), alpha=size)
        with torch.no_grad():
            for sum_ in total:
                sum_.div_(count)
        for name, norm in zip(self.names, norms_of(total), strict=True):
            if not math.isfinite(norm):
                raise NotFiniteError(f"{what} holds NaN or infinite values in parameter {name!r}")
        return total

    def _mean(self, parts: list[tuple[Tensor, int]]) -> float:
        values = as_numbers([loss for loss, _ in parts])
        return math.fsum(value * size for value, (_, size) in zip(values, parts, strict=True)) / sum(
            size for _, size in parts
        )

    def _batches(self) -> Iterator[tuple[Tensor, int]]:
        """Loss and number of labels of every batch that has any."""
        self.passes += 1
        some = False
        for number, batch in enumerate(self._data.copies()):
            seed_all(derive_seed(self._seed, "sharpness-forward", number), self._data.device)
            try:
                found = self._checked(number, batch)
                if found is not None:
                    some = True
                    yield found
            finally:
                # Only now: what BatchNorm saved for the backward pass must not be written to before it.
                with torch.no_grad():
                    self._buffers.restore()
        if not some:
            raise DataError("sharpness: no batch of the data has a label that counts")

    def _checked(self, number: int, batch: Any) -> tuple[Tensor, int] | None:
        try:
            loss = loss_of(self._loss, self._forward(self.model, batch), batch)
            size = labels_in(batch)
        except DataError as error:
            raise type(error)(f"batch {number}: {error}") from error
        if not size:
            return None
        if not torch.isfinite(loss):
            where = "as they are" if math.isnan(self.loss) else "moved as asked: move them less"
            raise NotFiniteError(
                f"sharpness: batch {number}: the loss is {loss.item()} at the weights {where}"
            )
        return loss.reshape(()), size


@contextmanager
def opened(
    model: nn.Module, data: EvaluationData, *, eval_mode: bool, seed: int, **options: Any
) -> Iterator[Surface]:
    """A model's surface; afterwards the model, its gradients and the global generators are as found.

    Converted layers compute with their digital weights, BatchNorm with its running statistics.
    """
    parameters = list(model.parameters())
    modes = [(module, module.training) for module in model.modules()]
    gradients = [parameter.grad for parameter in parameters]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with (
        left_as_found(model) as buffers,
        digital(model),
        eager(),
        sdpa_kernel(SDPBackend.MATH),  # the fused kernels have no second derivative
        torch.backends.cudnn.flags(
            # cuDNN's recurrent kernels have none either, and in eval mode not even a first one.
            enabled=torch.backends.cudnn.enabled and not recurrent,
            deterministic=True,
        ),
    ):
        if not eval_mode:
            for module, mode in modes:
                module.training = mode
        try:
            yield Surface(model, data, buffers, seed=seed, **options)
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


@contextmanager
def moved(surface: Surface) -> Iterator[None]:
    """Put the weights back afterwards, bit for bit."""
    kept = [parameter.detach().clone() for parameter in surface.parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, clean in zip(surface.parameters, kept, strict=True):
                parameter.copy_(clean)
        forget_casts()


def norms_of(vector: Vector) -> list[float]:
    """Euclidean norm of each part."""
    return as_numbers([torch.linalg.vector_norm(part) for part in vector])


def dot(left: Vector, right: Vector) -> float:
    """Inner product of two vectors whose parts may lie on several devices."""
    return math.fsum(as_numbers([(a * b).sum() for a, b in zip(left, right, strict=True)]))


def _chosen(model: nn.Module, perturb: str) -> dict[str, nn.Parameter]:
    """The parameters to move, by name, each once; a tied one is a weight when any of its names says so."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter not in names or "weight" in name:
            names[parameter] = name.replace("_orig_mod.", "")  # torch.compile's: draws are the same
    chosen = {
        name: parameter
        for parameter, name in names.items()
        if parameter.requires_grad and (perturb == "all" or "weight" in name)
    }
    if not chosen:
        which = " whose name contains 'weight'" if perturb == "weights" else ""
        raise MethodError(
            f"sharpness: {type(model).__name__} has no parameter{which} that requires a gradient, so there "
            "is nothing to move: frozen parameters stay where they are"
        )
    return chosen


def _refuse_once_differentiable(gradients: Vector) -> None:
    """Raise where a custom backward is differentiable once only: torch would leave its part out in silence.

    torch puts an error in the place of that part, but it is never reached on the way to the parameters.
    """
    seen: set[Any] = set()
    ahead = [gradient.grad_fn for gradient in gradients if gradient.grad_fn is not None]
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            if node.name() == "torch::autograd::Error":
                raise NotImplementedError("a custom torch.autograd.Function that is once_differentiable")
            ahead += [before for before, _ in node.next_functions if before is not None]


def _no_second_derivative(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or any(
        phrase in text for phrase in ("is not implemented", "double backward", "twice")
    )
