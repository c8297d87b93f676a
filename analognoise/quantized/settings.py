"""What a quantization is: bits, ranges and what shares them, checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

from analognoise.errors import QuantizationError, nearest

WEIGHT_BITS = (2, 8)
ACTIVATION_BITS = (2, 16)
_PER = ("channel", "tensor", "conv-channel")
_RANGES = ("learned", "max")


@dataclass(frozen=True)
class Quantization:
    """How the layers of a model are quantized; see :func:`analognoise.quantize`."""

    bits: int = 8
    activation_bits: int | None = None
    per: str = "channel"
    clipping: str | float = "learned"
    activation_range: str | float = "learned"
    activation_scale: float | None = None
    activation_signed: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", _bits("bits", self.bits, WEIGHT_BITS))
        if self.activation_bits is not None:
            bits = _bits("activation_bits", self.activation_bits, ACTIVATION_BITS, " or None")
            object.__setattr__(self, "activation_bits", bits)
        _choice("per", self.per, _PER)
        for name in ("clipping", "activation_range"):
            object.__setattr__(self, name, _range(name, getattr(self, name)))
        if self.activation_scale is not None:
            if not _positive(self.activation_scale):
                raise QuantizationError(
                    "activation_scale must be a finite number above 0, or None, found "
                    f"{self.activation_scale!r}"
                )
            if self.activation_range != "learned":
                raise QuantizationError(
                    f"activation_scale ({self.activation_scale!r}) and activation_range "
                    f"({self.activation_range!r}) both say how far activations reach: give one of them"
                )
            object.__setattr__(self, "activation_scale", float(self.activation_scale))
        if self.activation_signed is not None and not isinstance(self.activation_signed, bool):
            raise QuantizationError(
                f"activation_signed must be True, False or None, found {self.activation_signed!r}"
            )
        if self.activation_bits is None:
            for item in fields(self):
                if item.name.startswith("activation_") and getattr(self, item.name) != item.default:
                    raise QuantizationError(
                        f"{item.name} is {getattr(self, item.name)!r}, but activation_bits is None, which "
                        "leaves inputs float: give activation_bits, a whole number from 2 to 16"
                    )

    def __str__(self) -> str:
        words = [f"{self.bits} bits"]
        for item in fields(self)[1:]:
            value = getattr(self, item.name)
            if value != item.default:
                words.append(f"{item.name} {value}")
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, which make the same object again."""
        return asdict(self)


def _bits(name: str, value: Any, bounds: tuple[int, int], other: str = "") -> int:
    low, high = bounds
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        raise QuantizationError(f"{name} must be a whole number from {low} to {high}{other}, found {value!r}")
    return int(value)


def _choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        suggestion = nearest(value, known) if isinstance(value, str) else ""
        raise QuantizationError(
            f"{name} must be {' or '.join(map(repr, known))}, found {value!r}{suggestion}"
        )


def _range(name: str, value: Any) -> str | float:
    if isinstance(value, str):
        if value not in _RANGES:
            known = ", ".join(map(repr, _RANGES))
            raise QuantizationError(
                f"{name} must be {known} or a number above 0, found {value!r}{nearest(value, _RANGES)}"
            )
        return value
    if not _positive(value):
        raise QuantizationError(
            f"{name} must be 'learned', 'max' or a finite number above 0, found {value!r}"
        )
    return float(value)


def _positive(value: Any) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0
