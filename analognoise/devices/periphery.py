"""What surrounds a crossbar array, as a profile's section ``[periphery]`` says it.

Figures count in units where a tile's inputs and weights lie in [-1, 1], as in aihwkit: an input at the bound
of its DAC is 1, and so is the largest weight that a cell can hold. aihwkit's names are in the comments.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from analognoise.devices.base import Frozen
from analognoise.devices.curves import Curve
from analognoise.devices.problems import Nested, Problem
from analognoise.errors import nearest

# As in aihwkit's StandardHWATrainingPreset (simulator/presets/inference.py), which follows Rasch et al. 2023,
# arXiv 2302.08469. There ranges are learned in training; for a model that was not trained so they come from
# data, by the quantile that aihwkit's calibrate_input_ranges takes. ir_drop_g_ratio = 1 / (0.35 Ω · 5 µS).
_STANDARD_8BIT = {
    "dac": {"bits": 8, "range": "calibrated", "percentile": 99.995},  # inp_res = 254
    "adc": {"bits": 8, "range": "fixed", "bound": 10.0},  # out_res = 254, out_bound
    "out_noise": 0.04,
    "w_noise": {"curve": "power", "coefficient": 0.0175, "exponent": 0.5},  # w_noise_type = PCM_READ
    "ir_drop": {"wire_ratio": 0.35 * 5e-6, "wires": "columns"},
}
PERIPHERIES: dict[str, dict[str, Any]] = {"none": {}, "standard-8bit": _STANDARD_8BIT}

Bits = Annotated[int, Field(ge=2, le=24)]
Bound = Annotated[float, Field(gt=0)]
Percentile = Annotated[float, Field(gt=0, le=100)]
NotNegative = Annotated[float, Field(ge=0)]


class Converter(Frozen):
    """What a digital-to-analog and an analog-to-digital converter have in common.

    ``bits`` b gives 2^b − 2 steps between −bound and +bound, zero being one of the 2^b − 1 levels; without
    it values are limited, not rounded.
    """

    bits: Bits | None = Field(default=None, description="2 to 24")
    bound: Bound | None = Field(default=None, description="half the range, above 0")
    percentile: Percentile | None = Field(
        default=None, description="of the absolute values other than 0 in the calibration data, at most 100"
    )

    @property
    def levels(self) -> int | None:
        """The largest integer of the converter: 127 for 8 bits; None where nothing is rounded."""
        return None if self.bits is None else 2 ** (self.bits - 1) - 1

    @property
    def has_data_range(self) -> bool:
        """Whether its range is one of the model's, from data or from training."""
        return getattr(self, "range", None) in ("calibrated", "learned")


class DAC(Converter):
    """The converter of inputs."""

    range: Literal["dynamic", "fixed", "calibrated", "learned"] | None = Field(
        default=None, description="what an input of 1 is"
    )


class ADC(Converter):
    """The converter of outputs."""

    range: Literal["fixed", "calibrated", "learned"] | None = Field(
        default=None, description="what the largest output is"
    )


class IRDrop(Frozen):
    """Voltage lost in the wires of an array: one of the two resistances, from one cell to the next."""

    wire_resistance: NotNegative | None = Field(default=None, description="ohm, from a cell to the next")
    wire_ratio: NotNegative | None = Field(
        default=None, description="resistance of the wire from a cell to the next, times g_max"
    )
    wires: Literal["columns", "both"] = Field(default="both", description="which wires have resistance")
    method: Literal["fast", "exact"] = Field(default="fast", description="how it is computed")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.wire_resistance is None) == (self.wire_ratio is None):
            found = "neither is" if self.wire_ratio is None else "both are"
            raise Problem("", f"needs wire_resistance (ohm) or wire_ratio, but {found} given")
        return self

    def ratio(self, g_max: float, unit: str) -> float:
        """Wire resistance times g_max, without a unit."""
        if self.wire_ratio is not None:
            return self.wire_ratio
        assert self.wire_resistance is not None
        if self.wire_resistance and unit != "uS":
            raise Problem(
                "periphery.ir_drop.wire_resistance",
                f"is {self.wire_resistance:g} ohm but the conductances are in {unit}: give wire_ratio, the "
                "wire's resistance times the largest conductance",
            )
        return self.wire_resistance * g_max * 1e-6


class Periphery(Frozen):
    """Converters, noise and wires around every tile; what is not given is as in ``preset``, or not there."""

    preset: str | None = Field(default=None, description="the name of a set of figures")
    dac: DAC | None = Field(default=None, description="a table with bits, range, bound, percentile")
    adc: ADC | None = Field(default=None, description="a table with bits, range, bound, percentile")
    out_noise: NotNegative | None = Field(
        default=None, description="standard deviation at each output and product, in normalised units"
    )
    w_noise: Curve | None = Field(
        default=None,
        description="a number or a curve of G / g_max: standard deviation of a device's conductance at each "
        "product, in parts of g_max - g_min",
    )
    ir_drop: IRDrop | None = Field(default=None, description="a table with wire_resistance or wire_ratio")
    input_mode: Literal["parallel", "bit-serial"] | None = Field(
        default=None, description="whether inputs come whole, or bit after bit"
    )

    @cached_property
    def resolved(self) -> Periphery:
        """The same periphery with the preset's figures and all defaults filled in, and without what has no
        effect.
        """
        own = self.as_dict()
        own.pop("preset", None)
        base = PERIPHERIES[self.preset or "none"]
        data = {**base, **own}
        for name, default in (("dac", "dynamic"), ("adc", "fixed")):
            preset, given = base.get(name, {}), own.get(name, {})
            if "range" in given:  # then nothing of the preset's range stays
                preset = {key: value for key, value in preset.items() if key == "bits"}
            if preset or name in own:
                data[name] = {"range": default, **preset, **given}
        if not data.get("out_noise"):
            data.pop("out_noise", None)
        drop = data.get("ir_drop")
        if drop and not (drop.get("wire_ratio") or drop.get("wire_resistance")):
            del data["ir_drop"]
        if data.get("input_mode") == "parallel":
            del data["input_mode"]
        found = _Resolved.model_validate(data)
        if found.w_noise is not None and found.w_noise.constant == 0:
            data.pop("w_noise")
            found = _Resolved.model_validate(data)
        return found

    @property
    def is_none(self) -> bool:
        """Whether nothing at all happens."""
        return not self.resolved.as_dict()

    @property
    def is_noisy(self) -> bool:
        """Whether anything is drawn at each product."""
        return self.resolved.out_noise is not None or self.resolved.w_noise is not None

    def summary(self) -> str:
        """In a line, as ``8-bit DAC (calibrated), 8-bit ADC (±10), output noise 0.04``; empty for none."""
        found, parts = self.resolved, []
        for name, converter in (("DAC", found.dac), ("ADC", found.adc)):
            if converter is not None:
                bits = f"{converter.bits}-bit " if converter.bits else ""
                fixed = converter.range == "fixed"
                parts.append(f"{bits}{name} ({f'±{converter.bound:g}' if fixed else converter.range})")
        if found.out_noise:
            parts.append(f"output noise {found.out_noise:g}")
        parts += ["read noise at each product"] * (found.w_noise is not None)
        parts += ["IR drop"] * (found.ir_drop is not None)
        parts += ["bit-serial inputs"] * (found.input_mode is not None)
        return ", ".join(parts)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.preset is not None and self.preset not in PERIPHERIES:
            known = ", ".join(f'"{name}"' for name in PERIPHERIES)
            raise Problem(
                "preset", f'is "{self.preset}"{nearest(self.preset, PERIPHERIES)} but must be one of {known}'
            )
        if type(self) is Periphery:
            try:
                self.resolved  # noqa: B018  (says what is wrong)
            except ValidationError as error:
                raise Nested(Periphery, error) from None
        return self


class _Resolved(Periphery):
    """A periphery without a preset, whose parts must fit together."""

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        for name, converter in (("dac", self.dac), ("adc", self.adc)):
            if converter is not None:
                _check_range(name, converter)
        if self.input_mode == "bit-serial" and (self.dac is None or self.dac.bits is None):
            raise Problem("input_mode", 'is "bit-serial" but dac.bits is missing: how many bits are there?')
        return self


def _check_range(name: str, converter: DAC | ADC) -> None:
    kind = converter.range
    if kind == "fixed" and converter.bound is None:
        raise Problem(f"{name}.bound", 'is missing: range = "fixed" needs it')
    if kind in ("dynamic", "calibrated") and converter.bound is not None:
        found = f'is {converter.bound:g} but range = "{kind}" takes none: use range = "fixed" or "learned"'
        raise Problem(f"{name}.bound", found)
    if kind in ("dynamic", "fixed") and converter.percentile is not None:
        raise Problem(
            f"{name}.percentile",
            f'is {converter.percentile:g} but range = "{kind}" takes none: use range = "calibrated"',
        )
