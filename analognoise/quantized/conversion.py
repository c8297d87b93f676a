"""A model onto quantized layers and back."""

from __future__ import annotations

from torch import nn

from analognoise.conversion import Filter, check_filter
from analognoise.convertible import convertible_layers, obstacles
from analognoise.copying import copy_sharing_tensors
from analognoise.errors import QuantizationError
from analognoise.on_tiles import analog_layers
from analognoise.quantized.activations import LOG_INPUT_RANGE, InputQuantizer
from analognoise.quantized.classes import known_names, quantized_class
from analognoise.quantized.layer import LOG_RANGE, QuantizedLayer, QuantizerState, first_log_range
from analognoise.quantized.settings import Quantization

# What quantizers add to a layer's Parameters and buffers.
RANGE_NAMES = (LOG_RANGE, *InputQuantizer.NAMES)


def quantize(
    model: nn.Module,
    bits: int = 8,
    *,
    activation_bits: int | None = None,
    per: str = "channel",
    clipping: str | float = "learned",
    activation_range: str | float = "learned",
    activation_scale: float | None = None,
    activation_signed: bool | None = None,
    filter_fn: Filter | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Simulate uniform symmetric quantization of a model's weights, and of what goes into its layers.

    Linear, convolution and transposed convolution layers become subclasses of themselves that share the same
    Parameter and buffer objects and compute with Q(w) = codes · scale, codes in ±(2^(bits − 1) − 1), in
    training and eval mode alike. ``weight`` stays the float weight; gradients pass to it straight through the
    rounding, and not where the range cuts it off. Everything else stays float: :func:`describe_quantization`
    names it.

    Args:
        model: any digital module; it may itself be a layer.
        bits: of a weight, 2 to 8.
        activation_bits: of the layers' inputs, 2 to 16; None leaves them float.
        per: what shares a scale: the weights of an output ``"channel"``, or of the whole ``"tensor"``; or
            ``"conv-channel"``: channels in convolutions, tensors in linear layers. Inputs share one in each
            layer. Tied weights are one memory with one set of scales, that of the first layer.
        clipping: range of the weights. ``"learned"``: per channel or tensor, trained by its logarithm, the
            Parameter ``log_range``, with the gradient of LSQ (Esser et al. 2020, arXiv 1902.08153); it begins
            at max|w|, or where that is smaller at 2 · mean|w| · sqrt(high), high = 2^(bits − 1) − 1.
            ``"max"``: max|w| of the present weights, taken anew in every forward. A number: ± that, in
            weight units.
        activation_range: of the inputs, likewise; ``"learned"`` begins from the first inputs that a layer
            sees, ``"max"`` is the maximum of each batch.
        activation_scale: a constant scale instead: inputs range to scale · (2^activation_bits − 1), or with
            sign to ± scale · (2^(activation_bits − 1) − 1) (Wang et al. 2025, arXiv 2501.14531).
        activation_signed: whether codes of inputs have a sign; None lets the first inputs of a layer decide:
            without a negative number they get 0 … 2^activation_bits − 1.
        filter_fn: ``filter_fn(module, name) -> bool`` chooses among the layers; None takes all. Layers with
            other settings are quantized by a further call, whose ``filter_fn`` leaves those before alone.
        inplace: False copies the module structure and shares every tensor with ``model``; True swaps the
            layers of ``model`` itself.

    Returns:
        The quantized model.

    Raises:
        QuantizationError: for a setting out of range, a model that is on tiles, a layer that is quantized
            already or tied to one, or nothing to quantize.
        ConversionError: when the model cannot be copied.
    """
    settings = Quantization(
        bits, activation_bits, per, clipping, activation_range, activation_scale, activation_signed
    )
    return quantize_as(model, settings, filter_fn=filter_fn, inplace=inplace)


def quantize_as(
    model: nn.Module, settings: Quantization, *, filter_fn: Filter | None = None, inplace: bool = False
) -> nn.Module:
    """:func:`quantize` with the settings as one object."""
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"quantize takes a torch.nn.Module, found {type(model).__name__}")
    for name in analog_layers(model):
        raise QuantizationError(
            f"layer {name!r} is on tiles: quantize the digital model (analognoise.convert_to_digital gives "
            "it back), and convert what analognoise.dequantize makes of it"
        )
    check_filter(filter_fn)
    already = quantized_layers(model)
    for name, layer in already.items():
        if filter_fn is None or filter_fn(layer, name):
            raise QuantizationError(
                f"layer {name!r} is quantized already: analognoise.dequantize(model, keep='float') gives "
                "back the float model, and a filter_fn that leaves it out quantizes others beside it"
            )
    found = {
        name: module
        for name, module in convertible_layers(model).items()
        if name not in already and quantized_class(module) is not None
    }
    chosen = [name for name, module in found.items() if filter_fn is None or filter_fn(module, name)]
    if not chosen:
        reason = (
            f"filter_fn chose none of its {len(found)} layers ({', '.join(map(repr, found))})"
            if found
            else f"none of its layers is one of {', '.join(known_names())}{obstacles(model)}"
        )
        raise QuantizationError(f"nothing to quantize in {type(model).__name__}: {reason}")
    stored = {id(layer.float_weight): name for name, layer in already.items()}
    for name in chosen:
        other = stored.get(id(found[name].get_parameter("weight")))
        if other is not None:
            raise QuantizationError(
                f"layer {name!r} has the weight of layer {other!r}, which is quantized already: tied weights "
                "are one memory, so quantize both at once"
            )
    target = model if inplace else copy_sharing_tensors(model)
    modules = dict(target.named_modules())
    shared: dict[int, tuple[QuantizerState, nn.Parameter | None]] = {}
    for name in chosen:
        module = modules[name]
        cls = quantized_class(module)
        assert cls is not None, "it was found"
        weight = module.get_parameter("weight")
        # Tied weights are one memory with one set of scales, along the axis of the first layer's channels.
        if id(weight) not in shared:
            axes = cls.shared_axes(weight, settings.per)
            learned = settings.clipping == "learned"
            log_range = first_log_range(weight, settings.bits, axes) if learned else None
            shared[id(weight)] = QuantizerState(settings, name, axes), log_range
        cls.place(module, *shared[id(weight)])
    return target


def dequantize(model: nn.Module, *, keep: str = "quantized", inplace: bool = False) -> nn.Module:
    """Give back a float model without quantizers, for example to put it on tiles.

    Args:
        model: a quantized model.
        keep: ``"quantized"``: its weights are Q(w), as codes or offsets put in place make them, in Parameters
            of their own; ``"float"``: the weights before rounding, the same Parameters.
        inplace: True changes the layers of ``model`` itself.

    Raises:
        QuantizationError: when no layer is quantized, or for another ``keep``.
        ConversionError: when the model cannot be copied.
    """
    require_quantized(model, "dequantize")
    if keep not in ("quantized", "float"):
        raise QuantizationError(f"keep must be 'quantized' or 'float', found {keep!r}")
    target = model if inplace else copy_sharing_tensors(model)
    baked: dict[int, nn.Parameter] = {}
    for layer in quantized_layers(target).values():
        if keep == "quantized":
            weight = layer.float_weight
            if id(weight) not in baked:
                value = layer.quantized_weight().detach()
                value = value if layer.offset is None else value + layer.offset.detach()
                baked[id(weight)] = nn.Parameter(value.clone(), requires_grad=weight.requires_grad)
            layer._parameters["weight"] = baked[id(weight)]
        layer.remove()
    return target


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLayer]:
    """Quantized layers by qualified name; a module used at several places once, under its first name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def quantized_weights(model: nn.Module) -> dict[str, QuantizedLayer]:
    """A layer for every quantized weight: ``{"conv1.weight": layer}``; tied weights once, under their first
    name.
    """
    found: dict[str, QuantizedLayer] = {}
    seen: set[int] = set()
    for name, layer in quantized_layers(model).items():
        if id(layer.float_weight) not in seen:
            seen.add(id(layer.float_weight))
            found[f"{name}.weight" if name else "weight"] = layer
    return found


def require_quantized(model: nn.Module, action: str) -> dict[str, QuantizedLayer]:
    """The quantized layers of a model that must have some.

    Raises:
        QuantizationError: when it has none.
    """
    if not isinstance(model, nn.Module):
        raise QuantizationError(f"cannot {action}: a torch.nn.Module is needed, found {type(model).__name__}")
    layers = quantized_layers(model)
    if not layers:
        raise QuantizationError(
            f"cannot {action}: {type(model).__name__} has no quantized layer; "
            "call analognoise.quantize(model, bits=8) first"
        )
    return layers


def input_ranges_to_come(model: nn.Module) -> list[str]:
    """Names of the layers that take range or sign of their inputs from the first ones that they will see."""
    return [name for name, layer in quantized_layers(model).items() if layer.awaits_inputs]


def require_input_ranges(model: nn.Module, action: str) -> None:
    """Raise while a layer still takes range or sign of its inputs from the next ones, whatever they are.

    Raises:
        QuantizationError: naming the layers.
    """
    waiting = input_ranges_to_come(model)
    if waiting:
        raise QuantizationError(
            f"cannot {action}: the first inputs decide about the range or the sign of what goes into "
            f"{', '.join(repr(name or '(the model)') for name in waiting)}, and none came yet: run a batch "
            "of training data through the model first, and leave out layers that no forward calls (filter_fn)"
        )


def quantizer_ranges(model: nn.Module) -> dict[str, nn.Parameter]:
    """The Parameters of learned ranges, by name; each holds the natural logarithm of its range.

    Weight decay is not for them, and they never climb.
    """
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] in (LOG_RANGE, LOG_INPUT_RANGE)
        and isinstance(model.get_submodule(name.rpartition(".")[0]), QuantizedLayer)
    }
