"""The page about one's own device shows what `profiles check` says of the file in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analognoise.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "own-device.md"


def test_the_mistakes_of_the_page_are_found_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    broken = re.search(r"```toml\n(name = .*?)```", text, re.DOTALL)
    said = re.search(r"```\n(my-device.toml:.*?)```", text, re.DOTALL)
    assert broken is not None
    assert said is not None
    (tmp_path / "my-device.toml").write_text(broken[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["profiles", "check", "my-device.toml"]) == 2
    assert capsys.readouterr().out == said[1]
