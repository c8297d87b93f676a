"""Models that ``torch.compile`` was put on."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile was put on the model or a part of it."""
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def eager() -> AbstractContextManager[Any]:
    """Run what was compiled as plain Python, so that calls and operators are seen."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled; importing it takes seconds
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
