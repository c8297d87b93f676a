"""The user's own callables: what fits is called with what it takes, and everything else is one clear
sentence.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from analognoise.errors import DataError, ModelError
from analognoise.tasks import load_callable, load_data, load_model

MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

DATA = TensorDataset(torch.arange(12.0).reshape(6, 2), torch.arange(6))
number = 3
instance = nn.Linear(2, 2)

class Holder:
    @staticmethod
    def build():
        return nn.Linear(2, 3)

def build(): return nn.Linear(2, 2)
def seeded(seed): return {"seed": seed} if seed < 0 else nn.Linear(2, 2 + seed)
def needs(width): return nn.Linear(width, width)
def fails(): raise FileNotFoundError("no such checkpoint")
def nothing(): pass
def loader(): return DataLoader(DATA, batch_size=3)
def sized(batch_size=2, seed=0): return DataLoader(DATA, batch_size=batch_size)
def once(): return iter([(torch.zeros(1, 2), torch.zeros(1))])
def empty(): return []
def tensors(): return torch.zeros(3, 2)
def one(): return [torch.zeros(3, 2)]
def words(): return [("a", "b")]
def dicts(): return [{"input_ids": torch.zeros(1, 2), "labels": torch.zeros(1)}]
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(MODULE)
    (tmp_path / "broken_code.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "raising_code.py").write_text("raise ValueError('bad config')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("own_code", "broken_code", "raising_code"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_code", r"callable 'own_code' is not of the form package\.module:callable"),
        ("own_code:", r"callable 'own_code:' is not of the form"),
        ("own code:build", r"callable 'own code:build' is not of the form"),
        ("missing_code:build", r"'missing_code:build': there is no module 'missing_code' in "),
        ("own_code.part:build", r"there is no module 'own_code.part'"),
        ("own_code:bild", r"'own_code' has no attribute 'bild' \(did you mean 'build'\?\)"),
        ("own_code:number", r"'own_code:number' is an int, not a callable"),
        ("own_code:instance", r"'own_code:instance' is a Linear, not a callable"),
        (
            "broken_code:build",
            r"importing 'broken_code' failed: No module named 'a_module_that_is_not_there'",
        ),
        ("raising_code:build", r"importing 'raising_code' failed: ValueError: bad config"),
    ],
)
def test_bad_names(own, spec, message):
    with pytest.raises(DataError, match=message):
        load_callable(spec)


def test_dotted_attributes(own):
    assert load_model("own_code:Holder.build").out_features == 3


def test_the_present_folder_is_searched(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def build(): return 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    assert load_callable("only_here:build")() == 1


def test_models(own):
    state = torch.get_rng_state()
    assert isinstance(load_model("own_code:build"), nn.Linear)
    assert torch.equal(torch.get_rng_state(), state)
    assert load_model("own_code:seeded", seed=3).out_features == 5
    first, again = load_model("own_code:build", seed=1), load_model("own_code:build", seed=1)
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, load_model("own_code:build", seed=2).weight)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_code:nothing", r"model 'own_code:nothing' returned None: it must return a torch\.nn\.Module"),
        ("own_code:tensors", r"model 'own_code:tensors' returned a Tensor"),
        ("own_code:needs", r"model 'own_code:needs' needs the argument 'width'"),
        ("own_code:fails", r"model 'own_code:fails' failed: FileNotFoundError: no such checkpoint"),
        ("own_code:bild", r"has no attribute 'bild'"),
    ],
)
def test_bad_models(own, spec, message):
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_data(own):
    assert [len(y) for _, y in load_data("own_code:loader")] == [3, 3]
    assert [len(y) for _, y in load_data("own_code:sized", batch_size=4)] == [4, 2]
    assert [len(y) for _, y in load_data("own_code:sized")] == [2, 2, 2]
    assert len(list(load_data("own_code:dicts"))) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_code:nothing", r"data 'own_code:nothing' gave None: it must give batches"),
        ("own_code:tensors", r"data 'own_code:tensors' gave a Tensor: it must give batches"),
        ("own_code:build", r"data 'own_code:build' gave a Linear"),
        ("own_code:once", r"which can be iterated only once"),
        ("own_code:empty", r"without a batch"),
        ("own_code:one", r"whose batches are a Tensor"),
        ("own_code:words", r"whose batches are a tuple of 2 \(str, str\)"),
    ],
)
def test_bad_data(own, spec, message):
    with pytest.raises(DataError, match=message):
        load_data(spec)


def test_batch_size_that_nobody_takes(own):
    with pytest.raises(DataError, match="data 'own_code:loader' takes no argument 'batch_size'"):
        load_data("own_code:loader", batch_size=4)


def test_looking_at_data_leaves_the_generator(own, monkeypatch):
    data = TensorDataset(torch.arange(6.0).reshape(6, 1), torch.arange(6))
    monkeypatch.setattr("own_code.loader", lambda: DataLoader(data, batch_size=2, shuffle=True))
    state = torch.get_rng_state()
    load_data("own_code:loader")
    assert torch.equal(torch.get_rng_state(), state)
