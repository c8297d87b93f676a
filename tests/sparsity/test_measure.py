"""Measured sparsity: counts by hand, dead layers, and that nothing is changed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.errors import DataError
from analognoise.tasks import digits


def test_counts_by_hand() -> None:
    relu = nn.ReLU()
    model = nn.Sequential(relu, nn.Flatten(), nn.Linear(4, 2), relu, nn.Tanh())
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        model[2].bias.zero_()
    batches = [
        (torch.tensor([[1.0, 0, 2, -1], [-1, -1, 3, 4]]), torch.zeros(2)),  # zeros: 2 + 2, then 1 + 2
        (torch.tensor([[5.0, 6, 7, 8]]), torch.zeros(1)),  # none
    ]
    report = an.activation_sparsity(model, batches)
    assert report.samples == 3
    assert [layer.name for layer in report.layers] == ["0 (call 1)", "0 (call 2)", "4"]
    assert [layer.outputs for layer in report.layers] == [4, 2, 2]
    assert [layer.sparsity for layer in report.layers] == [4 / 12, 3 / 6, 3 / 6]
    assert report.overall == 10 / 24  # weighted by the number of outputs
    assert "activation sparsity 41.7 % over 3 samples" in str(report)
    only = an.activation_sparsity(model, batches, layers="4")
    assert [layer.name for layer in only.layers] == ["4"]


def test_a_dead_layer_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-100)
        model[2].bias.fill_(1)
    with pytest.warns(UserWarning, match="activation layer '1' is dead.* 5 samples"):
        report = an.activation_sparsity(model, [(torch.rand(5, 4), torch.zeros(5))])
    assert report.dead == ("1",)
    assert "1  DEAD" in str(report)


def test_top_k_is_measured_and_the_model_left_as_found() -> None:
    model = an.sparsify(nn.Sequential(nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU()), keep=0.2).train()
    model[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = [(torch.randn(32, 64), torch.zeros(32))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = an.activation_sparsity(model, data)
    assert report.overall == pytest.approx(0.8)
    assert [module.training for module in model] == [False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[2]._forward_hooks


def test_digits_network_as_it_is_and_bad_data() -> None:
    model = digits.build(0)
    report = an.activation_sparsity(model, digits.task().validation)
    assert [layer.outputs for layer in report.layers] == [512, 256]
    assert 0.2 < report.overall < 0.8
    with pytest.raises(DataError, match="no batch"):
        an.activation_sparsity(model, [])
    with pytest.raises(DataError, match="batch 0: found a Tensor"):
        an.activation_sparsity(model, [torch.zeros(3, 1, 8, 8)])
