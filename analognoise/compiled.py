"""Models that ``torch.compile`` was put on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was put on the model or a part of it."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


_lock = threading.Lock()
_inside: list[Any] = []


@contextmanager
def eager() -> Iterator[None]:
    """Run what was compiled as plain Python, so that calls and operators are seen.

    The stance belongs to the process: of threads that overlap, the first sets it and the last puts it back.
    """
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; importing it takes seconds
        yield
        return
    with _lock:
        _inside.append(None if _inside else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            stance = _inside[0]
            _inside.pop()
            if not _inside:
                stance.__exit__(None, None, None)
