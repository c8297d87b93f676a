"""Memory of large tensors: it is kept for the next ones, and new memory comes in huge pages."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

# A little below the largest block that glibc learns from, 32 MiB.
_LARGEST = (1 << 25) - (1 << 16)
# Bytes from which a tensor is worth a call to the system: two huge pages.
_LARGE = 1 << 22


@cache
def keep_freed_memory() -> None:
    """Let this process keep up to 64 MB of freed memory, so that tensors of some megabytes find it.

    glibc gives freed memory back to the system above a threshold, and each page of it that is asked for anew
    costs as much as a convolution computes meanwhile. The threshold follows the largest block that was mapped
    and freed (``mallopt(3)``, M_MMAP_THRESHOLD), so one such block is asked for and freed, unused. Where the
    threshold was set by hand, or another allocator is in place, nothing changes. No result does.
    """
    np.empty(_LARGEST, np.uint8)


def in_huge_pages(room: Tensor) -> Tensor:
    """The same tensor, just made and not yet written to, with its memory in huge pages where that is large.

    Blocks above 32 MiB are new from the system each time, whatever :func:`keep_freed_memory` asked for, and a
    fault for each of their pages of 4 kB takes several times as long as filling them. Where the system leaves
    it to programs (Linux, transparent huge pages by ``madvise``) they are asked for in pages of 2 MB, as
    NumPy does for its arrays. Nothing else changes.
    """
    if torch.compiler.is_compiling() or type(room) is not Tensor:
        return room  # it has no place in memory yet, or none of its own, nor always a size
    if _is_large(room) and (advise := _advise()) is not None:
        first = -(-room.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (room.data_ptr() + room.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(ctypes.c_void_p(first), ctypes.c_size_t(end - first), mmap.MADV_HUGEPAGE)
    return room


class Rooms:
    """Memory for copies of tensors; that of large ones on the processor is kept from use to use.

    New memory of that size comes from the system each time, and the first writing to it costs as much as
    what is written. Other devices' allocators keep it by themselves. A copy of this object is empty.
    """

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def __reduce__(self) -> tuple[type[Rooms], tuple[()]]:
        return Rooms, ()

    def like(self, tensor: Tensor) -> Tensor:
        """An uninitialized tensor of the same kind."""
        if self._free and type(tensor) in (Tensor, Parameter) and _is_large(tensor):
            wanted = torch.empty_like(tensor, device="meta")  # a view with gaps has a copy without
            for place, room in enumerate(self._free):
                if (room.shape, room.stride(), room.dtype) == (wanted.shape, wanted.stride(), wanted.dtype):
                    return self._free.pop(place)
        return in_huge_pages(torch.empty_like(tensor))

    def copy_of(self, tensor: Tensor) -> Tensor:
        """A tensor's clone without its history."""
        return self.like(tensor).copy_(tensor.detach())

    def absolutes(self, tensors: list[Tensor]) -> list[Tensor]:
        """abs(w) of each, in memory that may become the tensors' clean copies."""
        if all(tensor.is_cpu for tensor in tensors):  # where foreach kernels take one by one, too
            return [torch.abs(tensor, out=self.like(tensor)) for tensor in tensors]
        return list(torch._foreach_abs(tensors))

    def give_back(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors that :meth:`like` gave and nobody uses any more. What nobody asked for since the last
        time is let go: its tensor was moved, cast or frozen.
        """
        self._free = [tensor for tensor in tensors if type(tensor) is Tensor and _is_large(tensor)]


def _is_large(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.layout is torch.strided and tensor.nbytes >= _LARGE


@cache
def _advise() -> Callable[..., int] | None:
    """The system's ``madvise``; None where it knows no huge pages."""
    return getattr(ctypes.CDLL(None), "madvise", None) if hasattr(mmap, "MADV_HUGEPAGE") else None
