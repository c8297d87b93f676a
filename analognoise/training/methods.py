"""The table of training methods, which Python, the command line and the benchmarks read.

Defaults are the figures of the method's source wherever it gives one; ``source`` says for every
hyperparameter where its default comes from. Search ranges surround what worked for small convolutional
networks of about 2,000 weights on 8 × 8 images: another network may need others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from analognoise.computing.kinds import KINDS
from analognoise.computing.levels import ALPHA
from analognoise.conversion import Filter, analog_layers, convert_to_analog
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import MethodError, QuantizationError, SparsityError
from analognoise.quantized import Quantization, quantize_as, quantized_layers
from analognoise.sparsity import PRESETS, activation_layers, sparse_layers, sparsify_as
from analognoise.training.computing import Fluctuating, Growing, Level, TrainingNoise
from analognoise.training.noise import DRAWS, ProfileNoise, RandomWeightPerturbation
from analognoise.training.quantized import ASAQ, SAMSONSAQ, SAQ
from analognoise.training.sharpness import ASAM, SAM, SAMSON
from analognoise.training.wrapper import WrappedOptimizer
from analognoise.units import parse_time

Value = float | str
_JOSHI = "Joshi et al. 2020, doi 10.1038/s41467-020-16108-9 (CIFAR-10)"
_OURS = "analognoise's own choice"
_WANG = "Wang et al. 2025, arXiv 2501.14531"
_VARIANCE = "arXiv 2503.16183 (its authors' code)"


@dataclass(frozen=True)
class Range:
    """Where to search a hyperparameter: ``low`` to ``high``, uniformly in the logarithm if ``log``."""

    low: float
    high: float
    log: bool = False

    def at(self, fraction: float) -> float:
        """The value at a fraction (0 to 1) of the range, to four significant digits: names stay short."""
        if self.log:
            value = self.low * (self.high / self.low) ** fraction
        else:
            value = self.low + (self.high - self.low) * fraction
        return float(f"{value:.4g}")


@dataclass(frozen=True)
class Hyperparameter:
    """One number or choice of a method.

    Attributes:
        name: as in ``name=value``.
        default: taken when none is given.
        meaning: one sentence, with the unit.
        source: where the default comes from.
        search: where to search it; None when it is not searched.
        least: smallest value allowed (excluded if ``above``).
        most: largest value allowed.
        above: whether ``least`` itself is excluded.
        choices: the words allowed; empty for a number.
        is_time: a drift time, which may be written with its unit.
        is_whole: a whole number.
        also: a word allowed besides numbers.
    """

    name: str
    default: Value
    meaning: str
    source: str
    search: Range | None = None
    least: float = 0.0
    most: float = math.inf
    above: bool = False
    choices: tuple[str, ...] = ()
    is_time: bool = False
    is_whole: bool = False
    also: tuple[str, ...] = ()

    def check(self, value: Value, method: str) -> Value:
        """The value in its type.

        Raises:
            MethodError: when it is out of range or of the wrong kind.
        """
        where = f"hyperparameter {self.name!r} of method {method!r}"
        if self.choices:
            if value not in self.choices:
                raise MethodError(f"{where} must be one of {', '.join(self.choices)}, found {value!r}")
            return value
        if isinstance(value, str) and value in self.also:
            return value
        bound = "above" if self.above else "at least"
        kind = " or ".join([*map(repr, self.also), "a whole number" if self.is_whole else "a number"])
        allowed = f"{kind} {bound} {self.least:g}" + (
            f" and at most {self.most:g}" if math.isfinite(self.most) else ""
        )
        try:
            number = parse_time(value) if self.is_time else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if (
            not math.isfinite(number)
            or not self.least <= number <= self.most
            or (self.above and number == self.least)
            or (self.is_whole and not number.is_integer())
        ):
            raise MethodError(f"{where} must be {allowed}, found {value!r}")
        return number


Build = Callable[..., Optimizer]
Prepare = Callable[..., nn.Module]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: as on the command line.
        summary: one sentence.
        hyperparameters: by name, without those of modifiers.
        gradients_per_step: forward and backward passes in a step.
        needs_profile: whether training itself needs a device profile.
        build: ``build(base, model, values, *, steps, seed, profile)`` puts the method around a base
            optimizer; ``values`` holds the hyperparameters, those of modifiers included.
        prepare: ``prepare(model, values, *, filter_fn, profile, seed)`` gives the model as the method trains
            it: the given one, or a twin that shares its Parameters; it must take what it gave once more.
            ``filter_fn`` chooses the layers that are the method's business (None: all). None where the
            method trains models as they are.
        same_as: the method and modifier that this one abbreviates, if any.
        search_weights_only: ranges that replace the usual ones when ``perturb=weights``.
    """

    name: str
    summary: str
    hyperparameters: Mapping[str, Hyperparameter]
    gradients_per_step: int
    build: Build
    needs_profile: bool = False
    prepare: Prepare | None = None
    same_as: tuple[str, tuple[str, ...]] | None = None
    search_weights_only: Mapping[str, Range] = field(default_factory=dict)

    @property
    def defaults(self) -> dict[str, Value]:
        """Default of every hyperparameter."""
        return {name: item.default for name, item in self.hyperparameters.items()}

    @property
    def ranges(self) -> dict[str, Range]:
        """Search range of every hyperparameter that is searched."""
        return {name: item.search for name, item in self.hyperparameters.items() if item.search is not None}


_CLIP = Hyperparameter(
    name="clip",
    default=2.0,
    meaning="after every update each layer's weights are clamped to ± clip standard deviations of the layer",
    source=_JOSHI,
    search=Range(1.25, 3.0),
    above=True,
)
_NOISE = Hyperparameter(
    name="noise",
    default=0.038,
    meaning="standard deviation of the noise on the weights, relative to the layer's largest weight",
    source=_JOSHI,
    search=Range(0.02, 0.2, log=True),
)


@dataclass(frozen=True)
class Modifier:
    """What can follow a method's name, as ``+name``.

    Attributes:
        name: as on the command line.
        summary: one sentence.
        hyperparameters: by name.
        prepare: as :attr:`Method.prepare`.
        put_on: ``put_on(optimizer, model, values, *, steps, epochs, seed)`` adds the modifier to the method's
            optimizer. None where the method's own ``build`` knows the hyperparameters.
    """

    name: str
    summary: str
    hyperparameters: Mapping[str, Hyperparameter]
    prepare: Prepare | None = None
    put_on: Callable[..., Optimizer] | None = None

    @property
    def own(self) -> frozenset[str]:
        """Hyperparameters that a method's ``build`` must not see."""
        return frozenset(self.hyperparameters if self.prepare or self.put_on else ())


def _table(*items: Hyperparameter) -> dict[str, Hyperparameter]:
    return {item.name: item for item in items}


def _fraction(name: str, default: float, meaning: str, source: str = _OURS) -> Hyperparameter:
    return Hyperparameter(name, default, meaning, source, most=1.0)


def _time(name: str, default: float, meaning: str) -> Hyperparameter:
    return Hyperparameter(name, default, meaning, _OURS, above=True, is_time=True)


def _climbing(
    rho: float, source: str, search: Range, *, eta: bool = True, perturb: str = "all"
) -> dict[str, Hyperparameter]:
    """Hyperparameters of the sharpness-aware family."""
    scaling = Hyperparameter("eta", 0.01, "added to each weight's size in the scaling of the climb", source)
    return _table(
        Hyperparameter("rho", rho, "length of the climb, in the method's own scaling", source, search),
        *([scaling] if eta else []),
        # No source warms rho up; but one step of too long a climb can end a training for good.
        _fraction("warmup", 0.1, "fraction of the training over which rho grows linearly from 0"),
        Hyperparameter(
            name="perturb",
            default=perturb,
            meaning="which parameters climb: all, or only weight tensors (SAQ and its like: quantized ones)",
            source=source,
            choices=("all", "weights"),
        ),
    )


def _sigma(default: float, meaning: str) -> Hyperparameter:
    return Hyperparameter("sigma", default, meaning, _OURS, Range(0.02, 2.0, log=True))


_PLACE = _table(
    Hyperparameter(
        name="law",
        default="additive",
        meaning="additive: y + σ·n, or multiplicative: y·(1 + σ·n)",
        source=_WANG,
        choices=("additive", "multiplicative"),
    ),
    Hyperparameter(
        name="layers",
        default="all",
        meaning="kind of layers whose outputs are noisy",
        source=_WANG,
        choices=("all", *KINDS),
    ),
    Hyperparameter(
        name="walk",
        default="no",
        meaning="yes: the noise is on one layer a step, drawn at random",
        source=_OURS,
        choices=("no", "yes"),
    ),
)
_NOISY = {
    **_table(
        _sigma(0.1, "standard deviation of the noise on the layers' outputs"),
        _fraction("sigma_ramp", 0.0, "fraction of the training over which sigma grows linearly from 0"),
    ),
    **_PLACE,
}
_VANT = {
    **_table(
        _sigma(0.1, "sigma_0 in sigma = alpha·sigma_0 + theta·|N(0, 1)|, drawn anew each epoch"),
        Hyperparameter("alpha", ALPHA, "share of sigma_0 in each epoch's sigma", _VARIANCE),
        Hyperparameter(
            name="theta",
            default=0.1,
            meaning="size of what is drawn in each epoch's sigma",
            source=_OURS,  # the source's 0.66 keeps networks whose outputs are small at guessing
            search=Range(0.02, 1.0, log=True),
        ),
    ),
    **_PLACE,
}
_CONSTANT = _table(
    Hyperparameter(
        name="bits",
        default=8.0,
        meaning="bits of the layers' inputs, and of the weights up to 8",
        source=_WANG,
        least=2,
        most=16,
        is_whole=True,
    ),
    Hyperparameter(
        name="scale",
        default=0.1,
        meaning="constant scale of the layers' inputs: they range to scale·(2^bits − 1)",
        source=_OURS,
        search=Range(0.01, 10.0, log=True),
        above=True,
    ),
)


def _put_noise(
    optimizer: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, epochs: int, seed: int
) -> Optimizer:
    level: Level
    if "theta" in values:
        shares = (values["sigma"], values["alpha"], values["theta"])
        level = Fluctuating(*shares, steps=max(steps, 1), epochs=epochs, seed=seed)
    else:
        level = Growing(values["sigma"], round(values["sigma_ramp"] * steps))
    if not isinstance(optimizer, WrappedOptimizer):
        optimizer = WrappedOptimizer(optimizer, model, seed=seed)
    optimizer.computing = TrainingNoise(
        model, values["law"], level, seed=seed, layers=values["layers"], walk=values["walk"] == "yes"
    )
    return optimizer


def _constant_scale(
    model: nn.Module, values: dict[str, Any], *, filter_fn: Filter | None, **_: Any
) -> nn.Module:
    bits = int(values["bits"])
    settings = Quantization(
        bits=min(bits, 8),
        activation_bits=bits,
        per="conv-channel",
        clipping="max",
        activation_scale=values["scale"],
    )
    return _quantized_with(model, settings, filter_fn)


def _put_nothing(optimizer: Optimizer, model: nn.Module, _: dict[str, Any], **settings: Any) -> Optimizer:
    check_quantized(model)
    return optimizer


def _plain(
    base: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, seed: int, profile: Any
) -> Optimizer:
    if not values:
        return base
    return WrappedOptimizer(base, model, clip=values.get("clip"), noise=values.get("noise"), seed=seed)


def _profile_noise(
    base: Optimizer,
    model: nn.Module,
    values: dict[str, Any],
    *,
    steps: int,
    seed: int,
    profile: DeviceProfile | None,
) -> Optimizer:
    placed = {layer.analog.profile.name: layer.analog.profile for layer in analog_layers(model).values()}
    if not placed and profile is None:
        raise MethodError(
            "method 'profile-noise' needs a device profile to train for: give one, or convert the model first"
        )
    if placed and profile is not None and any(found != profile for found in placed.values()):
        raise MethodError(
            f"method 'profile-noise' was given profile {profile.name!r}, but the model is converted for "
            f"{', '.join(map(repr, placed))}: give the model converted for one and no profile, or a digital "
            "model"
        )
    # The twin shares every Parameter, so what is learnt is the given model's own weights.
    analog = model if placed or profile is None else convert_to_analog(model, profile, inplace=False)
    times = (values["shortest"], values["longest"])
    clip = values.get("clip")
    return ProfileNoise(base, analog, times=times, draw=values["draw"], clip=clip, seed=seed)


def _rwp(
    base: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, seed: int, profile: Any
) -> Optimizer:
    options = {name: values[name] for name in ("noise", "mix", "clip") if name in values}
    return RandomWeightPerturbation(base, model, **options, ramp=round(values["ramp"] * steps), seed=seed)


def _climb(optimizer: Callable[..., Optimizer], **fixed: Any) -> Build:
    def build(
        base: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, seed: int, profile: Any
    ) -> Optimizer:
        options = {name: value for name, value in values.items() if name != "warmup"}
        warmup = round(values["warmup"] * steps)
        return optimizer(base, model, **options, **fixed, rho_warmup=warmup, seed=seed)

    return build


def quantization_of(values: Mapping[str, Any]) -> Quantization:
    """What the hyperparameters of a quantizing method say of its quantizers."""
    activation_bits = values["activation_bits"]
    return Quantization(
        bits=int(values["bits"]),
        activation_bits=None if activation_bits == "none" else int(activation_bits),
        per=values["per"],
        clipping=values["clipping"],
    )


def _quantize(model: nn.Module, values: dict[str, Any], *, filter_fn: Filter | None, **_: Any) -> nn.Module:
    twin = _quantized_with(model, quantization_of(values), filter_fn)
    form = PRESETS[values["sparsity"]]
    if form is None:
        return twin
    try:
        if all(sparse_layers(twin).get(name) == form for name in activation_layers(twin)):
            return twin
        return sparsify_as(twin, form, inplace=twin is not model)
    except SparsityError as error:
        raise MethodError(f"the method trains with sparse activations: {error}") from error


def _quantized_with(model: nn.Module, settings: Quantization, filter_fn: Filter | None) -> nn.Module:
    for name, layer in quantized_layers(model).items():
        if layer.quantization != settings:
            raise MethodError(
                f"layer {name!r} is quantized ({layer.quantization}), but the method asks for {settings}: "
                "give the method the same settings, or the float model"
            )
    try:
        return model if quantized_layers(model) else quantize_as(model, settings, filter_fn=filter_fn)
    except QuantizationError as error:
        raise MethodError(f"the method trains a quantized model: {error}") from error


def check_quantized(model: nn.Module) -> None:
    """Raise unless the model is as ``prepare`` of a quantizing method makes it.

    Raises:
        MethodError: otherwise.
    """
    if not quantized_layers(model):
        raise MethodError(
            f"the method trains a quantized model, but {type(model).__name__} has no quantized layer: "
            "give the model that Recipe.prepare makes of it, and an optimizer over that one's parameters"
        )


def _quantized(build: Build) -> Build:
    def quantized(base: Optimizer, model: nn.Module, values: dict[str, Any], **settings: Any) -> Optimizer:
        check_quantized(model)
        own = {name: value for name, value in values.items() if name not in _QUANTIZERS}
        return build(base, model, own, **settings)

    return quantized


_QUANTIZERS = _table(
    Hyperparameter(
        name="bits",
        default=4.0,
        meaning="bits of a stored weight",
        source=_OURS,
        least=2,
        most=8,
        is_whole=True,
    ),
    Hyperparameter(
        name="activation_bits",
        default="none",
        meaning="bits of the inputs of quantized layers, or none: left float",
        source=_OURS,
        least=2,
        most=16,
        is_whole=True,
        also=("none",),
    ),
    Hyperparameter(
        name="per",
        default="channel",
        meaning="what shares a scale: channel, tensor, or conv-channel (only convolutions by channel)",
        source=_OURS,
        choices=("channel", "tensor", "conv-channel"),
    ),
    Hyperparameter(
        name="clipping",
        default="learned",
        meaning="range of the weights: learned, the largest weight, or a number in weight units",
        source="Esser et al. 2020, arXiv 1902.08153",
        above=True,
        also=("learned", "max"),
    ),
    Hyperparameter(
        name="sparsity",
        default="none",
        meaning="of the activations, in training and afterwards: none, or high: top-k with 15 % kept",
        source=_OURS,
        choices=tuple(PRESETS),
    ),
)


_FORET = "Foret et al. 2020, arXiv 2010.01412"
_KWON = "Kwon et al. 2021, arXiv 2102.11600"
_MORDIDO = "Mordido et al. 2022, arXiv 2211.11561 (a co-author's code, ViT-B/16)"
_RWP = "arXiv 2602.07320"
_SAMSON_INF = _climbing(0.2, _MORDIDO, Range(0.05, 0.9, log=True))

MODIFIERS: dict[str, Modifier] = {
    row.name: row
    for row in (
        Modifier("clip", _CLIP.meaning, _table(_CLIP)),
        Modifier("noise", "noise on the weights in every pass", _table(_NOISE)),
        Modifier("noisy", "noise on the layers' outputs in every pass", _NOISY, put_on=_put_noise),
        Modifier(
            "vant", "the same at a level drawn anew each epoch (variance-aware)", _VANT, put_on=_put_noise
        ),
        Modifier(
            "qat-const",
            "training through quantized weights, and inputs with a constant scale",
            _CONSTANT,
            prepare=_constant_scale,
            put_on=_put_nothing,
        ),
    )
}

_ROWS = (
    Method(
        name="sgd",
        summary="plain stochastic gradient descent",
        hyperparameters={},
        gradients_per_step=1,
        build=_plain,
    ),
    Method(
        name="clip",
        summary="SGD with the weights clipped after every update",
        hyperparameters=_table(_CLIP),
        gradients_per_step=1,
        build=_plain,
        same_as=("sgd", ("clip",)),
    ),
    Method(
        name="noise",
        summary="SGD with Gaussian noise on the weights in every pass; with +clip the method of Joshi et al.",
        hyperparameters=_table(_NOISE),
        gradients_per_step=1,
        build=_plain,
        same_as=("sgd", ("noise",)),
    ),
    Method(
        name="noisy",
        summary="SGD with Gaussian noise on the layers' outputs in every pass",
        hyperparameters=_NOISY,
        gradients_per_step=1,
        build=_plain,
        same_as=("sgd", ("noisy",)),
    ),
    Method(
        name="vant",
        summary="variance-aware training: noise on the layers' outputs, its level drawn anew each epoch",
        hyperparameters=_VANT,
        gradients_per_step=1,
        build=_plain,
        same_as=("sgd", ("vant",)),
    ),
    Method(
        name="qat-const",
        summary="quantization-aware training with a constant scale of the layers' inputs",
        hyperparameters=_CONSTANT,
        gradients_per_step=1,
        build=_plain,
        same_as=("sgd", ("qat-const",)),
    ),
    Method(
        name="profile-noise",
        summary="SGD on weights as a fresh chip of the profile would hold them after a random drift time",
        hyperparameters=_table(
            _time("shortest", 1.0, "shortest drift time, in seconds or with a unit"),
            _time("longest", 31_536_000.0, "longest drift time, in seconds or with a unit"),
            Hyperparameter(
                name="draw",
                default="devices",
                meaning="whether every device is drawn, or one net noise for each pair (faster)",
                source=_OURS,
                choices=DRAWS,
            ),
        ),
        gradients_per_step=1,
        build=_profile_noise,
        needs_profile=True,
    ),
    Method(
        name="rwp",
        summary="random weight perturbation: the mean of a clean and a noisy gradient, the noise ramped up",
        hyperparameters=_table(
            Hyperparameter("noise", 0.1, _NOISE.meaning, _OURS, Range(0.02, 0.4, log=True)),
            _fraction("ramp", 0.5, "fraction of the training over which the noise grows linearly from 0"),
            _fraction("mix", 0.5, "share of the noisy gradient", _RWP + " (the mean of both losses)"),
        ),
        gradients_per_step=2,
        build=_rwp,
    ),
    Method(
        name="sam",
        summary="sharpness-aware minimization",
        hyperparameters=_climbing(0.05, _FORET, Range(0.02, 0.5, log=True), eta=False),
        gradients_per_step=2,
        build=_climb(SAM),
    ),
    Method(
        name="asam",
        summary="adaptive SAM: the climb scales with each weight's size",
        hyperparameters=_climbing(0.5, _KWON, Range(0.2, 3.0, log=True)),
        gradients_per_step=2,
        build=_climb(ASAM),
    ),
    Method(
        name="samson-inf",
        summary="SAMSON: the climb scales with each weight's size over the largest weight of its tensor",
        hyperparameters=_SAMSON_INF,
        gradients_per_step=2,
        build=_climb(SAMSON, p=math.inf),
    ),
    Method(
        name="samson",
        summary="SAMSON with the largest weight as norm: another name of samson-inf",
        hyperparameters=_SAMSON_INF,
        gradients_per_step=2,
        build=_climb(SAMSON, p=math.inf),
        same_as=("samson-inf", ()),
    ),
    Method(
        name="samson-2",
        summary="SAMSON: the climb scales with each weight's size over the Euclidean norm of its tensor",
        hyperparameters=_climbing(0.2, _MORDIDO, Range(0.1, 1.0, log=True)),
        gradients_per_step=2,
        build=_climb(SAMSON, p=2),
        # The Euclidean norm makes the weights' scaling small; biases, which dominate the climb otherwise,
        # stay.
        search_weights_only={"rho": Range(0.5, 6.0, log=True)},
    ),
    Method(
        name="qat",
        summary="quantization-aware training: SGD through quantized weights, gradients straight through",
        hyperparameters=_QUANTIZERS,
        gradients_per_step=1,
        build=_quantized(_plain),
        prepare=_quantize,
    ),
    Method(
        name="saq",
        summary="sharpness-aware quantization: SAM's climb from the quantized weights",
        hyperparameters={
            **_QUANTIZERS,
            **_climbing(0.05, _OURS, Range(0.02, 0.5, log=True), eta=False, perturb="weights"),
        },
        gradients_per_step=2,
        build=_quantized(_climb(SAQ)),
        prepare=_quantize,
    ),
    Method(
        name="asaq",
        summary="adaptive SAQ: ASAM's climb from the quantized weights",
        hyperparameters={
            **_QUANTIZERS,
            **_climbing(0.5, _OURS, Range(0.2, 3.0, log=True), perturb="weights"),
        },
        gradients_per_step=2,
        build=_quantized(_climb(ASAQ)),
        prepare=_quantize,
    ),
    Method(
        name="samson-saq",
        summary="SAQ with the scaling of SAMSON, the largest quantized weight as norm",
        hyperparameters={
            **_QUANTIZERS,
            **_climbing(0.2, _OURS, Range(0.05, 0.9, log=True), perturb="weights"),
        },
        gradients_per_step=2,
        build=_quantized(_climb(SAMSONSAQ, p=math.inf)),
        prepare=_quantize,
    ),
)
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}
