"""One trained model under noise of one kind on its computations, at several levels."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

from analognoise.comparison.jobs import Emit, EvaluationJob, load_trained, task_of
from analognoise.computing.noise import ComputingNoise
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.noise_series import NoiseEvaluation, NoiseSeries
from analognoise.evaluation.relay import Relay


@dataclass(frozen=True)
class Noise:
    """What a trained model is evaluated under.

    Attributes:
        kind: "additive", "multiplicative" or "mixed".
        layers: kinds, names or patterns of layers; None for all.
        layer: the one layer of them that is noisy, "" for all of them.
        fluctuating: α and θ of a level that each repeat draws anew, or None.
        multiplicative: σ of the multiplicative part of mixed noise, or None.
    """

    kind: str
    layers: tuple[str, ...] | None = None
    layer: str = ""
    fluctuating: tuple[float, float] | None = None
    multiplicative: float | None = None

    @property
    def name(self) -> str:
        """What tables call it, as in the evaluation's rows."""
        fluctuating = " (fluctuating)" if self.fluctuating else ""
        return f"{self.kind}{fluctuating}{f' on {self.layer}' if self.layer else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def on(self, model: Any, seed: int) -> ComputingNoise:
        """The noise for a model; σ is set later."""
        given = None if self.layers is None else list(self.layers)
        noise = ComputingNoise(model, 0.0, self.kind, given, multiplicative=self.multiplicative, seed=seed)
        return noise.alone(self.layer) if self.layer else noise


class NoiseJob(EvaluationJob[Noise, NoiseRow]):
    """Evaluate one stored model under noise, at noise levels; its chips are repeats."""

    def run(self, emit: Emit) -> dict[str, Any]:
        """Evaluate; emits the new rows of each repeat as a list. Returns the rows' run id, and warnings."""
        task = task_of(self.source)
        model = load_trained(self.training, task, self.folder)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluation = NoiseEvaluation(
                model,
                task.test,
                Metric.of(task.metric),
                self.on.on(model, self.seed),
                fluctuating=self.on.fluctuating,
                on=self.on.layer,
                seed=self.seed,
                forward=task.forward,
                method=self.training.method,
                training_seed=self.training.seed,
            )
            NoiseSeries([evaluation]).run(self.positions, self.chips, Relay(self.known, emit))
        texts = [str(item.message) for item in caught]
        if evaluation.not_called:
            names = ", ".join(map(repr, evaluation.not_called))
            texts.append(f"no forward calls {names}: there is no noise of theirs in the results")
        return {"run_id": evaluation.run_id, "warnings": texts}
