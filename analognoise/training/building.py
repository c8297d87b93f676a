"""How the methods and modifiers of the table are put around a base optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from analognoise.conversion import convert_to_analog
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import MethodError
from analognoise.on_tiles import analog_layers
from analognoise.training.computing import Fluctuating, Growing, Level, TrainingNoise
from analognoise.training.noise import ProfileNoise, RandomWeightPerturbation
from analognoise.training.specification import Build
from analognoise.training.wrapper import WrappedOptimizer


def put_noise(
    optimizer: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, epochs: int, seed: int
) -> Optimizer:
    """Add noise on the layers' outputs to any method's optimizer."""
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


def plain(
    base: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, seed: int, profile: Any
) -> Optimizer:
    """The base optimizer itself, with clipping and noise on the weights where they are asked for."""
    if not values:
        return base
    return WrappedOptimizer(base, model, clip=values.get("clip"), noise=values.get("noise"), seed=seed)


def profile_noise(
    base: Optimizer,
    model: nn.Module,
    values: dict[str, Any],
    *,
    steps: int,
    seed: int,
    profile: DeviceProfile | None,
) -> Optimizer:
    """Training on the weights of fresh chips.

    Raises:
        MethodError: when there is no profile to train for, or two.
    """
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


def weight_perturbation(
    base: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, seed: int, profile: Any
) -> Optimizer:
    """Training on the mean of a clean and a noisy gradient."""
    options = {name: values[name] for name in ("noise", "mix", "clip") if name in values}
    return RandomWeightPerturbation(base, model, **options, ramp=round(values["ramp"] * steps), seed=seed)


def climb(optimizer: Callable[..., Optimizer], **fixed: Any) -> Build:
    """How to build an optimizer of the sharpness-aware family, with some of its arguments fixed."""

    def build(
        base: Optimizer, model: nn.Module, values: dict[str, Any], *, steps: int, seed: int, profile: Any
    ) -> Optimizer:
        options = {name: value for name, value in values.items() if name != "warmup"}
        warmup = round(values["warmup"] * steps)
        return optimizer(base, model, **options, **fixed, rho_warmup=warmup, seed=seed)

    return build
