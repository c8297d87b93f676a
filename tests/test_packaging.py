"""An installed wheel, in an empty folder and without the source tree, lists and loads its profiles."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROFILES = sorted(path.stem for path in (ROOT / "hardware_profiles").glob("*.toml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this source tree with the backend that is installed: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheel")
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds nothing but the installed package, as site-packages would."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_installed(installed: Path, cwd: Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    result = subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_wheel_holds_package_profiles_and_licence_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"analognoise/hardware_profiles/{name}.toml" for name in PROFILES} <= set(names)
    assert "analognoise/hardware_profiles/SCHEMA.md" in names
    assert "analognoise/hardware_profiles/profile.schema.json" in names
    assert "analognoise/devices/new_profile.toml" in names
    assert "analognoise/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"analognoise"}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "analognoise").rglob("*.py")}
    assert sources == {name for name in names if name.endswith(".py")}


def test_installed_wheel_lists_and_loads_every_profile(installed: Path, tmp_path: Path) -> None:
    code = (
        "import analognoise as an\n"
        "print(an.__file__)\n"
        "for name in an.list_profiles():\n"
        "    print(name, an.load_profile(name).digest)\n"
    )
    first, *rest = run_installed(installed, tmp_path, "-c", code).splitlines()
    assert Path(first).is_relative_to(installed)
    assert {"ideal", "pcm-ibm", "gaussian"} <= {line.split()[0] for line in rest}
    assert sorted(line.split()[0] for line in rest) == PROFILES

    from analognoise import load_profile

    digests = {line.split()[0]: line.split()[1] for line in rest}
    assert digests == {name: load_profile(name).digest for name in PROFILES}
    assert list(tmp_path.iterdir()) == []


def test_installed_wheel_has_the_command(installed: Path, tmp_path: Path) -> None:
    listed = run_installed(installed, tmp_path, "-m", "analognoise", "profiles", "list")
    assert all(name in listed for name in PROFILES)
    entry_points = next(installed.glob("analognoise-*.dist-info/entry_points.txt")).read_text()
    assert "analognoise = analognoise.cli:main" in entry_points


def test_everything_that_the_project_names_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    groups = [
        project["project"]["dependencies"],
        project["build-system"]["requires"],
        *project["project"]["optional-dependencies"].values(),
    ]
    wanted = {re.split(r"[^A-Za-z0-9_.-]", text)[0].lower() for group in groups for text in group}
    assert wanted <= set(pins)


def test_version_is_the_same_everywhere() -> None:
    import analognoise

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert analognoise.__version__ == project["project"]["version"]
