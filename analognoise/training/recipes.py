"""Recipes: a method of the table with its modifiers and hyperparameters, and the text that names it.

``sam+clip:rho=0.1:clip=2`` is the method ``sam`` with the modifier ``+clip`` and two hyperparameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from analognoise.conversion import for_training, keeping_digital
from analognoise.devices.profile import DeviceProfile
from analognoise.errors import MethodError, nearest
from analognoise.training.methods import METHODS, MODIFIERS
from analognoise.training.specification import Hyperparameter, Method, Modifier, Range, Value
from analognoise.units import short_number, short_time

__all__ = [
    "METHODS",
    "MODIFIERS",
    "Hyperparameter",
    "Method",
    "Modifier",
    "Range",
    "Recipe",
    "parse_method",
]


@dataclass(frozen=True)
class Recipe:
    """A method with its modifiers and every hyperparameter; hashable, and made by :func:`parse_method`.

    Attributes:
        name: the method's name in :data:`METHODS`.
        modifiers: names in :data:`MODIFIERS`, in its order.
        settings: ``(name, value)`` of every hyperparameter.
    """

    name: str
    modifiers: tuple[str, ...] = ()
    settings: tuple[tuple[str, Value], ...] = ()

    @property
    def method(self) -> Method:
        """The row of the table."""
        return METHODS[self.name]

    @property
    def hyperparameters(self) -> dict[str, Value]:
        """Every hyperparameter, defaults filled in."""
        return dict(self.settings)

    @property
    def specifications(self) -> dict[str, Hyperparameter]:
        """What the hyperparameters mean, those of the modifiers included."""
        return _specifications(self.name, self.modifiers)

    @property
    def ranges(self) -> dict[str, Range]:
        """Search range of every hyperparameter that is searched, as the recipe stands."""
        ranges = {name: item.search for name, item in self.specifications.items() if item.search is not None}
        if self.hyperparameters.get("perturb") == "weights":
            ranges |= self.method.search_weights_only
        return ranges

    @property
    def label(self) -> str:
        """The shortest text that :func:`parse_method` turns into this recipe, for a given order of words."""
        times = {name for name, item in self.specifications.items() if item.is_time}
        return self._label(lambda name, value: short_time(value) if name in times else short_number(value))

    @property
    def stored_label(self) -> str:
        """The label with times in seconds: what trainings that are stored are known by, in every version."""
        return self._label(lambda _, value: short_number(value))

    def _label(self, text: Callable[[str, float], str]) -> str:
        changed = [
            f"{name}={text(name, value) if isinstance(value, float) else value}"
            for name, value in self.settings
            if value != self.specifications[name].default
        ]
        return ":".join(["+".join([self.name, *self.modifiers]), *changed])

    @property
    def gradients_per_step(self) -> int:
        """Forward and backward passes in one training step."""
        return self.method.gradients_per_step

    @property
    def needs_profile(self) -> bool:
        """Whether training needs a device profile."""
        return self.method.needs_profile

    @property
    def identity(self) -> tuple[Any, ...]:
        """Equal for recipes that train alike under different names, as ``noise+clip`` and ``clip+noise``."""
        name, implied = self.method.same_as or (self.name, ())
        return name, tuple(sorted({*implied, *self.modifiers})), tuple(sorted(self.settings))

    def replace(self, **changes: Value) -> Recipe:
        """The recipe with some hyperparameters changed.

        Raises:
            MethodError: for a hyperparameter it has not, or a value that is out of range.
        """
        return _recipe(self.name, self.modifiers, {**self.hyperparameters, **changes})

    def prepare(
        self,
        model: nn.Module,
        *,
        profile: DeviceProfile | None = None,
        digital: Iterable[str] = (),
        seed: int = 0,
    ) -> nn.Module:
        """The model as the method trains it: the given one, or a twin that shares its Parameters (with
        quantized layers, for example). What it gave it takes once more, unchanged.

        Args:
            model: digital, or on tiles where the method trains it so.
            profile: the device to train for, if any.
            digital: patterns of layer names that stay digital, and are not the method's business.
            seed: of what the preparation draws.

        Raises:
            MethodError: when the method cannot train this model.
            ConversionError: when a pattern matches no layer, or nothing would be left for tiles.
        """
        found = [self.method.prepare, *(part.prepare for part in self._parts)]
        prepare = next((function for function in found if function is not None), None)
        if prepare is None:
            return for_training(model, profile, digital)
        chosen = keeping_digital(model, digital)
        values = self.hyperparameters
        return prepare(model, values, filter_fn=chosen, profile=profile, seed=seed)

    def build(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        steps: int,
        epochs: int = 1,
        seed: int = 0,
        profile: DeviceProfile | None = None,
    ) -> Optimizer:
        """Put the method around a base optimizer.

        Args:
            base: an optimizer over the model's parameters.
            model: converted or not.
            steps: optimizer steps of the whole training, for what grows over it.
            epochs: epochs of the whole training, for what is drawn anew in each.
            seed: of the method's own noise.
            profile: the device to train for, where the method needs one and the model is not converted.

        Raises:
            MethodError: when the method needs a profile and there is none.
        """
        values = self.hyperparameters
        kept = {name for part in self._parts for name in part.own}
        own = {name: value for name, value in values.items() if name not in kept}
        optimizer = self.method.build(base, model, own, steps=steps, seed=seed, profile=profile)
        for part in self._parts:
            if part.put_on is not None:
                optimizer = part.put_on(optimizer, model, values, steps=steps, epochs=epochs, seed=seed)
        return optimizer

    @property
    def _parts(self) -> tuple[Modifier, ...]:
        """The modifiers, those that the method abbreviates included."""
        _, implied = self.method.same_as or (self.name, ())
        return tuple(part for name, part in MODIFIERS.items() if name in (*implied, *self.modifiers))


def parse_method(text: str | Recipe) -> Recipe:
    """Read ``method[+modifier]...[:name=value]...``, for example ``sam+clip:rho=0.1:clip=2``.

    Raises:
        MethodError: for an unknown method, modifier or hyperparameter (with the nearest name), or a value out
            of range.
    """
    if isinstance(text, Recipe):
        return text
    if not isinstance(text, str):
        raise MethodError(f"a method is a name such as 'sam+clip' or a Recipe, found {text!r}")
    head, *assignments = (part.strip() for part in text.strip().split(":"))
    name, *modifiers = (part.strip() for part in head.split("+"))
    if name not in METHODS:
        raise MethodError(f"unknown method {name!r}{nearest(name, METHODS)}: known are {', '.join(METHODS)}")
    for modifier in modifiers:
        if modifier not in MODIFIERS:
            raise MethodError(
                f"unknown modifier {'+' + modifier!r} of method {name!r}{nearest(modifier, MODIFIERS)}: "
                f"known are {', '.join('+' + known for known in MODIFIERS)}"
            )
        _, implied = METHODS[name].same_as or (name, ())
        if modifier in (*METHODS[name].hyperparameters, *implied) or modifiers.count(modifier) > 1:
            raise MethodError(
                f"method {name!r} has {modifier!r} already: leave out '+{modifier}' in {text!r}"
            )
    _refuse_shared(name, modifiers, text)
    if name == "profile-noise" and "noise" in modifiers:
        raise MethodError("method 'profile-noise' brings its own noise: leave out '+noise'")
    if METHODS[name].needs_profile and any(MODIFIERS[modifier].prepare for modifier in modifiers):
        raise MethodError(
            f"method {name!r} trains on chips, which hold float weights: leave out '+qat-const' in {text!r}"
        )
    refuse_late_modifiers(text)
    values: dict[str, Value] = {}
    for assignment in assignments:
        key, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals or not key or not value:
            raise MethodError(f"{assignment!r} in method {text!r} is not of the form name=value")
        if key in values:
            raise MethodError(f"hyperparameter {key!r} is given twice in method {text!r}")
        values[key] = value
    return _recipe(name, tuple(known for known in MODIFIERS if known in modifiers), values)


def label_now(method: Any) -> Any:
    """A recipe's label in a file, as it is written now: an earlier version may have written it otherwise
    (``longest=2.592e+06`` for ``longest=1mo``). Anything else stays what it is.
    """
    try:
        return parse_method(method).label
    except MethodError:
        return method


def refuse_late_modifiers(text: str) -> None:
    """Raise when modifiers stand behind a hyperparameter, where they would be read as part of its value.

    Raises:
        MethodError: then; it says what to write instead.
    """
    head, *assignments = (part.strip() for part in text.split(":"))
    late: list[str] = []
    kept = []
    for assignment in assignments:
        rest, plus, word = assignment.rpartition("+")
        words: list[str] = []
        while plus and word.strip() in MODIFIERS:
            words.insert(0, word.strip())
            assignment = rest.strip()
            rest, plus, word = assignment.rpartition("+")
        kept.append(assignment)
        late += words
    if late:
        there = [part.strip() for part in head.split("+")]
        fixed = "+".join(dict.fromkeys((*there, *late)))
        raise MethodError(
            f"'+{'+'.join(late)}' in method {text!r} comes after a hyperparameter: modifiers follow the "
            f"method's name, as in '{':'.join((fixed, *kept))}'"
        )


def _specifications(name: str, modifiers: Iterable[str]) -> dict[str, Hyperparameter]:
    found = dict(METHODS[name].hyperparameters)
    for modifier in modifiers:
        found |= MODIFIERS[modifier].hyperparameters
    return found


def _refuse_shared(name: str, modifiers: list[str], text: str) -> None:
    """Raise when two parts of a recipe have a hyperparameter of the same name: they do the same twice."""
    owners = dict.fromkeys(METHODS[name].hyperparameters, f"method {name!r}")
    for modifier in modifiers:
        for key in MODIFIERS[modifier].hyperparameters:
            if key in owners:
                raise MethodError(
                    f"{owners[key]} and '+{modifier}' both have {key!r} and do not go together in {text!r}"
                )
            owners[key] = f"'+{modifier}'"


def _recipe(name: str, modifiers: tuple[str, ...], values: Mapping[str, Value]) -> Recipe:
    known = _specifications(name, modifiers)
    for key in values:
        if key not in known:
            choice = f"known are {', '.join(known)}" if known else "it has none"
            other = next((part.name for part in MODIFIERS.values() if key in part.hyperparameters), None)
            extra = f"; write '{name}+{other}' for it" if other else ""
            raise MethodError(
                f"method {name!r} has no hyperparameter {key!r}{nearest(key, known)}: {choice}{extra}"
            )
    settings = tuple((key, item.check(values.get(key, item.default), name)) for key, item in known.items())
    if name == "profile-noise" and float(dict(settings)["shortest"]) > float(dict(settings)["longest"]):
        raise MethodError("hyperparameter 'shortest' of method 'profile-noise' must not exceed 'longest'")
    return Recipe(name, modifiers, settings)
