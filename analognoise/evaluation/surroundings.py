"""What an evaluation must leave alone, or must know that a forward touches: buffers, global generators,
compiled code.
"""

from __future__ import annotations

import random
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn


class Buffers:
    """A model's buffers, to be put back when a forward writes into them."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [
            (module, name, tensor, tensor.clone())
            for module in model.modules()
            for name, tensor in module._buffers.items()
            if tensor is not None
        ]

    def restore(self) -> bool:
        """Put all back; True when one had changed."""
        changed = False
        for module, name, tensor, content in self._kept:
            if module._buffers.get(name) is not tensor:
                module._buffers[name] = tensor
                changed = True
            if not torch.equal(tensor, content):
                tensor.copy_(content)
                changed = True
        return changed


def seed_all(seed: int) -> None:
    """Start every global generator from a seed."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))  # noqa: NPY002
    torch.manual_seed(seed)


def random_states(device: torch.device) -> list[Any]:
    """Fingerprints of the global generators that a forward can draw from."""
    numpy = np.random.get_state()  # noqa: NPY002
    states = [
        random.getstate(),
        [np.asarray(part).tobytes() for part in numpy],
        torch.get_rng_state().tolist(),
    ]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return states


def eager() -> AbstractContextManager[Any]:
    """Run compiled models uncompiled, so that hooks are seen; nothing to do where nothing was compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
