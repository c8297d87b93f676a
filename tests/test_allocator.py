"""Freed memory stays in the process."""

import platform
import subprocess
import sys

import pytest

# Faults of pages in rounds of tensors that live together, as the activations of a residual block.
ROUNDS = """
import resource, sys, torch
from analognoise.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def round_():
    return [torch.ones(128, 16, 32, 32) for _ in range(4)]
round_(), round_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    round_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="thresholds of glibc")
def test_memory_of_tensors_is_found_again():
    pages = 16 * 2048  # of four rounds, as small as they are
    assert faults("keep") < pages / 20 < faults("leave")
