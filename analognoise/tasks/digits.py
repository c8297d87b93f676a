"""Scikit-learn's handwritten digits with a small convolutional network: real data, no download, a training in
a second.

The data are the 1,797 test images of the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and
Kaynak 1998), 8 × 8 pixels of 0 to 16, which ship with scikit-learn. The network is small on purpose:
redundancy hides weight noise, and a large network would make every training method look alike.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from analognoise.seeds import derive_seed, rng_preserved
from analognoise.tasks.base import Task, TensorBatches

# The split is part of the task: it never depends on a training seed, so that all methods and seeds see the
# same test images.
_SPLIT_SEED = 20240501
_BATCH = 64
_EVALUATION_BATCH = 512


class DigitsCNN(nn.Module):
    """Two 3 × 3 convolutions (8 and 16 filters), each with ReLU and 2 × 2 max pooling, and a linear
    classifier.

    1,864 weights (72 + 1,152 + 640) and 34 biases. Input ``(batch, 1, 8, 8)``, output ``(batch, 10)`` logits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(64, 10)
        self.activation = nn.ReLU()
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.pool(self.activation(self.conv1(x)))
        x = self.pool(self.activation(self.conv2(x)))
        return self.fc(x.flatten(1))


@lru_cache(maxsize=1)
def split_indices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the training, validation and test images: 60 / 20 / 20 %, stratified by digit, always the
    same.
    """
    from sklearn.datasets import load_digits  # takes a while to load
    from sklearn.model_selection import train_test_split

    labels = load_digits().target
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=_SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=0.25, stratify=labels[rest], random_state=_SPLIT_SEED
    )
    return np.sort(train), np.sort(validation), np.sort(test)


@lru_cache(maxsize=1)
def _tensors() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # takes a while to load

    data = load_digits()
    images = torch.from_numpy(data.images.astype(np.float32) / 16.0).unsqueeze(1)
    return images, torch.from_numpy(data.target.astype(np.int64))


def _part(index: int) -> tuple[Tensor, Tensor]:
    images, labels = _tensors()
    rows = torch.from_numpy(split_indices()[index])
    return images[rows], labels[rows]


def build(seed: int) -> DigitsCNN:
    """A freshly initialised network; the global generators are left as found."""
    with rng_preserved(derive_seed("digits model", seed)):
        return DigitsCNN()


def train_batches(seed: int, batch_size: int | None = None) -> TensorBatches:
    """The 1,077 training images, shuffled anew each epoch by a stream of their own."""
    return TensorBatches(*_part(0), batch_size or _BATCH, seed=seed)


def task() -> Task:
    """The digits task: 1,077 training, 360 validation and 360 test images."""
    return Task(
        name="digits",
        description="Scikit-learn's handwritten digits (8 × 8 pixels, 10 classes), CNN of 1,864 weights",
        build=build,
        train=train_batches,
        validation=TensorBatches(*_part(1), _EVALUATION_BATCH),
        test=TensorBatches(*_part(2), _EVALUATION_BATCH),
        epochs=40,
        lr=0.05,
        batch_size=_BATCH,
        n_classes=10,
    )
