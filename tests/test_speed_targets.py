"""The command that measures the tables of docs/speed.md, on a processor and as far as a GPU can be played."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import analognoise as an
from benchmarks.speed import memory, peer
from benchmarks.speed.__main__ import app
from benchmarks.speed.by_hand import by_hand
from benchmarks.speed.by_hand_chip import ChipByHand
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


def test_what_is_written_by_hand_computes_what_a_chip_does():
    torch.manual_seed(0)
    first = nn.Conv2d(3, 70, 3, 2, 1, bias=False)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(70, 9, 3, padding=1, bias=False)).eval()
    periphery = {
        "dac": {"bits": 12, "range": "fixed", "bound": 3.0},
        "adc": {"bits": 12, "range": "fixed", "bound": 40.0},
        "out_noise": 0.0,
    }
    changes = {"periphery": periphery, "tile.rows": 500}  # the second layer on two
    chip = an.program_(an.convert_to_analog(model, an.load_profile("ideal").replace(changes)).eval())
    images = torch.randn(40, 3, 32, 32)  # of several blocks
    with torch.no_grad():
        expected = chip(images)
        digital = model(images)
        found = by_hand(model, periphery, 500)(images)
        noisy = by_hand(model, periphery | {"out_noise": 0.5}, 500)(images)
    # Rounding of a half may differ, and then a step of the ADC.
    assert (found - expected).abs().mean() < 0.01 * (found - digital).abs().mean()
    assert (noisy - found).std() > 5 * (found - digital).std()


def test_a_chip_by_hand_has_the_numbers_of_a_chip():
    torch.manual_seed(0)
    second = nn.Conv2d(64, 64, 3, bias=False)  # of two tiles
    model = nn.Sequential(nn.Conv2d(3, 64, 3, bias=False), nn.Sequential(second), nn.Linear(64, 10))
    hand = ChipByHand(model, an.load_profile("pcm-ibm"))
    assert [tuple(tile.shape) for tile in hand.tiles] == [(64, 27), (64, 288), (64, 288), (10, 64)]
    analog = an.convert_to_analog(model, "pcm-ibm").eval()
    layers = {"0": analog[0], "1.0": analog[1][0], "2": analog[2]}

    def same():
        return [torch.equal(layers[name].analog.weights["weight"], own) for name, own in hand.weights.items()]

    state = hand.program()
    an.program_(analog)
    assert same() == [True] * 3
    hand.drift(state, 3600.0)
    an.drift_to_(analog, 3600.0)
    assert same() == [True] * 3
