"""What of a converted model is on tiles, what stayed digital, and how much of the work each does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from analognoise.chip import digital, evaluating
from analognoise.conversion import require_analog
from analognoise.convertible import hidden_weights, size, why_digital
from analognoise.layers import AnalogLayer, Geometry

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class LayerOnTiles:
    """One layer on tiles.

    Attributes:
        name: qualified name; "" for a model that is itself a layer.
        kind: name of the digital class.
        profile: name of the device profile.
        matrices: how each weight Parameter lies on the array, by its name in the layer.
        tiles: number of arrays.
        weights: number of weights; each takes two devices.
        devices: number of devices that are programmed.
        utilisation: share of the arrays' cells that hold a weight.
        macs: multiply-accumulates of one forward of the example, or None when none was given.
    """

    name: str
    kind: str
    profile: str
    matrices: dict[str, Geometry]
    tiles: int
    weights: int
    devices: int
    utilisation: float
    macs: int | None = None


@dataclass(frozen=True)
class DigitalPart:
    """Parameters, or products of activations, that stay digital, and why."""

    name: str
    kind: str
    parameters: int
    reason: str
    macs: int | None = None


@dataclass(frozen=True)
class Description:
    """Layer by layer, what is on tiles and what is not. ``str()`` gives a table."""

    layers: tuple[LayerOnTiles, ...]
    digital: tuple[DigitalPart, ...]
    compensation: str

    @property
    def tiles(self) -> int:
        """Number of arrays in all."""
        return sum(layer.tiles for layer in self.layers)

    @property
    def devices(self) -> int:
        """Number of devices in all."""
        return sum(layer.devices for layer in self.layers)

    @property
    def parameter_share(self) -> float:
        """Share of the model's parameters that are on tiles."""
        analog = sum(layer.weights for layer in self.layers)
        return analog / (analog + sum(part.parameters for part in self.digital))

    @property
    def mac_share(self) -> float | None:
        """Share of the multiply-accumulates that run on tiles; None without example inputs."""
        if self.layers[0].macs is None:
            return None
        analog = sum(layer.macs or 0 for layer in self.layers)
        total = analog + sum(part.macs or 0 for part in self.digital)
        return analog / total if total else None

    def summary(self) -> str:
        """One line: shares, tiles, devices."""
        macs = (
            "" if self.mac_share is None else f"{100 * self.mac_share:.1f} % of the multiply-accumulates and "
        )
        return (
            f"{macs}{100 * self.parameter_share:.1f} % of the parameters are on tiles: "
            f"{len(self.layers)} layers, "
            f"{self.tiles} tiles, {self.devices:,} devices"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "digital": [asdict(part) for part in self.digital],
            "tiles": self.tiles,
            "devices": self.devices,
            "parameter_share": self.parameter_share,
            "mac_share": self.mac_share,
            "compensation": self.compensation,
        }

    def __str__(self) -> str:
        console = Console(width=118, no_color=True, highlight=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __rich_console__(self, console: Console, options: Any) -> Any:
        on_tiles = Table("layer", "kind", "profile", title="On tiles", title_justify="left")
        for heading in ("matrix (rows × columns)", "tiles", "weights", "devices", "utilisation", "MACs"):
            on_tiles.add_column(heading, justify="right")
        for layer in self.layers:
            on_tiles.add_row(
                layer.name or "(the model)",
                layer.kind,
                layer.profile,
                "\n".join(map(_matrix, layer.matrices.values())),
                f"{layer.tiles:,}",
                f"{layer.weights:,}",
                f"{layer.devices:,}",
                f"{100 * layer.utilisation:.1f} %",
                _count(layer.macs),
            )
        yield on_tiles
        if self.digital:
            rest = Table("part", "kind", title="Digital", title_justify="left")
            rest.add_column("parameters", justify="right")
            rest.add_column("MACs", justify="right")
            rest.add_column("why")
            for part in self.digital:
                name = part.name or "(the model)"
                rest.add_row(name, part.kind, f"{part.parameters:,}", _count(part.macs), part.reason)
            yield rest
        yield self.summary()


def _matrix(geometry: Geometry) -> str:
    matrix = f"{geometry.rows:,} × {geometry.columns:,}"
    return f"{geometry.groups} × {matrix}" if geometry.groups > 1 else matrix


def _count(macs: int | None) -> str:
    return "–" if macs is None else f"{macs:,}"


def describe(model: nn.Module, inputs: Any = None, *, forward: Forward | None = None) -> Description:
    """Say layer by layer what is on tiles, and name whatever holds weights or multiplies and stays digital.

    Args:
        model: a converted model.
        inputs: an example batch; with it, multiply-accumulates are counted (matrix products, convolutions and
            attention).
        forward: ``forward(model, inputs)`` for models that take something else than one positional argument.

    Raises:
        ConversionError: when the model has no layer on tiles.
    """
    layers = require_analog(model, "describe the tiles")
    macs = None if inputs is None else count_macs(model, inputs, forward)
    rows = []
    for name, layer in layers.items():
        state = layer.analog
        weights = sum(block.weights for _, block in state.placed)
        cells = len(state.placed) * state.profile.tile.rows * state.profile.tile.columns
        rows.append(
            LayerOnTiles(
                name,
                layer.digital_class.__name__,
                state.profile.name,
                layer.geometries(layer),
                len(state.placed),
                weights,
                2 * weights,
                weights / cells,
                None if macs is None else macs[0].get(name, 0),
            )
        )
    compensation = next(iter(layers.values())).analog.compensation
    return Description(
        tuple(rows), tuple(_digital_parts(model, None if macs is None else macs[1])), compensation
    )


def _digital_parts(model: nn.Module, macs: dict[str, int] | None) -> list[DigitalPart]:
    parts = []
    on_tiles = {
        id(target)
        for module in model.modules()
        if isinstance(module, AnalogLayer)
        for target in module.targets().values()
    }
    seen: set[int] = set()
    for name, module in model.named_modules():
        multiplied = None if macs is None else macs.get(name, 0)
        parameters = {key: value for key, value in module._parameters.items() if value is not None}
        own = {key: value for key, value in parameters.items() if id(value) not in on_tiles | seen}
        seen.update(map(id, own.values()))
        shared = any(id(value) in on_tiles for value in parameters.values())
        kind = type(module).__name__
        if isinstance(module, AnalogLayer):
            kind = module.digital_class.__name__
        if isinstance(module, AnalogLayer) or (shared and not why_digital(module)):
            for key, value in own.items():
                full = f"{name}.{key}" if name else key
                none = None if macs is None else 0
                reason = "biases are added digitally" if "bias" in key else "not on the array, used digitally"
                parts.append(DigitalPart(full, key, size(value), reason, none))
            if multiplied:
                parts.append(DigitalPart(name, kind, 0, "products of two activations", multiplied))
        elif own or shared or multiplied or hidden_weights(module):
            hidden = hidden_weights(module)
            count = sum(map(size, own.values())) + hidden
            reason = "products of two activations, or with a weight that another layer holds"
            if own or shared or hidden:
                reason = why_digital(module) or "left out of the conversion"
            if shared:
                reason += "; its weight is that of a layer on tiles"
            parts.append(DigitalPart(name, kind, count, reason, multiplied))
    return parts


@torch.no_grad()
def count_macs(
    model: nn.Module, inputs: Any, forward: Forward | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """Multiply-accumulates of one forward, by qualified name of the module that does them itself.

    Those on tiles, and those that are digital: products of activations, and whatever is not on tiles. The
    digital weights are used, in eval mode; modes and chip are left as found.
    """
    on_tiles: dict[str, int] = {}
    own: dict[str, int] = {}
    stack: list[list[int]] = []
    hooks = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append([counter.get_total_flops(), 0])

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            begun, children = stack.pop()
            total = counter.get_total_flops() - begun
            mine = (total - children) // 2
            if isinstance(module, AnalogLayer):
                # Fused kernels are not counted by the operator; what is beyond the tiles' work is digital.
                shapes = module.geometries(module)
                tiles = sum(
                    count * shapes[key].groups * shapes[key].columns * shapes[key].rows
                    for key, count in module.vectors(module, args, output).items()
                )
                on_tiles[name] = on_tiles.get(name, 0) + tiles
                mine = max(mine - tiles, 0)
            own[name] = own.get(name, 0) + mine
            if stack:
                stack[-1][1] += total

        return hook

    fused = torch.backends.mha.get_fastpath_enabled()
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        digital(model),
        evaluating(model),
    ):
        try:
            # The counter does not see into torch's fused attention kernels.
            torch.backends.mha.set_fastpath_enabled(False)
            for name, module in model.named_modules():
                hooks.append(module.register_forward_pre_hook(enter))
                hooks.append(module.register_forward_hook(leave(name)))
            if forward is None:
                model(inputs)
            else:
                forward(model, inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for hook in hooks:
                hook.remove()
    return on_tiles, {name: count for name, count in own.items() if count}
