"""Digests of functions and objects that a run calls: their code, and the values that it works with.

What a call changes itself cannot tell two runs apart, or no run could be resumed: variables and attributes
that a function assigns (``nonlocal``, ``global``, ``self.x = ...`` in a forward) are state and left out. So
are names that begin with an underscore, the training mode, and objects of unknown types, of which the type
alone counts.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analognoise.batches import update_digest
from analognoise.errors import DataError

_ADDRESS = re.compile(r"0x[0-9a-f]+")
_PLAIN = (str, bytes, bool, int, float, complex, type(None), range, slice, torch.dtype, torch.device)
# Packages whose version is part of a run's identity anyway.
_KNOWN = ("torch", "analognoise")
# Compilers' wrappers keep what they measure on themselves.
_MACHINERY = ("torch._dynamo", "torch._inductor", "torch.jit")


class Fingerprint:
    """SHA-256 over values of many kinds, fed one after the other.

    Args:
        known: objects of which only counts that they are meant, and not what they hold.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        self._state = hashlib.sha256()
        # With the objects, so that no address is used again.
        self._seen: dict[int, tuple[int, Any]] = {id(value): (-1, value) for value in known}
        self._known = len(self._seen)

    def hexdigest(self) -> str:
        """The digest of all that was fed."""
        return self._state.hexdigest()

    def feed(self, value: Any) -> None:
        """Add a value; one that was fed before counts as a reference to it."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, _PLAIN):
            self._text(type(value).__name__, repr(value))
            return
        if id(value) in self._seen:
            self._text("again", str(self._seen[id(value)][0]))
            return
        self._seen[id(value)] = len(self._seen) - self._known, value
        if isinstance(value, (Tensor, np.ndarray)):
            try:
                update_digest(self._state, value, "")
            except (DataError, RuntimeError, TypeError):  # sparse, without data, of objects
                self._text("array", f"{value.dtype} {tuple(value.shape)}")
        elif isinstance(value, Mapping):
            self._text("mapping", str(len(value)))
            for key, item in value.items():
                self.feed(key)
                self.feed(item)
        elif isinstance(value, (tuple, list)):
            self._text("sequence", str(len(value)))
            for item in value:
                self.feed(item)
        elif isinstance(value, (set, frozenset)):
            self._text("set", " ".join(sorted(_ADDRESS.sub("", repr(item)) for item in value)))
        elif isinstance(value, functools.partial):
            self._text("partial", "")
            for part in (value.func, value.args, value.keywords):
                self.feed(part)
        elif isinstance(value, MethodType):
            self.feed(value.__func__)
            self.feed(value.__self__)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, (type, ModuleType, BuiltinFunctionType)):
            self._text("name", _name(value))
        else:
            self._object(value)

    def attributes(self, module: nn.Module) -> None:
        """Add a module's plain attributes (numbers, texts, tensors and the like, functions that it calls),
        and the code of a forward that is not torch's.
        """
        self._seen.setdefault(id(module), (len(self._seen) - self._known, module))
        if code := _own_forward(module):
            self._text("forward", code)
        self._attributes(module, written_by(type(module), "forward"))

    def _text(self, kind: str, text: str) -> None:
        data = text.encode()
        self._state.update(f"{kind} {len(data)}:".encode())
        self._state.update(data)

    def _function(self, function: FunctionType) -> None:
        code = function.__code__
        self._text("function", f"{_name(function)} {code_text(code)}")
        self.feed(function.__defaults__)
        self.feed(function.__kwdefaults__)
        state = _named(code, "STORE_DEREF") | _named(code, "STORE_GLOBAL")
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name not in state:
                self._text("closure", name)
                try:
                    self.feed(cell.cell_contents)
                except ValueError:  # a variable that was not assigned yet
                    self._text("empty", "")
        for name in sorted(_named(code, "LOAD_GLOBAL") - state):
            value = function.__globals__.get(name)
            own = isinstance(value, FunctionType) and value.__module__ == function.__module__
            if own or isinstance(value, (*_PLAIN, tuple)):
                self._text("global", name)
                self.feed(value)
        self._pairs(vars(function).items(), frozenset({"__wrapped__"}))  # that one is in the closure

    def _module(self, module: nn.Module) -> None:
        for name, part in module.named_modules(remove_duplicate=False):
            self._text("module", f"{name} {_name(type(part))}")
            self.attributes(part)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self._text("tensor", name)
            self.feed(tensor)

    def _object(self, value: Any) -> None:
        kind = type(value)
        self._text("object", _name(kind))
        if kind.__module__.split(".")[0] == "torch":
            return
        call = getattr(kind, "__call__", None)  # noqa: B004
        if isinstance(call, FunctionType):
            self.feed(call)
            self._attributes(value, written_by(kind, "__call__"))
        elif dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace):
            self._attributes(value, frozenset())

    def _attributes(self, owner: Any, state: frozenset[str]) -> None:
        if type(owner).__module__.startswith(_MACHINERY):
            return
        found = dict(getattr(owner, "__dict__", {}))
        slots = (name for kind in type(owner).__mro__ for name in _slots(kind))
        found.update({name: getattr(owner, name) for name in slots if hasattr(owner, name)})
        self._pairs(found.items(), state | {"training"})

    def _pairs(self, pairs: Iterable[tuple[str, Any]], left_out: frozenset[str]) -> None:
        for name, item in sorted(pairs, key=lambda pair: pair[0]):
            if not (name.startswith("_") or name in left_out or isinstance(item, nn.Module)):
                self._text("attribute", name)
                self.feed(item)


def name_of(function: Callable[..., Any] | None, known: Iterable[Any] = ()) -> str:
    """A function's module and name, and a digest (in short) of its code and of the values that it works with:
    closure, defaults, a partial's arguments, an object's attributes, plain globals. So an edited function is
    another one. "" for None.

    Args:
        function: whatever can be called.
        known: as :class:`Fingerprint` takes them.
    """
    if function is None:
        return ""
    found: Any = function
    while isinstance(found, functools.partial):
        found = found.func
    owner = found if hasattr(found, "__qualname__") else type(found)
    fingerprint = Fingerprint(known)
    fingerprint.feed(function)
    partial = "partial " if found is not function else ""
    return f"{partial}{owner.__module__}.{owner.__qualname__} {fingerprint.hexdigest()[:16]}"


def structure_of(model: nn.Module) -> str:
    """A digest (in short) of what a model is made of, whatever its parameters, buffers and attributes hold:
    what its modules are and print of themselves, the code of their forwards, and each parameter's shape,
    type, and whether it is trained.
    """
    state = hashlib.sha256()
    for name, module in model.named_modules(remove_duplicate=False):
        text = f"module {name} {_name(type(module))} {_ADDRESS.sub('', module.extra_repr())}"
        state.update(f"{text} {_own_forward(module)};".encode())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        kind = f"{tuple(parameter.shape)} {parameter.dtype} {parameter.requires_grad}"
        state.update(f"parameter {name} {kind};".encode())
    return state.hexdigest()[:16]


def _own_forward(module: nn.Module) -> str:
    """The code of a forward that is not torch's."""
    forward = getattr(type(module), "forward", None)
    if isinstance(forward, FunctionType) and forward.__module__.split(".")[0] not in _KNOWN:
        return code_text(forward.__code__)
    return ""


@functools.lru_cache(maxsize=1024)
def code_text(code: CodeType) -> str:
    """A function's compiled code, the same in every process."""
    return hashlib.sha256(repr(_code(code)).encode()).hexdigest()


def written_by(kind: type, method: str) -> frozenset[str]:
    """Names of the attributes that a class's method assigns, itself or in methods of the class that it
    calls.
    """
    names: set[str] = set()
    waiting, done = [method], set()
    while waiting:
        name = waiting.pop()
        found = getattr(kind, name, None)
        if name in done or not isinstance(found, FunctionType) or found is getattr(nn.Module, name, None):
            continue
        done.add(name)
        names |= _named(found.__code__, "STORE_ATTR")
        waiting += (name for code in _codes(found.__code__) for name in code.co_names)
    return frozenset(names)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


@functools.lru_cache(maxsize=4096)
def _named(code: CodeType, operation: str) -> frozenset[str]:
    """The names that a function's code, inner functions included, uses in an operation."""
    return frozenset(
        str(step.argval)
        for part in _codes(code)
        for step in dis.get_instructions(part)
        if step.opname == operation
    )


def _slots(kind: type) -> tuple[str, ...]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _name(value: Any) -> str:
    return (
        f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
    )


def _code(code: CodeType) -> tuple[Any, ...]:
    constants = tuple(_code(c) if isinstance(c, CodeType) else _plain(c) for c in code.co_consts)
    return code.co_code, code.co_names, constants


def _plain(constant: Any) -> str:
    return repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant)
