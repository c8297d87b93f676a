"""What of a converted model is on tiles, what stayed digital, and how much of the work each does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from analognoise.crossbar.mapping import devices_of, spare_devices_of
from analognoise.layers import AnalogLayer, Geometry
from analognoise.macs import Forward, MacCount, count_macs
from analognoise.obstacles import BY_DESIGN, hidden_weights, obstacle_of, size, uncalled_children, unknown
from analognoise.on_tiles import require_analog
from analognoise.printing import counted


@dataclass(frozen=True)
class LayerOnTiles:
    """One layer on tiles.

    Attributes:
        name: qualified name; "" for a model that is itself a layer.
        kind: name of the digital class.
        profile: name of the device profile.
        matrices: how each weight Parameter lies on the array, by its name in the layer.
        tiles: number of arrays.
        weights: number of weights.
        devices: number of devices that are programmed; a pair for each weight unless the profile says
            otherwise.
        utilisation: share of the arrays' cells that hold a weight.
        macs: multiply-accumulates of one forward of the example, or None when none was given, or they cannot
            be counted (nested tensors).
        tile_products: products of one input vector with one tile in that forward; None where ``macs`` is.
        called: whether that forward called the layer; False means that its tiles were not read. None without
            an example.
        spare_devices: devices of spare columns beside them, in the rows that hold weights.
        periphery: converters and whatever else surrounds the tiles, in words; empty where nothing does.
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
    tile_products: int | None = None
    called: bool | None = None
    spare_devices: int = 0
    periphery: str = ""


@dataclass(frozen=True)
class DigitalPart:
    """Parameters, or products of activations, that stay digital, and why.

    ``macs`` is None without an example, or where a part uses an operator that cannot be counted.
    """

    name: str
    kind: str
    parameters: int
    reason: str
    macs: int | None = None


@dataclass(frozen=True)
class Description:
    """Layer by layer, what is on tiles and what is not. ``str()`` gives a table.

    ``repeated`` counts weights on the tiles of a layer whose Parameter another layer on tiles holds, too.
    """

    layers: tuple[LayerOnTiles, ...]
    digital: tuple[DigitalPart, ...]
    compensation: str
    engine: str = "analognoise"
    collapse_pairs: bool = False
    repeated: int = 0

    @property
    def tiles(self) -> int:
        """Number of arrays in all."""
        return sum(layer.tiles for layer in self.layers)

    @property
    def devices(self) -> int:
        """Number of devices in all."""
        return sum(layer.devices for layer in self.layers)

    @property
    def spare_devices(self) -> int:
        """Number of devices of spare columns in all."""
        return sum(layer.spare_devices for layer in self.layers)

    @property
    def parameter_share(self) -> float:
        """Share of the model's parameters that are on tiles."""
        analog = sum(layer.weights for layer in self.layers) - self.repeated
        return analog / (analog + sum(part.parameters for part in self.digital))

    @property
    def mac_share(self) -> float | None:
        """Share of the multiply-accumulates that run on tiles; None without example inputs, or where some
        cannot be counted.
        """
        if self.layers[0].called is None or self.uncounted:
            return None
        analog = sum(layer.macs or 0 for layer in self.layers)
        total = analog + sum(part.macs or 0 for part in self.digital)
        return analog / total if total else None

    @property
    def uncounted(self) -> tuple[str, ...]:
        """What ran in the example's forward and whose multiply-accumulates cannot be counted."""
        if self.layers[0].called is None:
            return ()
        counts = [(part.name, part.macs) for part in self.layers]
        counts += [(part.name, part.macs) for part in self.digital]
        return tuple(name or "(the model)" for name, macs in counts if macs is None)

    @property
    def never_called(self) -> tuple[str, ...]:
        """Layers on tiles that the example's forward did not call: their tiles were not read."""
        return tuple(layer.name for layer in self.layers if layer.called is False)

    def summary(self) -> str:
        """Shares, tiles and devices; below, layers that were never called."""
        macs = (
            "" if self.mac_share is None else f"{100 * self.mac_share:.1f} % of the multiply-accumulates and "
        )
        lines = [
            f"{macs}{100 * self.parameter_share:.1f} % of the parameters are on tiles: "
            f"{counted(len(self.layers), 'layer')}, "
            f"{counted(self.tiles, 'tile')}, {counted(self.devices, 'device')}"
            + ("" if self.engine == "analognoise" else f", simulated by {self.engine}")
            + (", pairs merged after programming" if self.collapse_pairs else "")
            + (f" and {self.spare_devices:,} in spare columns" if self.spare_devices else "")
        ]
        around = dict.fromkeys(layer.periphery for layer in self.layers)
        lines += [f"periphery: {text}" for text in around if text]
        if self.uncounted:
            names = ", ".join(map(repr, self.uncounted))
            lines.append(f"no share of the multiply-accumulates is known: those of {names} cannot be counted")
        if self.never_called:
            names = ", ".join(map(repr, self.never_called))
            lines.append(f"never called, so that their tiles are not read: {names}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "digital": [asdict(part) for part in self.digital],
            "tiles": self.tiles,
            "devices": self.devices,
            "spare_devices": self.spare_devices,
            "parameter_share": self.parameter_share,
            "mac_share": self.mac_share,
            "uncounted": list(self.uncounted),
            "never_called": list(self.never_called),
            "compensation": self.compensation,
            "engine": self.engine,
            "collapse_pairs": self.collapse_pairs,
            "repeated": self.repeated,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Description:
        """The description that :meth:`to_dict` wrote, also after a way through JSON."""
        layers = [
            {**layer, "matrices": {name: Geometry(**given) for name, given in layer["matrices"].items()}}
            for layer in content["layers"]
        ]
        return cls(
            tuple(LayerOnTiles(**layer) for layer in layers),
            tuple(DigitalPart(**part) for part in content["digital"]),
            content["compensation"],
            content["engine"],
            content["collapse_pairs"],
            content.get("repeated", 0),  # an older run.json has none
        )

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
                _count(layer.macs, layer.called) if layer.called is not False else "never called",
            )
        yield on_tiles
        if self.digital:
            rest = Table("part", "kind", title="Digital", title_justify="left")
            rest.add_column("parameters", justify="right")
            rest.add_column("MACs", justify="right")
            rest.add_column("why")
            for part in self.digital:
                name = part.name or "(the model)"
                counted = _count(part.macs, self.layers[0].called)
                rest.add_row(name, part.kind, f"{part.parameters:,}", counted, part.reason)
            yield rest
        yield self.summary()


def _matrix(geometry: Geometry) -> str:
    matrix = f"{geometry.rows:,} × {geometry.columns:,}"
    return f"{geometry.groups} × {matrix}" if geometry.groups > 1 else matrix


def _count(macs: int | None, called: bool | None) -> str:
    if macs is None:
        return "–" if called is None else "unknown"
    return f"{macs:,}"


def describe(model: nn.Module, inputs: Any = None, *, forward: Forward | None = None) -> Description:
    """Say layer by layer what is on tiles, and name whatever holds weights or multiplies and stays digital.

    Args:
        model: a converted model.
        inputs: an example batch; with it, multiply-accumulates are counted (matrix products, convolutions,
            recurrent layers and attention), and layers that are never called are named.
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
        array, faults = state.profile.tile, state.profile.faults
        cells = len(state.placed) * array.rows * (array.columns + (faults.spare_columns if faults else 0))
        rows.append(
            LayerOnTiles(
                name,
                layer.digital_class.__name__,
                state.profile.name,
                layer.geometries(layer),
                len(state.placed),
                weights,
                sum(devices_of(block, state.profile) for _, block in state.placed),
                weights / cells,
                None if macs is None else macs.on_tiles.get(name, 0),
                None if macs is None else macs.tile_products.get(name, 0),
                None if macs is None else name in macs.called,
                sum(spare_devices_of(block, state.profile) for _, block in state.placed),
                state.profile.surroundings.summary() if state.profile.surroundings else "",
            )
        )
    tile = next(iter(layers.values())).analog.tile
    parts = tuple(_digital_parts(model, macs))
    targets = [target for layer in layers.values() for target in layer.targets().values()]
    repeated = sum(map(size, targets)) - sum(map(size, {id(target): target for target in targets}.values()))
    return Description(tuple(rows), parts, tile.compensation, tile.engine, tile.collapse_pairs, repeated)


def _digital_parts(model: nn.Module, macs: MacCount | None) -> list[DigitalPart]:
    parts = []
    on_tiles = {
        id(target)
        for module in model.modules()
        if isinstance(module, AnalogLayer)
        for target in module.targets().values()
    }
    uncalled = uncalled_children(model)
    seen: set[int] = set()
    for name, module in model.named_modules():
        obstacle = uncalled.get(id(module)) or obstacle_of(module)
        hidden = hidden_weights(module, obstacle)
        multiplied = None if macs is None else macs.digital.get(name, 0)
        works = macs is not None and multiplied != 0
        parameters = {key: value for key, value in module._parameters.items() if value is not None}
        own = {key: value for key, value in parameters.items() if id(value) not in on_tiles | seen}
        seen.update(map(id, own.values()))
        shared = any(id(value) in on_tiles for value in parameters.values())
        kind = type(module).__name__
        if isinstance(module, AnalogLayer):
            kind = module.digital_class.__name__
        if isinstance(module, AnalogLayer) or (shared and obstacle is None):
            for key, value in own.items():
                none = None if macs is None else 0
                reason = "biases are added digitally" if "bias" in key else "not on the array, used digitally"
                parts.append(DigitalPart(f"{name}.{key}".lstrip("."), key, size(value), reason, none))
            if works:
                parts.append(DigitalPart(name, kind, 0, "products of two activations", multiplied))
        elif own or shared or works or hidden:
            count = sum(map(size, own.values())) + hidden
            reason = "products of two activations, with a buffer, or with a weight that another layer holds"
            if own or shared or hidden:
                full = {f"{name}.{key}" if name else key for key in own}
                if obstacle and obstacle.kind == BY_DESIGN and macs and not macs.multiplied.isdisjoint(full):
                    obstacle = unknown(module)  # whatever its Parameters are called, it multiplies with them
                reason = str(obstacle or "left out of the conversion")
            if shared:
                reason += "; its weight is that of a layer on tiles"
            borrowed = [] if macs is None else list(macs.borrowed.get(name, ()))
            if borrowed:
                names = " and ".join(map(repr, borrowed))
                also = f"; {reason}" if own or hidden else ""
                reason = f"multiplies with {names} itself, without calling the layer that holds it{also}"
            parts.append(DigitalPart(name, kind, count, reason, multiplied))
    return parts
