"""What else is known of a chip, and how much of its accuracy that explains: candidates for control variates.

A control is a number that is had for each chip beside its accuracy a. Where its mean over chips is known,
subtracting β · (control − mean) from a leaves 1 − R² of the variance. Where it is not, it must come from
other chips, which are programmed too and cost a share w of a whole chip's time each; then the best split of
the time between both kinds needs

    (√(1 − R²) + √(w · R²))²

of the time that plain chips need for the same error (Peherstorfer et al. 2016, SIAM J. Sci. Comput. 38:A3163,
Corollary 3.5, for two models). The gain is the inverse; below 1 the control loses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, jvp

import analognoise as an
from analognoise.conversion import analog_layers
from benchmarks.statistics.sampling import cases

Values = NDArray[np.float64]
Weights = dict[str, Tensor]
SHARES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Control:
    """How much one control explains in one case.

    Attributes:
        case: network, device, number of samples, drift time.
        control: in words.
        explained: R² on chips that the regression was not fitted to.
        cost: of a chip with the control alone, programming included, as a share of a chip with a pass over
            all samples.
        gain: plain time over time with the control, its mean being measured on further chips.
        gain_known: the same where the mean were known.
    """

    case: str
    control: str
    explained: float
    cost: float
    gain: float
    gain_known: float


class Chips:
    """One network on one device at one time: what is computed of each chip, and how long that takes.

    Args:
        model: digital, trained.
        profile: of the devices.
        data: batches of (images, labels).
        when: drift time.
    """

    def __init__(self, model: nn.Module, profile: str, data: Any, when: str) -> None:
        self.model, self.when = model.eval(), when
        self.analog = an.convert_to_analog(model, profile).eval()
        self.x, self.y = (torch.cat([batch[part] for batch in data]) for part in (0, 1))
        self.layers = analog_layers(self.analog)
        with torch.no_grad():
            logits = model(self.x)
        rivals = logits.scatter(1, self.y[:, None], -torch.inf).amax(1)
        self.margins = logits.gather(1, self.y[:, None])[:, 0] - rivals
        self.order = self.margins.abs().argsort()
        self.slope_of_loss = self._slope(nn.functional.cross_entropy(model(self.x), self.y))
        soft = torch.sigmoid(self._margin(model(self.x)) / self.margins.abs().median() * 4)
        self.slope_of_accuracy = self._slope(soft.mean())
        self.seconds: dict[str, list[float]] = {}

    def _margin(self, logits: Tensor) -> Tensor:
        own = logits.gather(1, self.y[:, None])[:, 0]
        return own - logits.scatter(1, self.y[:, None], -torch.inf).amax(1)

    def _slope(self, value: Tensor) -> Weights:
        targets = {name: layer.weight for name, layer in self.layers.items()}
        found = torch.autograd.grad(value, list(targets.values()))
        return dict(zip(targets, found, strict=True))

    def timed(self, what: str, compute: Callable[[], Any]) -> Any:
        """``compute()``, its time noted under ``what``."""
        start = time.process_time()
        found = compute()
        self.seconds.setdefault(what, []).append(time.process_time() - start)
        return found

    def chip(self, number: int) -> dict[str, list[float]]:
        """The accuracy of a chip, and every control of it (several numbers for one of several parts)."""

        def put() -> None:
            an.program_(self.analog, seed=0, chip=number)
            an.drift_to_(self.analog, self.when)

        self.timed("programming", put)
        hits = self.timed("pass", lambda: self._hits(self.analog(self.x)))
        errors = {
            name: layer.analog.weights["weight"] - layer.weight.detach()
            for name, layer in self.layers.items()
        }
        found: dict[str, list[float]] = {"accuracy": [hits.mean().item()]}
        norms = [float(error.norm()) for error in errors.values()]
        found["norm of the weight error"] = [float(np.linalg.norm(norms))]
        found["its norm, by layer"] = norms
        for name, slope in (("loss", self.slope_of_loss), ("soft accuracy", self.slope_of_accuracy)):
            found[f"first-order change of the {name}"] = self.timed(
                f"first-order change of the {name}",
                lambda slope=slope: [sum(float((slope[k] * errors[k]).sum()) for k in errors)],
            )
        linear = "accuracy of the linearised network"
        found[linear] = [self.timed(linear, lambda: self._linearised(self.x, self.y, errors))]
        for share in SHARES:
            few = self.order[: int(share * len(self.y))]
            name = f"the {100 * share:g} % smallest margins"
            found[f"linearised, {name}"] = [
                self.timed(
                    f"linearised, {name}", lambda few=few: self._linearised(self.x[few], self.y[few], errors)
                )
            ]
            found[f"accuracy, {name}"] = [hits[few].mean().item()]
            self.timed(f"accuracy, {name}", lambda few=few: self.analog(self.x[few]))
        mirrored = {f"{k}.weight": self.layers[k].weight.detach() - error for k, error in errors.items()}
        found["antithetic"] = [self._hits(functional_call(self.model, mirrored, (self.x,))).mean().item()]
        return found

    def _hits(self, logits: Tensor) -> Tensor:
        return (logits.argmax(1) == self.y).double()

    def _linearised(self, x: Tensor, y: Tensor, errors: Weights) -> float:
        """Accuracy by the logits to first order in the weight error: one forward-mode product."""
        targets = {f"{name}.weight": self.layers[name].weight.detach() for name in errors}
        tangents = {f"{name}.weight": error for name, error in errors.items()}
        logits, change = jvp(lambda w: functional_call(self.model, w, (x,)), (targets,), (tangents,))
        return float(((logits + change).argmax(1) == y).double().mean())


def explained(control: Values, accuracy: Values) -> float:
    """R² on the second half of the chips of a linear regression fitted to the first.

    Args:
        control: shape (chips, parts).
        accuracy: shape (chips,).
    """
    half = len(accuracy) // 2
    design = np.column_stack([np.ones(len(accuracy)), control])
    weights = np.linalg.lstsq(design[:half], accuracy[:half], rcond=None)[0]
    left = accuracy[half:] - design[half:] @ weights
    return float(1 - (left**2).mean() / accuracy[half:].var())


def gain(share: float, cost: float) -> float:
    """Of a control with R² ``share`` whose mean is measured at ``cost``; see the top of this module."""
    return float(1 / (np.sqrt(1 - share) + np.sqrt(cost * share)) ** 2)


@torch.no_grad()
def _rows(chips: Chips, number: int) -> dict[str, Values]:
    found = [chips.chip(c) for c in range(number)]
    return {name: np.array([one[name] for one in found]) for name in found[0]}


def measure(chips: int, samples: int) -> list[Control]:
    """R², cost and gain of every control in every case.

    Args:
        chips: half of them fit, half judge.
        samples: of the wide network's data set.
    """
    results = []
    (name, small, own), _, (wide_name, wide, many) = cases(samples)
    for label, model, data in ((name, small, own), (wide_name, wide, many)):
        for profile, when in (("gaussian@5%", "0s"), ("pcm-ibm", "1s"), ("pcm-ibm", "1y")):
            of = Chips(model, profile, data, when)
            found = _rows(of, chips)
            seconds = {what: float(np.median(taken)) for what, taken in of.seconds.items()}
            whole = seconds["programming"] + seconds["pass"]
            accuracy = found.pop("accuracy")[:, 0]
            both = float(np.corrcoef(accuracy, found.pop("antithetic")[:, 0])[0, 1])
            case = f"{label}, {profile}, {len(of.y)}, {when}"
            # Two chips for one mean of variance (1 + r) / 2.
            results.append(Control(case, f"antithetic pairs, r = {both:+.2f}", 0.0, 1.0, 1 / (1 + both), 1.0))
            for control, values in found.items():
                share = max(0.0, explained(values, accuracy))
                known = 1 / (1 - share) if share < 1 else np.inf
                cost = (seconds["programming"] + seconds.get(control, 0.0)) / whole
                results.append(Control(case, control, share, cost, gain(share, cost), known))
    return results


def as_dicts(found: list[Control]) -> list[dict[str, object]]:
    return [asdict(control) for control in found]


def table(found: list[Control], chips: int) -> Table:
    """One row per case and control."""
    shown = Table(title=f"Controls of a chip's accuracy, {chips} chips", title_justify="left")
    for heading in ("case", "control", "R²", "cost", "gain", "gain if its mean were known"):
        shown.add_column(heading, justify="left" if heading in ("case", "control") else "right")
    for c in found:
        numbers = (f"{c.explained:.2f}", f"{c.cost:.2f}", f"{c.gain:.2f}", f"{c.gain_known:.2f}")
        shown.add_row(c.case, c.control, *numbers)
    return shown
