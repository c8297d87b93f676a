"""A metric that kills workers, for the tests of what becomes of their tasks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import cloudpickle
from torch import Tensor

# Workers cannot import this module: what it defines goes to them by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Deadly:
    """A metric that kills its worker, the first ``times`` times that a worker has computed ``calls`` batches.

    What it notes in the folder: a file for each time that it was unpickled, and for each death.
    """

    def __init__(self, folder: Path, calls: int, times: int) -> None:
        self.folder, self.calls, self.times, self.parent = folder, calls, times, os.getpid()
        self.count = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if os.getpid() != self.parent:
            (self.folder / f"unpickled-{os.getpid()}-{threading.get_ident()}").touch()

    def __call__(self, output: Tensor, batch: Any) -> tuple[Tensor, int]:
        self.count += 1
        deaths = list(self.folder.glob("death-*"))
        if os.getpid() != self.parent and self.count > self.calls and len(deaths) < self.times:
            with contextlib.suppress(FileExistsError):  # another worker came here at the same time
                (self.folder / f"death-{len(deaths)}").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return (output.argmax(1) == batch[1]).sum(), len(output)
