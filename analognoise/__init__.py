"""analognoise: which accuracy a PyTorch model keeps on analog in-memory chips, and how to keep more."""

from analognoise.chip import digital, drift_to_, program_
from analognoise.comparison import compare
from analognoise.conversion import convert_to_analog, convert_to_digital
from analognoise.description import describe
from analognoise.devices import DeviceProfile, list_profiles, load_profile
from analognoise.errors import AnalogNoiseError
from analognoise.evaluation import DriftReport, evaluate_drift
from analognoise.training import (
    ASAM,
    SAM,
    SAMSON,
    Clipped,
    GaussianNoise,
    ProfileNoise,
    RandomWeightPerturbation,
)
from analognoise.training.fit import fit
from analognoise.training.recipes import METHODS, parse_method

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "METHODS",
    "SAM",
    "SAMSON",
    "AnalogNoiseError",
    "Clipped",
    "DeviceProfile",
    "DriftReport",
    "GaussianNoise",
    "ProfileNoise",
    "RandomWeightPerturbation",
    "compare",
    "convert_to_analog",
    "convert_to_digital",
    "describe",
    "digital",
    "drift_to_",
    "evaluate_drift",
    "fit",
    "list_profiles",
    "load_profile",
    "parse_method",
    "program_",
]
