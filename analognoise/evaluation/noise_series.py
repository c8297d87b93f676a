"""One model under one noise, or under several in turn: the loop over repeats and noise levels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from time import perf_counter
from typing import Any

from torch import nn

from analognoise.chip import restart_products
from analognoise.computing.levels import fluctuating_sigma
from analognoise.computing.noise import ComputingNoise
from analognoise.errors import DataError
from analognoise.evaluation.blocks import check_shared, measure_blocks, numbered
from analognoise.evaluation.checks import refuse_another
from analognoise.evaluation.data import update_digest
from analognoise.evaluation.identity import Identity, device_of
from analognoise.evaluation.metrics import Forward, Metric
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.passes import Passes
from analognoise.evaluation.store import ResultStore
from analognoise.evaluation.surroundings import At, Buffers, left_as_found
from analognoise.fingerprint import name_of
from analognoise.on_tiles import analog_layers
from analognoise.pool import Shared
from analognoise.progress import Advance
from analognoise.quantized import require_input_ranges
from analognoise.seeds import Stream

_PRODUCTS = 1 << 32  # of a layer in one repeat, at most
_Place = tuple[int, int, float]
"""Which of several noises, repeat and noise level."""


class NoiseEvaluation:
    """One model, its data and one noise, ready to be measured; a part of :func:`analognoise.evaluate_noise`.

    Args:
        model: digital, or with a programmed chip.
        data: as for :func:`analognoise.evaluate_drift`, or :class:`EvaluationData`.
        metric: what is measured.
        noise: the noise, whose σ is set anew at each level.
        fluctuating: α and θ of a level that each repeat draws anew, or None.
        on: the layer that the noise is on alone, "" for all.
        seed: root seed of the draws.
        forward: as for :func:`analognoise.evaluate_drift`.
        method: for the rows.
        training_seed: for the rows.
        passes: those of another evaluation of the same model, data, metric, seed and forward.

    Attributes:
        run_id: what this evaluation's rows carry.
        label: the noise in words, for the rows.
        not_called: layers that noise was to be put on but that no forward called; known once a row was
            measured in this process.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        metric: Metric,
        noise: ComputingNoise,
        *,
        fluctuating: tuple[float, float] | None = None,
        on: str = "",
        seed: int = 0,
        forward: Forward | None = None,
        method: str = "",
        training_seed: int | None = None,
        passes: Passes | None = None,
    ) -> None:
        require_input_ranges(model, "evaluate noise")
        self.model, self.metric, self.noise, self.fluctuating = model, metric, noise, fluctuating
        self.seed, self.method, self.training_seed = seed, method, training_seed
        self.label = noise.kind + " (fluctuating)" * (fluctuating is not None) + (f" on {on}" if on else "")
        self.passes = passes or Passes(
            model, data, metric, device=device_of(model), forward=forward, seed=seed
        )
        self.not_called: tuple[str, ...] = ()
        settings = {
            "data": self.passes.data.fingerprint,
            "metric": [metric.name, name_of(metric.function)],
            "forward": name_of(forward),
            "seed": seed,
            "labels": [self.label, method, training_seed],
            # σ itself is the rows'; mixed noise has another one that stays.
            "noise": [
                noise.kind,
                [[name, pair[1] * (noise.kind == "mixed")] for name, pair in noise.layers.items()],
            ],
            "fluctuating": fluctuating,
            "chip": _chip_digest(model),
        }
        self._identity = Identity(model, settings)
        self.run_id = self._identity.run_id

    def difference(self, row: NoiseRow) -> str:
        """In words, what tells the run of a stored row from this one, as far as that can be known."""
        mine = (self.label, self.method, self.training_seed, self.metric.name)
        theirs = (row.noise, row.method, row.training_seed, row.metric)
        names = ("noise", "method", "training seed", "metric")
        found = [
            f"{n} {b!r} there, {a!r} here" for n, a, b in zip(names, mine, theirs, strict=True) if a != b
        ]
        return "; ".join(found) or (
            "another model, data, metric, forward, seed or setting, another number of threads or version"
        )

    def __getstate__(self) -> dict[str, Any]:
        # The identity holds a digest's state, which cannot be sent.
        return {key: value for key, value in vars(self).items() if key != "_identity"}

    def sigma_of(self, repeat: int, sigma: float) -> float:
        """The σ that a repeat computes with at a level."""
        if self.fluctuating is None:
            return sigma
        return fluctuating_sigma(
            sigma, *self.fluctuating, Stream(self.seed, "fluctuating-noise", chip=repeat)
        )

    def row(self, repeat: int, sigma: float, clean: float) -> NoiseRow:
        """The row of a repeat at a level.

        Args:
            repeat: its number.
            sigma: the level.
            clean: the metric without noise.

        Raises:
            DataError: when no forward calls any of the layers, or the metric cannot be taken.
        """
        self.noise.repeat = repeat
        self.noise.set_sigma(self.sigma_of(repeat, sigma))

        def restart() -> None:
            # The chip's own noise, too, is another one in each repeat and the same at every level.
            restart_products(self.passes.model, (repeat + 1) * _PRODUCTS)
            self.noise.restart()

        restart()
        with At("repeat {} at sigma {}", repeat, f"{sigma:g}"), self.noise:
            total, count, value = self.passes.measure((repeat, sigma), restart=restart)
        self.not_called = self.noise.not_called
        if len(self.not_called) == len(self.noise.layers):
            raise DataError(
                f"no forward calls any of the layers {', '.join(map(repr, self.not_called))}: noise on them "
                "changes nothing, so there is nothing to measure"
            )
        labels = (self.run_id, self.label, self.method, self.training_seed, repeat, sigma, self.metric.name)
        return NoiseRow(*labels, total, count, value, clean)


class NoiseSeries:
    """Evaluations of one model under one noise after another, with the same levels and repeats.

    Args:
        evaluations: with the same :class:`Passes`.
    """

    # Compiling is switched off meanwhile, and so is a fast path of torch's: for all threads of a process.
    exclusive = True

    def __init__(self, evaluations: Sequence[NoiseEvaluation]) -> None:
        self.evaluations = tuple(evaluations)

    def run(
        self,
        sigmas: Sequence[float],
        repeats: int,
        store: ResultStore[NoiseRow] | None = None,
        advance: Advance | None = None,
        executor: Executor | None = None,
    ) -> tuple[list[tuple[NoiseRow, ...]], int]:
        """Of each evaluation its rows by repeat and level, and how many of them ``store`` had already; new
        ones are appended to it repeat by repeat.

        With an executor the noise-free pass and the first row are computed here, the others by its workers;
        they are appended in the same order.
        """
        passes = self.evaluations[0].passes
        if executor is not None:
            parts = {"model": passes.model, "metric": passes.metric, "forward": passes.forward}
            check_shared(executor, passes.device, {**parts, "data": passes.data})
        rows: dict[_Place, NoiseRow] = {}
        places = [
            (number, repeat, sigma)
            for number in range(len(self.evaluations))
            for repeat in range(repeats)
            for sigma in sigmas
        ]
        if store is not None:
            found = ((place, store.get(self.evaluations[place[0]].run_id, *place[1:])) for place in places)
            rows = {place: row for place, row in found if row is not None}
        reused = len(rows)
        pending = [place for place in places if place not in rows]
        new: list[NoiseRow] = []
        taken = 0

        def take(row: NoiseRow) -> None:
            nonlocal taken
            place = pending[taken]
            rows[place] = row
            new.append(row)
            taken += 1
            if taken == len(pending) or pending[taken][:-1] != place[:-1]:
                if store is not None:
                    store.append(new)
                new.clear()
            if advance is not None:
                advance()

        with left_as_found(passes.model) as buffers:
            restart_products(passes.model)
            with At("noise-free pass"):
                clean = passes.first("digital", buffers)
            known = dict.fromkeys(range(len(self.evaluations)), clean)
            for (number, *_), row in rows.items():
                if store is not None:
                    refuse_another("noise-free", passes.metric, clean, row.digital, store)
                known[number] = row.digital
            if store is not None:
                store.expect(len(pending))
            if advance is not None:
                advance(reused)
            if executor is None:
                for place in pending:
                    take(self._row(place, known, buffers))
            elif pending:
                begun = perf_counter()
                take(self._row(pending[0], known, buffers))
                seconds = perf_counter() - begun
                buffers.restore()  # workers get the model as it was before the first row
                measure_blocks(Shared(self), pending[1:], known, seconds, executor, take)
        rows_of = [
            tuple(rows[number, repeat, sigma] for repeat in range(repeats) for sigma in sigmas)
            for number in range(len(self.evaluations))
        ]
        return rows_of, reused

    def measure(self, places: Sequence[_Place], known: dict[int, float]) -> list[NoiseRow]:
        """Rows of some noises, repeats and levels; what a worker does for :meth:`run`, after the noise-free
        pass.
        """
        with left_as_found(self.evaluations[0].passes.model) as buffers:
            return [self._row(place, known, buffers) for place in places]

    def title(self, first: _Place, last: _Place) -> str:
        """What the rows from one place to another are of, in words."""
        begin, end = self.evaluations[first[0]].label, self.evaluations[last[0]].label
        if begin == end:
            return f"{numbered('repeat', first[1], last[1])} of noise {begin}"
        return f"repeat {first[1]} of noise {begin} to repeat {last[1]} of noise {end}"

    def _row(self, place: _Place, known: dict[int, float], buffers: Buffers) -> NoiseRow:
        number, repeat, sigma = place
        evaluation = self.evaluations[number]
        if evaluation.passes.writes_buffers:
            buffers.restore()
        return evaluation.row(repeat, sigma, known[number])


def _chip_digest(model: nn.Module) -> str:
    """A digest of the programmed weights and of the keys of their products' noise; "" for a digital model."""
    layers = analog_layers(model)
    if not layers:
        return ""
    state = hashlib.sha256()
    for name, layer in layers.items():
        for weight, values in layer.analog.weights.items():
            update_digest(state, values, f"{name}.{weight}")
        if layer.analog.draws and layer.analog.tiles is not None:
            keys = [tile.stream.key() for tile in layer.analog.tiles]
            state.update(f"{keys} {layer.analog.time}".encode())
    return state.hexdigest()
