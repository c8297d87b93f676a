"""The forward pass of an aihwkit configuration as a profile's section [periphery], and back.

Both count in units where a tile's inputs and weights lie in [-1, 1].
"""

from __future__ import annotations

import math
from typing import Any

from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType, WeightNoiseType
from aihwkit.simulator.parameters.io import IOParameters

from analognoise.devices.periphery import ADC, DAC
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ConversionError
from analognoise.interop.aihwkit.findings import NotCarriedOver

# What does something when it is not this, and has no place in a profile.
_UNKNOWN = {
    "inp_noise": 0.0,
    "inp_asymmetry": 0.0,
    "inp_sto_round": False,
    "out_noise_std": 0.0,
    "out_asymmetry": 0.0,
    "out_sto_round": False,
    "out_scale": 1.0,
    "out_nonlinearity": 0.0,
    "slope_calibration": 0.0,
    "v_offset_std": 0.0,
    "r_series": 0.0,
    "w_read_asymmetry_dtod": 0.0,
}
_NO_PLACE = "a profile has no place for it"


def read_forward(config: InferenceRPUConfig, left: list[NotCarriedOver]) -> dict[str, Any] | None:
    """The section [periphery] of a configuration; None where the forward pass is perfect.

    Args:
        config: an inference configuration.
        left: gets what could not be carried over.
    """
    forward = config.forward
    if forward.is_perfect:
        return None
    section: dict[str, Any] = {}
    dac, adc = _read_dac(config, left), _read_adc(forward, left)
    if dac:
        section["dac"] = dac
    if adc:
        section["adc"] = adc
    if forward.out_noise > 0:
        section["out_noise"] = float(forward.out_noise)
    if forward.w_noise > 0 and forward.w_noise_type == WeightNoiseType.PCM_READ:
        section["w_noise"] = {"curve": "power", "coefficient": float(forward.w_noise), "exponent": 0.5}
    elif forward.w_noise > 0 and forward.w_noise_type == WeightNoiseType.ADDITIVE_CONSTANT:
        # aihwkit's is of a weight, ours of each device of a pair.
        section["w_noise"] = float(forward.w_noise) / math.sqrt(2)
    if forward.ir_drop > 0:
        section["ir_drop"] = {"wire_ratio": forward.ir_drop / forward.ir_drop_g_ratio, "wires": "columns"}
    for name, without in _UNKNOWN.items():
        if getattr(forward, name) != without:
            left.append(NotCarriedOver(f"forward.{name}", getattr(forward, name), _NO_PLACE))
    if forward.bound_management != BoundManagementType.NONE:
        reason = "outputs beyond the bound are cut off here, the product is not repeated with smaller inputs"
        left.append(NotCarriedOver("forward.bound_management", forward.bound_management.value, reason))
    if section and config.mapping.weight_scaling_omega != 1.0:
        reason = "bounds and noise count where a tile's largest weight is 1, which is what is done here"
        omega = config.mapping.weight_scaling_omega
        left.append(NotCarriedOver("mapping.weight_scaling_omega", omega, reason))
    return section or None


def _read_dac(config: InferenceRPUConfig, left: list[NotCarriedOver]) -> dict[str, Any]:
    forward, learned = config.forward, config.pre_post.input_range
    section = _bits("forward.inp_res", forward.inp_res, left)
    management, threshold = forward.noise_management, float(forward.nm_thres)
    if learned.enable:
        section["range"] = "learned" if learned.learn_input_range else "calibrated"
        if section["range"] == "learned" and not learned.init_from_data:
            section["bound"] = float(learned.init_value)
        return section
    if management == NoiseManagementType.CONSTANT:
        return section | {"range": "fixed", "bound": threshold if threshold > 0 else 1.0}
    if management == NoiseManagementType.NONE:
        bounded = forward.inp_bound > 0
        return section | {"range": "fixed", "bound": float(forward.inp_bound)} if bounded else {}
    if management != NoiseManagementType.ABS_MAX or threshold > 0:
        reason = "each vector's largest absolute value is taken"
        found = f"{management.value}, nm_thres = {threshold:g}"
        left.append(NotCarriedOver("forward.noise_management", found, reason))
    return section | {"range": "dynamic"}


def _read_adc(forward: IOParameters, left: list[NotCarriedOver]) -> dict[str, Any]:
    section = _bits("forward.out_res", forward.out_res, left)
    if forward.out_bound > 0:
        return section | {"range": "fixed", "bound": float(forward.out_bound)}
    if section:
        reason = "an ADC that rounds needs out_bound"
        left.append(NotCarriedOver("forward.out_res", forward.out_res, reason))
    return {}


def _bits(field: str, resolution: float, left: list[NotCarriedOver]) -> dict[str, Any]:
    """Bits of a converter; aihwkit gives the number of steps, or one over it."""
    if resolution <= 0:
        return {}
    steps = resolution if resolution > 1 else 1 / resolution
    bits = round(math.log2(steps + 2))
    if bits < 2 or abs(2**bits - 2 - steps) > 1e-3 * steps:
        reason = "a converter here has 2^bits - 2 steps; outputs are not rounded"
        left.append(NotCarriedOver(field, resolution, reason))
        return {}
    return {"bits": bits}


def write_forward(config: InferenceRPUConfig, profile: DeviceProfile) -> None:
    """Give a configuration the periphery of a profile.

    Raises:
        ConversionError: when aihwkit has nothing like it.
    """
    forward, around = config.forward, profile.surroundings
    if around is None:
        forward.is_perfect = True
        return
    if around.input_mode == "bit-serial":
        raise _refused(profile, "input_mode", "no such mode that works")
    forward.bound_management = BoundManagementType.NONE
    _write_dac(config, around.dac)
    _write_adc(profile, forward, around.adc)
    forward.out_noise = around.out_noise or 0.0
    if around.w_noise is not None:
        kind, strength = _w_noise(profile)
        forward.w_noise_type, forward.w_noise = kind, strength
    if around.ir_drop is not None:
        if profile.wire_ratios is None or profile.wire_ratios[0]:
            raise _refused(profile, "ir_drop.wires", "resistance in the columns' wires alone")
        forward.ir_drop = 1.0
        ratio = around.ir_drop.ratio(profile.conductance.g_max, profile.conductance.unit)
        forward.ir_drop_g_ratio = 1.0 / ratio


def _write_dac(config: InferenceRPUConfig, dac: DAC | None) -> None:
    forward = config.forward
    if dac is None:
        forward.inp_res, forward.inp_bound = -1.0, -1.0
        forward.noise_management = NoiseManagementType.NONE
        return
    forward.inp_res = -1.0 if dac.bits is None else float(2**dac.bits - 2)
    if dac.range == "dynamic":
        forward.noise_management = NoiseManagementType.ABS_MAX
    elif dac.range == "fixed":
        assert dac.bound is not None
        forward.noise_management, forward.nm_thres = NoiseManagementType.CONSTANT, dac.bound
    else:
        forward.noise_management = NoiseManagementType.NONE
        found = config.pre_post.input_range
        found.enable, found.learn_input_range = True, dac.range == "learned"
        if dac.bound is not None:
            found.init_value, found.init_from_data = dac.bound, 0


def _write_adc(profile: DeviceProfile, forward: IOParameters, adc: ADC | None) -> None:
    if adc is None:
        forward.out_res, forward.out_bound = -1.0, -1.0
        return
    if adc.range != "fixed" or adc.bound is None:
        raise _refused(profile, "adc.range", "a fixed one")
    forward.out_res = -1.0 if adc.bits is None else float(2**adc.bits - 2)
    forward.out_bound = adc.bound


def _w_noise(profile: DeviceProfile) -> tuple[WeightNoiseType, float]:
    assert profile.surroundings is not None
    curve: Any = profile.surroundings.w_noise
    if curve.constant is not None:
        return WeightNoiseType.ADDITIVE_CONSTANT, curve.constant * math.sqrt(2)
    plain = curve.min is None and curve.max is None and curve.reference is None
    if curve.curve == "power" and curve.exponent == 0.5 and plain:
        return WeightNoiseType.PCM_READ, curve.coefficient * curve.scale
    raise _refused(profile, "w_noise", "a constant, or one that grows with the root of the conductance")


def _refused(profile: DeviceProfile, field: str, known: str) -> ConversionError:
    return ConversionError(
        f"profile {profile.name!r} cannot be written for aihwkit: of periphery.{field} it has {known}"
    )
