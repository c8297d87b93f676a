"""Freed memory stays in the process."""

import os
import platform
import subprocess
import sys

import pytest

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
