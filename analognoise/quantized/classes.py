"""Which float layer becomes which quantized one."""

from __future__ import annotations

from typing import Any

from torch import nn

from analognoise.layers.registry import known_base
from analognoise.quantized.layer import QuantizedLayer


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """``torch.nn.Linear``, quantized; a channel is an output feature."""

    float_class = nn.Linear


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """``torch.nn.Conv1d``, quantized."""

    float_class = nn.Conv1d


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """``torch.nn.Conv2d``, quantized."""

    float_class = nn.Conv2d


class QuantizedConv3d(QuantizedLayer, nn.Conv3d):
    """``torch.nn.Conv3d``, quantized."""

    float_class = nn.Conv3d


class QuantizedConvTranspose1d(QuantizedLayer, nn.ConvTranspose1d):
    """``torch.nn.ConvTranspose1d``, quantized; a channel is the output channel within its group."""

    float_class = nn.ConvTranspose1d
    channel_axis = 1


class QuantizedConvTranspose2d(QuantizedLayer, nn.ConvTranspose2d):
    """``torch.nn.ConvTranspose2d``, quantized; a channel is the output channel within its group."""

    float_class = nn.ConvTranspose2d
    channel_axis = 1


class QuantizedConvTranspose3d(QuantizedLayer, nn.ConvTranspose3d):
    """``torch.nn.ConvTranspose3d``, quantized; a channel is the output channel within its group."""

    float_class = nn.ConvTranspose3d
    channel_axis = 1


_KNOWN: dict[type[nn.Module], type[QuantizedLayer]] = {
    cls.float_class: cls
    for cls in (
        QuantizedLinear,
        QuantizedConv1d,
        QuantizedConv2d,
        QuantizedConv3d,
        QuantizedConvTranspose1d,
        QuantizedConvTranspose2d,
        QuantizedConvTranspose3d,
    )
}
_DERIVED: dict[type[nn.Module], type[QuantizedLayer]] = {}


def known_names() -> list[str]:
    """Names of the float classes that are quantized."""
    return [cls.__name__ for cls in _KNOWN]


def quantized_class(module: nn.Module) -> type[QuantizedLayer] | None:
    """The quantized class of a float layer that computes as torch's; None when there is none.

    A subclass of a known layer gets a class of its own, so that ``isinstance`` goes on holding.
    """
    cls = type(module)
    if cls in _KNOWN:
        return _KNOWN[cls]
    base = known_base(module)
    if base not in _KNOWN:
        return None
    if cls not in _DERIVED:
        _DERIVED[cls] = _derive(_KNOWN[base], cls)
    return _DERIVED[cls]


def _derive(layer: type[QuantizedLayer], float_class: type[nn.Module]) -> type[QuantizedLayer]:
    def reduce(self: nn.Module, protocol: Any) -> Any:
        # As for any object, but made from its float class: this one stands in no module.
        return _empty, (float_class,), object.__reduce_ex__(self, 2)[2]

    return type(
        f"Quantized{float_class.__name__}",
        (layer, float_class),
        {
            "float_class": float_class,
            "__module__": __name__,
            "__reduce_ex__": reduce,
            "__doc__": layer.__doc__,
        },
    )


def _empty(float_class: type[nn.Module]) -> nn.Module:
    """A layer of a derived class without state, for copying and unpickling."""
    cls = quantized_class(object.__new__(float_class))
    assert cls is not None, f"{float_class.__name__} was derived from a known layer"
    return object.__new__(cls)
