"""Safetensors in and out: exact round trips, and files that do not fit leave the model as it was."""

from __future__ import annotations

import copy
import hashlib
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from analognoise.errors import ModelError
from analognoise.tasks import load_weights, save_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_round_trip_is_exact(tmp_path):
    source, target = model(), model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.uniform_(-1, 1)
        source[1].running_mean.uniform_()
        source[1].num_batches_tracked.fill_(7)
    path = tmp_path / "model.safetensors"
    digest = save_weights(source, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest == save_weights(source, tmp_path / "again.safetensors")
    load_weights(target, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name]), name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.safetensors", "model.safetensors"]


def test_files_have_the_usual_permissions(tmp_path):
    save_weights(model(), tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("model.safetensors", "other")}
    assert len(modes) == 1


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    source, target = Tied(), Tied()
    path = tmp_path / "tied.safetensors"
    save_weights(source, path)
    names = set(load_file(path))
    assert len(names & {"embedding.weight", "head.weight"}) == 1
    load_weights(target, path)
    assert torch.equal(target.head.weight, source.embedding.weight)
    assert target.head.weight is target.embedding.weight


def test_a_file_with_both_names_of_a_tied_weight_fits_too(tmp_path):
    source, target = Tied(), Tied()
    state = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    save_file(state, tmp_path / "both.safetensors")
    load_weights(target, tmp_path / "both.safetensors")
    assert torch.equal(target.head.weight, source.head.weight)


def change(state: dict[str, torch.Tensor], kind: str) -> None:
    if kind == "missing":
        del state["0.weight"]
    elif kind == "unexpected":
        state["0.weights"] = torch.zeros(1)
    elif kind == "renamed":
        state["0.wieght"] = state.pop("0.weight")
    elif kind == "shape":
        state["2.weight"] = torch.zeros(2, 5)
    elif kind == "kind":
        state["2.weight"] = torch.zeros(2, 4, dtype=torch.int8)
    elif kind == "nan":
        state["2.bias"][1] = float("nan")
    elif kind == "inf":
        state["1.running_var"][0] = float("inf")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"does not fit Sequential: missing '0\.weight'$"),
        ("unexpected", r"does not fit Sequential: unexpected '0\.weights' \(did you mean '0\.weight'\?\)$"),
        ("renamed", r"missing '0\.weight'; unexpected '0\.wieght' \(did you mean '0\.weight'\?\)$"),
        ("shape", r"'2\.weight' is \(2, 5\) in the file and \(2, 4\) in the model"),
        ("kind", r"'2\.weight' holds torch\.int8 in the file and torch\.float32 in the model"),
        ("nan", r"1 of the 2 values of '2\.bias' are NaN or infinite"),
        ("inf", r"1 of the 4 values of '1\.running_var' are NaN or infinite"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, kind, message):
    state = {name: tensor.clone() + 1 for name, tensor in model().state_dict().items()}
    change(state, kind)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    target = model()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ModelError, match=message) as error:
        load_weights(target, path)
    assert str(path) in str(error.value)
    for name, tensor in before.items():
        assert torch.equal(tensor, target.state_dict()[name]), name


def test_many_names_are_shortened(tmp_path):
    save_file({f"x{i}": torch.zeros(1) for i in range(9)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"unexpected 'x0', 'x1', 'x2', 'x3', and 5 more"):
        load_weights(nn.Sequential(), tmp_path / "w.safetensors")


def test_half_precision_files_are_taken(tmp_path):
    source = model()
    state = source.state_dict()
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(halved, tmp_path / "h.safetensors")
    target = model()
    load_weights(target, tmp_path / "h.safetensors")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.half().float())


def test_files_that_are_none(tmp_path):
    with pytest.raises(ModelError, match=r"none\.safetensors' does not exist"):
        load_weights(model(), tmp_path / "none.safetensors")
    torch.save(model().state_dict(), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt' is not a readable safetensors file"):
        load_weights(model(), tmp_path / "model.pt")


def test_infinite_values_that_a_model_is_built_with_are_its_own(tmp_path):
    model = nn.BatchNorm1d(3)
    model.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    path = tmp_path / "masked.safetensors"
    save_weights(model, path)
    load_weights(model, path)
    model.mask[0] = -float("inf")
    save_weights(model, path)
    model.mask[0] = 0.0
    with pytest.raises(ModelError, match="1 of the 2 values of 'mask' are NaN or infinite"):
        load_weights(model, path)
