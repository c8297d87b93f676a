"""The digits task: its split, its scaling, its network, and batches whose order follows from seeds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from analognoise.errors import DataError
from analognoise.tasks import Task, TensorBatches, get_task
from analognoise.tasks.digits import split_indices


@pytest.fixture(scope="module")
def digits() -> Task:
    return get_task("digits")


def gathered(batches) -> tuple[torch.Tensor, torch.Tensor]:
    pairs = list(batches)
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def test_split_is_disjoint_complete_and_sixty_twenty_twenty():
    train, validation, test = split_indices()
    assert [len(train), len(validation), len(test)] == [1077, 360, 360]
    assert sorted(np.concatenate([train, validation, test])) == list(range(1797))


def test_split_is_stratified():
    labels = load_digits().target
    share = np.bincount(labels) / len(labels)
    for part in split_indices():
        counts = np.bincount(labels[part], minlength=10)
        # Stratified: every class count is its share of the part, to within rounding.
        assert np.abs(counts - share * len(part)).max() <= 1


def test_split_is_fixed():
    # The demo's and the README's figures hold for this split only.
    train, validation, test = split_indices()
    assert (int(train.sum()), int(validation.sum()), int(test.sum())) == (959672, 323170, 330864)


def test_data_are_the_images_scaled_to_one(digits):
    images, labels = gathered(digits.test)
    index = split_indices()[2]
    data = load_digits()
    assert images.shape == (360, 1, 8, 8)
    assert images.dtype == torch.float32
    assert float(images.min()) == 0.0
    assert float(images.max()) == 1.0
    assert np.array_equal(images[:, 0].numpy() * 16, data.images[index])
    assert np.array_equal(labels.numpy(), data.target[index])


def test_network_has_the_weights_it_claims(digits):
    model = digits.build(0)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sizes == {
        "conv1.weight": 72,
        "conv1.bias": 8,
        "conv2.weight": 1152,
        "conv2.bias": 16,
        "fc.weight": 640,
        "fc.bias": 10,
    }
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert "1,864 weights" in digits.description


def test_build_depends_on_the_seed_alone(digits):
    state = torch.get_rng_state()
    first = digits.build(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again, other = digits.build(1), digits.build(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_training_batches_hold_every_image_once_in_any_order(digits):
    batches = digits.train(0, 64)
    assert len(batches) == 17
    sizes = [len(y) for _, y in batches]
    assert sizes == [64] * 16 + [53]
    images, labels = gathered(batches)
    fixed = load_digits().images[split_indices()[0]].reshape(1077, -1)
    rows = sorted(map(tuple, (images.reshape(1077, -1).numpy() * 16).astype(int)))
    assert rows == sorted(map(tuple, fixed.astype(int)))
    assert np.array_equal(np.bincount(labels), np.bincount(load_digits().target[split_indices()[0]]))


def test_shuffling_depends_on_seed_and_epoch_alone(digits):
    batches = digits.train(3, 64)
    state = torch.get_rng_state()
    first, second = gathered(batches)[1], gathered(batches)[1]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    again = digits.train(3, 64)
    assert torch.equal(gathered(again)[1], first)
    assert not torch.equal(first, second)
    again.set_epoch(1)
    assert torch.equal(gathered(again)[1], second)
    assert not torch.equal(gathered(digits.train(4, 64))[1], first)


def test_inputs_and_targets_are_shuffled_alike():
    x = torch.arange(100)
    batches = TensorBatches(x, 2 * x, 7, seed=0)
    for inputs, targets in batches:
        assert torch.equal(2 * inputs, targets)


def test_fixed_batches_keep_the_order():
    x = torch.arange(10)
    batches = TensorBatches(x, x, 4)
    assert [inputs.tolist() for inputs, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [inputs.tolist() for inputs, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("inputs", "targets", "size", "message"),
    [
        (3, 4, 2, "found 3 and 4"),
        (0, 0, 2, "found 0 and 0"),
        (3, 3, 0, "batch_size must be a whole number of at least 1, found 0"),
        (3, 3, "2", "batch_size must be a whole number of at least 1, found '2'"),
    ],
)
def test_impossible_batches_are_refused(inputs, targets, size, message):
    with pytest.raises(DataError, match=message):
        TensorBatches(torch.zeros(inputs), torch.zeros(targets), size)


def test_unknown_task_suggests_the_nearest():
    with pytest.raises(DataError, match=r"unknown task 'digit' \(did you mean 'digits'\?\)"):
        get_task("digit")


def test_a_task_is_its_own_name(digits):
    assert get_task(digits) is digits


def test_own_task_by_callable(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(
        "from analognoise.tasks import get_task\n"
        "def good():\n    return get_task('digits')\n"
        "def bad():\n    return 7\n"
        "def broken():\n    raise RuntimeError('no disk')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    task = get_task("own_tasks:good")
    assert isinstance(task, Task)
    assert isinstance(task.build(0), nn.Module)
    with pytest.raises(DataError, match=r"task 'own_tasks:bad' returned int: it must return an analognoise"):
        get_task("own_tasks:bad")
    with pytest.raises(DataError, match="task 'own_tasks:broken' failed: RuntimeError: no disk"):
        get_task("own_tasks:broken")
