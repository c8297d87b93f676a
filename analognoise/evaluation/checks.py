"""What an evaluation asks of its numbers and its model, before it computes."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

from analognoise.errors import DataError, ModelError, ResultsError
from analognoise.evaluation.metrics import Metric
from analognoise.evaluation.store import ResultStore

# More than anybody needs for an interval; what is asked beyond is a slip that would never end.
MOST_CHIPS = 100_000
_SAME = 1e-5


def whole_number(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number as a plain int, also NumPy's.

    Raises:
        DataError: when it is none, less than ``least`` or more than ``most``.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    low = least is not None and number is not None and number < least
    high = most is not None and number is not None and number > most
    if number is None or low or high:
        bound = f", at most {most}" if high else "" if least is None else f", at least {least}"
        raise DataError(f"{name} is {value!r}: give a whole number{bound}")
    return number


def refuse_another(what: str, metric: Metric, value: float, stored: float, store: ResultStore) -> None:
    """Raise when the metric without a chip is not the one that stored rows were compared with.

    Raises:
        ResultsError: otherwise.
    """
    if abs(value - stored) > _SAME * max(1.0, abs(stored)):
        raise ResultsError(
            f"the {what} {metric.name} is {value!r} here, but {stored!r} in {store.path}: "
            "its rows come from another model, metric or forward, or from a machine that computes "
            "differently; go on where they were computed, or use another file"
        )


def check_place(model: nn.Module) -> None:
    """Raise unless all values of the model are at hand.

    Raises:
        ModelError: when some are sharded over processes or on the ``meta`` device.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if hasattr(tensor, "full_tensor"):
            raise ModelError(
                f"{name!r} is sharded over processes: evaluate a model that is whole, with the weights of "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict(…, full_state_dict=True)"
            )
        if tensor.is_meta:
            raise ModelError(
                f"{name!r} is on the 'meta' device and holds no values: load the weights first, for example "
                "with model.to_empty(device='cpu') and load_state_dict"
            )
