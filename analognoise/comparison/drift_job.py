"""One trained model on the chips of one profile, over drift time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analognoise.calibration import calibrate_, needs_calibration
from analognoise.comparison.jobs import Emit, EvaluationJob, task_of
from analognoise.conversion import convert_to_analog, keeping_digital
from analognoise.crossbar.compensation import name_chips, split_compensation
from analognoise.devices.profile import DeviceProfile
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.relay import Relay
from analognoise.evaluation.rows import Row
from analognoise.tasks import load_for_chip


@dataclass(frozen=True)
class Chips:
    """What a trained model is evaluated on: chips of one device with one drift compensation."""

    profile: DeviceProfile
    compensation: str

    @property
    def name(self) -> str:
        """What rows call them."""
        return name_chips(self.profile.name, self.compensation)


@dataclass(frozen=True, kw_only=True)
class DriftJob(EvaluationJob[Chips, Row]):
    """Evaluate one stored model on the chips of one profile, at drift times in seconds.

    Attributes:
        calibration_batches: how many training batches a recalibration uses.
    """

    calibration_batches: int

    @property
    def title(self) -> str:
        """What the job does, in words."""
        return f"{self.training.method}, seed {self.training.seed}, on {self.on.name}"

    def run(self, emit: Emit) -> dict[str, Any]:
        """Evaluate; emits the new rows of each chip as a list. Returns the rows' run id and the warnings.

        Converters that take their ranges from data take them from the training data.
        """
        task = task_of(self.source)
        path = Path(self.folder) / f"{self.training.stem}.safetensors"
        model = load_for_chip(self.training.build(task), path)
        chosen = keeping_digital(model, self.training.digital)
        tile, recalibration = split_compensation(self.on.compensation)
        analog = convert_to_analog(model, self.on.profile, filter_fn=chosen, compensation=tile)
        if needs_calibration(analog):
            calibrate_(analog, task.train(self.training.seed, self.training.batch_size), forward=task.forward)
        inputs = task.train(self.training.seed, self.training.batch_size) if recalibration else None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = evaluate_drift(
                analog,
                task.test,
                times=self.positions,
                chips=self.chips,
                seed=self.seed,
                metric=task.metric,
                forward=task.forward,
                out=Relay(self.known, emit),
                method=self.training.method,
                training_seed=self.training.seed,
                recalibrate=recalibration,
                calibration=inputs,
                calibration_batches=self.calibration_batches,
            )
        return {"run_id": report.run_id, "warnings": [str(item.message) for item in caught]}
