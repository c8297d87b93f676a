"""What an array of cells does: mapping of weights, tiles, drift compensation."""

from analognoise.crossbar.compensation import COMPENSATIONS
from analognoise.crossbar.mapping import Block, split
from analognoise.crossbar.tile import CrossbarTile, ProgrammedTile, Reading
from analognoise.crossbar.together import Request, conductances_all, program_all

__all__ = [
    "COMPENSATIONS",
    "Block",
    "CrossbarTile",
    "ProgrammedTile",
    "Reading",
    "Request",
    "conductances_all",
    "program_all",
    "split",
]
