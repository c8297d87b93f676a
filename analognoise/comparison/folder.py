"""A comparison's output folder: whose it is, what of it can be reused, and what is written."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analognoise.comparison.jobs import CHECKPOINT, FORMAT, write_json
from analognoise.comparison.plan import Plan
from analognoise.comparison.settings import Training
from analognoise.errors import ResultsError
from analognoise.evaluation.lock import held
from analognoise.evaluation.row_text import format_rows, header_of
from analognoise.evaluation.rows import AnyRow
from analognoise.files import why_unwritable, write_whole
from analognoise.tasks.weights import file_digest

RUN, RESULTS, SUMMARY, TEXT, MODELS = "run.json", "results.csv", "summary.csv", "summary.md", "models"
_OWN = (RUN, RESULTS, SUMMARY, TEXT)
_LIBRARIES = ("analognoise", "torch", "numpy", "scipy", "scikit-learn", "safetensors")
_ELSE = "choose another folder, or start over with force (--force)"
_ENDINGS = (".safetensors", ".json", ".sharpness.json", CHECKPOINT)


class Folder:
    """The output folder of one comparison; later calls may add to the plan's ``extent``.

    Args:
        path: it may exist.
        plan: what the comparison is.
        force: start over, whatever run is there.

    Raises:
        ResultsError: when the folder holds another run, or cannot be used. Nothing has been written then.
    """

    def __init__(self, path: Path, plan: Plan, force: bool = False) -> None:
        self.path, self.plan, self.force = path, plan, force
        self.models, self.results = path / MODELS, path / RESULTS
        _check_place(path)
        self._there = there = self._read()
        self._replaced = self._left_by(there) if force and there else []
        self._old = None if force else there
        change = self._difference(self._old) if self._old else ""
        if change:
            raise ResultsError(f"output folder {path} holds another run ({change}): {_ELSE}")

    def _read(self) -> dict[str, Any] | None:
        """The run.json that is there. What no comparison's run.json stands by stays, by force too."""
        if (self.path / RUN).is_file():
            return read_run(self.path, self.plan.command, self.plan.noun, any_format=self.force)
        # Empty it is of a run that was killed before it wrote anything.
        begun = [MODELS] if self.models.is_file() or any(self.models.glob("*")) else []
        for name in (*_OWN, *begun):
            if (self.path / name).exists():
                raise ResultsError(
                    f"output folder {self.path} holds {name} but no {RUN} that says whose it is: choose "
                    "another folder"
                )
        return None

    def _difference(self, old: dict[str, Any]) -> str:
        """What of the run that is there cannot go together with this one, in words; empty if all can."""
        plan, key = self.plan, self.plan.subjects
        there, here = dict(old["settings"]), plan.to_dict()
        there[key] = {name: item["digest"] for name, item in old.get(key, {}).items()}
        change = self._other_subject(old) or _difference(
            _common(there, there, here, plan), _common(here, there, here, plan)
        )
        for training in () if change else plan.trainings:
            record = read_record(self.models / f"{training.stem}.json")
            if record is not None and record["id"] != training.id:
                there, here = record.get("training", {}), training.to_dict()
                change = _difference(there, json.loads(json.dumps(here)), f"training {training.stem}")
                return change or f"training {training.stem} is another"
        return change

    def _other_subject(self, old: dict[str, Any]) -> str:
        """Which setting of a condition is another under the same name; empty where digests alone tell."""
        key = self.plan.subjects
        for name, here in self.plan.subject_contents.items():
            there = old.get(key, {}).get(name, {})
            if there.get("digest", here["digest"]) != here["digest"]:
                content = json.loads(json.dumps(here["content"]))
                return _difference(there.get("content"), content, f"{key}.{name}")
        return ""

    def _left_by(self, run: dict[str, Any]) -> list[Path]:
        """The files that a comparison left here, also of methods that its last call did not ask for."""
        own = [file for pattern in (*_OWN, *self.plan.pictures) for file in self.path.glob(pattern)]
        stems = self.trained.union(run["settings"].get("trainings", ()))
        names = {f"{stem}{end}" for stem in stems for end in _ENDINGS}
        return own + [file for file in self.models.glob("*") if file.name in names]

    @contextlib.contextmanager
    def opened(self, command: Sequence[str]) -> Iterator[None]:
        """Make the folder and hold it against other processes; with force, first delete what a run left in
        it.
        """
        with held(self.models, self.path):
            if self._read() != self._there:
                raise ResultsError(f"output folder {self.path} was changed by another process: run again")
            for file in self._replaced:
                # Without it nobody knew whose the others are, should this be killed; it is written anew.
                if file.name != RUN:
                    file.unlink(missing_ok=True)
            for part in self.models.glob("*.part"):
                part.unlink()
            if self._old is None or self._old["run_id"] != self.plan.run_id:
                self.write_run(command=list(command))
            yield

    @property
    def seen_by_workers(self) -> str:
        """Where the models are, for workers that may run elsewhere in the same file system."""
        return str(self.models.absolute())

    @property
    def trained(self) -> set[str]:
        """Stems of all trainings that were finished here, also of methods that are not asked for now."""
        return {file.stem for file in self.models.glob("*.json") if read_record(file) is not None}

    @property
    def subjects(self) -> set[str]:
        """Names of all conditions (or devices) that were evaluated here, or are to be now."""
        return {*(self._old or {}).get(self.plan.subjects, ()), *self.plan.subject_contents}

    def write_run(self, **more: Any) -> None:
        """Write run.json: settings, versions, and ``more``; what it held besides stays."""
        kept, plan = self._old or {}, self.plan
        self._old = {
            **({} if plan.command == "compare" else {"job": plan.command}),
            "format": FORMAT,
            "run_id": plan.run_id,
            "settings": plan.to_dict(),
            plan.subjects: kept.get(plan.subjects, {}) | plan.subject_contents,
            "model": plan.model,
            "versions": kept.get("versions") or versions(),
            "command": kept.get("command", []),
            "failed": kept.get("failed", []),
            "warnings": kept.get("warnings", []),
            **more,
        }
        write_json(self.path / RUN, self._old)

    def finish(self, failed: list[dict[str, Any]], warnings: Sequence[str]) -> None:
        """Write run.json with what the run found; warnings of earlier calls stay."""
        before = (self._old or {}).get("warnings", [])
        self.write_run(failed=failed, warnings=[*before, *(text for text in warnings if text not in before)])

    def check_versions(self) -> None:
        """Raise unless the versions here are those that the run began with: rows must not come from two.

        Raises:
            ResultsError: naming the first that differs.
        """
        for name, there in (self._old or {}).get("versions", {}).items():
            here = versions().get(name)
            if here != there:
                raise ResultsError(
                    f"output folder {self.path} holds a run that began with {name} {there}, here is {here}: "
                    f"finish it with the same versions, {_ELSE}"
                )

    def record(self, training: Training) -> dict[str, Any] | None:
        """What is known of a finished training, if its model is sound or it failed; else None."""
        file = self.models / f"{training.stem}.json"
        record = read_record(file)
        if record is None or record["id"] != training.id:
            return None
        try:
            sound = "error" in record or file_digest(file.with_suffix(".safetensors")) == record["sha256"]
        except (OSError, KeyError):
            return None
        return record if sound else None

    def rewrite_results(self, rows: Sequence[AnyRow]) -> None:
        """Replace results.csv as a whole, if anything would change."""
        content = (header_of(self.plan.row) + format_rows(rows)).encode()
        if not self.results.exists() or self.results.read_bytes() != content:
            write_whole(self.results, content)


def read_record(file: Path) -> dict[str, Any] | None:
    """What is stored of a finished training; None where there is nothing that can be read."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "id" in record and record.get("format") == FORMAT else None


def read_run(
    folder: str | os.PathLike[str],
    command: str = "compare",
    noun: str = "a comparison",
    any_format: bool = False,
) -> dict[str, Any]:
    """The content of a folder's run.json.

    Args:
        folder: where it is.
        command: whose it must be.
        noun: what such a run is, in words.
        any_format: whether one of another version will do.

    Raises:
        ResultsError: when there is none, it is damaged, or it is another command's.
    """
    file = Path(folder) / RUN
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"{folder} holds no {RUN}: it is not the output folder of {noun}") from None
    except (OSError, ValueError) as problem:
        raise ResultsError(
            f"{file} cannot be read ({problem}): restore it, or choose another folder"
        ) from None
    known = isinstance(content, dict) and {"format", "run_id", "settings"} <= content.keys()
    # A comparison on chips has no "job".
    job = content.get("job", "compare" if known else command) if isinstance(content, dict) else command
    if isinstance(job, str) and job != command:
        raise ResultsError(
            f"output folder {folder} holds a run of 'analognoise {job}': choose another folder"
        )
    if not known:
        raise ResultsError(f"{file} is not the description of {noun}: choose another folder")
    if content["format"] != FORMAT and not any_format:
        raise ResultsError(f"{file} has format {content['format']!r}, this version reads {FORMAT}: {_ELSE}")
    return dict(content)


def versions() -> dict[str, str]:
    """What results depend on besides settings: versions of libraries, and the kind of machine."""
    found = {name: version(name) for name in _LIBRARIES}
    return {
        "python": platform.python_version(),
        **found,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _check_place(path: Path) -> None:
    for place in (path, *path.absolute().parents):
        if place.exists() or place.is_symlink():
            if why := why_unwritable(place):
                raise ResultsError(f"output folder {path} cannot be used: {why}")
            return


def _common(side: dict[str, Any], there: dict[str, Any], here: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The settings of one side without what only one of two runs asks for."""
    key = plan.subjects
    methods = {method["name"]: method for method in side["methods"]}
    named = {method["name"] for method in here["methods"]}
    # What only one of the two recalibrates by stands in no row of the other.
    alone = {"calibration_batches"} & (there.keys() ^ here.keys())
    shared = {name: there[name].keys() & here[name].keys() for name in (key, "trainings")}
    return {
        "methods": [methods[item["name"]] for item in there["methods"] if item["name"] in named],
        key: {name: side[key][name] for name in sorted(shared[key])},
        **{name: value for name, value in side.items() if name not in alone.union(plan.extent)},
        "trainings": {stem: side["trainings"][stem] for stem in sorted(shared["trainings"])},
    }


def _difference(there: Any, here: Any, path: str = "") -> str:
    """The first setting that differs, in words; an empty string when none does."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*here, *there]):
            name = f"{path}.{key}" if path else str(key)
            if key not in there or key not in here:
                return f"{name} is only {'there' if key in there else 'here'}"
            found = _difference(there[key], here[key], name)
            if found:
                return found
        return ""
    if path.startswith("trainings.") and there != here:
        stem = path.partition(".")[2]
        return f"what {stem} starts from is not the same: initial weights, training data or loss"
    if path == "methods" and isinstance(there, list) and isinstance(here, list):
        names = [[str(item.get("name")) for item in side if isinstance(item, dict)] for side in (there, here)]
        if names[0] == names[1]:
            return next(
                filter(None, map(_difference, there, here, (f"method {name}" for name in names[0]))), ""
            )
        there, here = (", ".join(side) for side in names)
    return "" if there == here else f"{path} is {_short(there)} there and {_short(here)} here"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = re.sub(r"\s+", " ", text)
    return text if len(text) <= 60 else text[:57] + "..."
