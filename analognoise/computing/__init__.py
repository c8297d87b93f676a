"""Noise on computations: what layers compute, not what they store, is noisy (docs/noisy-computation.md)."""

from analognoise.computing.kinds import KINDS, choose_layers
from analognoise.computing.noise import LAWS, ComputingNoise, computing_noise
from analognoise.computing.walking import computing_order, walking_noise

__all__ = [
    "KINDS",
    "LAWS",
    "ComputingNoise",
    "choose_layers",
    "computing_noise",
    "computing_order",
    "walking_noise",
]
