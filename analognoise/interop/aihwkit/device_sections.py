"""The sections of a profile that describe the device, from each noise model that ships with aihwkit.

Figures that aihwkit's classes hold in their code and not in the object are those of the shipped profiles,
whose tests compare them with aihwkit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel, PCMLikeNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel, ReRamWan2022NoiseModel

from analognoise.devices.base import BaseCurve
from analognoise.devices.catalog import load_profile
from analognoise.errors import ProfileError
from analognoise.interop.aihwkit.findings import NotCarriedOver

Sections = dict[str, Any]


def sections_of(model: BaseNoiseModel, left: list[NotCarriedOver], stand_in: bool = False) -> Sections:
    """All sections but [mapping] and [tile] of the device that a noise model describes.

    Args:
        model: of a class that ships with aihwkit.
        left: gets what could not be carried over.
        stand_in: give range and name alone for any other class.

    Raises:
        ProfileError: for any other class, a subclass of a known one included: it may do anything.
    """
    kind = type(model)
    if kind not in _READERS and not stand_in:
        names = ", ".join(sorted(known.__name__ for known in _READERS))
        raise ProfileError(
            f"noise_model is a {kind.__name__}, whose law cannot be read from outside: known are {names}; "
            "write its figures into a profile, or its code into a device law of your own (docs/plugins.md)"
        )
    converter = model.g_converter
    g_max: Any = getattr(model, "g_max", None) or getattr(converter, "g_max", 1.0)
    g_min = getattr(converter, "g_min", 0.0)
    conductance = {"unit": "uS", "g_max": float(g_max), "g_min": float(g_min)}
    sections = {
        "name": f"aihwkit-{kind.__name__}",
        "technology": "as in aihwkit",
        "source": _source(model),
        "conductance": conductance,
    }
    return sections | (_READERS[kind](model, left, conductance) if kind in _READERS else {})


def _source(model: BaseNoiseModel) -> Sections:
    return {"notes": f"Read from aihwkit's {type(model).__name__} with its settings."}


def _scaled(curve: BaseCurve, factor: float) -> dict[str, Any]:
    result: dict[str, Any] = curve.scaled(factor).as_dict()
    return result


def _polynomial(coefficients: Any, scale: float, **more: float) -> dict[str, Any]:
    return {
        "curve": "polynomial",
        "coefficients": [float(value) for value in coefficients],
        "scale": float(scale),
        **more,
    }


def _log_drift(model: Any, shipped: str) -> Sections:
    """Programming, drift and read of the models whose figures a shipped profile has, at this g_max and scale.

    Their polynomials are of G / g_max and in microsiemens at the g_max that they were fitted at.
    """
    profile = load_profile(shipped)
    assert profile.programming is not None
    assert profile.drift is not None
    assert profile.read is not None
    assert profile.read.relative_sigma is not None
    reference = getattr(model, "prog_coeff_g_max_reference", model.g_max)
    return {
        "programming": {
            "sigma": _polynomial(model.prog_coeff, model.prog_noise_scale * model.g_max / reference)
        },
        "drift": {
            "t_0": float(model.t_0),
            "nu_mean": _scaled(profile.drift.nu_mean, model.drift_scale),
            "nu_std": _scaled(profile.drift.nu_std, model.drift_scale),
        },
        "read": {
            "t_read": float(model.t_read),
            "relative_sigma": _scaled(profile.read.relative_sigma, model.read_noise_scale),
        },
    }


def _dropped_reference(model: Any, left: list[NotCarriedOver]) -> None:
    """aihwkit drops a reference that is given beside coefficients, and then cannot program at all."""
    for name in ("prog_coeff_g_max_reference", "coeff_g_max_reference"):
        known = ("prog" in name) != isinstance(model, ReRamWan2022NoiseModel)
        if known and not hasattr(model, name):
            reason = "aihwkit drops the value that was given; g_max is taken: scale the coefficients yourself"
            left.append(NotCarriedOver(f"noise_model.{name}", None, reason))


def _pcm(model: Any, left: list[NotCarriedOver], conductance: Sections) -> Sections:
    _dropped_reference(model, left)
    return _log_drift(model, "pcm-ibm")


def _hermes(model: Any, left: list[NotCarriedOver], conductance: Sections) -> Sections:
    _dropped_reference(model, left)
    return _log_drift(model, f"pcm-hermes-{model.num_devices}")


def _custom_drift(model: Any, left: list[NotCarriedOver], conductance: Sections) -> Sections:
    sections = _pcm(model, left, conductance)
    given = model.custom_drift_model
    x = [float(g) / float(model.g_max) for g in given["g_lst"]]
    for field, name in (("nu_mean", "nu_mean_lst"), ("nu_std", "nu_std_lst")):
        y = [float(value) for value in given[name]]
        sections["drift"][field] = {"curve": "table", "x": x, "y": y, "scale": float(model.drift_scale)}
    return sections


def _state_independent(model: Any, left: list[NotCarriedOver], conductance: Sections) -> Sections:
    scale = float(model.drift_scale)
    return {
        "programming": {"sigma": _polynomial(model.prog_coeff, model.prog_noise_scale)},
        "drift": {
            "t_0": float(model.t_0),
            "nu_mean": float(model.drift_nu_mean) * scale,
            "nu_std": float(model.drift_nu_std) * scale,
        },
        # Its read noise is G / g_max microsiemens times the growth, so 1 / g_max of the conductance.
        "read": {
            "t_read": float(model.t_read),
            "relative_sigma": float(model.read_noise_scale) / float(model.g_max),
        },
    }


def _wan(model: Any, left: list[NotCarriedOver], conductance: Sections) -> Sections:
    _dropped_reference(model, left)
    # aihwkit keeps the 40 µS of its own coefficients under a name that it never reads: they are used with
    # g_max in that place. This is what it computes; the profile reram-wan-2022 has the published curves.
    reference = float(getattr(model, "coeff_g_max_reference", model.g_max))
    scale = model.noise_scale * model.g_max / reference
    ages = sorted(model.coeff_dic)
    own = getattr(model, "prog_coeff_g_max_reference", reference)
    note = "aihwkit draws a new normal number at every age; here each device keeps its own."
    if own != reference:
        note += (
            f" It means its coefficients for G / {own:g} uS but uses them with G / {model.g_max:g} uS, as is "
            "done here; the profile reram-wan-2022 has the published curves."
        )
    return {
        "source": {**_source(model), "disagreements": note},
        "retention": {
            "ages": [float(age) for age in ages],
            "sigma": [_polynomial(model.coeff_dic[age], scale) for age in ages],
        },
        "validity": {"measured": [float(ages[0]), float(ages[-1])], "default_times": list(map(float, ages))},
    }


def _cmo(model: Any, left: list[NotCarriedOver], conductance: Sections) -> Sections:
    conductance["clamp_to_range"] = True
    # A range that is not among the keys makes aihwkit take the smallest, without a word.
    accepted = model.acceptance_range if model.acceptance_range in model.coeff_dict else min(model.coeff_dict)
    note = (
        f"programmed to within {accepted:g} %: aihwkit takes the smallest range of its table, 0.2 %, unless "
        "acceptance_range is one of its keys. aihwkit draws relaxation anew at every time; here each device "
        "keeps its own normal number."
    )
    drift = float(model.drift_scale)
    mean, std = model.decay_dict["mean"], model.decay_dict["std"]
    return {
        "source": {**_source(model), "disagreements": note},
        "programming": {
            "sigma": _polynomial(model.coeff_dict[accepted], model.prog_noise_scale, reference=1.0),
            "clamp_at_zero": False,
        },
        "relaxation": {
            "shift": float(mean[0]) * drift,
            "sigma": float(std[1]) * drift,
            "sigma_slope": float(std[0]) * drift,
            "clamp_at_zero": False,
        },
        "read": {
            "t_read": float(model.read_dict["t_read"]),
            "t_0": 0.0,
            "sigma": {
                "curve": "log",
                "slope": float(model.read_dict["K"]) * float(model.read_noise_scale) / math.log(10),
                "intercept": 0.0,
                "reference": 1.0,
            },
        },
    }


_READERS: dict[type[BaseNoiseModel], Callable[[Any, list[NotCarriedOver], Sections], Sections]] = {
    PCMLikeNoiseModel: _pcm,
    CustomDriftPCMLikeNoiseModel: _custom_drift,
    HermesNoiseModel: _hermes,
    StateIndependentNoiseModel: _state_independent,
    ReRamWan2022NoiseModel: _wan,
    ReRamCMONoiseModel: _cmo,
}
