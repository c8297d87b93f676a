"""Passes over the data of an evaluation: a model's metric, in whatever state the model is."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from analognoise.allocator import keep_freed_memory
from analognoise.batches import same_content, to_device, versions
from analognoise.chip import restart_products
from analognoise.errors import DataError
from analognoise.evaluation.data import EvaluationData
from analognoise.evaluation.metrics import Forward, Metric, add_up, default_forward, final_value
from analognoise.evaluation.reading import Reads
from analognoise.evaluation.surroundings import At, Buffers, random_states, seed_all
from analognoise.halving import until_it_fits
from analognoise.printing import kind_of
from analognoise.seeds import derive_seed

Found = TypeVar("Found")

# How many passes more are begun before what one has given is waited for; 1 where it is not said.
_BEHIND = {"cpu": 0}


class Measured:
    """What a pass has given, by a device that may still be computing it.

    Args:
        metric: what is measured.
        sums: of the metric, of each batch.
        counts: likewise.
    """

    def __init__(
        self, metric: Metric, sums: Sequence[Tensor | float], counts: Sequence[Tensor | float]
    ) -> None:
        self._metric, self._sums, self._counts = metric, sums, counts

    def values(self) -> tuple[float, float, float]:
        """Sum, count and value of the metric over all batches; waits for the device.

        Raises:
            DataError: as :func:`analognoise.metrics.add_up` and :func:`analognoise.metrics.final_value`.
        """
        added, counted = add_up(self._metric, self._sums, self._counts)
        return added, counted, final_value(self._metric, added, counted)


class Passes:
    """A model, its data and its metric, measured again and again.

    The first pass learns what a forward does besides computing, so that the others need to undo no more than
    that.

    Args:
        model: in the state of an evaluation (:func:`analognoise.evaluation.surroundings.left_as_found`)
            whenever it is measured.
        data: a loader or list of batches, or :class:`EvaluationData`.
        metric: what is measured.
        device: where the model is.
        forward: ``forward(model, batch) -> output``, or None.
        seed: root of what a forward draws.

    Attributes:
        data: the batches.
        forward: the function in use.
        draws: whether a pass draws from the global generators; known after the first.
        forward_draws: whether forward or metric do for the first batch, and not only the loader; likewise.
        writes_buffers: whether a forward changes buffers, so that they must be put back before each pass.
        writes_input: whether a forward changes its batch, so that it must be given copies; likewise.
        behind: how many passes more to begin before waiting for what one has given (:func:`in_turn`).

    Raises:
        DataError: for data that are not the same in every pass, or a forward that is no function.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        metric: Metric,
        *,
        device: torch.device,
        forward: Forward | None = None,
        seed: int = 0,
    ) -> None:
        if forward is not None and not callable(forward):
            raise DataError(f"forward is {kind_of(forward)}: give a function (model, batch) -> output")
        self.model, self.metric, self.device, self.seed = model, metric, device, seed
        self.behind = _BEHIND.get(device.type, 1)
        self.forward: Forward = forward or default_forward
        with torch.inference_mode(False):
            self.data = data if isinstance(data, EvaluationData) else EvaluationData(data, device)
        self.draws = self.forward_draws = self.writes_buffers = self.writes_input = False
        # Of each batch, once known, and in parts of what size.
        self._counts: tuple[int | None, list[float]] = (None, [])

    def first(self, place: object, buffers: Buffers) -> float:
        """The metric of a first pass, which the model gets copies of the batches for, and labels are checked
        in; ``buffers`` are put back afterwards.
        """
        seed_all(derive_seed("evaluation", self.seed, place), self.device)
        before = random_states(self.device)
        value = self.begin(place, first=True).values()[2]
        self.draws = before != random_states(self.device)
        self.writes_buffers = buffers.restore()
        return value

    def measure(self, place: object, restart: Callable[[], None] | None = None) -> tuple[float, float, float]:
        """Sum, count and value of the metric over the data, in the model's present state; see :meth:`begin`
        for the arguments.
        """
        return self.begin(place, restart=restart).values()

    def begin(
        self,
        place: object,
        reads: Reads | None = None,
        first: bool = False,
        restart: Callable[[], None] | None = None,
    ) -> Measured:
        """Go over the data in the model's present state, without waiting for the device.

        Where memory does not suffice for a batch, the pass begins anew with half as many samples at once, and
        so do all that follow; a warning says so.

        Args:
            place: key of whatever a forward draws.
            reads: is told the number of each batch.
            first: see :meth:`first`.
            restart: called when the pass begins anew; None lets the noise of a chip's products do so.
        """

        def again() -> None:
            if restart is None:
                restart_products(self.model)
            else:
                restart()
            if reads is not None:
                reads.restart()

        return until_it_fits(lambda: self._pass(place, reads, first), self.data, again)

    def _pass(self, place: object, reads: Reads | None, first: bool) -> Measured:
        keep_freed_memory()
        if first or self.draws or not self.data.cached:
            seed_all(derive_seed("evaluation", self.seed, place), self.device)
        model, forward, measure = self.model, self.forward, self.metric.measure
        sums: list[Tensor | float] = []
        counts: list[Tensor | float] = []
        most, known = self._counts
        if most != self.data.most:
            known = []
        for number, given in enumerate(self.data):
            batch = to_device(given, self.device, copy=True) if first or self.writes_input else given
            if reads is not None:
                reads.batch = number
            before = versions(batch) if first else []
            state = random_states(self.device) if first and number == 0 else None
            with At("batch {}", number):
                total, count = measure(forward(model, batch), batch, known[number] if known else None)
            sums.append(total)
            counts.append(count)
            if state is not None:
                self.forward_draws = state != random_states(self.device)
            # By content, too: autograd counts no writes past it, nor new entries of a dict or an object.
            if first and not self.writes_input:
                self.writes_input = versions(batch) != before or not same_content(given, batch)
        if first and self.metric.function is None:  # what counts depends on the labels alone
            self._counts = (self.data.most, [float(count) for count in counts])
        return Measured(self.metric, sums, counts)


def in_turn(begun: Iterable[Callable[[], Found]], behind: int) -> Iterator[Found]:
    """What passes have given, in their order, each waited for when so many more were begun: meanwhile the
    device has something to compute.

    Args:
        begun: begins a pass with each step, and gives what waits for it.
        behind: how many.
    """
    waiting: deque[Callable[[], Found]] = deque()
    passes = iter(begun)
    while True:
        try:
            pending = next(passes, None)
        except (Exception, KeyboardInterrupt):  # those before it count
            yield from (earlier() for earlier in waiting)
            raise
        if pending is None:
            break
        waiting.append(pending)
        if len(waiting) > behind:
            yield waiting.popleft()()
    yield from (earlier() for earlier in waiting)
