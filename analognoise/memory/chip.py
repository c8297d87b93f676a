"""Quantized models whose weights lie in faulty memory.

Only the weights' words are in it. Scales, clipping ranges, biases and normalization are a few numbers per
layer and taken to be kept in protected memory; activations are not stored for long.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from analognoise.conversion import check_finite
from analognoise.errors import FaultError
from analognoise.memory.faults import FaultModel, faulty_words
from analognoise.memory.words import bit_positions, decode, encode
from analognoise.printing import kind_of
from analognoise.quantized.conversion import quantized_weights, require_input_ranges, require_quantized
from analognoise.quantized.layer import QuantizedLayer
from analognoise.seeds import Stream


class StoredWeights:
    """The codes of a quantized model as words of a memory, as they are now.

    Args:
        model: a quantized model.
        encoding: "twos-complement" or "sign-magnitude".

    Attributes:
        layers: a layer for each stored weight, by the weight's name; tied weights are stored once.
        words: the ``uint8`` words by the same names, of the weights' shapes.

    Raises:
        QuantizationError: when no layer is quantized.
        FaultError: when the encoding is unknown, codes do not fit into the words, or two layers were
            quantized under one name.
    """

    def __init__(self, model: nn.Module, encoding: str) -> None:
        require_quantized(model, "store weights")
        self.encoding = encoding
        self.layers: dict[str, QuantizedLayer] = quantized_weights(model)
        self.words: dict[str, Tensor] = {}
        # What is in place of the weights' own codes already, to be put back.
        self._before: dict[str, Tensor | None] = {}
        named: dict[str, str] = {}
        for name, layer in self.layers.items():
            other = named.setdefault(layer.name, name)
            if other != name:
                raise FaultError(
                    f"{other} and {name} were quantized apart, both under the name {layer.name!r}, so the "
                    "same cells would be faulty in both: quantize the whole model, each layer by its name "
                    "(filter_fn chooses)"
                )
            codes = layer.codes()
            try:
                self.words[name] = encode(codes, layer.bits, encoding)
            except FaultError as error:
                raise FaultError(f"{name}: {error}") from None
            self._before[name] = codes if layer.has_other_codes else None

    @property
    def bits(self) -> int:
        """Number of bits stored."""
        return sum(self.words[name].numel() * layer.bits for name, layer in self.layers.items())

    def check(self, faults: FaultModel) -> None:
        """Raise unless the faults are of this memory.

        Raises:
            FaultError: for another encoding, or a bit position outside a layer's words.
        """
        if faults.encoding != self.encoding:
            raise FaultError(f"the faults are of {faults.encoding}, the words of {self.encoding}: take one")
        for name, layer in self.layers.items():
            try:
                bit_positions(faults.positions, layer.bits)
            except FaultError as error:
                raise FaultError(f"{name}: {error}") from None

    @torch.no_grad()
    def read(self, faults: FaultModel, seed: int = 0, chip: int = 0) -> dict[str, Tensor]:
        """The words that a chip gives back, by the weights' names."""
        self.check(faults)
        stream = Stream(seed, "", chip=chip)
        return {
            name: faulty_words(self.words[name], layer.bits, faults, stream.at(layer=layer.name))
            for name, layer in self.layers.items()
        }

    @torch.no_grad()
    def put(self, faults: FaultModel, seed: int = 0, chip: int = 0) -> None:
        """Let the model compute with what a chip gives back, until :meth:`restore`."""
        for name, words in self.read(faults, seed, chip).items():
            self.layers[name].put_codes(decode(words, self.layers[name].bits, self.encoding))

    def restore(self) -> None:
        """Let the model compute with what it did before."""
        for name, layer in self.layers.items():
            codes = self._before[name]
            if codes is None:
                layer.remove_codes()
            else:
                layer.put_codes(codes)


@contextmanager
def memory_faults(
    model: nn.Module, faults: FaultModel, *, chip: int = 0, seed: int = 0
) -> Iterator[nn.Module]:
    """Compute inside with the weights as a chip with faulty memory reads them.

    The words are those of the weights at the beginning of the block, in training mode, too. Afterwards the
    model is as it was before. The same (seed, chip) has always the same faulty cells.

    Args:
        model: a quantized model.
        faults: what is wrong with the memory.
        chip: number of the chip.
        seed: root seed of the chips.

    Raises:
        QuantizationError: when no layer is quantized, or the first inputs of one, which decide about the
            range of its codes, did not come yet.
        ModelError: when weights hold NaN or inf.
        FaultError: when ``faults`` is no :class:`FaultModel`, names a bit that a layer's words have not, or
            seed or chip is no whole number.
    """
    if not isinstance(faults, FaultModel):
        raise FaultError(f"faults is {kind_of(faults)}: give a FaultModel, as FaultModel(flip=1e-3)")
    numbers = _whole("seed", seed), _whole("chip", chip)
    require_quantized(model, "compute with memory faults")
    require_input_ranges(model, "compute with memory faults")
    check_finite(model)
    stored = StoredWeights(model, faults.encoding)
    stored.check(faults)
    try:
        stored.put(faults, *numbers)
        yield model
    finally:
        stored.restore()


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise FaultError(f"{name} must be a whole number, found {value!r}") from None
