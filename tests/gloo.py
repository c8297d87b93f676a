"""Two processes of gloo for one test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORLD = 2


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> None:
    """Runs ``work(rank, folder)`` in each; what it wants to tell it leaves in the folder."""
    mp.spawn(_process, (work, str(folder)), nprocs=WORLD)


def _process(rank: int, work: Callable[[int, str], None], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    torch.set_num_threads(1)
    work(rank, folder)
    dist.barrier()  # neither leaves while the other still needs it
    # Threads of gloo that meet the end of the interpreter abort the process now and then ("terminate called
    # without an active exception", once in some twenty ends). The work is saved, so this end is left out.
    os._exit(0)
