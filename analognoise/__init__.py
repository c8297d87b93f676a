"""analognoise: which accuracy a PyTorch model keeps on analog in-memory chips, and how to keep more.

The map of every public name. A name is imported when it is first used, so that the command line answers at
once and worker processes load only what they need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from analognoise.calibration import (
        calibrate_,
        learned_ranges,
        periphery_in_training,
        ranges,
        set_ranges_,
    )
    from analognoise.chip import digital, drift_to_, program_
    from analognoise.chip_file import load_chip, save_chip
    from analognoise.comparison import (
        FaultComparison,
        NoiseSweep,
        compare,
        compare_faults,
        noise_sweep,
    )
    from analognoise.computing import ComputingNoise, computing_noise, walking_noise
    from analognoise.conversion import convert_to_analog, convert_to_digital
    from analognoise.convertible import Problem, find_problems
    from analognoise.description import describe
    from analognoise.devices import DeviceLaw, DeviceProfile, list_profiles, load_profile
    from analognoise.errors import AnalogNoiseError
    from analognoise.evaluation import (
        DriftReport,
        FaultReport,
        Midpoint,
        NoiseReport,
        SensitivityReport,
        evaluate_drift,
        evaluate_faults,
        evaluate_noise,
        fit_midpoint,
        layer_sensitivity,
    )
    from analognoise.fitting import ProfileFit, fit_profile
    from analognoise.landscape import Sharpness, sharpness
    from analognoise.layers import AnalogLayer, Geometry, register_analog_layer
    from analognoise.memory import FaultModel, memory_faults
    from analognoise.quantized import (
        QuantizedLayer,
        dequantize,
        describe_quantization,
        quantize,
        quantized_layers,
        quantized_weights,
    )
    from analognoise.sparsity import activation_penalty, activation_sparsity, sparsify
    from analognoise.tasks import Task, load_quantized, load_weights, save_weights
    from analognoise.training import (
        ASAM,
        ASAQ,
        SAM,
        SAMSON,
        SAMSONSAQ,
        SAQ,
        Clipped,
        GaussianNoise,
        ProfileNoise,
        RandomWeightPerturbation,
    )
    from analognoise.training.fit import fit
    from analognoise.training.recipes import METHODS, parse_method

_HOMES = {
    "ASAM": "training",
    "ASAQ": "training",
    "AnalogLayer": "layers",
    "AnalogNoiseError": "errors",
    "Clipped": "training",
    "ComputingNoise": "computing",
    "DeviceLaw": "devices",
    "DeviceProfile": "devices",
    "DriftReport": "evaluation",
    "FaultComparison": "comparison",
    "FaultModel": "memory",
    "FaultReport": "evaluation",
    "GaussianNoise": "training",
    "Geometry": "layers",
    "METHODS": "training.recipes",
    "Midpoint": "evaluation",
    "NoiseReport": "evaluation",
    "NoiseSweep": "comparison",
    "Problem": "convertible",
    "ProfileFit": "fitting",
    "ProfileNoise": "training",
    "QuantizedLayer": "quantized",
    "RandomWeightPerturbation": "training",
    "SAM": "training",
    "SAMSON": "training",
    "SAMSONSAQ": "training",
    "SAQ": "training",
    "SensitivityReport": "evaluation",
    "Sharpness": "landscape",
    "Task": "tasks",
    "activation_penalty": "sparsity",
    "activation_sparsity": "sparsity",
    "calibrate_": "calibration",
    "compare": "comparison",
    "compare_faults": "comparison",
    "computing_noise": "computing",
    "convert_to_analog": "conversion",
    "convert_to_digital": "conversion",
    "dequantize": "quantized",
    "describe": "description",
    "describe_quantization": "quantized",
    "digital": "chip",
    "drift_to_": "chip",
    "evaluate_drift": "evaluation",
    "evaluate_faults": "evaluation",
    "evaluate_noise": "evaluation",
    "find_problems": "convertible",
    "fit": "training.fit",
    "fit_midpoint": "evaluation",
    "fit_profile": "fitting",
    "layer_sensitivity": "evaluation",
    "learned_ranges": "calibration",
    "list_profiles": "devices",
    "load_chip": "chip_file",
    "load_profile": "devices",
    "load_quantized": "tasks",
    "load_weights": "tasks",
    "memory_faults": "memory",
    "noise_sweep": "comparison",
    "parse_method": "training.recipes",
    "periphery_in_training": "calibration",
    "program_": "chip",
    "quantize": "quantized",
    "quantized_layers": "quantized",
    "quantized_weights": "quantized",
    "ranges": "calibration",
    "register_analog_layer": "layers",
    "save_chip": "chip_file",
    "save_weights": "tasks",
    "set_ranges_": "calibration",
    "sharpness": "landscape",
    "sparsify": "sparsity",
    "walking_noise": "computing",
}

__all__ = [
    "ASAM",
    "ASAQ",
    "METHODS",
    "SAM",
    "SAMSON",
    "SAMSONSAQ",
    "SAQ",
    "AnalogLayer",
    "AnalogNoiseError",
    "Clipped",
    "ComputingNoise",
    "DeviceLaw",
    "DeviceProfile",
    "DriftReport",
    "FaultComparison",
    "FaultModel",
    "FaultReport",
    "GaussianNoise",
    "Geometry",
    "Midpoint",
    "NoiseReport",
    "NoiseSweep",
    "Problem",
    "ProfileFit",
    "ProfileNoise",
    "QuantizedLayer",
    "RandomWeightPerturbation",
    "SensitivityReport",
    "Sharpness",
    "Task",
    "activation_penalty",
    "activation_sparsity",
    "calibrate_",
    "compare",
    "compare_faults",
    "computing_noise",
    "convert_to_analog",
    "convert_to_digital",
    "dequantize",
    "describe",
    "describe_quantization",
    "digital",
    "drift_to_",
    "evaluate_drift",
    "evaluate_faults",
    "evaluate_noise",
    "find_problems",
    "fit",
    "fit_midpoint",
    "fit_profile",
    "layer_sensitivity",
    "learned_ranges",
    "list_profiles",
    "load_chip",
    "load_profile",
    "load_quantized",
    "load_weights",
    "memory_faults",
    "noise_sweep",
    "parse_method",
    "periphery_in_training",
    "program_",
    "quantize",
    "quantized_layers",
    "quantized_weights",
    "ranges",
    "register_analog_layer",
    "save_chip",
    "save_weights",
    "set_ranges_",
    "sharpness",
    "sparsify",
    "walking_noise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analognoise' has no attribute {name!r}")
    value = getattr(import_module(f"analognoise.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
