"""The command that measures the tables of docs/speed.md, on a processor and as far as a GPU can be played."""

from __future__ import annotations

import re

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.speed import memory, peer
from benchmarks.speed.__main__ import app
from benchmarks.speed.timing import medians

CUDA = torch.device("cuda")


def run(*arguments):
    before = torch.get_num_threads()
    try:
        return CliRunner().invoke(app, ["targets", *arguments], env={"COLUMNS": "300"})
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("device", [(), ("--device", "cpu")])
def test_a_row_has_a_ratio_to_plain_torch_and_its_limit(device, monkeypatch):
    monkeypatch.setattr(peer, "installed", lambda: False)
    done = run("--rows", "programming", "--workloads", "W1", "--repeats", "1", *device)
    assert done.exit_code == 0, done.output
    assert "aihwkit is not installed: its column stays empty" in done.stderr
    cells = [cell.strip() for cell in done.stdout.splitlines()[-1].split("|")]
    assert cells[1:3] == ["programming and one drift, × its normals", "W1"]
    assert 1 < float(cells[3]) < 100  # six normals are drawn for each weight in either
    assert cells[4:7] == ["≤ 2.50", "", ""]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_said_before_anything_is_measured():
    done = run("--device", "cuda")
    assert done.exit_code == 2
    assert done.stdout == ""
    said = re.sub(r"[\s│]+", " ", done.stderr)
    assert "device 'cuda' cannot be used here" in said
    assert "name one that is there, such as cpu" in said


def test_the_clock_is_read_when_the_device_has_done_its_work(monkeypatch):
    happened = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: happened.append(device.type))
    work = {name: lambda name=name: happened.append(name) for name in ("first", "second")}
    assert medians("", work, 2, CUDA).keys() == work.keys()
    warm_up = ["cuda", "first", "cuda", "second"]
    assert happened == warm_up + 2 * ["cuda", "first", "cuda", "cuda", "second", "cuda"]
    happened.clear()
    medians("", work, 1)
    assert happened == 2 * ["first", "second"]


def test_memory_of_a_gpu_is_that_beyond_the_start(monkeypatch):
    class Allocator:
        held, most = 700, 9000

        def reset_peak_memory_stats(self, device):
            self.most = self.held

        def memory_allocated(self, device):
            return self.held

        def max_memory_allocated(self, device):
            return self.most

    allocator = Allocator()

    def work():
        allocator.most = max(allocator.most, allocator.held + 50)

    monkeypatch.setattr(torch, "get_device_module", lambda device: allocator)
    assert memory.most_allocated(work, CUDA) == 50


def test_memory_of_a_processor_is_what_lives_at_once():
    def work():
        torch.zeros(1 << 20)
        torch.zeros(1 << 18)

    most = memory.most_allocated(work, torch.device("cpu"))
    assert 4 << 20 <= most < 5 << 20
