"""Digital memories that hold the weights of quantized networks, and their faults."""

from analognoise.memory.chip import StoredWeights, memory_faults
from analognoise.memory.faults import KINDS, FaultModel, faulty_words
from analognoise.memory.words import ENCODINGS, decode, encode

__all__ = [
    "ENCODINGS",
    "KINDS",
    "FaultModel",
    "StoredWeights",
    "decode",
    "encode",
    "faulty_words",
    "memory_faults",
]
