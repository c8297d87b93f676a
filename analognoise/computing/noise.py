"""Noise at the outputs of layers, while a context is open."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from analognoise.compiled import eager
from analognoise.computing.kinds import check_sigma, choose_layers, plain, sigma_by_layer
from analognoise.errors import NoiseError, nearest
from analognoise.seeds import Stream

LAWS = ("additive", "multiplicative", "mixed")
# Their fused path calls no module inside.
_FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer)


def computing_noise(
    model: nn.Module,
    sigma: float | Mapping[str, float],
    kind: str = "additive",
    layers: str | Iterable[str] | None = None,
    *,
    multiplicative: float | Mapping[str, float] | None = None,
    seed: int = 0,
    repeat: int = 0,
) -> ComputingNoise:
    """Compute with noise at the outputs of layers inside ``with computing_noise(model, 0.1):``.

    ``"additive"`` gives y + σ·n, ``"multiplicative"`` y·(1 + σ·n), ``"mixed"`` y·(1 + σₘ·m) + σ·n with
    standard normal m, n drawn anew for every number of every output. σ of additive noise is absolute, in the
    unit of the layer's output (Wang et al. 2025, arXiv 2501.14531). Gradients pass; the draws are constants.

    Works in training and eval mode, and on any model: converted ones (the noise comes on top of the chip's),
    quantized, recurrent. Every floating-point tensor of an output (tuples, dicts, packed sequences) gets
    noise of its own. What is computed by functions instead of modules (``torch.relu``, an attention's inner
    products, the steps inside a recurrent layer) cannot be seen.

    The draws are keyed by (seed, layer's name, repeat, number of the model's forward inside the context,
    number of the layer's call in it): no other layer's noise, and nothing drawn before, changes them; the
    global random generators are not used. They depend on the batch size.

    Contexts may be nested as long as no layer is in two. Copies and pickles made inside compute without
    noise.

    Args:
        model: any module.
        sigma: standard deviation, at least 0; or a mapping from kinds, names or patterns of layers to
            standard deviations, of which the first that means a layer counts (layers that none means stay
            without noise).
        kind: ``"additive"``, ``"multiplicative"`` or ``"mixed"``.
        layers: kinds (``"linear"``, ``"conv"``, ``"norm"``, ``"activation"``, ``"recurrent"``,
            ``"attention"``), names or patterns (``"features.*"``), one or several; a word that is a kind
            means the kind. None takes every layer of these kinds.
        multiplicative: for ``"mixed"``: standard deviation of the multiplicative part, as ``sigma``.
        seed: root of the noise's random keys.
        repeat: number of the repetition: another one gives other noise.

    Returns:
        The context; entering it gives itself. Its ``calls`` says how often each layer was called.

    Raises:
        NoiseError: for an unknown kind, a σ that is negative or not finite, layers that the model has not, or
            (on entering) a layer that has noise already.
    """
    return ComputingNoise(model, sigma, kind, layers, multiplicative=multiplicative, seed=seed, repeat=repeat)


class ComputingNoise:
    """The context that :func:`computing_noise` makes, with the same arguments; it may be entered again.

    Args:
        process: for the random keys, what the noise is for.

    Attributes:
        layers: standard deviation of the additive and of the multiplicative noise of each layer, by name.
        modules: these layers, by name.
        calls: how often each layer was called since the context was entered.
        repeat: as given; may be changed at any time.
        start: stands before the number of the forward in the keys; may be changed before entering.
    """

    def __init__(
        self,
        model: nn.Module,
        sigma: float | Mapping[str, float],
        kind: str = "additive",
        layers: str | Iterable[str] | None = None,
        *,
        multiplicative: float | Mapping[str, float] | None = None,
        seed: int = 0,
        repeat: int = 0,
        process: str = "computing-noise",
    ) -> None:
        check_law(kind, multiplicative)
        modules = choose_layers(model, layers)
        chosen = layers is not None
        first = sigma_by_layer(sigma, "sigma", model, modules, chosen)
        second: dict[str, float] = {}
        if multiplicative is not None:
            second = sigma_by_layer(multiplicative, "multiplicative", model, modules, chosen)
        self.modules = {name: module for name, module in modules.items() if name in first or name in second}
        if not self.modules:
            raise NoiseError("sigma and layers have no layer in common: no layer would be noisy")
        if kind == "multiplicative":
            first, second = second, first
        self.kind = kind
        self.layers = {name: (first.get(name, 0.0), second.get(name, 0.0)) for name in self.modules}
        self.calls = dict.fromkeys(self.layers, 0)
        self.seed, self.repeat, self.process = seed, repeat, process
        self.start: tuple[int, ...] = ()
        self._model = model
        self._forwards = 0
        self._in_forward: dict[str, int] = {}
        self._open: ExitStack | None = None

    def __enter__(self) -> ComputingNoise:
        if self._open is not None:
            raise NoiseError("this computing_noise is open already: make another one to nest")
        for name, module in self.modules.items():
            if _has_noise(module):
                raise NoiseError(
                    f"layer {name or '(the model)'!r} has noise already from a computing_noise around this "
                    "one: give nested ones different layers"
                )
        self.restart()
        with ExitStack() as stack:
            # Compiled code would not know of the hooks, and the compiled twin of a model does not show in it.
            stack.enter_context(eager())
            if any(isinstance(module, _FUSED) for module in self._model.modules()):
                stack.callback(
                    torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
                )
                torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(self._model.register_forward_pre_hook(_Hook(self._begin)).remove)
            for name, module in self.modules.items():
                stack.callback(module.register_forward_hook(_Hook(partial(self._noisy, name))).remove)
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_open": None}

    def restart(self) -> None:
        """Begin the draws anew, as when the context is entered."""
        self._forwards = 0
        self._in_forward = {}
        self.calls = dict.fromkeys(self.layers, 0)

    def set_sigma(self, sigma: float) -> None:
        """Give every layer this σ (of mixed noise: to its additive part), at any time."""
        sigma = check_sigma(sigma, "sigma")
        for name, (additive, multiplicative) in self.layers.items():
            one = self.kind == "multiplicative"
            self.layers[name] = (additive, sigma) if one else (sigma, multiplicative)

    def alone(self, name: str) -> ComputingNoise:
        """The same noise on one of its layers only."""
        one = copy.copy(self)
        one.modules = {name: self.modules[name]}
        one.layers = {name: self.layers[name]}
        one.calls = {name: 0}
        return one

    @property
    def not_called(self) -> tuple[str, ...]:
        """Layers that were not called since the context was entered: the outputs hold no noise of theirs."""
        return tuple(name for name, calls in self.calls.items() if not calls)

    def _begin(self, *_: Any) -> None:
        """A forward of the whole model begins."""
        self._forwards += 1
        self._in_forward = {}

    def _noisy(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        if torch._C._current_graph_task_id() != -1:
            raise NoiseError(
                f"layer {name!r} is computed again in the backward pass (activation checkpointing), where "
                "its noise would be another one: train with computing_noise without checkpointing"
            )
        self.calls[name] += 1
        call = self._in_forward[name] = self._in_forward.get(name, -1) + 1
        additive, multiplicative = self.layers[name]
        if not (additive or multiplicative):
            return None
        parts = 0

        def noisy(value: Tensor) -> Tensor:
            nonlocal parts
            step: Any = (*self.start, self._forwards, call, parts)
            parts += 1
            stream = Stream(self.seed, self.process, plain(name), chip=self.repeat, step=step)
            if multiplicative:
                value = value * _normal(stream, "multiplicative", value).mul_(multiplicative).add_(1.0)
            return value + _normal(stream, "additive", value).mul_(additive) if additive else value

        found = _mapped(output, noisy)
        if not parts:
            raise NoiseError(
                f"layer {name or '(the model)'!r} gives a {type(output).__name__} without a floating-point "
                "tensor in it: noise cannot be added there, leave the layer out"
            )
        return found


def is_noisy(model: nn.Module) -> bool:
    """Whether a computing_noise is open on a model, which copies and pickles of it leave behind."""
    return any(map(_has_noise, model.modules()))


def _has_noise(module: nn.Module) -> bool:
    return any(isinstance(hook, _Hook) for hook in module._forward_hooks.values())


class _Hook:
    """A hook that copies and pickles of the model leave behind."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __reduce__(self) -> Any:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any) -> None:
    return None


def _normal(stream: Stream, part: str, like: Tensor) -> Tensor:
    """Standard normals of a tensor's shape; both parts of a mixed noise have a stream of their own."""
    return stream.at(process=f"{stream.process} {part}").normal(tuple(like.shape), like.device).to(like.dtype)


def _mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A layer's output with every floating-point tensor in it changed; containers keep their type."""
    if isinstance(output, Tensor):
        plain = output.is_floating_point() and output.layout == torch.strided and not output.is_nested
        return change(output) if plain else output
    if isinstance(output, PackedSequence):
        return output._replace(data=change(output.data))
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return type(output)(*(_mapped(item, change) for item in output))
    if isinstance(output, (tuple, list)):
        return type(output)(_mapped(item, change) for item in output)
    if isinstance(output, Mapping):
        twin: Any = copy.copy(output)
        for key, item in output.items():
            twin[key] = _mapped(item, change)
        return twin
    return output


def check_law(kind: Any, multiplicative: Any = None) -> None:
    """Raise unless there is such a law, with the standard deviations that it needs.

    Raises:
        NoiseError: otherwise.
    """
    if kind not in LAWS:
        suggestion = nearest(kind, LAWS) if isinstance(kind, str) else ""
        raise NoiseError(f"kind is {kind!r}{suggestion}: known are {', '.join(LAWS)}")
    if kind == "mixed" and multiplicative is None:
        raise NoiseError("kind 'mixed' needs multiplicative=, the σ of its multiplicative part")
    if kind != "mixed" and multiplicative is not None:
        raise NoiseError(f"multiplicative= belongs to kind 'mixed', found kind {kind!r}: give sigma alone")
