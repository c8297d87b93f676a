"""Counting a forward's multiply-accumulates: on tiles, and digital by the module that does them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from analognoise.chip import digital, evaluating
from analognoise.compiled import eager
from analognoise.layers import AnalogLayer
from analognoise.on_tiles import analog_layers

Forward = Callable[[nn.Module, Any], Any]
Formula = Callable[..., int]

# Operators of other backends that multiply matrices, and fused ones that torch's counter has no formula for.
_PRODUCTS = re.compile(
    r"(^|_)(\w*mm|\w*mv|matmul|lstm|gru|rnn|dot|q?conv(olution|_tbc|_depthwise|_transpose)?|attention|mha|transformer|"
    r"q?linear|trilinear)(\d|_|$)"
)
_NO_PRODUCTS = re.compile(r"upsample|pack|flatten|reorder|convert|search|combination|fused_\w+_cell")
_PLAIN = ("aten", "prim", "prims", "profiler")


@dataclass
class MacCount:
    """Multiply-accumulates of one forward by qualified name of the module that does them; None where a module
    uses an operator that cannot be counted.

    Attributes:
        on_tiles: those of layers on tiles.
        tile_products: products of one input vector with one tile, by layer on tiles.
        digital: products of activations, and whatever is not on tiles.
        called: modules whose forward ran.
        multiplied: Parameters that their own module multiplied with.
        borrowed: Parameters of other modules that a module multiplied with, instead of calling those.
    """

    on_tiles: dict[str, int | None] = field(default_factory=dict)
    tile_products: dict[str, int | None] = field(default_factory=dict)
    digital: dict[str, int | None] = field(default_factory=dict)
    called: set[str] = field(default_factory=set)
    multiplied: set[str] = field(default_factory=set)
    borrowed: dict[str, dict[str, None]] = field(default_factory=dict)


@torch.no_grad()
def count_macs(model: nn.Module, inputs: Any, forward: Forward | None = None) -> MacCount:
    """Count the multiply-accumulates of one forward: matrix products, convolutions, attention, recurrent
    layers.

    The digital weights are used, in eval mode; modes and chip are left as found.
    """
    counting = _Counting(model)
    fused = torch.backends.mha.get_fastpath_enabled()
    with eager(), sdpa_kernel(SDPBackend.MATH), digital(model), evaluating(model), counting.watching(model):
        try:
            # The counter does not see into torch's fused attention kernels. Nested tensors need them.
            torch.backends.mha.set_fastpath_enabled(fused and has_nested(inputs))
            if forward is None:
                model(inputs)
            else:
                forward(model, inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
    return counting.result()


@dataclass
class _Frame:
    """A module's forward that is running."""

    name: str
    begun: int
    children: int = 0


class _Counting:
    def __init__(self, model: nn.Module) -> None:
        self.count = MacCount()
        self._unknown: set[str] = set()
        self._stack: list[_Frame] = []
        self._formulas = _formulas()
        self._flops = 0
        self._layers = analog_layers(model)
        self._matrices: dict[int, int] = {}
        self._holders: dict[int, list[tuple[str, str]]] = {}
        for name, module in model.named_modules():
            named = module.targets() if isinstance(module, AnalogLayer) else {}
            for key, parameter in (*named.items(), *module._parameters.items()):
                if parameter is not None and _is_matrix(parameter) and (place := _storage(parameter)):
                    self._matrices[place] = parameter.numel()
                    self._holders.setdefault(place, []).append((name, key))

    def result(self) -> MacCount:
        count = self.count
        for name in self._unknown:
            count.digital[name] = None
        count.digital = {name: number for name, number in count.digital.items() if number != 0}
        return count

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Count what the modules inside do, also where a forward is called past ``__call__``."""
        missing = object()
        kept = []
        try:
            for name, module in model.named_modules():
                kept.append((module, vars(module).get("forward", missing)))
                vars(module)["forward"] = self._counted(name, module)  # torch.jit modules take no hooks
            with _Operators(self._saw, self._formulas):
                yield
        finally:
            for module, before in kept:
                if before is missing:
                    vars(module).pop("forward")
                else:
                    vars(module)["forward"] = before

    def _counted(self, name: str, module: nn.Module) -> Callable[..., Any]:
        inner = module.forward

        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.count.called.add(name)
            frame = _Frame(name, self._flops)
            self._stack.append(frame)
            output, tiles = None, 0
            try:
                output = inner(*args, **kwargs)
                if isinstance(module, AnalogLayer):
                    tiles = self._tiles(name, module, args, kwargs, output)
            finally:
                self._stack.pop()
                total = self._flops - frame.begun
                # What is beyond the tiles' work is digital.
                mine = max((total - frame.children) // 2 - tiles, 0)
                self.count.digital[name] = (self.count.digital.get(name) or 0) + mine
                if self._stack:
                    self._stack[-1].children += total
            return output

        return forward

    def _tiles(self, name: str, layer: AnalogLayer, args: Any, kwargs: Any, output: Any) -> int:
        found, products = self.count.on_tiles, self.count.tile_products
        if has_nested((args, kwargs, output)):
            found[name] = products[name] = None
            return 0
        shapes = layer.geometries(layer)
        vectors = layer.vectors(layer, _positional(layer, args, kwargs), output)
        tiles = sum(
            count * shapes[key].groups * shapes[key].columns * shapes[key].rows
            for key, count in vectors.items()
        )
        # Every tile of a matrix gets its part of every vector.
        reads = sum(vectors.get(key, 0) for key, _ in layer.analog.placed)
        for counts, number in ((found, tiles), (products, reads)):
            before = counts.get(name, 0)
            counts[name] = None if before is None else before + number
        return tiles

    def _note_weight(self, holders: list[tuple[str, str]]) -> None:
        running = {frame.name for frame in self._stack}
        at_work = [holder for holder in holders if holder[0] in running]
        if at_work:
            self.count.multiplied.update(".".join(filter(None, holder)) for holder in at_work)
        elif holders:
            place = self.count.borrowed.setdefault(self._stack[-1].name if self._stack else "", {})
            place[".".join(filter(None, holders[0]))] = None

    def _not_known(self) -> None:
        name = self._stack[-1].name if self._stack else ""
        if name not in self._layers:  # the work of a layer on tiles is known from its matrices
            self._unknown.add(name)

    def _saw(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Count an operator; where its formula fails (nested tensors) the count is not known."""
        formula = self._formulas.get(func.overloadpacket)
        if formula is None:
            if self._may_multiply(func, args, output):
                self._not_known()
            return
        for tensor in tree_leaves((args, kwargs)):
            self._note_weight(self._holders.get(_storage(tensor), []))
        try:
            self._flops += int(formula(*args, **kwargs, out_val=output))
        except Exception:
            self._not_known()

    def _may_multiply(self, func: Any, args: Any, output: Any) -> bool:
        name = func._schema.name.partition("::")[2]
        if func.overloadpacket is torch.ops.aten.mul:  # summed afterwards, a product of matrices
            return any(0 < self._matrices.get(_storage(a), 0) < output.numel() for a in args)
        named_so = bool(_PRODUCTS.search(name)) and not _NO_PRODUCTS.search(name)
        if func.namespace in _PLAIN:
            return named_so
        if "quantized" in func.namespace:
            return named_so or "cell" in name
        return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in tree_leaves(args))


class _Operators(TorchDispatchMode):
    """Tells of every operator that runs, those made of others taken apart."""

    def __init__(self, tell: Callable[[Any, Any, Any, Any], None], whole: Container[Any]) -> None:
        super().__init__()
        self._tell, self._whole = tell, whole

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled meanwhile (:func:`eager`), and to say so would import the compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        plain = isinstance(func, torch._ops.OpOverload)
        if plain and func.overloadpacket not in self._whole and not has_nested((args, kwargs)):
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if plain:
            self._tell(func, args, kwargs, output)
        return output


def has_nested(values: Any) -> bool:
    """Whether there is a nested tensor among values in tuples, lists and dicts."""
    return any(isinstance(leaf, Tensor) and leaf.is_nested for leaf in tree_leaves(values))


def _positional(layer: AnalogLayer, args: Any, kwargs: Any) -> tuple[Any, ...]:
    """The arguments of a call in the order of the digital layer's forward, given by name or not."""
    if not kwargs:
        return tuple(args)
    bound = inspect.signature(layer.digital_class.forward).bind(layer, *args, **kwargs)
    bound.apply_defaults()
    return bound.args[1:]


def _storage(value: Any) -> int:
    """Where a tensor's numbers lie, the same for its views; 0 for what holds none."""
    if not isinstance(value, Tensor):
        return 0
    try:
        return value.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, wrapped or without numbers
        return 0


def _is_matrix(parameter: Tensor) -> bool:
    lazy = nn.parameter.is_lazy(parameter)
    return not lazy and parameter.ndim > 1 and parameter.numel() > max(parameter.shape)


def _formulas() -> dict[Any, Formula]:
    """Floating-point operations, two per multiply-accumulate, of an operator's arguments and ``out_val``."""
    aten, small = torch.ops.aten, torch.ops.quantized
    own: dict[Any, Formula] = {
        aten.mv: lambda a, b, **_: 2 * a.numel(),
        aten.addmv: lambda c, a, b, **_: 2 * a.numel(),
        aten.dot: lambda a, b, **_: 2 * a.numel(),
        aten.vdot: lambda a, b, **_: 2 * a.numel(),
        aten.addbmm: lambda c, a, b, **_: 2 * a.numel() * b.shape[-1],
        aten._int_mm: lambda a, b, **_: 2 * a.numel() * b.shape[-1],
        aten._grouped_mm: _grouped,
        aten._trilinear: _bilinear,
        aten.mkldnn_rnn_layer: lambda x, w, h, *_, **__: _recurrent(x, [w, h]),
        aten._cudnn_rnn: lambda x, weights, *_, **__: _recurrent(x, weights),
        aten.miopen_rnn: lambda x, weights, *_, **__: _recurrent(x, weights),
        aten._lstm_mps: lambda x, state, weights, *_, **__: _recurrent(x, weights),
    }
    for name in ("linear", "linear_relu", "linear_dynamic", "linear_relu_dynamic"):
        own[getattr(small, name)] = lambda x, *_, out_val, **__: 2 * x.numel() * out_val.shape[-1]
    return dict(flop_registry) | own


def _grouped(a: Tensor, b: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    shared = a.ndim == b.ndim == 2  # then the groups share the sum
    return 2 * int(out_val.numel()) * a.shape[-1] // (out_val.shape[0] if shared else 1)


def _bilinear(one: Tensor, weight: Tensor, *_: Any, out_val: Tensor, **__: Any) -> int:
    # As on tiles: all products with the second input, then those with the first.
    first, second = weight.shape[-2:]
    return 2 * int(out_val.numel()) * first * (second + 1)


def _recurrent(given: Tensor, weights: Any) -> int:
    return 2 * (given.numel() // given.shape[-1]) * sum(w.numel() for w in weights if w.ndim == 2)
