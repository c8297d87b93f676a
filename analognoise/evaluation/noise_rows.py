"""The rows of a measurement under noise on computations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from analognoise.evaluation.rows import AnyRow


@dataclass(frozen=True, slots=True)
class NoiseRow(AnyRow):
    """The result of one repeat at one noise level.

    Attributes:
        run_id: digest of model, data, metric, noise and settings.
        noise: the noise in words, as in "additive" or "additive on conv1".
        method: training method, "" when none is named.
        training_seed: seed of the training, None when none is named.
        chip: number of the repeat: one sequence of draws, the same at every level.
        sigma: the noise level.
        metric: name of the metric.
        sum: the metric's sum over the data.
        count: what the sum is divided by.
        value: the metric.
        digital: the metric without noise on computations.
    """

    AXIS: ClassVar[str] = "sigma"

    run_id: str
    noise: str
    method: str
    training_seed: int | None
    chip: int
    sigma: float
    metric: str
    sum: float
    count: float
    value: float
    digital: float

    @property
    def condition(self) -> str:
        """The noise."""
        return self.noise

    @property
    def place(self) -> str:
        """Repeat and level."""
        return f"repeat {self.chip} at sigma {self.sigma:g}"
