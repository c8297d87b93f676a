"""What an array of cells does: mapping of weights, tiles, drift compensation."""

from analognoise.crossbar.compensation import COMPENSATIONS
from analognoise.crossbar.mapping import Block, split
from analognoise.crossbar.tile import CrossbarTile, ProgrammedTile, Reading
from analognoise.crossbar.together import Place, Programmed, Request, program_all, read_all

__all__ = [
    "COMPENSATIONS",
    "Block",
    "CrossbarTile",
    "Place",
    "Programmed",
    "ProgrammedTile",
    "Reading",
    "Request",
    "program_all",
    "read_all",
    "split",
]
