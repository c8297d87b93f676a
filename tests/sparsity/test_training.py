"""Sparsity as a hyperparameter of methods, and in files of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.errors import MethodError, ModelError
from analognoise.sparsity import PRESETS, Sparsity, sparse_layers
from analognoise.tasks import digits
from analognoise.tasks.weights import load_for_chip

HIGH = PRESETS["high"]
RECIPE = an.parse_method("qat:sparsity=high")


def test_a_method_trains_a_sparse_twin() -> None:
    model = digits.build(0)
    twin = RECIPE.prepare(model)
    assert sparse_layers(twin) == {"activation": HIGH}
    assert sparse_layers(model) == {}
    assert twin.conv1.weight is model.conv1.weight
    assert RECIPE.prepare(twin) is twin
    quantized = an.quantize(model, 4)
    assert sparse_layers(RECIPE.prepare(quantized)) == {"activation": HIGH}
    assert sparse_layers(quantized) == {}
    assert sparse_layers(an.parse_method("qat").prepare(an.sparsify(model, keep=3))) == {
        "activation": Sparsity("top-k", 3)
    }
    with pytest.raises(MethodError, match=r"trains with sparse activations: .*no layer of the kind"):
        RECIPE.prepare(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(MethodError, match="must be one of none, high, found 'low'"):
        an.parse_method("saq:sparsity=low")


def test_high_is_reached_in_training() -> None:
    model = digits.build(0)
    history = an.fit(model, digits.train_batches(0), recipe=RECIPE, epochs=3, lr=0.05)
    report = an.activation_sparsity(history.trained, digits.task().validation)
    most = (77, 39)  # 15 % of 512 and 256, rounded up
    kept = [round(layer.outputs * (1 - layer.sparsity), 6) for layer in report.layers]
    assert all(0.8 * limit < count <= limit for count, limit in zip(kept, most, strict=True))


@pytest.mark.parametrize("form", [{"keep": 0.2}, {"keep": 5}, {"form": "threshold", "level": 0.25}])
def test_files_keep_it(tmp_path: Path, form: dict) -> None:
    path, x = tmp_path / "model.safetensors", torch.rand(4, 1, 8, 8)
    sparse = an.sparsify(digits.build(1), **form).eval()
    an.save_weights(sparse, path)
    again = load_for_chip(digits.build(2), path).eval()
    assert torch.equal(again(x), sparse(x))
    quantized = an.quantize(sparse, 4).eval()
    an.save_weights(quantized, path)
    again = an.load_quantized(digits.build(2), path).eval()
    assert torch.equal(again(x), quantized(x))
    torch.testing.assert_close(load_for_chip(digits.build(2), path).eval()(x), quantized(x))


def test_a_model_that_is_not_as_sparse_as_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    an.save_weights(an.sparsify(digits.build(1), keep=0.2), path)
    model = digits.build(2)
    before = model.fc.weight.clone()
    said = r"'activation' is sparse \(top-k:keep=0.2\), but the model's is not: .*'top-k', keep=0.2"
    with pytest.raises(ModelError, match=said):
        an.load_weights(model, path)
    assert torch.equal(model.fc.weight, before)
    with pytest.raises(ModelError, match=r"sparse by top-k:keep=0\.2, but the model's by top-k:keep=3"):
        an.load_weights(an.sparsify(model, keep=3), path)
    an.load_weights(an.sparsify(model, "top-k", keep=0.2), path)
    assert not torch.equal(model.fc.weight, before)
    dense = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ModelError, match="does not fit Sequential"):
        load_for_chip(dense, path)
