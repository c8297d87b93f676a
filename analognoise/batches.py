"""A batch of data: tensors or arrays in tuples, lists and mappings, or an object that can move itself."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analognoise.errors import DataError

Batch = Any
_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_CODE = (type, FunctionType, MethodType, ModuleType)


def to_device(value: Batch, device: torch.device | None, copy: bool | Callable[[Any], bool] = False) -> Batch:
    """``value`` with every tensor and NumPy array in it (in tuples, lists and mappings) as a tensor on
    ``device``.

    Args:
        value: a batch.
        device: where tensors go; None for where they are.
        copy: whether tensors that are there already, and objects, are copied; or a function of each that
            says so.
    """
    if isinstance(value, Mapping):
        return {key: to_device(item, device, copy) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device, copy) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device, copy) for item in value)
    if not isinstance(copy, bool):
        copy = bool(copy(value))
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        place = value.device if device is None else device
        # A copy towards the CPU must be waited for, and so must one that is to be kept.
        return value.detach().to(place, copy=copy, non_blocking=place.type == "cuda" and not copy)
    if copy and not isinstance(value, _PLAIN):
        value = value.clone() if hasattr(value, "clone") else _copied(value)
    # A batch object that knows how to move, such as a graph.
    return value.to(device) if device is not None and callable(getattr(value, "to", None)) else value


def tensors(value: Batch) -> Iterator[Tensor]:
    """Every tensor in a batch's tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def versions(batch: Batch) -> list[int]:
    """A number for each tensor of a batch that changes when torch writes into it, but not when others do."""
    return [tensor._version for tensor in tensors(batch) if not tensor.is_inference()]


def is_dense(value: Any) -> bool:
    """Whether a value is a tensor that has each of its numbers once in memory, without gaps."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    return plain and torch.empty_like(value, device="meta").stride() == value.stride()


def is_part(value: Any) -> bool:
    """Whether a value is a tensor that is part of a larger memory, which goes along where it is pickled."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_nested
    return plain and value.untyped_storage().nbytes() > value.nbytes


def holds_part(value: Any) -> bool:
    """Whether a value is, or an object holds somewhere in it, a tensor that is part of a larger memory."""
    return any(map(is_part, _within(value, set())))


def _copied(value: Any) -> Any:
    """A deep copy of an object, in which tensors leave behind the larger memory that they are part of; one by
    ``deepcopy`` alone takes the whole of it along.
    """
    parts = {
        id(tensor): tensor for tensor in _within(value, set()) if type(tensor) is Tensor and is_part(tensor)
    }
    memo: dict[int, Any] = {
        key: tensor.detach().clone().requires_grad_(tensor.requires_grad) for key, tensor in parts.items()
    }
    return deepcopy(value, memo)


def _within(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor in an object's attributes, and in the containers and objects that these are."""
    if isinstance(value, Tensor):
        yield value
        return
    if isinstance(value, (*_PLAIN, np.ndarray, *_CODE)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        items = list(value.values())
    else:
        items = list(value) if isinstance(value, (tuple, list, set, frozenset)) else []
    items += getattr(value, "__dict__", {}).values()
    slots = [name for kind in type(value).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    items += [getattr(value, name) for name in slots if hasattr(value, name)]
    for item in items:
        yield from _within(item, seen)


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that memory did not suffice, on whatever device."""
    while error is not None:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            return True
        # torch's allocator of the CPU, of MPS, and cuBLAS have no class of their own for it.
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


def parts_of(batch: Batch, most: int) -> Iterator[Batch]:
    """A batch in parts of at most ``most`` samples, cut along the first axis of its tensors.

    Tensors without axes and single values go with every part; a list without tensors that has an entry for
    each sample is cut, too.

    Raises:
        DataError: when it cannot be cut: tensors of different lengths, nested or sparse ones, or objects.
    """
    size = samples_in(batch)
    if size <= most:
        yield batch
        return
    for start in range(0, size, most):
        yield _cut(batch, size, slice(start, start + most))


def samples_in(batch: Batch) -> int:
    """Number of samples: the length of the first axis of every tensor.

    Raises:
        DataError: when these differ, or there are none.
    """
    sizes = sorted({tensor.size(0) for tensor in tensors(batch) if not tensor.is_nested and tensor.dim()})
    if len(sizes) != 1:
        found = f"tensors of length {' and '.join(map(str, sizes))}" if sizes else "no tensor to cut"
        raise DataError(f"the batch holds {found} along the first axis, so its samples cannot be told apart")
    return sizes[0]


def _cut(value: Batch, size: int, part: slice) -> Batch:
    if isinstance(value, Tensor):
        if value.is_nested or value.layout is not torch.strided:
            raise DataError(f"the batch holds a tensor ({value.layout}) that cannot be cut")
        return value[part] if value.dim() else value
    if isinstance(value, Mapping):
        return {key: _cut(item, size, part) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        if len(value) == size and all(isinstance(item, _PLAIN) for item in value):
            return value[part]
        cut = [_cut(item, size, part) for item in value]
        return type(value)(*cut) if hasattr(value, "_fields") else type(value)(cut)
    if isinstance(value, _PLAIN):
        return value
    raise DataError(f"the batch holds a {type(value).__name__} that cannot be cut")


def same_content(batch: Batch, other: Batch) -> bool:
    """Whether two batches hold the same values in the same places; what cannot be told is another."""
    if type(batch) is not type(other):
        return False
    if isinstance(batch, Mapping):
        return list(batch) == list(other) and all(same_content(batch[key], other[key]) for key in batch)
    if isinstance(batch, (tuple, list)):
        return len(batch) == len(other) and all(map(same_content, batch, other))
    if isinstance(batch, Tensor):
        if (batch.is_nested, batch.dtype, batch.device) != (other.is_nested, other.dtype, other.device):
            return False
        if batch.is_nested:  # which need not have a shape
            return same_content(batch.unbind(), other.unbind())
        if batch.shape != other.shape:
            return False
        if batch.layout is torch.strided is other.layout and torch.equal(batch, other):
            return True  # much faster than their digests, which agree on NaN, too
    digests = []
    for value in (batch, other):
        state = hashlib.sha256()
        try:
            update_digest(state, value, "the batch")
        except DataError:
            return False
        digests.append(state.digest())
    return digests[0] == digests[1]


def update_digest(state: Any, value: Any, where: str) -> None:
    """Feed a value's type, shape and content to a hashlib object.

    Raises:
        DataError: when a value of unknown type cannot be turned into bytes; ``where`` names it.
    """
    if isinstance(value, Tensor) and value.is_nested:
        state.update(f"nested {value.layout};".encode())
        update_digest(state, value.unbind(), where)
    elif isinstance(value, Tensor) and value.layout in (torch.sparse_coo, torch.sparse_csr):
        state.update(f"{value.layout};".encode())
        update_digest(state, value.to_dense(), where)
    elif isinstance(value, Tensor):
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        state.update(f"tensor {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        update_digest(state, torch.from_numpy(np.ascontiguousarray(value)), where)
    elif isinstance(value, Mapping):
        state.update(f"mapping {len(value)};".encode())
        for key, item in value.items():
            state.update(f"{key!r}:".encode())
            update_digest(state, item, where)
    elif isinstance(value, (tuple, list)):
        state.update(f"sequence {len(value)};".encode())
        for item in value:
            update_digest(state, item, where)
    elif value is None or isinstance(value, (str, bytes, bool, int, float, complex)):
        state.update(f"{type(value).__name__} {value!r};".encode())
    else:
        try:
            content = io.BytesIO()
            _ByContent(content, protocol=4).dump(value)
            state.update(content.getbuffer())
        except Exception as problem:
            raise DataError(
                f"{where} holds a {type(value).__name__} that cannot be compared between passes ({problem})"
            ) from None


class _ByContent(pickle.Pickler):
    """Writes of a tensor in an object its type, shape and numbers. torch itself would write addresses, which
    differ from copy to copy, and all of the memory that it is a part of.
    """

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        state = hashlib.sha256()
        update_digest(state, value, "the object")
        return str, (state.hexdigest(),)
