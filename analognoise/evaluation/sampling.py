"""The accuracy of a chip from some of the samples: many where chips change the answer, few where they do not.

A sample whose digital margin (the score of its label less the largest other) is large in magnitude is
answered on chips as it is digitally. Samples are therefore put into strata by margin, and a chip is measured
on a random part of each stratum, drawn for that chip:

    accuracy of chip c ≈ Σ_h N_h · (share of hits among the n_h samples drawn from stratum h) / Σ_h N_h.

Whatever the n_h ≥ 1 are, its expectation over the draws is the chip's accuracy on all samples (Cochran 1977,
Sampling Techniques, ch. 5), and chips stay independent draws of one distribution: an interval over chips
holds as before, the sampling's variance is in it. How many are drawn is planned by four chips that serve for
nothing else. They give each stratum's share of changed answers q_h (falling with the margin, by isotonic
regression) and the variance σ² of the accuracy over chips, and n_h ∝ N_h · √(q_h (1 − q_h)) (Neyman 1934) is
made as small as keeps

    Σ_h (N_h / N)² · q_h (1 − q_h) / n_h · (1 − n_h / N_h) ≤ σ² / 4

and one changed answer in any stratum from moving a chip's value by more than 2 σ.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analognoise.batches import Batch, samples_in
from analognoise.chip import digital, restart_products
from analognoise.errors import DataError
from analognoise.evaluation.metrics import IGNORE_INDEX, Metric, labels_of, logits_of
from analognoise.evaluation.passes import Passes
from analognoise.evaluation.surroundings import At, seed_all
from analognoise.halving import until_it_fits
from analognoise.metrics import NotFiniteError
from analognoise.seeds import derive_seed
from analognoise.units import format_time

PLANNING_CHIPS = 4
_STRATA, _SMALLEST = 16, 8
_SHARE, _JUMP = 0.25, 2.0
# Whatever changes the plan or the draws is a new version, and so another run.
VERSION = 3
# What each kind adds to a run's identity.
SAMPLINGS: dict[str, tuple[str, int] | None] = {"full": None, "stratified": ("stratified", VERSION)}


@dataclass(frozen=True)
class Sampled:
    """On how many samples chips were measured.

    Attributes:
        kind: of the sampling.
        samples: of each chip, by drift time in seconds.
        of: how many samples there are.
    """

    kind: str
    samples: dict[float, int]
    of: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = asdict(self)
        return found | {"samples": {format_time(time): n for time, n in self.samples.items()}}

    @property
    def sentence(self) -> str:
        """What was done, for people."""
        counts = ", ".join(f"{n} at {format_time(time)}" for time, n in self.samples.items())
        return (
            f"Each chip was measured on some of the {self.of} samples, stratified by digital margin: "
            f"{counts}. Standard deviation and worst chip hold that sampling's error, too."
        )


class StratifiedSampling:
    """Measures the accuracy of a model's chips on samples drawn by stratum.

    Args:
        model: converted.
        passes: of the evaluation.
        seed: root seed of the chips.

    Raises:
        DataError: when the metric is not the accuracy.
    """

    def __init__(self, model: nn.Module, passes: Passes, metric: Metric, seed: int) -> None:
        if metric.name != "accuracy" or metric.function is not None:
            raise DataError(
                f"sampling='stratified' needs the metric 'accuracy', not {metric.name!r}: use sampling='full'"
            )
        self.model, self.passes, self.seed = model, passes, seed
        self._right: NDArray[np.bool_] = np.empty(0, bool)
        self._strata: NDArray[np.int64] = np.empty(0, np.int64)
        self._found: dict[float, list[NDArray[np.bool_]]] = {}
        self._counts: dict[float, NDArray[np.int64]] = {}

    @property
    def sampled(self) -> Sampled:
        """What was planned."""
        counts = {time: int(count.sum()) for time, count in self._counts.items()}
        return Sampled("stratified", counts, len(self._right))

    def begin(self) -> None:
        """Compute the digital margins and sort the samples into strata."""
        with digital(self.model), At("digital pass"):
            margins = self._over(None, "plan", _margins)
        self._right, self._strata = margins > 0, strata_by_margin(margins)
        self._found, self._counts = {}, {}

    def look(self, chip: int, time: float) -> None:
        """Measure a planning chip, which the model is, on all samples."""
        place = ("plan", chip, time)
        with At("planning chip {} at {}", chip, format_time(time)):
            hits = self._over(None, place, _hits)
        self._found.setdefault(time, []).append(hits)

    def plan(self) -> None:
        """Fix how many samples of each stratum are drawn at each time."""
        self._counts = {
            time: allocation(self._strata, self._right, np.array(hits)) for time, hits in self._found.items()
        }
        self._found = {}

    def measure(self, chip: int, time: float) -> tuple[float, float, float]:
        """Sum, count and value of the accuracy of a chip, which the model is, from the samples drawn for it.

        The same order of samples is drawn for a chip at all times, of which more or fewer are taken.
        """
        counts = self._counts[time]
        chosen = drawn(self._strata, counts, derive_seed("sample", self.seed, chip))
        hits = self._over(chosen, (chip, time), _hits)
        total = estimated(self._strata, counts, chosen, hits)
        return total, float(len(self._strata)), total / len(self._strata)

    def _over(
        self,
        chosen: NDArray[np.bool_] | None,
        place: object,
        read: Callable[[Any, Batch], NDArray[Any]],
    ) -> NDArray[Any]:
        """``read(output, batch)`` of the chosen samples (None: of all), in batches at most as large as the
        data's.
        """
        return until_it_fits(
            lambda: self._passed_over(chosen, place, read),
            self.passes.data,
            lambda: restart_products(self.model),
        )

    def _passed_over(
        self,
        chosen: NDArray[np.bool_] | None,
        place: object,
        read: Callable[[Any, Batch], NDArray[Any]],
    ) -> NDArray[Any]:
        passes = self.passes
        if passes.draws or not passes.data.cached:
            seed_all(derive_seed("evaluation", self.seed, place), passes.device)
        found: list[NDArray[Any]] = []
        kept: list[Batch] = []
        waiting = start = largest = 0

        def compute() -> None:
            nonlocal kept, waiting
            joined = _join(kept)
            passes.data.computing(joined)
            found.append(read(passes.forward(self.model, joined), joined))
            kept, waiting = [], 0

        for number, batch in enumerate(passes.data.copies() if chosen is None else passes.data):
            with At("batch {}", number):
                n = samples_in(batch)
                start, largest = start + n, max(largest, n)
                if chosen is None:
                    kept = [batch]
                    compute()
                    continue
                index = torch.from_numpy(np.flatnonzero(chosen[start - n : start])).to(passes.device)
                if waiting and waiting + len(index) > largest:
                    compute()
                if len(index):
                    kept.append(_take(batch, index))
                    waiting += len(index)
                if waiting and start == len(chosen):
                    compute()
        return np.concatenate(found)


def strata_by_margin(margins: NDArray[np.float64]) -> NDArray[np.int64]:
    """The stratum of each sample: those answered wrongly first, each side cut evenly by the margin's size.

    Args:
        margins: score of the label less the largest other.
    """
    strata = np.empty(len(margins), np.int64)
    next_one = 0
    for side in (margins <= 0, margins > 0):
        where = np.flatnonzero(side)
        where = where[np.argsort(np.abs(margins[where]), kind="stable")]
        parts = max(1, min(_STRATA, len(where) // _SMALLEST))
        for part in np.array_split(where, parts) if len(where) else ():
            strata[part] = next_one
            next_one += 1
    return strata


def allocation(
    strata: NDArray[np.int64], right: NDArray[np.bool_], hits: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """How many samples of each stratum a chip is measured on; see the top of this module.

    Args:
        strata: of each sample, as :func:`strata_by_margin` gives them.
        right: whether the digital model answers it rightly.
        hits: whether the planning chips do, shape (chips, samples).
    """
    from scipy import optimize  # takes a while to load

    sizes = np.bincount(strata)
    changes = np.bincount(strata, (hits != right).sum(axis=0), len(sizes))
    asked = len(hits) * sizes
    sides = right[[int(np.flatnonzero(strata == h)[0]) for h in range(len(sizes))]]
    q = np.empty(len(sizes))
    for side in (False, True):
        of = np.flatnonzero(sides == side)
        if len(of):
            fit = optimize.isotonic_regression(changes[of] / asked[of], weights=asked[of], increasing=False)
            for first, last in itertools.pairwise(fit.blocks):
                block = of[first:last]  # half a change more: none seen is not none at all
                q[block] = (changes[block].sum() + 0.5) / (asked[block].sum() + 1)
    spread = sizes * np.sqrt(q * (1 - q))
    variance = float(hits.mean(axis=1).var(ddof=1))
    total = sizes.sum()
    least = np.maximum(1, np.ceil(sizes / max(1.0, _JUMP * np.sqrt(variance) * total)))

    def counts(m: int) -> NDArray[np.int64]:
        return np.clip(np.ceil(m * spread / spread.sum()), least, sizes).astype(np.int64)

    def error(n: NDArray[np.int64]) -> float:
        return float((spread**2 / n * (1 - n / sizes)).sum() / total**2)

    low, high = 0, int(np.ceil((sizes / spread).max() * spread.sum()))  # the latter takes all samples
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if error(counts(middle)) <= _SHARE * variance else (middle + 1, high)
    return counts(low)


def drawn(strata: NDArray[np.int64], counts: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Which samples are drawn: of stratum h the first ``counts[h]`` in a random order that ``seed`` fixes."""
    order = np.lexsort((np.random.Generator(np.random.Philox(seed)).random(len(strata)), strata))
    sizes = np.bincount(strata, minlength=len(counts))
    rank = np.arange(len(strata)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(strata), bool)
    chosen[order] = rank < np.repeat(counts, sizes)
    return chosen


def estimated(
    strata: NDArray[np.int64],
    counts: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    hits: NDArray[np.bool_],
) -> float:
    """How many of all samples are hits, from those of the samples that were drawn.

    Rounded to a millionth of a sample: chips alike but for the order of sums must not look as if they had a
    spread, which would end an evaluation to a precision too early.

    Args:
        strata: of each sample.
        counts: how many were drawn of each stratum.
        chosen: whether each sample was drawn.
        hits: of those that were.
    """
    sizes = np.bincount(strata, minlength=len(counts))
    found = np.bincount(strata[chosen], hits, len(counts))
    return round(float((sizes * found / counts).sum()), 6)


def _scores(output: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    logits, labels = logits_of(output), labels_of(batch)
    if labels.dim() != 1 or logits.dim() != 2 or len(labels) != len(logits) or logits.shape[1] < 2:
        raise DataError(
            f"sampling='stratified' needs one label and one score per class for each sample; found logits of "
            f"shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}: use sampling='full'"
        )
    if (labels == IGNORE_INDEX).any():
        raise DataError("sampling='stratified' needs a label for each sample: use sampling='full'")
    if not bool(torch.isfinite(logits.sum())):
        raise NotFiniteError("the model's output holds NaN or infinite values")
    return logits, labels.long()


def _hits(output: Any, batch: Batch) -> NDArray[np.bool_]:
    logits, labels = _scores(output, batch)
    return (logits.argmax(1) == labels).cpu().numpy()


def _margins(output: Any, batch: Batch) -> NDArray[np.float64]:
    logits, labels = _scores(output, batch)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    margins = (own[:, 0] - others.max(1).values).double()
    # What the accuracy counts decides where scores tie.
    return torch.where(logits.argmax(1) == labels, margins.clamp(min=1e-300), margins).cpu().numpy()


def _take(batch: Batch, index: Tensor) -> Batch:
    """The samples at ``index``."""
    if isinstance(batch, Tensor):
        return batch.index_select(0, index)
    if isinstance(batch, Mapping):
        return {key: _take(value, index) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_take(value, index) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_take(value, index) for value in batch)
    if batch is None or isinstance(batch, (bool, int, float)):
        return batch
    raise DataError(f"the batch holds a {type(batch).__name__} that no samples can be taken from")


def _join(batches: list[Batch]) -> Batch:
    """One batch of all their samples."""
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, Tensor):
        if len({batch.shape[1:] for batch in batches}) > 1:
            raise DataError(
                "sampling='stratified' needs samples of one shape in all batches: pad them, or use "
                "sampling='full'"
            )
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {key: _join([batch[key] for batch in batches]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*map(_join, map(list, zip(*batches, strict=True))))
    if isinstance(first, (tuple, list)):
        return type(first)(map(_join, map(list, zip(*batches, strict=True))))
    return first
