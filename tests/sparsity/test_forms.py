"""Top-k and threshold: what is kept, which gradients pass, and models with sparse activations."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import analognoise as an
from analognoise.errors import SparsityError
from analognoise.sparsity import SparseActivation, Sparsity
from analognoise.tasks import digits


class Own(nn.ReLU):
    """An activation of the user's own."""


@pytest.fixture
def x() -> Tensor:
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_top_k_by_hand() -> None:
    values = torch.tensor([[3.0, -4.0, 1.0, 0.0], [0.5, 0.25, -0.125, 2.0]])
    assert Sparsity("top-k", 2)(values).tolist() == [[3, -4, 0, 0], [0.5, 0, 0, 2]]
    assert Sparsity("top-k", 0.25)(values).tolist() == [[0, -4, 0, 0], [0, 0, 0, 2]]
    assert Sparsity("top-k", 0.26)(values).tolist() == [[3, -4, 0, 0], [0.5, 0, 0, 2]]  # rounded up
    assert torch.equal(Sparsity("top-k", 4)(values), values)
    assert Sparsity("top-k", 1)(values[0]).tolist() == [0, -4, 0, 0]  # a single sample
    square = values.view(1, 2, 2, 2)
    assert Sparsity("top-k", 3)(square).flatten().tolist() == [3, -4, 0, 0, 0, 0, 0, 2]
    assert Sparsity("top-k", 3)(values[:0]).shape == (0, 4)


def test_threshold_by_hand() -> None:
    values = torch.tensor([[3.0, -4.0, 1.0, 0.0], [0.5, 0.25, -0.125, 2.0]])
    assert Sparsity("threshold", level=1.0)(values).tolist() == [[3, -4, 1, 0], [0, 0, 0, 2]]
    assert torch.equal(Sparsity("threshold", level=0.0)(values), values)


@pytest.mark.parametrize("sparsity", [Sparsity("top-k", 3), Sparsity("threshold", level=0.7)])
def test_gradients_pass_what_is_kept_and_nothing_else(sparsity: Sparsity) -> None:
    values = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values.requires_grad_()
    weights = torch.rand(5, 9, dtype=torch.float64)
    out = sparsity(values)
    out.backward(weights)
    assert torch.equal(values.grad, weights * (out != 0))
    assert torch.autograd.gradcheck(sparsity, values)  # the choice does not change within 1e-6


@pytest.mark.parametrize("keep", [1, 7, 0.1, 0.5, 1.0])
def test_top_k_keeps_the_number_it_says(keep: float) -> None:
    values = torch.randn(50, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    kept = (Sparsity("top-k", keep)(values) != 0).flatten(1).sum(1)
    assert (kept == (keep if isinstance(keep, int) else -(-105 * keep // 1))).all()


@pytest.mark.parametrize(("keep", "size", "kept"), [(0.07, 100, 7), (0.28, 25, 7), (0.281, 25, 8)])
def test_a_share_is_rounded_up_as_a_decimal_number(keep: float, size: int, kept: int) -> None:
    assert int((Sparsity("top-k", keep)(torch.rand(1, size) + 1.0) != 0).sum()) == kept


def test_what_differs_is_written_differently() -> None:
    assert str(Sparsity("top-k", 1)) != str(Sparsity("top-k", 1.0))  # one, and all
    assert str(Sparsity("threshold", level=0.1)) != str(Sparsity("threshold", level=0.10000001))


def test_a_sparse_model_computes_as_by_hand_in_both_modes(x: Tensor) -> None:
    model = digits.build(0)
    sparse = an.sparsify(model, keep=0.1)

    def top(values: Tensor, count: int) -> Tensor:
        flat = values.flatten(1)
        least = flat.sort(descending=True).values[:, count - 1 : count]
        return (flat * (flat >= least)).view(values.shape)

    first = functional.max_pool2d(top(functional.relu(model.conv1(x)), 52), 2)  # of 8 · 8 · 8
    second = functional.max_pool2d(top(functional.relu(model.conv2(first)), 26), 2)  # of 16 · 4 · 4
    expected = model.fc(second.flatten(1))
    for mode in (True, False):
        torch.testing.assert_close(sparse.train(mode)(x), expected)
    assert sparse.conv1.weight is model.conv1.weight
    assert list(sparse.state_dict()) == list(model.state_dict())
    assert type(model.activation) is nn.ReLU  # the given model is as it was
    assert isinstance(sparse.activation, nn.ReLU)
    assert "top-k:keep=0.1" in repr(sparse)


def test_copies_pickles_and_new_forms(x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), Own(), nn.Linear(20, 20), nn.PReLU(), nn.Linear(20, 2)
    )
    sparse = an.sparsify(model, "threshold", level=0.2)
    assert isinstance(sparse[2], Own)
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(twin(x), sparse(x))
        assert twin[4].sparsity == Sparsity("threshold", level=0.2)
    again = an.sparsify(sparse, keep=3, layers="4")
    assert again[2].sparsity == Sparsity("threshold", level=0.2)
    assert again[4].sparsity == Sparsity("top-k", 3)
    assert type(again[4]).__mro__.count(SparseActivation) == 1
    assert an.sparsify(model, keep=3, inplace=True) is model
    alone = an.sparsify(nn.ReLU(), keep=1)
    assert alone(torch.tensor([[1.0, 2.0]])).tolist() == [[0, 2]]


def test_fused_encoder_layers_do_not_pass_it_by() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=nn.ReLU(), batch_first=True, dropout=0.0).eval()
    sparse = an.sparsify(layer, keep=1)
    batch = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(sparse(batch), sparse.train()(batch))
        assert not torch.allclose(sparse(batch), layer(batch))


def test_order_of_sparsifying_and_quantizing_does_not_matter(x: Tensor) -> None:
    model = digits.build(0)
    one = an.sparsify(an.quantize(model, 4), keep=0.2)
    other = an.quantize(an.sparsify(model, keep=0.2), 4)
    assert torch.equal(one(x), other(x))
    analog = an.sparsify(an.convert_to_analog(model, "ideal"), keep=0.2)
    torch.testing.assert_close(an.program_(analog).eval()(x), an.sparsify(model, keep=0.2)(x))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"form": "topk", "keep": 3}, "unknown form of sparsity 'topk' .did you mean 'top-k'"),
        ({"keep": None}, "form 'top-k' needs keep="),
        ({"form": "threshold"}, "form 'threshold' needs level="),
        ({"keep": 3, "level": 0.1}, "form 'top-k' has no level"),
        ({"keep": 0}, "keep is 0: give a whole number of at least 1"),
        ({"keep": 1.5}, r"keep is 1\.5"),
        ({"keep": float("nan")}, "keep is nan"),
        ({"keep": True}, "keep is True"),
        ({"form": "threshold", "level": -0.1}, r"level is -0\.1: give a finite threshold of at least 0"),
        ({"form": "threshold", "level": float("inf")}, "level is inf"),
        ({"keep": 1, "layers": "conv9"}, "'conv9' is no kind of layer"),
    ],
)
def test_bad_input_is_named(arguments: dict, said: str) -> None:
    with pytest.raises(SparsityError, match=said):
        an.sparsify(digits.build(0), **arguments)


def test_more_than_the_layer_has_is_named(x: Tensor) -> None:
    with pytest.raises(
        SparsityError, match=r"'activation': top-k keeps 300 outputs per sample, but .* has 256"
    ):
        an.sparsify(digits.build(0), keep=300)(x)


def test_a_model_without_activation_layers_is_named() -> None:
    with pytest.raises(SparsityError, match=r"Linear has no layer of the kind 'activation'.*functions"):
        an.sparsify(nn.Linear(2, 2), keep=1)
    with pytest.raises(SparsityError, match="Softmax has no activation layer such as"):
        an.sparsify(nn.Softmax(1), keep=1)
