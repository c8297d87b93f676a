"""docs/aihwkit.md: its examples run, and its names exist."""

import re
from pathlib import Path

import pytest
import torch

import analognoise as an

PAGE = (Path(__file__).parents[2] / "docs" / "aihwkit.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.split("|")[1:3])
    for line in PAGE.split("## Names")[1].split("## ")[0].splitlines()
    if line.startswith("| ") and "---" not in line
][1:]


def test_the_examples_run(digits, capsys):
    pytest.importorskip("aihwkit")
    model, data = digits
    names = {"an": an, "torch": torch, "model": model, "loader": data}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(compile(block, "docs/aihwkit.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "forward.bound_management = 'Iterative' is not carried over: outputs beyond" in printed
    assert names["read"].profile.surroundings.adc.bits == 9
    assert names["read"].profile.conductance.g_max == 20.0
    assert names["report"].description.engine == "aihwkit"


def test_profiles_in_the_table_ship():
    named = {name for _, ours in ROWS for name in re.findall(r"`((?:pcm|reram)-[\w.-]+)`", ours)}
    assert named == {
        "pcm-ibm", "pcm-hermes-1", "pcm-hermes-2", "reram-wan-2022", "reram-cmo-2pct", "reram-cmo-0.2pct"
    } & set(an.list_profiles())  # fmt: skip


def test_classes_in_the_table_exist():
    pytest.importorskip("aihwkit")
    import aihwkit.inference
    import aihwkit.inference.compensation.drift
    import aihwkit.inference.noise.hermes
    import aihwkit.nn
    import aihwkit.optim
    import aihwkit.simulator.parameters.enums as enums

    places = (
        aihwkit.inference,
        aihwkit.inference.compensation.drift,
        aihwkit.inference.noise.hermes,
        aihwkit.nn,
        aihwkit.optim,
        enums,
    )
    named = {name for theirs, _ in ROWS for name in re.findall(r"`([A-Z][a-z]+[A-Z]\w+)", theirs)}
    assert len(named) > 12
    assert [name for name in named if not any(hasattr(place, name) for place in places)] == []


def test_fields_in_the_table_exist():
    """Right-hand cells such as ``mapping.pairs``: a section of a profile and a field of it."""
    sections = {name: field.annotation for name, field in an.DeviceProfile.model_fields.items()}
    named = {name for _, ours in ROWS for name in re.findall(r"`([a-z]+\.[a-z0-9_]+)", ours)}
    named = {name for name in named if not name.startswith(("an.", "profile.", "layer."))}
    assert len(named) > 8
    for name in named:
        section, field = name.split(".")
        kinds = getattr(sections[section], "__args__", (sections[section],))
        assert any(field in getattr(kind, "model_fields", {}) for kind in kinds), name
