"""The same work on aihwkit's torch tile: PCM noise, global drift compensation, tiles of 512 × 512."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

NOISE = 0.038  # of the largest weight, in training


def installed() -> bool:
    """Whether there is an aihwkit to compare with."""
    return find_spec("aihwkit") is not None


def converted(model: nn.Module, *, periphery: bool = False, noise: bool = False) -> nn.Module:
    """The model on aihwkit's torch tiles, on the same device.

    Args:
        model: digital; it is used up.
        periphery: 8 bits in and out and output noise; else products are exact.
        noise: Gaussian noise on the weights in training.
    """
    from aihwkit.inference import GlobalDriftCompensation
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters.enums import NoiseManagementType, WeightModifierType

    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = config.mapping.max_output_size = 512
    config.noise_model = PCMLikeNoiseModel(g_max=25.0)
    config.drift_compensation = GlobalDriftCompensation()
    config.forward.is_perfect = not periphery
    if periphery:
        config.forward.inp_res = config.forward.out_res = 1 / 254
        config.forward.inp_bound, config.forward.out_bound = 1.0, 10.0
        config.forward.out_noise, config.forward.w_noise = 0.04, 0.0
        config.forward.noise_management = NoiseManagementType.NONE
        config.pre_post.input_range.enable = True
        config.pre_post.input_range.init_from_data = 0
        config.pre_post.input_range.init_value = 3.0
    if noise:
        config.modifier.type = WeightModifierType.ADD_NORMAL
        config.modifier.std_dev, config.modifier.rel_to_actual_wmax = NOISE, True
    device = next(model.parameters()).device
    return convert_to_analog(model.cpu(), config).to(device)


def optimizer(model: nn.Module, **options: Any) -> Any:
    """Its SGD."""
    from aihwkit.optim import AnalogSGD

    made = AnalogSGD(model.parameters(), **options)
    made.regroup_param_groups(model)
    return made
