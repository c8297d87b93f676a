"""Training methods against each other, on the same task, the same seeds and the same chips."""

from __future__ import annotations

from analognoise.comparison.drift import compare
from analognoise.comparison.drift_outcome import conclude
from analognoise.comparison.fault_outcome import FaultComparison, conclude_faults
from analognoise.comparison.faults import compare_faults
from analognoise.comparison.noise import noise_sweep
from analognoise.comparison.noise_outcome import NoiseSweep, conclude_noise
from analognoise.comparison.outcome import Comparison
from analognoise.comparison.run import Event
from analognoise.comparison.settings import Contender
from analognoise.comparison.stored import Failure

__all__ = [
    "Comparison",
    "Contender",
    "Event",
    "Failure",
    "FaultComparison",
    "NoiseSweep",
    "compare",
    "compare_faults",
    "conclude",
    "conclude_faults",
    "conclude_noise",
    "noise_sweep",
]
