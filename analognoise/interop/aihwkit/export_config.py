"""A device profile as an RPU configuration of aihwkit."""

from __future__ import annotations

from aihwkit.inference.compensation.drift import GlobalDriftCompensation, PerColumnDriftCompensation
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig

from analognoise.crossbar.compensation import check_compensation
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ConversionError
from analognoise.interop.aihwkit.forward import write_forward
from analognoise.interop.aihwkit.noise_model import ProfileNoiseModel

COMPENSATION_CLASSES = {"global": GlobalDriftCompensation, "column": PerColumnDriftCompensation}


def make_rpu_config(
    profile: DeviceProfile, compensation: str, collapse_pairs: bool, compiled: bool
) -> InferenceRPUConfig:
    """See :func:`analognoise.interop.aihwkit.to_rpu_config`."""
    check_compensation(compensation)
    config = InferenceRPUConfig() if compiled else TorchInferenceRPUConfig()
    config.noise_model = ProfileNoiseModel(profile, collapse_pairs)
    config.drift_compensation = COMPENSATION_CLASSES.get(compensation, lambda: None)()
    write_forward(config, profile)
    around = profile.surroundings
    if around is not None and not compiled:
        for field in ("w_noise", "ir_drop"):
            if getattr(around, field) is not None:
                raise ConversionError(
                    f"profile {profile.name!r} has periphery.{field}, which aihwkit's torch tile cannot do: "
                    "ask for compiled=True"
                )
    # The tile's weights then have a largest absolute value of 1, digitally scaled back at the output.
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = profile.mapping.scale == "column"
    config.mapping.max_input_size = profile.tile.rows
    config.mapping.max_output_size = profile.tile.columns
    return config
