"""Whether the output of a model comes from its tiles: batches are run again with other weights."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from analognoise.chip import drift_to_, program_, restart_products
from analognoise.compiled import eager
from analognoise.evaluation.data import to_device
from analognoise.evaluation.expected import Expected
from analognoise.evaluation.metrics import default_forward
from analognoise.evaluation.passes import Passes
from analognoise.evaluation.reading import Reads, find_bypassed, find_idle, numbers, reads_watched
from analognoise.evaluation.surroundings import At, Buffers, seed_all
from analognoise.halving import until_it_fits
from analognoise.on_tiles import analog_layers
from analognoise.seeds import derive_seed, rng_preserved

# Each layer's tiles are given other weights once, on one batch: not worth it for many layers.
_IDLE_LAYERS = 16
_IDLE_BATCHES = 4
_FEW = 32


class Probe:
    """Looks at a model on a chip; weights, chip and generators are left as found.

    Args:
        model: converted, in the state of an evaluation.
        passes: of the evaluation; the first is over.
        seed: root seed of the chips.
    """

    def __init__(self, model: nn.Module, passes: Passes, seed: int) -> None:
        self.model, self.passes, self.seed = model, passes, seed
        self.data, self.forward = passes.data, passes.forward

    def read(self, chip: int, time: float) -> Reads:
        """Run batches on a chip until all its tiles were read, or to the end: a layer may serve few
        batches.
        """
        program_(self.model, self.seed, chip)
        drift_to_(self.model, time)
        return until_it_fits(self._look, self.data, self._restart)

    def _restart(self) -> None:
        restart_products(self.model)

    def _look(self) -> Reads:
        with rng_preserved(), eager(), reads_watched(self.model) as reads:
            for number, batch in enumerate(self.data):
                reads.batch = number
                self._forward(self._own(batch), number)
                if reads.complete:
                    break
        return reads

    def search(self, reads: Reads, buffers: Buffers) -> Reads:
        """``reads``, with the layers noted that the chip, as it is now, does not show in the output; a new
        look where batches had to be halved, because it counts by them.

        The layers are given other weights, first digital ones, then on their tiles, each on the first batch
        that it serves (where its tiles do not matter, also on three more). Each time ``buffers`` are put back
        first.
        """
        found = reads

        def work() -> Reads:
            with rng_preserved(), eager():
                self._search(found, buffers)
            return found

        def again() -> None:
            nonlocal found
            buffers.restore()
            self._restart()
            found = until_it_fits(self._look, self.data, self._restart)

        return until_it_fits(work, self.data, again)

    def _search(self, reads: Reads, buffers: Buffers) -> None:
        every = analog_layers(self.model)
        layers = {name: every[name] for name in reads.on_chip()}
        last = max((reads.first[name] for name in layers), default=-1)
        idle = dict(layers) if len(layers) <= _IDLE_LAYERS else {}
        for number, batch in enumerate(self.data):
            if number > last and not (idle and number < last + _IDLE_BATCHES):
                break

            compute = partial(self._computed, batch, number, buffers)
            new = {name: layer for name, layer in layers.items() if reads.first[name] == number}
            tested = {name: layer for name, layer in idle.items() if reads.first[name] <= number}
            if not (new or tested):
                continue
            expected = Expected(compute)
            if new:
                reads.bypassed += find_bypassed(new, compute, expected)
            without = [name for name in tested if name not in reads.bypassed]
            if without and (few := self._few(batch)) is not None:  # most layers show in a few samples
                part = partial(self._computed, few, number, buffers)
                kept = [own.clone() for own in part()]
                without = find_idle({name: tested[name] for name in without}, part, kept)
            if without:
                without = find_idle({name: tested[name] for name in without}, compute, expected.numbers)
            idle = {n: layer for n, layer in idle.items() if n in without or reads.first[n] > number}
        reads.idle = list(idle)

    def _few(self, batch: Any) -> tuple[Tensor, Tensor] | None:
        """The first samples of a large batch ``(x, y)``, if the model takes so few."""
        if self.forward is not default_forward or not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            return None
        x, y = batch
        if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.dim() and y.dim()) or x.is_nested:
            return None
        if not len(x) == len(y) > _FEW:
            return None
        try:
            self.model(x[:_FEW].clone())
        except Exception:  # it is made for one size of batch
            return None
        return x[:_FEW], y[:_FEW]

    def _computed(self, batch: Any, number: int, buffers: Buffers) -> list[Tensor]:
        """The numbers that a forward gives, from the same buffers, random numbers and input every time; the
        next forward may write over them.
        """
        buffers.restore()
        seed_all(derive_seed("probe", self.seed), self.data.device)
        restart_products(self.model)
        return numbers(self._forward(self._own(batch), number))

    def _own(self, batch: Any) -> Any:
        """A batch that a forward may do with what it does."""
        return to_device(batch, self.data.device, copy=True) if self.passes.writes_input else batch

    def _forward(self, batch: Any, number: int) -> Any:
        with At("batch {}", number):
            return self.forward(self.model, batch)
