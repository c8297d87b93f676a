"""Freed memory stays in the process, and new memory of large tensors comes in huge pages."""

import copy
import mmap
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from analognoise.allocator import Rooms, in_huge_pages

# What tensors that live together, as the activations of a residual block, leave mapped when they are gone.
# (Page faults would be nearer to the point, but some systems take idle pages back at any moment.)
ROUNDS = """
import resource, sys, torch
from analognoise.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
tensors = [torch.ones(128, 16, 32, 32) for _ in range(4)]
full = mapped()
del tensors
print(full - mapped())
"""


def given_back(how):
    # Dask leaves MALLOC_TRIM_THRESHOLD_ behind where it starts workers: a threshold set by hand.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True, env=plain
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="thresholds of glibc")
def test_memory_of_tensors_is_found_again():
    one = 4 * 128 * 16 * 32 * 32
    assert given_back("leave") >= one
    assert given_back("keep") == 0


def flags_at(address):
    """What the system was told of the memory at an address."""
    inside, lines = False, Path("/proc/self/smaps").read_text().splitlines()
    for line in lines:
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="huge pages of Linux")
def test_large_tensors_come_in_huge_pages():
    large = torch.empty(1 << 24)  # 64 MB: mapped for itself
    small = torch.frombuffer(mmap.mmap(-1, 1 << 20), dtype=torch.float32)
    for tensor, asked in ((large, True), (small, False)):
        middle = tensor.data_ptr() + tensor.nbytes // 2
        assert "hg" not in flags_at(middle)
        assert in_huge_pages(tensor) is tensor
        assert ("hg" in flags_at(middle)) == asked


def test_a_copy_is_laid_out_as_the_tensor_and_has_no_history():
    weight = torch.nn.Parameter(torch.randn(64, 32, 30, 30).to(memory_format=torch.channels_last))
    found = Rooms().copy_of(weight)
    assert torch.equal(found, weight)
    assert found.stride() == weight.stride()
    assert not found.requires_grad
    assert found.data_ptr() != weight.data_ptr()


def test_memory_that_was_given_back_serves_the_next_tensor_of_that_kind():
    rooms, weight = Rooms(), torch.randn(1100, 1000)
    first, second = rooms.copy_of(weight), rooms.copy_of(weight)
    assert first.data_ptr() != second.data_ptr()
    rooms.give_back([first])
    for other in (weight.T, weight.double(), weight[:1050]):
        assert rooms.like(other).data_ptr() != first.data_ptr()
    assert copy.deepcopy(rooms).like(weight).data_ptr() != first.data_ptr()
    (again,) = rooms.absolutes([weight])
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again, weight.abs())
    assert torch.equal(second, weight)
    rooms.give_back([])  # nobody has asked for what was kept
    assert not rooms._free
    small = rooms.like(torch.empty(100))
    rooms.give_back([small])
    assert rooms.like(torch.empty(100)).data_ptr() != small.data_ptr()


@pytest.mark.parametrize("lay_out", [lambda w: w[:, :1000], lambda w: w.T, lambda w: w[:, :1000].T])
def test_the_memory_for_a_view_is_that_of_one_copy_however_many_steps(
    lay_out: Callable[[Tensor], Tensor],
) -> None:
    rooms, weight = Rooms(), torch.nn.Parameter(lay_out(torch.randn(1100, 1200)))
    places = set()
    for _ in range(3):
        found = rooms.copy_of(weight)
        assert torch.equal(found, weight)
        places.add(found.data_ptr())
        rooms.give_back([found])
        assert len(rooms._free) == 1
    assert len(places) == 1


def test_tensors_without_memory_of_their_own_are_left_alone() -> None:
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("error")
        assert Rooms().copy_of(torch.empty(4000, 2000)).shape == (4000, 2000)
    diagonal = torch.eye(4000).to_sparse()
    assert torch.equal(in_huge_pages(diagonal).to_dense(), torch.eye(4000))
