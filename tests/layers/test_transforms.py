"""Torch's function transforms, and the look at whether weights are those of the chip."""

import copy

import pytest
import torch
from torch import nn

import analognoise as an
from analognoise.errors import StaleChipWarning


def test_weights_are_looked_at_inside_a_transform() -> None:
    model = an.convert_to_analog(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), "pcm-ibm")
    an.program_(model)
    x = torch.randn(3, 8)

    def loss(x: torch.Tensor, model: nn.Module) -> torch.Tensor:
        return model(x).square().sum()

    unseen = copy.deepcopy(model)  # its weights are other objects: only their values can tell
    own = x.clone().requires_grad_()
    loss(own, model).backward()
    assert torch.equal(torch.func.grad(loss)(x, unseen), own.grad)
    with torch.no_grad():
        unseen[2].weight.add_(1.0)
    with pytest.warns(StaleChipWarning, match="'2'"):
        torch.func.grad(loss)(x, unseen)
