"""Programming a chip and letting it drift once as straight calls of torch, without a simulator.

What a simulator takes at the least while it is built on torch's operators and gives each tile random numbers
of its own: the same mapping, law and read-outs on all weights at once, but no tiles, no layers, nothing that
is checked, and nothing that tells later whether the weights are still those that were programmed. The numbers
are those of a chip, bit for bit.
"""

from __future__ import annotations

from itertools import groupby
from math import ceil, prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from analognoise.devices import physics
from analognoise.devices.profile import DeviceProfile
from analognoise.seeds import Stream, nanoseconds

_IN_CACHE = 1 << 17


class _State(NamedTuple):
    """Of all devices, those of the first side of each pair before those of the second."""

    programmed: Tensor
    nu: list[Tensor]
    scale: Tensor
    reference: Tensor


class ChipByHand:
    """A chip of the linear layers and convolutions of a model.

    Args:
        model: with layers of at most as many outputs as a tile has columns, in one group; each part of a
            layer's rows has a multiple of 16 weights.
        profile: with pairs of devices, a scale for each column, and each section of :mod:`physics
            <analognoise.devices.physics>` but faults, relaxation and retention.
    """

    def __init__(self, model: nn.Module, profile: DeviceProfile) -> None:
        self.profile = profile
        self.weights: dict[str, Tensor] = {}
        self.tiles: list[Tensor] = []
        self.outs: list[Tensor] = []
        self.streams: list[Stream] = []
        for name, layer in model.named_modules():
            if not isinstance(layer, (nn.Linear, nn.Conv2d)):
                continue
            weights, kernel = layer.weight.detach(), prod(layer.weight.shape[2:])
            channels = profile.tile.rows // kernel
            out = self.weights[name] = torch.empty_like(weights)
            parts = torch.arange(weights.shape[1]).tensor_split(ceil(weights.shape[1] / channels))
            for number, part in enumerate(parts):
                rows = slice(int(part[0]) * kernel, (int(part[-1]) + 1) * kernel)
                self.tiles.append(weights.flatten(1)[:, rows])
                self.outs.append(out.flatten(1)[:, rows])
                self.streams.append(Stream(0, "", layer=name, tile=number))
        self.sizes = [tile.numel() for tile in self.tiles]
        self.half = sum(self.sizes)
        self.counts = torch.tensor(self.sizes)
        runs = [(rows, list(run)) for rows, run in groupby(self.tiles, key=lambda tile: tile.shape[1])]
        self.runs = [(sum(len(tile) for tile in run), rows) for rows, run in runs]

    def program(self) -> _State:
        """Program all devices, and write the weights right after."""
        profile, g_max = self.profile, self.profile.conductance.g_max
        net = torch.cat([tile.reshape(-1) for tile in self.tiles])
        top = torch.cat([columns.abs().amax(1) for columns in self._columns(net)])
        scale = torch.where(top > 0, top / g_max, 1.0)
        torch._foreach_div_(self._columns(net), self._of_runs(scale))
        target = torch.empty(2 * self.half)
        torch.clamp(net, 0, g_max, out=target[: self.half])
        torch.clamp(net.neg_(), 0, g_max, out=target[self.half :])
        programmed, nu = self._normals("program"), self._normals("drift").split(_IN_CACHE)
        for own, first, second in zip(target.split(_IN_CACHE), programmed.split(_IN_CACHE), nu, strict=True):
            physics.program(own, profile, first, spent=True)
            physics.drift_coefficients(own, profile, second, spent=True)
        tiles, now = self._read(torch.sub(programmed[: self.half], programmed[self.half :]), scale)
        self._write(tiles)
        return _State(programmed, list(nu), scale, now)

    def drift(self, state: _State, seconds: float) -> None:
        """Write the weights at a drift time, compensated by one factor for each tile."""
        profile = self.profile
        found = self._normals("read", nanoseconds(seconds))
        pieces = zip(state.programmed.split(_IN_CACHE), state.nu, found.split(_IN_CACHE), strict=True)
        for programmed, nu, normal in pieces:
            drifted = physics.drift(programmed, nu, seconds, profile)
            physics.read(drifted, programmed, seconds, profile, normal, spent=True)
        net = torch.sub(found[: self.half], found[self.half :], out=found[: self.half])
        tiles, now = self._read(net, state.scale)
        factors = (state.reference / now).nan_to_num_(nan=1.0, posinf=1.0)
        torch._foreach_mul_(tiles, list(factors.unbind()))
        self._write(tiles)

    def _normals(self, process: str, time_ns: int | None = None) -> Tensor:
        found = torch.empty(2 * self.half)
        first, second = (side.split_with_sizes(self.sizes) for side in found.split(self.half))
        for stream, pair in zip(self.streams, zip(first, second, strict=True), strict=True):
            for _ in stream.at(process=process, time_ns=time_ns).normal_pieces(pair):
                pass
        return found

    def _columns(self, net: Tensor) -> list[Tensor]:
        parts = net.split_with_sizes([prod(run) for run in self.runs])
        return [part.view(run) for part, run in zip(parts, self.runs, strict=True)]

    def _of_runs(self, scale: Tensor) -> list[Tensor]:
        return [part.view(-1, 1) for part in scale.split_with_sizes([columns for columns, _ in self.runs])]

    def _read(self, net: Tensor, scale: Tensor) -> tuple[list[Tensor], Tensor]:
        """The weights of each tile, in one dimension, and the mean of abs(W) of each."""
        torch._foreach_mul_(self._columns(net), self._of_runs(scale))
        tiles = list(net.split_with_sizes(self.sizes))
        sums = torch.stack([magnitude.sum() for magnitude in torch._foreach_abs(tiles)])
        return tiles, sums / self.counts

    def _write(self, tiles: list[Tensor]) -> None:
        torch._foreach_copy_(
            self.outs, [own.view(out.shape) for own, out in zip(tiles, self.outs, strict=True)]
        )
