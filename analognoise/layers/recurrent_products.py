"""Recurrent layers through a periphery, step by step: torch's fused kernels know of no converters.

Every product with a weight matrix goes through the converters; gates, non-linearities and biases are digital.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

if TYPE_CHECKING:
    from analognoise.layers.base import AnalogLayer

State = tuple[Tensor, ...]


def cell(layer: Any, input: Tensor, hidden: Any = None) -> Any:
    """One step of ``RNNCell``, ``LSTMCell`` or ``GRUCell``, as torch's own forward."""
    size, is_lstm = layer.hidden_size, isinstance(layer, nn.LSTMCell)
    if hidden is None:
        zeros = input.new_zeros(*input.shape[:-1], size)
        hidden = (zeros, zeros) if is_lstm else zeros
    state = tuple(hidden) if is_lstm else (hidden,)
    given = layer.multiply(input, "weight_ih")
    if layer.bias_ih is not None:
        given = given + layer.bias_ih
    kind = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
    mode = next((name for cls, name in kind.items() if isinstance(layer, cls)), "")
    if not mode:
        mode = f"RNN_{layer.nonlinearity.upper()}"
    after = _step(layer, mode, given, state, "weight_hh", layer.bias_hh, None)
    return after if is_lstm else after[0]


def sequence(layer: AnalogLayer, input: Tensor | PackedSequence, hidden: Any = None) -> tuple[Any, Any]:
    """Whole sequences through ``RNN``, ``LSTM`` or ``GRU``, as torch's own forward, every option included.

    Raises:
        RuntimeError: when the sequences have no step, as in the digital layer.
    """
    assert isinstance(layer, nn.RNNBase)
    packed = input if isinstance(input, PackedSequence) else None
    batched = True
    if packed is not None:
        data, sizes = packed.data, packed.batch_sizes.tolist()
        if hidden is not None:
            hidden = layer.permute_hidden(hidden, packed.sorted_indices)
    else:
        assert isinstance(input, Tensor)
        batched = input.dim() == 3
        steps = input.unsqueeze(1) if not batched else input.transpose(0, 1) if layer.batch_first else input
        if not batched and hidden is not None:
            one = hidden if isinstance(hidden, tuple) else (hidden,)
            hidden = tuple(part.unsqueeze(1) for part in one)
        if not len(steps):
            raise RuntimeError(f"layer {layer.analog.name!r}: a sequence has at least one step, found none")
        data, sizes = steps.flatten(0, 1), [steps.shape[1]] * steps.shape[0]
    first = _first_state(layer, data, sizes[0], hidden)
    data, last = _layers(layer, data, sizes, first)
    final = last if isinstance(layer, nn.LSTM) else last[0]
    if packed is not None:
        given = (packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        return PackedSequence(data, *given), layer.permute_hidden(final, packed.unsorted_indices)
    output = data.unflatten(0, (len(sizes), sizes[0]))
    if not batched:
        final = tuple(part.squeeze(1) for part in last) if isinstance(layer, nn.LSTM) else last[0].squeeze(1)
        return output.squeeze(1), final
    return output.transpose(0, 1) if layer.batch_first else output, final


def _first_state(layer: nn.RNNBase, data: Tensor, batch: int, hidden: Any) -> State:
    """Hidden state (and cell state) of every layer and direction, ``[layers · directions, batch, size]``."""
    if hidden is not None:
        return hidden if isinstance(hidden, tuple) else (hidden,)
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    state: State = (data.new_zeros(count, batch, layer.proj_size or layer.hidden_size),)
    if isinstance(layer, nn.LSTM):
        state += (data.new_zeros(count, batch, layer.hidden_size),)
    return state


def _layers(layer: Any, data: Tensor, sizes: list[int], first: State) -> tuple[Tensor, State]:
    last: list[State] = []
    for number in range(layer.num_layers):
        outputs = []
        for backwards in range(2 if layer.bidirectional else 1):
            suffix = f"_l{number}" + ("_reverse" if backwards else "")
            start = tuple(part[len(last)] for part in first)
            output, state = _direction(layer, data, sizes, start, suffix, bool(backwards))
            outputs.append(output)
            last.append(state)
        data = torch.cat(outputs, dim=-1)
        if layer.dropout and layer.training and number + 1 < layer.num_layers:
            data = functional.dropout(data, layer.dropout)
    return data, tuple(torch.stack(parts) for parts in zip(*last, strict=True))


def _direction(
    layer: Any, data: Tensor, sizes: list[int], start: State, suffix: str, backwards: bool
) -> tuple[Tensor, State]:
    """One direction of one layer over steps of falling batch sizes, as packed sequences have them."""
    given = layer.multiply(data, f"weight_ih{suffix}")
    bias_hh = None
    if layer.bias:
        given = given + getattr(layer, f"bias_ih{suffix}")
        bias_hh = getattr(layer, f"bias_hh{suffix}")
    steps = given.split(sizes)
    projection = f"weight_hr{suffix}" if layer.proj_size else None
    state = tuple(part[: sizes[-1] if backwards else sizes[0]] for part in start)
    outputs, done = [], []
    for place in reversed(range(len(sizes))) if backwards else range(len(sizes)):
        running = len(state[0])
        if sizes[place] < running:  # sequences that have ended
            done.append(tuple(part[sizes[place] :] for part in state))
            state = tuple(part[: sizes[place]] for part in state)
        elif sizes[place] > running:  # backwards: sequences that begin
            more = (part[running : sizes[place]] for part in start)
            state = tuple(torch.cat(parts) for parts in zip(state, more, strict=True))
        state = _step(layer, layer.mode, steps[place], state, f"weight_hh{suffix}", bias_hh, projection)
        outputs.append(state[0])
    if backwards:
        outputs.reverse()
    ended = [state, *reversed(done)]
    return torch.cat(outputs), tuple(torch.cat(parts) for parts in zip(*ended, strict=True))


def _step(
    layer: AnalogLayer,
    mode: str,
    given: Tensor,
    state: State,
    matrix: str,
    bias: Tensor | None,
    projection: str | None,
) -> State:
    """The state after one step.

    Args:
        layer: whose matrices they are.
        mode: torch's name of the kind.
        given: the inputs' part of the gates, with its bias.
        state: hidden state, and for LSTM the cell's.
        matrix: Parameter that multiplies the hidden state.
        bias: that is added to it.
        projection: Parameter of an LSTM's projection.
    """
    own = layer.multiply(state[0], matrix)
    if bias is not None:
        own = own + bias
    if mode == "LSTM":
        inlet, forget, candidate, outlet = (given + own).chunk(4, dim=-1)
        memory = forget.sigmoid() * state[1] + inlet.sigmoid() * candidate.tanh()
        hidden = outlet.sigmoid() * memory.tanh()
        return hidden if projection is None else layer.multiply(hidden, projection), memory
    if mode == "GRU":
        (reset, update, candidate), (r, u, c) = given.chunk(3, dim=-1), own.chunk(3, dim=-1)
        new = (candidate + (reset + r).sigmoid() * c).tanh()
        keep = (update + u).sigmoid()
        return ((1 - keep) * new + keep * state[0],)
    total = given + own
    return (total.tanh() if mode == "RNN_TANH" else total.relu(),)
