"""Memory that large tensors leave behind, kept for the next ones."""

from __future__ import annotations

from functools import cache

import numpy as np

# A little below the largest block that glibc learns from, 32 MiB.
_LARGEST = (1 << 25) - (1 << 16)


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 64 MB of freed memory, so that tensors of some megabytes find it.

    glibc gives freed memory back to the system above a threshold, and each page of it that is asked for anew
    costs as much as a convolution computes meanwhile. The threshold follows the largest block that was mapped
    and freed (``mallopt(3)``, M_MMAP_THRESHOLD), so one such block is asked for and freed, unused. Where the
    threshold was set by hand, or another allocator is in place, nothing changes. No result does.
    """
    np.empty(_LARGEST, np.uint8)
