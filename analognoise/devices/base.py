"""What the parts of a profile share, and what its curves share."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator
from torch import Tensor

from analognoise.devices.problems import Problem
from analognoise.errors import ProfileError

Function = Callable[[Tensor], Tensor]


class Frozen(BaseModel):
    """A part of a profile: immutable, strict about types, hashable and comparable by its content."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def as_dict(self) -> dict[str, Any]:
        """The part as TOML and JSON write it: nested dictionaries, without fields that are not set."""
        fields = type(self).model_fields.items()
        items = ((field.alias or name, getattr(self, name)) for name, field in fields)
        return {name: _plain(value) for name, value in items if value is not None}

    @cached_property
    def canonical(self) -> str:
        """The content as JSON with sorted keys: equal for equal parts."""
        return canonical_json(self.as_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frozen) and type(self) is type(other) and self.canonical == other.canonical

    def __hash__(self) -> int:
        return hash(self.canonical)

    # Immutable, and the compiled functions inside are worth keeping: a copy is the thing itself.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The part with some fields changed, validated. (pydantic's own method would keep cached values.)"""
        return type(self).model_validate({**self.as_dict(), **update}) if update else self

    def __getstate__(self) -> dict[Any, Any]:
        # Cached functions are closures, which pickle cannot write.
        state, fields = super().__getstate__(), type(self).model_fields
        content = {name: value for name, value in state["__dict__"].items() if name in fields}
        return {**state, "__dict__": content}


class BaseCurve(Frozen, ABC):
    """What all curves share: limits and a factor outside of them, as in ``scale * clip(f(u), min, max)``.

    The argument u is x = G / g_max, or G / ``reference`` where the curve has one.
    """

    curve: str
    reference: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="conductance at which the argument x is 1, in place of g_max, in the unit of conductance",
    )
    min: float | None = Field(default=None, description="the smallest value")
    max: float | None = Field(default=None, description="the largest value")
    scale: Annotated[float, Field(ge=0)] = Field(default=1.0, description="factor, applied after min and max")

    def __call__(self, u: Tensor) -> Tensor:
        """The curve at its argument ``u``, as a new tensor of the same shape, dtype and device."""
        return self.function()(u)

    def unit(self, g_max: float) -> float:
        """The conductance at which the argument is 1: ``reference``, or g_max."""
        return self.reference or g_max

    def of_conductance(self, g_max: float) -> Function:
        """The curve as a function of conductance, for a device with this g_max."""
        return self.function(1 / self.unit(g_max))

    def function(self, factor: float = 1.0) -> Function:
        """The function ``g -> curve(factor * g)``, with factor, scale and constants folded together."""
        try:
            return self._functions[factor]
        except KeyError:
            return self._functions.setdefault(factor, self._build(factor))

    @cached_property
    def constant(self) -> float | None:
        """The value of a curve that has the same everywhere, scale and limits applied; None for any other."""
        value = 0.0 if self.scale == 0 else self._value
        if value is None:
            return None
        low = value if self.min is None else max(value, self.min)
        return self.scale * (low if self.max is None else min(low, self.max))

    @property
    def joints(self) -> tuple[float, ...]:
        """The arguments at which the curve has a kink or a jump, other than at its limits."""
        return ()

    def scaled(self, factor: float) -> Self:
        """The same curve times ``factor``.

        Raises:
            ProfileError: when the factor is negative, NaN or infinite.
        """
        if not 0 <= factor < math.inf:
            raise ProfileError(
                f"a curve cannot be scaled by {factor:g}: the factor must be finite and not negative"
            )
        return self.model_copy(update={"scale": self.scale * factor})

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """``min`` and ``max`` with the scale applied."""
        low = None if self.min is None else self.min * self.scale
        return low, None if self.max is None else self.max * self.scale

    @property
    def _value(self) -> float | None:
        """f where it does not depend on x."""
        return None

    @cached_property
    def _functions(self) -> dict[float, Function]:
        return {}

    def _build(self, factor: float) -> Function:
        value = self.constant
        if value is not None:
            return lambda g: torch.full_like(g, value)
        raw = self._raw(factor, self.scale)
        low, high = self.limits
        return raw if low is None and high is None else lambda g: raw(g).clamp_(low, high)

    @abstractmethod
    def _raw(self, factor: float, scale: float) -> Function:
        """The function ``g -> scale * f(factor * g)``, a new tensor; never asked of a constant."""

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise Problem("min", f"is {self.min:g} but must not be above max = {self.max:g}")
        return self


def in_schema(name: str) -> Any:
    """For a value that a function makes of what stands in the file: the JSON Schema's part that says what
    stands there.
    """
    return Annotated[Any, WithJsonSchema({"$comment": name})]


def canonical_json(content: Any) -> str:
    """JSON with sorted keys and no spaces: one text for one content."""
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=4096)
def scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A constant as a tensor without dimensions, where a fused operation takes no Python number."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def _plain(value: Any) -> Any:
    if isinstance(value, Frozen):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
