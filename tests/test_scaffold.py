"""make and the files around it: what is installed when, and what the targets call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # What an outer make hands down would change this one.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what make reads, and a stand-in for Python that makes an empty environment at once."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "python"
    make_venv = f"mkdir -p .venv/bin && ln -sf {sys.executable} .venv/bin/python"
    python.write_text(f'#!/bin/sh\ncase "$2" in venv) {make_venv};; esac\n')
    python.chmod(0o755)
    return tmp_path


def install(checkout: Path, *arguments: str) -> str:
    # In place of pip, a command that says what it was asked for.
    result = make(checkout, f"PYTHON={checkout / 'python'}", "PIP=echo pip", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_environment_is_installed_once_and_again_when_its_files_change(checkout: Path) -> None:
    first = install(checkout, "install")
    assert "installing" in first
    assert "pip --no-build-isolation -e .[dev,aihwkit,dask]" in first
    again = install(checkout, "install")
    assert "reused .venv" in again
    assert "pip" not in again
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# another pin\n")
    assert "installing" in install(checkout, "install")
    assert "reused" in install(checkout, "install")
    assert "installing" in install(checkout, "install", "FORCE=1")
    assert "installing" in install(checkout, "install", "EXTRAS=dev")
    (checkout / ".venv" / "bin" / "python").unlink()
    assert "installing" in install(checkout, "install", "EXTRAS=dev")


def test_interrupted_installation_is_not_taken_for_a_whole_one(checkout: Path) -> None:
    broken = make(checkout, f"PYTHON={checkout / 'python'}", "PIP=false", "install")
    assert broken.returncode != 0
    assert "installing" in install(checkout, "install")


def test_old_python_is_refused_in_words(checkout: Path) -> None:
    (checkout / "python").write_text("#!/bin/sh\nexit 1\n")
    result = make(checkout, f"PYTHON={checkout / 'python'}", "install")
    assert result.returncode != 0
    assert "error: Python 3.11 or newer is needed" in result.stderr
    assert not (checkout / ".venv").exists()


def test_demo_runs_the_main_job_and_force_starts_it_over(checkout: Path) -> None:
    plain = make(checkout, "-n", "demo").stdout
    assert "analognoise compare" in plain
    for words in ("--profile pcm-ibm", "--times 1s,1h,1d,1mo,1y", "--chips 25", "--out runs/demo"):
        assert words in plain
    line = next(line for line in plain.splitlines() if "--out runs/demo" in line)
    assert not line.rstrip().endswith("--force")
    for variable in ("FORCE=1", "force=1"):
        assert "--out runs/demo --force" in make(checkout, "-n", "demo", variable).stdout


def test_test_lints_checks_types_and_runs_pytest(checkout: Path) -> None:
    plan = make(checkout, "-n", "test").stdout
    for words in ("ruff check", "ruff format --check", "-m mypy", "-m pytest"):
        assert words in plan


def test_help_names_every_target(checkout: Path) -> None:
    shown = make(checkout).stdout
    for target in ("demo", "test", "test-slow", "bench", "accuracy", "lint", "format", "install", "clean"):
        assert f"make {target}" in shown


def test_continuous_integration_runs_make_test(tmp_path: Path) -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    stand_in = tmp_path / "make"
    stand_in.write_text('#!/bin/sh\necho "make $* in $(pwd)"\nexit 7\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run([script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout == f"make test in {ROOT}\n"
    assert result.returncode == 7
