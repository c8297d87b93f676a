"""The loss around trained weights: how far it rises nearby, and how it curves."""

from analognoise.landscape.measuring import sharpness
from analognoise.landscape.settings import KINDS, Sharpness

__all__ = ["KINDS", "Sharpness", "sharpness"]
