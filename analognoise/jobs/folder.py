"""A job's output folder: what it may hold before, and the run.json that says what made it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from analognoise.comparison.folder import versions
from analognoise.errors import ResultsError
from analognoise.evaluation.lock import held
from analognoise.evaluation.rows import Row
from analognoise.files import write_whole
from analognoise.printing import counted
from analognoise.training.recipes import label_now
from analognoise.units import format_time

RUN_FILE, RESULTS_FILE = "run.json", "results.csv"


# Settings that follow from others, such as the seed: named only where none of these differs.
_DIGESTS = ("initial_weights", "first_batch")


class JobFolder:
    """The folder that one run of a command writes to. Nothing is created or removed before ``open``.

    Args:
        path: the folder; it may exist.
        command: the command, as run.json names it.
        files: what the command writes there, ``*`` allowed; ``force`` removes these and nothing else.
        force: whether what another run left is replaced.
        resumable: of the files, those that a killed run leaves and the next goes on with.

    Attributes:
        found: run.json of the run that is there, or None.

    Raises:
        ResultsError: when the path is a file, or the folder holds what is not a run of the same command.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        files: Sequence[str],
        force: bool = False,
        resumable: Sequence[str] = (),
    ) -> None:
        self.path, self.command, self.files, self.force = path, command, tuple(files), force
        if path.exists() and not path.is_dir():
            raise ResultsError(f"--out {path} is a file: name a folder")
        self.found = None if force else read_run(path, missing_ok=True)
        if not path.is_dir():
            return
        if self.found is not None and self.found.get("job", "compare") != command:
            raise ResultsError(
                f"folder {path} holds a run of 'analognoise {self.found.get('job', 'compare')}': "
                "name another folder"
            )
        # A run that was killed while it wrote its tables goes on, too; whose the rows are is seen to later.
        begun = any((path / item).is_file() for name in resumable for item in (name, f".{name}.part"))
        own = (*self.files, RUN_FILE) if self.found is not None or force or begun else ()
        own = (*own, *(f".{name}.part" for name in own))
        strange = sorted(
            item.name for item in path.iterdir() if not any(fnmatch(item.name, pattern) for pattern in own)
        )
        if strange:
            raise ResultsError(
                f"folder {path} holds other files ({', '.join(strange[:3])}{', …' if strange[3:] else ''}): "
                "name an empty or a new folder"
            )

    def refuse_other(self, settings: dict[str, Any], unfinished: dict[str, Any] | None = None) -> bool:
        """Whether the folder holds a run with these settings.

        Args:
            settings: of the run that is asked for.
            unfinished: those of a run that was begun there and not finished, which counts then.

        Raises:
            ResultsError: when it holds one with other settings; names the first that differs.
        """
        if unfinished is None and self.found is None:
            return False
        there = (self.found or {}).get("settings", {}) if unfinished is None else unfinished
        there = {**there, "method": label_now(there.get("method"))}
        wanted = json.loads(json.dumps(settings))
        for name in sorted({**there, **wanted}, key=_DIGESTS.__contains__):
            if there.get(name) != wanted.get(name):
                raise ResultsError(
                    f"folder {self.path} holds another run ({name} is {_show(there.get(name))} there and "
                    f"{_show(wanted.get(name))} now): name another folder, or replace it with --force"
                )
        return True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other processes.

        Raises:
            ResultsError: when another process works in it, or has since it was looked at, or it cannot be
                written to.
        """
        with held(self.path):
            if not self.force and read_run(self.path, missing_ok=True) != self.found:
                raise ResultsError(f"folder {self.path} was changed by another process: run again")
            yield

    def open(self, keep: Sequence[str] = ()) -> Path:
        """Make the folder ready to be written to, and empty of what ``force`` replaces but for ``keep``.

        Raises:
            ResultsError: when it cannot be created or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.force:
                for pattern in (*self.files, RUN_FILE):
                    for file in self.path.glob(pattern):
                        if file.name not in keep:
                            file.unlink()
        except OSError as error:
            raise ResultsError(f"cannot write to folder {self.path}: {error.strerror}") from error
        return self.path

    def finish(self, settings: dict[str, Any], **more: Any) -> None:
        """Write run.json: command, settings, versions, and what else the run found."""
        content = {"job": self.command, "settings": settings, "versions": versions(), **more}
        write_whole(self.path / RUN_FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def unasked(others: Sequence[Row], times: Iterable[float], chips: int) -> str:
    """In words, what results.csv holds of an earlier call that asked for more.

    Args:
        others: rows that are not asked for.
        times: drift times that are.
        chips: number of chips that are.
    """
    more = len(others)
    there = max(row.chip for row in others) + 1
    times = sorted({row.time_s for row in others}.difference(times))
    parts = [f"{counted(there, 'chip')} there, {chips} asked for"] if there > chips else []
    if times:
        parts.append(
            f"drift time{'s' * (len(times) != 1)} {', '.join(map(format_time, times))} not asked for"
        )
    return (
        f"{counted(more, 'more result')} of an earlier call stay{'s' * (more == 1)} in {RESULTS_FILE} "
        f"({'; '.join(parts)}): tables and pictures are without them"
    )


def read_run(folder: Path, missing_ok: bool = False) -> dict[str, Any] | None:
    """The run.json of a folder.

    Raises:
        ResultsError: when there is none (unless ``missing_ok``), or it is not readable JSON.
    """
    file = folder / RUN_FILE
    if not file.is_file():
        if missing_ok:
            return None
        what, one = f"folder {folder} does not exist", "one"
        if folder.is_dir():
            what = f"folder {folder} holds no {RUN_FILE}"
        elif folder.exists():
            what, one = f"{folder} is a file", "a folder"
        raise ResultsError(
            f"{what}: name {one} that compare, faults, noise-sweep, evaluate or sensitivity wrote"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ResultsError(f"{file} is not readable JSON ({error}): restore or delete it") from error
    if not isinstance(content, dict):
        raise ResultsError(
            f"{file} holds a {type(content).__name__}, expected an object: restore or delete it"
        )
    return content


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"
