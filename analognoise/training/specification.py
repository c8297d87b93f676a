"""What a row of the table of training methods says: methods, modifiers, and their hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.optim import Optimizer

from analognoise.errors import MethodError
from analognoise.units import parse_time

Value = float | str


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


def by_name(*items: Hyperparameter) -> dict[str, Hyperparameter]:
    """Hyperparameters as rows hold them, in their order."""
    return {item.name: item for item in items}
