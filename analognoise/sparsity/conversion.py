"""A model's activation layers with sparse outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from analognoise.computing.kinds import choose_layers
from analognoise.copying import copy_sharing_tensors
from analognoise.errors import ModelError, NoiseError, SparsityError
from analognoise.sparsity.forms import Sparsity

_STATE = "_analognoise_sparsity"
# Their outputs are shares or gates: zeros in them are not sparsity, and they add up to something.
_NOT_MEANT = (
    nn.Softmax,
    nn.Softmin,
    nn.Softmax2d,
    nn.LogSoftmax,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.LogSigmoid,
    nn.GLU,
)
_DERIVED: dict[type[nn.Module], type[nn.Module]] = {}


class SparseActivation(nn.Module):
    """Base of activation layers with sparse outputs; a subclass also inherits from the activation."""

    dense_class: type[nn.Module]

    @property
    def sparsity(self) -> Sparsity:
        """What the outputs are put through."""
        found: Sparsity = getattr(self, _STATE)[0]
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The activation's own forward, with zeros in place of what is not kept."""
        sparsity, name = getattr(self, _STATE)
        return sparsity(super().forward(*args, **kwargs), name)

    def extra_repr(self) -> str:
        """The activation's own, and the sparsity."""
        return ", ".join(filter(None, (super().extra_repr(), str(self.sparsity))))


def sparsify(
    model: nn.Module,
    form: str = "top-k",
    *,
    keep: float | None = None,
    level: float | None = None,
    layers: str | Iterable[str] | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Let activation layers give sparse outputs, in training and in eval mode.

    Layers become subclasses of themselves: Parameters, buffers, hooks and state_dict keys stay. A layer that
    is sparse already gets the new form. What a model computes by functions, such as ``torch.relu``, cannot be
    reached.

    Args:
        model: any module.
        form: "top-k" keeps the largest outputs, in size, of each sample over all but the first axis (in a
            model of sequences positions thus compete with each other); "threshold" keeps those of at least
            ``level`` in size.
        keep: of "top-k": how many (int), or which share (float, rounded up).
        level: of "threshold", in units of the activation.
        layers: names or patterns (``features.*``) of layers; None takes every activation layer but softmax,
            sigmoid and gated ones.
        inplace: False copies the module structure and shares every tensor with ``model``; True changes the
            layers of ``model`` itself.

    Returns:
        The sparse model.

    Raises:
        SparsityError: for an unknown form, a number out of range, or a model without such layers; in a
            forward, when a layer has fewer outputs than are to be kept.
        ConversionError: when the model cannot be copied.
    """
    return sparsify_as(model, Sparsity(form, keep, level), layers=layers, inplace=inplace)


def sparsify_as(
    model: nn.Module, sparsity: Sparsity, *, layers: str | Iterable[str] | None = None, inplace: bool = False
) -> nn.Module:
    """:func:`sparsify` with the form as one object."""
    names = list(activation_layers(model, layers))
    target = model if inplace else copy_sharing_tensors(model)
    modules = dict(target.named_modules())
    for name in names:
        module = modules[name]
        setattr(module, _STATE, (sparsity, name))
        if not isinstance(module, SparseActivation):
            module.register_forward_pre_hook(_is_called)
            module.__class__ = _sparse_class(type(module))
    return target


def sparse_layers(model: nn.Module) -> dict[str, Sparsity]:
    """What the outputs of a model's sparse activation layers are put through, by qualified name."""
    return {
        name: module.sparsity
        for name, module in model.named_modules()
        if isinstance(module, SparseActivation)
    }


def activation_layers(model: nn.Module, layers: str | Iterable[str] | None = None) -> dict[str, nn.Module]:
    """The activation layers that are meant, by qualified name, in the order of ``model.named_modules()``.

    Raises:
        SparsityError: when there is none.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model must be a torch.nn.Module, found {type(model).__name__}")
    try:
        found = choose_layers(model, "activation" if layers is None else layers)
    except NoiseError as error:
        raise SparsityError(str(error)) from None
    if layers is None:
        found = {name: module for name, module in found.items() if not isinstance(module, _NOT_MEANT)}
    if not found:
        raise SparsityError(
            f"{type(model).__name__} has no activation layer such as torch.nn.ReLU (softmax, sigmoid and "
            "gated ones are left alone, and functions such as torch.relu cannot be seen): name its layers"
        )
    return found


def _sparse_class(dense: type[nn.Module]) -> type[nn.Module]:
    """The class of an activation's sparse layers; one for each, so that ``isinstance`` goes on holding."""
    if dense not in _DERIVED:
        _DERIVED[dense] = _derive(dense)
    return _DERIVED[dense]


def _derive(dense: type[nn.Module]) -> type[nn.Module]:
    def reduce(self: nn.Module, protocol: Any) -> Any:
        # As for any object, but made from its dense class: this one stands in no module.
        return _empty, (dense,), object.__reduce_ex__(self, 2)[2]

    return type(
        f"Sparse{dense.__name__}",
        (SparseActivation, dense),
        {"dense_class": dense, "__module__": __name__, "__reduce_ex__": reduce, "__doc__": dense.__doc__},
    )


def _empty(dense: type[nn.Module]) -> nn.Module:
    """A layer without state, for copying and unpickling."""
    cls = _sparse_class(dense)
    return cls.__new__(cls)


def _is_called(module: nn.Module, args: Any) -> None:
    """Does nothing: torch's encoder layers take no fused path past a child that has a hook."""
