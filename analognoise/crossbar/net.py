"""The net noise of pairs, drawn as one normal per weight: for training, where a fresh chip is needed at every
step and only its first two moments matter much.

Of every pair the exact draw takes a normal for each device and process: six on a device with programming
noise, drift and read noise. Here a net weight is

    w = s · (m(G+) − m(G-) + sqrt(v(G+) + v(G-)) · N)

with m and v mean and variance of one device's conductance at a drift time, given its target. They come from
the profile's own law, integrated over its normals by Gauss-Hermite quadrature at some targets, and from a
table in between. What is lost: the shape of the distribution beyond its variance (the clamp at zero makes it
skew), and that the factor of the drift compensation depends on the draw a little. docs/methods.md says how
much.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from analognoise.crossbar.compensation import factor, read_out
from analognoise.crossbar.mapping import scales
from analognoise.crossbar.tile import CrossbarTile
from analognoise.devices.laws import law_of
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import MethodError
from analognoise.seeds import Stream

# Nodes for each normal; programming is clamped at zero, so the integrand has a kink there.
_NODES = {"program": 32, "drift": 5, "read": 3}
_TARGETS = 64  # at which moments are integrated, denser towards g_min
_ENTRIES = 2048  # of the table


def check_net(tile: CrossbarTile, layer: str) -> None:
    """Nothing, where the net noise of a layer's tiles can be drawn.

    Raises:
        MethodError: naming the layer and what is in the way.
    """
    profile, mapping = tile.profile, tile.profile.mapping
    obstacles = {
        f"tiles of the engine {tile.engine!r}": tile.engine != CrossbarTile.engine,
        "pairs that are collapsed": bool(tile.settings),
        "faults": profile.faults is not None,
        "IR drop": profile.wire_ratios is not None,
        f"cells {mapping.cell!r}": mapping.cell not in (None, "pair"),
        f"{len(mapping.significances)} pairs per weight": len(mapping.significances) > 1,
    }
    found = next((text for text, there in obstacles.items() if there), None)
    if found:
        raise MethodError(
            f"profile-noise with draw='net' knows nothing of {found} (layer {layer!r}, profile "
            f"{profile.name!r}): use draw='devices'"
        )


def net_weights(
    tile: CrossbarTile, weights: Tensor, stream: Stream, seconds: float, layer_max: Tensor | None = None
) -> Tensor:
    """Net weights ``[groups, columns, rows]`` as a fresh chip has them at a drift time, drift compensation
    included, in mean and variance.

    Args:
        tile: on which they are.
        weights: targets, ``[groups, columns, rows]``.
        stream: key of the tile at this training step.
        seconds: drift time.
        layer_max: as for :meth:`CrossbarTile.program`.
    """
    profile, weights = tile.profile, weights.detach().float()
    scale = scales(weights, profile, layer_max)
    gain, sigma, reference = _table(profile, seconds, weights.device)
    span = profile.conductance.g_max - profile.conductance.g_min
    net = weights / scale
    places = (net.abs() * ((_ENTRIES - 1) / span)).round_().int().clamp_(max=_ENTRIES - 1)
    flat = places.view(-1)
    net *= gain.index_select(0, flat).view_as(net)
    normal = stream.at(process="net").normal(tuple(net.shape), weights.device)
    net.addcmul_(normal, sigma.index_select(0, flat).view_as(net))
    if tile.compensation != "none":
        programmed = reference.index_select(0, flat).view_as(net)
        net *= factor(read_out(programmed, tile.compensation), read_out(net, tile.compensation))
    return net.mul_(scale)


@lru_cache(maxsize=8)
def _table(profile: DeviceProfile, seconds: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For net conductances from 0 to the largest: mean of the net over its target and standard deviation at a
    time, and mean of its magnitude right after programming.
    """
    targets, state, coefficients, normals, share = _nodes(profile, device)
    law = law_of(profile)
    now = law.conductances(state, coefficients, seconds, normals.__getitem__)
    fresh = law.programmed(state, coefficients)
    mean, variance = _moments(now, share)
    mean_then, variance_then = _moments(fresh, share)
    step = targets[-1] / (_ENTRIES - 1)
    wanted = torch.arange(_ENTRIES, device=device, dtype=torch.float64) * step
    place = (wanted / targets[-1]).sqrt_() * (_TARGETS - 1)
    left = place.long().clamp_(max=_TARGETS - 2)
    # linear in the target between two nodes
    part = (wanted - targets[left]) / (targets[left + 1] - targets[left])

    def between(values: Tensor) -> Tensor:
        return torch.lerp(values[left], values[left + 1], part)

    gain = between(mean - mean[0])
    gain[1:] /= wanted[1:]
    gain[0] = gain[1]
    sigma = between(variance + variance[0]).clamp_(min=0).sqrt_()
    then, spread = between(mean_then - mean_then[0]), between(variance_then + variance_then[0])
    spread = spread.clamp_(min=1e-30).sqrt_()
    # the mean magnitude of a normal that is not centred
    relative = then / spread
    magnitude = spread * math.sqrt(2 / math.pi) * (-relative.square() / 2).exp()
    magnitude += then * torch.special.erf(relative / math.sqrt(2))
    return gain.float(), sigma.float(), magnitude.float()


def _moments(conductance: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    flat = conductance.double().flatten(1)
    mean = flat @ share
    return mean, (flat - mean.unsqueeze(1)).square_() @ share


@lru_cache(maxsize=16)
def _nodes(
    profile: DeviceProfile, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Tensor], Tensor]:
    """Targets above g_min; state and coefficients that the law writes for every target and every combination
    of nodes, the normals themselves, and the share of each combination.
    """
    law = law_of(profile)
    g_min, g_max = profile.conductance.g_min, profile.conductance.g_max
    above = torch.linspace(0, 1, _TARGETS, dtype=torch.float64, device=device).square_() * (g_max - g_min)
    points, shares = [], []
    for process, count in _NODES.items():
        x, weight = np.polynomial.hermite_e.hermegauss(count if process in law.draws else 1)
        points.append(torch.tensor(x, dtype=torch.float32, device=device))
        shares.append(torch.tensor(weight / weight.sum(), device=device))
    grid = torch.meshgrid((above + g_min).float(), *points, indexing="ij")
    target, *drawn = (part.contiguous() for part in grid)
    normals = dict(zip(_NODES, drawn, strict=True))
    state, coefficients = law.write(target, normals.__getitem__)
    share = shares[0][:, None, None] * shares[1][:, None] * shares[2]
    return above, state, coefficients, normals, share.flatten()
