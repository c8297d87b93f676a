"""An RPU configuration of aihwkit as a device profile, and what a profile cannot hold of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import GlobalDriftCompensation, PerColumnDriftCompensation
from aihwkit.inference.converter.conductance import (
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SingleDeviceConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters.enums import WeightClipType, WeightModifierType, WeightRemapType

from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError
from analognoise.interop.aihwkit import device_sections
from analognoise.interop.aihwkit.findings import Import, NotCarriedOver, NotCarriedOverWarning
from analognoise.interop.aihwkit.forward import read_forward
from analognoise.interop.aihwkit.noise_model import ProfileNoiseModel

_UNLIMITED = 1_000_000  # aihwkit's tile size 0: as large as the layer; the most that a profile takes


def from_rpu_config(config: InferenceRPUConfig) -> DeviceProfile:
    """See :func:`analognoise.interop.aihwkit.from_rpu_config`."""
    read = read_rpu_config(config)
    for item in read.not_carried_over:
        warnings.warn(NotCarriedOverWarning(item), stacklevel=3)
    return read.profile


def read_rpu_config(config: InferenceRPUConfig, stand_in: bool = False) -> Import:
    """See :func:`analognoise.interop.aihwkit.read_rpu_config`.

    Args:
        config: an inference configuration.
        stand_in: for a noise model that is unknown here give a profile of its range and mapping alone, in
            place of an error; for who computes with the noise model itself.
    """
    if not isinstance(config, InferenceRPUConfig):
        raise ProfileError(
            f"an aihwkit configuration for inference is needed (InferenceRPUConfig or a subclass, with a "
            f"noise_model), found {type(config).__name__}"
        )
    left: list[NotCarriedOver] = []
    model = config.noise_model
    if isinstance(model, ProfileNoiseModel):
        profile = model.profile
        if model.collapse_pairs:
            reason = "give collapse_pairs=True to convert_to_analog"
            left.append(NotCarriedOver("noise_model.collapse_pairs", True, reason))
    else:
        data = device_sections.sections_of(model, left, stand_in)
        data["mapping"] = _mapping(config, model.g_converter, left)
        profile = DeviceProfile.from_dict(data, where=f"noise_model {type(model).__name__}")
    profile = _with_forward(config, profile.replace(_tile(config)), left)
    left += _model(config)
    left += _training(config)
    return Import(profile, _compensation(config, left), tuple(left))


def _mapping(config: InferenceRPUConfig, converter: Any, left: list[NotCarriedOver]) -> dict[str, Any]:
    mapping = config.mapping
    # aihwkit's converters scale each tile to its largest weight, so that columns differ in scale only where
    # the digital scaling before them makes them.
    by_column = mapping.weight_scaling_columnwise and mapping.weight_scaling_omega > 0
    section: dict[str, Any] = {"scale": "column" if by_column else "tile"}
    kind = type(converter)
    if kind in (NPairConductanceConverter, DualPairConductanceConverter):
        section |= {"cell": "pair", "pairs": list(map(float, converter.f_lst)), "share": "fill"}
    elif kind is SingleDeviceConductanceConverter:
        section["cell"] = "offset-digital"
        reason = (
            "aihwkit maps the smallest weight of a tile to g_min and the largest to g_max; here zero is half "
            "way, so that both signs have the same room"
        )
        left.append(NotCarriedOver("noise_model.g_converter", str(converter), reason))
    elif kind is not SinglePairConductanceConverter:
        reason = "only single pairs, N pairs and single devices are known; single pairs are taken"
        left.append(NotCarriedOver("noise_model.g_converter", str(converter), reason))
    return section


def _tile(config: InferenceRPUConfig) -> dict[str, Any]:
    rows = config.mapping.max_input_size or _UNLIMITED
    columns = config.mapping.max_output_size or _UNLIMITED
    return {"tile.rows": rows, "tile.columns": columns}


def _compensation(config: InferenceRPUConfig, left: list[NotCarriedOver]) -> str:
    found: BaseDriftCompensation | None = config.drift_compensation
    if found is None:
        return "none"
    if type(found) in (GlobalDriftCompensation, PerColumnDriftCompensation):
        return "global" if type(found) is GlobalDriftCompensation else "column"
    reason = "only GlobalDriftCompensation, PerColumnDriftCompensation and None are known; global is taken"
    left.append(NotCarriedOver("drift_compensation", type(found).__name__, reason))
    return "global"


def _with_forward(
    config: InferenceRPUConfig, profile: DeviceProfile, left: list[NotCarriedOver]
) -> DeviceProfile:
    """The profile with the periphery of the configuration; as it is where that is the same."""
    changed = profile.replace({"periphery": read_forward(config, left)})
    return profile if changed.surroundings == profile.surroundings else changed


def _model(config: InferenceRPUConfig) -> Iterator[NotCarriedOver]:
    if config.mapping.learn_out_scaling:
        reason = "scales that are learned belong to the model"
        yield NotCarriedOver("mapping.learn_out_scaling", True, reason)
    if not config.mapping.digital_bias:
        yield NotCarriedOver("mapping.digital_bias", False, "biases are always added digitally")


def _training(config: InferenceRPUConfig) -> Iterator[NotCarriedOver]:
    if config.clip.type != WeightClipType.NONE:
        reason = "it acts in training: use the method 'clip', or '+clip' behind another"
        yield NotCarriedOver("clip.type", config.clip.type.value, reason)
    if config.modifier.type not in (WeightModifierType.NONE, WeightModifierType.COPY):
        reason = "it acts in training: use the method 'noise' or 'profile-noise'"
        yield NotCarriedOver("modifier.type", config.modifier.type.value, reason)
    if config.remap.type != WeightRemapType.NONE:
        reason = "it acts in training; programming always uses the whole conductance range"
        yield NotCarriedOver("remap.type", config.remap.type.value, reason)
