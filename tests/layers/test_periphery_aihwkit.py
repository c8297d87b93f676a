"""aihwkit's torch tile as a witness: a periphery without noise gives its outputs to float32 rounding.

Noise is compared with formulas elsewhere: the torch tile has no read noise and no IR drop, and spreads its
output noise by 1 + N(0, 1) from output to output whatever the magnitude that ``out_noise_std`` asks for.
"""

import pytest
import torch
from torch import nn

import analognoise as an

configs = pytest.importorskip("aihwkit.simulator.configs")
from aihwkit.nn.conversion import convert_to_analog  # noqa: E402
from aihwkit.simulator.parameters.enums import (  # noqa: E402
    BoundManagementType,
    NoiseManagementType,
)

IDEAL = an.load_profile("ideal")


def aihwkit(layer, rows, noise_management, threshold):
    config = configs.TorchInferenceRPUConfig()
    settings = {
        "inp_res": 254.0,
        "out_res": 254.0,
        "inp_bound": 1.0,
        "out_bound": 10.0,
        "out_noise": 0.0,
        "w_noise": 0.0,
        "noise_management": noise_management,
        "nm_thres": threshold,
        "bound_management": BoundManagementType.NONE,
    }
    for name, value in settings.items():
        setattr(config.forward, name, value)
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = True
    config.mapping.out_scaling_columnwise = True
    config.mapping.max_input_size, config.mapping.max_output_size = rows, 0
    return convert_to_analog(nn.Sequential(layer), config).eval()


def ours(layer, rows, **periphery):
    profile = IDEAL.replace({"periphery": periphery, "tile.rows": rows, "tile.columns": 4096})
    return an.program_(an.convert_to_analog(nn.Sequential(layer), profile).eval())


RANGES = {
    "abs-max": (NoiseManagementType.ABS_MAX, 0.0, {"bits": 8, "range": "dynamic"}),
    "fixed": (NoiseManagementType.CONSTANT, 2.5, {"bits": 8, "range": "fixed", "bound": 2.5}),
}
# Both split 144 rows of a 3 × 3 convolution in two between channels.
LAYERS = {
    "linear": (lambda: nn.Linear(300, 40), (64, 300), 512),
    "linear, split": (lambda: nn.Linear(300, 40), (64, 300), 64),
    "linear, split unevenly": (lambda: nn.Linear(70, 40), (64, 70), 27),
    "conv": (lambda: nn.Conv2d(16, 24, 3, padding=1, stride=2), (4, 16, 11, 11), 512),
    "conv, split": (lambda: nn.Conv2d(16, 24, 3, padding=1), (4, 16, 10, 10), 72),
}


@pytest.mark.parametrize(("management", "threshold", "dac"), RANGES.values(), ids=RANGES)
@pytest.mark.parametrize(("make", "shape", "rows"), LAYERS.values(), ids=LAYERS)
def test_outputs_equal_those_of_the_torch_tile(management, threshold, dac, make, shape, rows):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(*shape)
    analog = ours(layer, rows, dac=dac, adc={"bits": 8, "bound": 10.0})
    theirs = aihwkit(layer, rows, management, threshold)
    with torch.no_grad():
        found, expected, exact = analog(x), theirs(x), layer(x)
    assert (found - expected).abs().max() <= 1e-6 * exact.abs().max()
    assert (found - exact).abs().max() > 1e-3 * exact.abs().max()  # and the converters did something
