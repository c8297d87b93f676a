"""Training methods against each other, on the same task, the same seeds and the same chips."""

from __future__ import annotations

from analognoise.comparison.drift import compare
from analognoise.comparison.outcome import Comparison, Failure, conclude
from analognoise.comparison.run import Event
from analognoise.comparison.settings import Contender

__all__ = ["Comparison", "Contender", "Event", "Failure", "compare", "conclude"]
