"""What surrounds an array: converters, noise of a product, wires."""

from analognoise.crossbar.periphery.irdrop import behind_wires
from analognoise.crossbar.periphery.product import Frame, Products, Surroundings
from analognoise.crossbar.periphery.ranges import Magnitudes
from analognoise.crossbar.periphery.readnoise import weight_variance

__all__ = ["Frame", "Magnitudes", "Products", "Surroundings", "behind_wires", "weight_variance"]
