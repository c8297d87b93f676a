"""The file that a training which was ended in the middle goes on from."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.errors import DataError, ResultsError
from analognoise.files import check_room, lock_file, why_unwritable, write_whole
from analognoise.training.recipes import label_now

_FORMAT = 1
# States of generators, names, and what else is not a tensor of the model.
_BESIDES = 200_000
_HEADER = {"epoch": int, "training": dict, "about": dict, "sha256": str}
_LIBRARIES = ("analognoise", "torch", "numpy")


class Checkpoint:
    """The file that a training leaves after its epochs, to go on from: a line of JSON that says whose it is,
    and the state.

    Args:
        path: the file. It appears whole or not at all.
        about: plain values that tell trainings apart, besides what :func:`analognoise.fit` knows of them.

    Raises:
        DataError: when the path is none.
    """

    def __init__(self, path: str | os.PathLike[str], about: Mapping[str, Any] | None = None) -> None:
        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise DataError(f"a checkpoint is the name of a file, found {path!r}")
        self.path = Path(path)
        self.about = json.loads(json.dumps(about or {}))
        self._tried = False

    def header(self) -> dict[str, Any] | None:
        """What the file says of itself: ``epoch``, the last finished one, ``training``, ``about``; None where
        there is no file.

        Raises:
            ResultsError: when it cannot be read or is no checkpoint.
        """
        if not self.path.exists():
            return None
        try:
            with self.path.open("rb") as file:
                return self._header(file.readline())
        except OSError as error:
            raise self.unusable(f"cannot be read ({error.strerror})") from None

    def read(self, training: Mapping[str, Any]) -> dict[str, Any] | None:
        """The state that was written, None where there is no file.

        Args:
            training: what :meth:`write` was given.

        Raises:
            ResultsError: when the file is damaged, or of another training.
        """
        if self.header() is None:
            return None
        try:
            line, _, content = self.path.read_bytes().partition(b"\n")
        except OSError as error:
            raise self.unusable(f"cannot be read ({error.strerror})") from None
        found = self._header(line)
        if hashlib.sha256(content).hexdigest() != found["sha256"]:
            raise self.unusable("is damaged: it is not what was written")
        there, here = ({**side["about"], **side["training"]} for side in (found, self._named(training)))
        there["method"] = label_now(there.get("method"))
        for name in {**there, **here}:
            if there.get(name) != here.get(name):
                what = f"{name} is {there.get(name)!r} there and {here.get(name)!r} now"
                if name == "threads":
                    what += f": torch.set_num_threads({there.get(name)}) goes on with it"
                raise self.unusable(f"is of another training ({what})")
        try:
            return _load(io.BytesIO(content))
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise self.unusable(f"cannot be read ({type(error).__name__}: {first})") from error

    def write(self, training: Mapping[str, Any], epoch: int, content: dict[str, Any]) -> None:
        """Put another state in the place of the one that is there.

        Raises:
            DataError: when the state holds what cannot be stored.
            ResultsError: when the file cannot be written.
        """
        buffer = io.BytesIO()
        try:
            torch.save(content, buffer)
            if not self._tried:
                _load(buffer)
                self._tried = True
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise DataError(
                f"the state of the model, or of the training data, holds more than tensors and plain values "
                f"({type(error).__name__}: {first})"
            ) from error
        header = {
            "analognoise checkpoint": _FORMAT,
            "epoch": epoch,
            **self._named(training),
            "sha256": hashlib.sha256(buffer.getbuffer()).hexdigest(),
        }
        line = json.dumps(header, ensure_ascii=False) + "\n"
        write_whole(self.path, line.encode() + buffer.getvalue())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the file against other processes, by a file beside it that is gone with the lock.

        Raises:
            ResultsError: when another process holds it, or it cannot be written.
        """
        beside = self.path.with_name(f".{self.path.name}.lock")
        try:
            handle = _locked(beside)
        except BlockingIOError:
            raise ResultsError(
                f"another process is training with checkpoint {self.path}: wait for it, or name another file"
            ) from None
        except OSError as error:
            why = why_unwritable(self.path.absolute().parent) or error.strerror
            raise ResultsError(f"cannot write {self.path}: {why}") from error
        try:
            yield
        finally:
            with suppress(OSError):
                beside.unlink()
            os.close(handle)

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)

    def check_room(self, model: nn.Module) -> None:
        """Raise unless the file can be written, and there is room for it, twice while it is replaced.

        Raises:
            ResultsError: otherwise.
        """
        why = why_unwritable(self.path.absolute().parent)
        if why:
            raise ResultsError(f"cannot write {self.path}: {why}")
        state = sum(value.nbytes for value in model.state_dict().values() if isinstance(value, Tensor))
        momentum = sum(value.nbytes for value in model.parameters() if value.requires_grad)
        check_room(self.path, 2 * (state + momentum + _BESIDES), " for the training's checkpoint")

    def _named(self, training: Mapping[str, Any]) -> dict[str, Any]:
        versions = {name: version(name) for name in _LIBRARIES}
        return {
            "training": json.loads(json.dumps({**training, **versions}, default=float)),
            "about": self.about,
        }

    def _header(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or "analognoise checkpoint" not in found:
            raise self.unusable("is damaged, or no checkpoint of a training: its first line does not say so")
        if found["analognoise checkpoint"] != _FORMAT:
            raise self.unusable(f"has format {found['analognoise checkpoint']}, this version reads {_FORMAT}")
        for name, kind in _HEADER.items():
            if not isinstance(found.get(name), kind):
                raise self.unusable(f"is damaged: its first line says {name!r} is {found.get(name)!r}")
        return found

    def unusable(self, why: str) -> ResultsError:
        """An error about the file, with what to do."""
        return ResultsError(f"checkpoint {self.path} {why}: delete it to begin anew")


def _load(file: io.BytesIO) -> dict[str, Any]:
    """Tensors and plain values of a file; nothing else is ever made of one."""
    file.seek(0)
    return dict(torch.load(file, map_location="cpu", weights_only=True))


def _locked(file: Path) -> int:
    """A file that is there for its lock, opened and locked.

    Raises:
        BlockingIOError: when another process holds it.
    """
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_file(handle)
            # Who held it may have removed it between the two calls: then this is the lock of nothing.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(file)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
