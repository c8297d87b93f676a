"""``evaluate --engine aihwkit`` and ``--collapse-pairs``."""

import json
import sys
from textwrap import dedent

import pytest

from analognoise.cli import main

MINE = """
    import torch

    def build():
        torch.manual_seed(0)
        return torch.nn.Linear(20, 3)

    def test_loader():
        generator = torch.Generator().manual_seed(1)
        return [(torch.randn(50, 20, generator=generator), torch.randint(0, 3, (50,), generator=generator))]
"""


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Call the command in a folder with a model and data; gives exit status, standard output and error."""
    (tmp_path / "linear_net.py").write_text(dedent(MINE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    base = "evaluate --model linear_net:build --data linear_net:test_loader --profile pcm-ibm --times 1d"

    def call(*options):
        capsys.readouterr()
        status = main([*base.split(), "--chips", "2", *options])
        return status, *capsys.readouterr()

    yield call
    sys.modules.pop("linear_net", None)


def test_engine_and_merged_pairs_are_recorded_and_shown(evaluate, tmp_path):
    pytest.importorskip("aihwkit")
    status, out, err = evaluate("--engine", "aihwkit", "--collapse-pairs", "--out", "out", "--json")
    assert status == 0, err
    model = json.loads(out)["evaluations"][0]["model"]
    assert (model["engine"], model["collapse_pairs"]) == ("aihwkit", True)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (run["settings"]["engine"], run["settings"]["collapse_pairs"]) == ("aihwkit", True)
    assert (
        "simulated by aihwkit, pairs merged after programming"
        in (tmp_path / "out" / "summary.md").read_text()
    )
    status, _, err = evaluate("--out", "out")
    assert (status, "holds another run" in err) == (2, True)


def test_engines_draw_other_chips_of_the_same_device(evaluate):
    pytest.importorskip("aihwkit")
    found = {}
    for options in ((), ("--engine", "aihwkit"), ("--collapse-pairs",)):
        status, out, err = evaluate(*options, "--json", "--metric", "loss")
        assert status == 0, err
        (found[options],) = json.loads(out)["evaluations"]
    assert len({item["digital"] for item in found.values()}) == 1
    assert len({item["over_time"][0]["mean"] for item in found.values()}) == 3


def test_wrong_use_is_one_sentence(evaluate, monkeypatch):
    status, out, err = evaluate("--engine", "aihwkitt")
    assert (status, out) == (2, "")
    assert "unknown engine 'aihwkitt' (did you mean 'aihwkit'?)" in err
    monkeypatch.setitem(sys.modules, "aihwkit", None)
    status, _, err = evaluate("--engine", "aihwkit")
    assert status == 2
    assert "pip install 'analognoise[aihwkit]'" in err
