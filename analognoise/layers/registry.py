"""Which digital layer becomes which layer on tiles; users add their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from analognoise.errors import ConversionError
from analognoise.layers.base import AnalogLayer

_REGISTERED: dict[type[nn.Module], type[AnalogLayer]] = {}
_DERIVED: dict[type[nn.Module], type[AnalogLayer]] = {}
_Layer = TypeVar("_Layer", bound=type[AnalogLayer])
# Layers of packages that need not be there: registered once the user has imported the package.
_OF_PACKAGES = {"transformers.pytorch_utils": "analognoise.layers.huggingface"}
# What a subclass of a known layer must leave alone for the layer on tiles to compute the same.
_COMPUTING = ("forward", "_conv_forward", "__call__", "_output_padding")


def register_analog_layer(digital: type[nn.Module]) -> Callable[[_Layer], _Layer]:
    """Class decorator: layers of class ``digital`` become the decorated class when a model is converted.

    The decorated class inherits from :class:`AnalogLayer` and then from ``digital``. It says how each weight
    Parameter lies on the array (``geometries``), and, where the Parameter is not already ``[groups, columns,
    rows]`` in memory order, gives that view (``matrix``). Its forward is the digital one, computed with the
    programmed weights, unless it brings its own.

    Args:
        digital: a subclass of ``torch.nn.Module``.

    Raises:
        ConversionError: when ``digital`` is no module class, or the decorated class does not inherit from
            both, in this order.
    """
    if not (isinstance(digital, type) and issubclass(digital, nn.Module)):
        raise ConversionError(f"register_analog_layer takes a subclass of torch.nn.Module, found {digital!r}")

    def register(layer: _Layer) -> _Layer:
        order = layer.__mro__
        both = AnalogLayer in order and digital in order
        if not both or order.index(AnalogLayer) > order.index(digital):
            raise ConversionError(
                f"{layer.__name__} must inherit from analognoise.AnalogLayer and then from {digital.__name__}"
            )
        layer.digital_class = digital
        _REGISTERED[digital] = layer
        _DERIVED.clear()
        return layer

    return register


def analog_class(module: nn.Module) -> type[AnalogLayer] | None:
    """The class on tiles for a digital layer; None when there is none.

    A subclass of a known layer that computes as its parent does gets a class of its own, so that
    ``isinstance`` goes on holding.
    """
    cls = type(module)
    if any(name in vars(module) for name in _COMPUTING):
        return None  # replaced on the object itself
    for package, layers in _OF_PACKAGES.items():
        if package in sys.modules:
            import_module(layers)
    if cls in _REGISTERED:
        return _REGISTERED[cls]
    if cls in _DERIVED:
        return _DERIVED[cls]
    for base in cls.__mro__[1:]:
        if base in _REGISTERED:
            if any(getattr(cls, name, None) is not getattr(base, name, None) for name in _COMPUTING):
                return None
            _DERIVED[cls] = _derive(_REGISTERED[base], cls)
            return _DERIVED[cls]
    return None


def known_base(module: nn.Module) -> type[nn.Module] | None:
    """The registered class that a module's class inherits from, if any."""
    return next((base for base in type(module).__mro__ if base in _REGISTERED), None)


def registered_for(digital: type[nn.Module]) -> type[AnalogLayer]:
    """The class on tiles that was registered for a digital class."""
    return _REGISTERED[digital]


def registered_names() -> list[str]:
    """Names of the digital classes that convert."""
    return [cls.__name__ for cls in _REGISTERED]


def _derive(layer: type[AnalogLayer], digital: type[nn.Module]) -> type[AnalogLayer]:
    def reduce(self: nn.Module, protocol: Any) -> Any:
        # As for any object, but made from its digital class: this one stands in no module.
        return _empty, (digital,), object.__reduce_ex__(self, 2)[2]

    return type(
        f"Analog{digital.__name__}",
        (layer, digital),
        {"digital_class": digital, "__module__": __name__, "__reduce_ex__": reduce, "__doc__": layer.__doc__},
    )


def _empty(digital: type[nn.Module]) -> nn.Module:
    """A layer of a derived class without state, for copying and unpickling."""
    cls = analog_class(object.__new__(digital))
    assert cls is not None, f"{digital.__name__} was derived from a registered layer"
    return object.__new__(cls)
