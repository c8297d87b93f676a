"""The map of public names: complete, the same for people, type checkers and programs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import analognoise as an


@pytest.mark.parametrize("name", an.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    value = getattr(an, name)
    if name not in ("METHODS",):
        assert (value.__doc__ or "").strip()
    assert name in dir(an)


def test_map_and_type_checker_see_the_same() -> None:
    tree = ast.parse(Path(an.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: f"analognoise.{home}" for name, home in an._HOMES.items()}
    assert sorted(seen) == sorted(an.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'convert'"):
        an.convert  # noqa: B018
    with pytest.raises(ImportError):
        from analognoise import convert  # noqa: F401


def test_import_alone_does_not_load_torch() -> None:
    code = "import sys, analognoise; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
