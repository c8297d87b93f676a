"""What sharing an evaluation costs: starting workers, handing out tasks, sending the model.

In processor time, of this process and of all workers, so that cores that are busy (or not there) do not
count: N idle cores divide the workers' part by N.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import analognoise as an
from analognoise.pool import Shared, WorkerProcesses, run_jobs

TASKS = 400
REPEATS = 3


class Nothing:
    """A task without work; tells which process had it, and the processor time that this has used so far."""

    title, exclusive = "nothing", False

    def __init__(self, common: Shared | None = None) -> None:
        self.common = common

    def run(self, emit: Callable[[Any], None]) -> tuple[int, float]:
        if self.common is not None:
            _ = self.common.value
        return os.getpid(), time.process_time()


def results(jobs: list[Nothing], executor: WorkerProcesses) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []

    def done(_: Any, result: tuple[int, float]) -> list[Any]:
        found.append(result)
        return []

    run_jobs(jobs, executor, lambda *_: None, done)
    return found


def by_tasks() -> None:
    print("\nby workers: tasks without work")
    print(f"{'workers':>8}{'start of one, s':>18}{'ms per task here':>18}{'ms per task there':>19}")
    for count in (1, 2, 4, 8):
        with WorkerProcesses(count) as executor:
            begun = dict(results([Nothing() for _ in range(4 * count)], executor))
            results([Nothing() for _ in range(TASKS)], executor)
            before, here = dict(results([Nothing() for _ in range(4 * count)], executor)), time.process_time()
            after = dict(results([Nothing() for _ in range(TASKS)], executor))
            here = time.process_time() - here
            there = sum(after[pid] - before[pid] for pid in after.keys() & before.keys())
        start = statistics.median(begun.values())
        print(f"{count:8}{start:18.2f}{1000 * here / TASKS:18.2f}{1000 * there / TASKS:19.2f}")


def by_size() -> None:
    model = nn.Linear(4096, 4096)
    megabytes = sum(value.nbytes for value in model.state_dict().values()) / 1e6
    here, there = [], []
    with WorkerProcesses(1) as executor:
        for _ in range(REPEATS + 1):
            ((_, before),) = results([Nothing()], executor)
            start = time.process_time()
            ((_, after),) = results([Nothing(Shared(model))], executor)
            here.append(time.process_time() - start)
            there.append(after - before)
    found = [1000 * statistics.median(taken[1:]) / megabytes for taken in (here, there)]
    print(f"sending a model to a worker: {found[0]:.2f} ms per MB here, {found[1]:.2f} ms there")


def used() -> tuple[float, float]:
    """Processor time of this process, and of its children that have ended."""
    own, ended = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime, ended.ru_utime + ended.ru_stime


def by_evaluation() -> None:
    torch.manual_seed(0)
    model = an.convert_to_analog(nn.Linear(1024, 1024, bias=False), "pcm-ibm").eval()
    data = [(torch.randn(512, 1024), torch.zeros(512).long())]
    few, many = 8, 32

    def evaluate(chips: int, workers: int) -> tuple[float, float, float]:
        before, wall = used(), time.perf_counter()
        if workers == 0:
            an.evaluate_drift(model, data, times="1s,1h,1d,1y", chips=chips)
        else:
            with WorkerProcesses(workers) as executor:
                an.evaluate_drift(model, data, times="1s,1h,1d,1y", chips=chips, executor=executor)
        wall = time.perf_counter() - wall
        return *(b - a for a, b in zip(before, used(), strict=True)), wall

    evaluate(2, 0)
    print("\nby workers: evaluations (1024 × 1024 weights, 512 samples, 4 times)")
    print(f"{'workers':>8}{'ms a chip, here':>18}{'there':>9}{'both':>9}{'elapsed, ms a chip':>21}")
    for workers in (0, 1, 2, 4):
        slopes = []
        for _ in range(REPEATS):
            short, long = evaluate(few, workers), evaluate(many, workers)
            slopes.append([1000 * (b - a) / (many - few) for a, b in zip(short, long, strict=True)])
        here, there, wall = (statistics.median(column) for column in zip(*slopes, strict=True))
        name = workers or "none"
        print(f"{name:>8}{here:18.2f}{there:9.2f}{here + there:9.2f}{wall:21.2f}")


def by_workers() -> None:
    by_tasks()
    by_size()
    by_evaluation()
