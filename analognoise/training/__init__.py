"""Training methods as torch optimizers around a base optimizer."""

from analognoise.training.noise import Clipped, GaussianNoise, ProfileNoise, RandomWeightPerturbation
from analognoise.training.sharpness import ASAM, SAM, SAMSON
from analognoise.training.wrapper import WrappedOptimizer

__all__ = [
    "ASAM",
    "SAM",
    "SAMSON",
    "Clipped",
    "GaussianNoise",
    "ProfileNoise",
    "RandomWeightPerturbation",
    "WrappedOptimizer",
]
