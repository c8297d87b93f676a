"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from analognoise.printing import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "tile", "1 tile"),
        (0, "tile", "0 tiles"),
        (3728, "device", "3,728 devices"),
        (2, "batch", "2 batches"),
        (2, "epoch", "2 epochs"),
        (1, "worker process", "1 worker process"),
        (2, "worker process", "2 worker processes"),
        (2, "training seed", "2 training seeds"),
    ],
)
def test_a_number_with_its_noun(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text
