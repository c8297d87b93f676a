"""What the whole suite needs before it imports anything, and what the tests of the command line share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from tests.command import Result, Run

# A Library's operators live as long as the object.
_KEPT: list[torch.library.Library] = []


def _make_torchvision_importable() -> None:
    """Declare two operators of torchvision where its compiled part does not load.

    The torchvision that goes with a CUDA build of torch cannot load its operators beside a CPU build, and
    then fails to import, and transformers with it. No test calls the operators.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_make_torchvision_importable()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line in this process."""
    from analognoise.cli import main

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the same order everywhere, and no waiting for a busy second core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's folder, where the command is called, with the test module's MINE as ``mine.py``."""
    (tmp_path / "mine.py").write_text(dedent(request.module.MINE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)
