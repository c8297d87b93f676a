"""Training methods as torch optimizers around a base optimizer."""

from analognoise.training.noise import Clipped, GaussianNoise, ProfileNoise, RandomWeightPerturbation
from analognoise.training.quantized import ASAQ, SAMSONSAQ, SAQ
from analognoise.training.sharpness import ASAM, SAM, SAMSON
from analognoise.training.wrapper import WrappedOptimizer

__all__ = [
    "ASAM",
    "ASAQ",
    "SAM",
    "SAMSON",
    "SAMSONSAQ",
    "SAQ",
    "Clipped",
    "GaussianNoise",
    "ProfileNoise",
    "RandomWeightPerturbation",
    "WrappedOptimizer",
]
