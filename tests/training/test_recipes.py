"""The table of methods, the text that names a recipe, and what each recipe builds."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

from analognoise.comparison.settings import describe_recipe
from analognoise.conversion import convert_to_analog
from analognoise.devices.catalog import load_profile
from analognoise.errors import MethodError
from analognoise.training.noise import ProfileNoise, RandomWeightPerturbation
from analognoise.training.recipes import METHODS, MODIFIERS, Range, label_now, parse_method
from analognoise.training.sharpness import ASAM, SAM, SAMSON
from analognoise.training.wrapper import WrappedOptimizer

NAMES = ["sgd", "clip", "noise", "profile-noise", "rwp", "sam", "asam", "samson-inf", "samson", "samson-2"]
QUANTIZED = ["qat", "saq", "asaq", "samson-saq"]
NAMES += [*QUANTIZED, "noisy", "vant", "qat-const"]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def built(text: str, network: nn.Module | None = None, *, steps: int = 100, profile=None):
    network = parse_method(text).prepare(network or model())
    base = torch.optim.SGD(network.parameters(), lr=0.1)
    return parse_method(text).build(base, network, steps=steps, seed=5, profile=profile), base


def test_every_named_method_is_there():
    assert sorted(METHODS) == sorted(NAMES)
    assert all(METHODS[name].name == name for name in METHODS)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("noise+clip", {"noise": 0.038, "clip": 2.0}),
        ("sam", {"rho": 0.05}),
        ("asam", {"rho": 0.5, "eta": 0.01}),
        ("samson", {"rho": 0.2, "eta": 0.01}),
        ("samson-inf", {"rho": 0.2, "eta": 0.01}),
        ("samson-2", {"rho": 0.2, "eta": 0.01}),
        ("rwp", {"mix": 0.5}),
    ],
)
def test_defaults_are_the_sources_figures(name, values):
    hyperparameters = parse_method(name).hyperparameters
    assert {key: hyperparameters[key] for key in values} == values


def test_every_hyperparameter_says_what_it_is_and_where_its_default_comes_from():
    for name in METHODS:
        for item in parse_method(name).specifications.values():
            assert len(item.meaning) > 10, (name, item.name)
            assert item.source, (name, item.name)


@pytest.mark.parametrize("name", NAMES)
def test_ranges_hold_the_default_and_allowed_values_only(name):
    recipe = parse_method(name)
    for key, span in recipe.ranges.items():
        assert span.low < float(recipe.hyperparameters[key]) < span.high, key
        for fraction in (0.0, 0.5, 1.0):
            assert recipe.replace(**{key: span.at(fraction)}).hyperparameters[key] == span.at(fraction)


def test_every_method_but_the_plain_ones_is_searched():
    assert {name for name in NAMES if not METHODS[name].ranges} == {"sgd", "profile-noise", "qat"}


def test_a_range_covers_itself():
    assert [Range(1, 3).at(x) for x in (0, 0.5, 1)] == [1, 2, 3]
    assert [Range(0.01, 1, log=True).at(x) for x in (0, 0.5, 1)] == [0.01, 0.1, 1]
    assert Range(0.02, 0.5, log=True).at(0.3) == float(f"{0.02 * 25**0.3:.4g}")


def test_weights_only_climbs_have_their_own_range():
    assert parse_method("samson-2").ranges["rho"] == Range(0.1, 1.0, log=True)
    assert parse_method("samson-2:perturb=weights").ranges["rho"] == Range(0.5, 6.0, log=True)
    assert parse_method("samson:perturb=weights").ranges == parse_method("samson").ranges


def test_parsing():
    recipe = parse_method(" sam+clip : rho = 0.1 : clip=1.5 ")
    assert (recipe.name, recipe.modifiers) == ("sam", ("clip",))
    assert recipe.hyperparameters == {"rho": 0.1, "warmup": 0.1, "perturb": "all", "clip": 1.5}
    assert recipe.label == "sam+clip:rho=0.1:clip=1.5"
    assert parse_method(recipe) is recipe
    times = parse_method("profile-noise:shortest=1h:longest=1mo").hyperparameters
    assert times == {"shortest": 3600.0, "longest": 2592000.0, "draw": "devices"}


@pytest.mark.parametrize(
    "text",
    [
        "sgd",
        "noise+clip",
        "clip+noise",
        "rwp+clip:mix=0.25",
        "sam+clip:rho=0.1:clip=1.5",
        "samson-2:rho=3:perturb=weights",
        "samson+clip+noise:noise=0.02",
        "asam:rho=0.7301",
        "profile-noise:shortest=90s:longest=1mo",
        "profile-noise:shortest=0.25s",
    ],
)
def test_labels_are_read_back(text):
    recipe = parse_method(text)
    assert recipe.label == text
    assert parse_method(recipe.label) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert len({recipe, parse_method(text)}) == 1


def test_modifiers_have_one_order_and_defaults_are_not_written():
    assert parse_method("sam+noise+clip") == parse_method("sam+clip+noise:rho=0.05")
    assert parse_method("sam+noise+clip:rho=0.05").label == "sam+clip+noise"


def test_labels_keep_every_digit():
    recipe = parse_method("sam").replace(rho=0.1 + 0.2)
    assert parse_method(recipe.label).hyperparameters["rho"] == 0.1 + 0.2


def test_what_trainings_are_stored_under_is_that_of_every_version():
    """Labels write times with units; folders of before that are to be gone on with."""
    recipe = parse_method("profile-noise:shortest=0.25s:longest=1mo")
    assert recipe.label == "profile-noise:shortest=0.25s:longest=1mo"
    assert recipe.stored_label == "profile-noise:shortest=0.25:longest=2.592e+06"
    assert describe_recipe(recipe)["recipe"] == recipe.stored_label
    assert parse_method("sam+clip:rho=0.3").stored_label == "sam+clip:rho=0.3"
    for text in (recipe.label, recipe.stored_label):
        assert label_now(text) == recipe.label
    assert label_now("a method of a plug-in that is gone") == "a method of a plug-in that is gone"
    assert label_now(None) is None


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("samson", "samson-inf", True),
        ("noise+clip", "clip+noise", True),
        ("clip", "sgd+clip", True),
        ("noise", "sgd+noise", True),
        ("samson", "samson-2", False),
        ("samson:rho=0.3", "samson-inf", False),
        ("sam", "sam+clip", False),
        ("sgd", "clip", False),
    ],
)
def test_identity(one, other, alike):
    assert (parse_method(one).identity == parse_method(other).identity) is alike


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("samsom", r"unknown method 'samsom' \(did you mean 'samson'\?\): known are sgd, clip,"),
        ("", "unknown method ''"),
        ("sam+clp", r"unknown modifier '\+clp' of method 'sam' \(did you mean 'clip'\?\)"),
        ("clip+clip", r"method 'clip' has 'clip' already: leave out '\+clip'"),
        ("rwp+noise", r"method 'rwp' has 'noise' already"),
        ("sam+clip+clip", r"method 'sam' has 'clip' already"),
        ("profile-noise+noise", r"method 'profile-noise' brings its own noise"),
        ("profile-noise+qat-const", r"'profile-noise' trains on chips, .* leave out '\+qat-const'"),
        ("sam:roh=0.1", r"method 'sam' has no hyperparameter 'roh' \(did you mean 'rho'\?\): known are rho,"),
        ("sam:clip=2", r"no hyperparameter 'clip': known are rho, warmup, perturb; write 'sam\+clip' for it"),
        ("sgd:rho=1", r"method 'sgd' has no hyperparameter 'rho': it has none"),
        ("sam:rho", r"'rho' in method 'sam:rho' is not of the form name=value"),
        ("sam:=1", r"'=1' in method 'sam:=1' is not of the form name=value"),
        ("sam:rho=1:rho=2", r"hyperparameter 'rho' is given twice"),
        ("sam:rho=big", r"'rho' of method 'sam' must be a number at least 0, found 'big'"),
        ("sam:rho=-1", r"must be a number at least 0, found '-1'"),
        ("sam:rho=nan", r"must be a number at least 0, found 'nan'"),
        ("sam:rho=inf", r"must be a number at least 0, found 'inf'"),
        ("clip:clip=0", r"'clip' of method 'clip' must be a number above 0, found '0'"),
        ("rwp:mix=1.5", r"must be a number at least 0 and at most 1, found '1.5'"),
        ("sam:perturb=biases", r"'perturb' of method 'sam' must be one of all, weights, found 'biases'"),
        ("sam:rho=0.1+clip", r"'\+clip' .* comes after a hyperparameter: .* as in 'sam\+clip:rho=0.1'"),
        ("sam:rho=0.1+clip+noise:warmup=0", r"'\+clip\+noise' .* as in 'sam\+clip\+noise:rho=0.1:warmup=0'"),
        ("sam+clip:rho=1e+0+clip", r"'\+clip' in .* as in 'sam\+clip:rho=1e\+0'"),
        ("sam:perturb=clip", r"must be one of all, weights, found 'clip'"),
        ("profile-noise:longest=1 fortnight", r"'longest' .* must be a number above 0, found '1 fortnight'"),
        ("profile-noise:shortest=1y:longest=1d", r"'shortest' .* must not exceed 'longest'"),
    ],
)
def test_bad_recipes(text, message):
    with pytest.raises(MethodError, match=message):
        parse_method(text)


def test_replace_checks_too():
    with pytest.raises(MethodError, match="no hyperparameter 'eta'"):
        parse_method("sam").replace(eta=0.1)
    with pytest.raises(MethodError, match="must be a number at least 0, found -1"):
        parse_method("sam").replace(rho=-1)


def test_plain_methods_build_the_base_or_its_wrapper():
    optimizer, base = built("sgd")
    assert optimizer is base
    for text, clip, noise in [
        ("clip", 2.0, None),
        ("noise:noise=0.1", None, 0.1),
        ("noise+clip:clip=1.5", 1.5, 0.038),
        ("sgd+noise", None, 0.038),
    ]:
        optimizer, base = built(text)
        assert type(optimizer) is WrappedOptimizer
        assert optimizer.base is base
        assert (optimizer.clip, optimizer.noise, optimizer.seed) == (clip, noise, 5)


@pytest.mark.parametrize(
    ("text", "kind", "p"),
    [
        ("sam", SAM, None),
        ("asam", ASAM, None),
        ("samson", SAMSON, math.inf),
        ("samson-inf", SAMSON, math.inf),
        ("samson-2", SAMSON, 2),
    ],
)
def test_climbing_methods(text, kind, p):
    optimizer, base = built(
        f"{text}+clip+noise:rho=0.3:warmup=0.25:perturb=weights:clip=1.5:noise=0.02", steps=80
    )
    assert type(optimizer) is kind
    assert optimizer.base is base
    assert optimizer.param_groups[0]["rho"] == 0.3
    assert optimizer.rho_warmup == 20
    assert optimizer.perturb == "weights"
    assert (optimizer.clip, optimizer.noise) == (1.5, 0.02)
    if p is not None:
        assert optimizer.p == p
    if kind is not SAM:
        assert optimizer.param_groups[0]["eta"] == 0.01


def test_random_weight_perturbation():
    optimizer, _ = built("rwp+clip:noise=0.2:ramp=0.5:mix=0.3", steps=30)
    assert type(optimizer) is RandomWeightPerturbation
    assert (optimizer.noise, optimizer.noise_ramp, optimizer.mix, optimizer.clip) == (0.2, 15, 0.3, 2.0)


def test_profile_noise_trains_a_twin_that_shares_the_parameters():
    network, profile = model(), load_profile("pcm-ibm")
    optimizer, _ = built("profile-noise:longest=1d", network, profile=profile)
    assert type(optimizer) is ProfileNoise
    assert optimizer.times == (1.0, 86400.0)
    assert optimizer.model is not network
    assert [id(p) for p in optimizer.model.parameters()] == [id(p) for p in network.parameters()]
    assert type(network[0]) is nn.Linear


def test_profile_noise_takes_a_converted_model_as_it_is():
    analog = convert_to_analog(model(), "pcm-ibm")
    for profile in (None, load_profile("pcm-ibm")):
        optimizer, _ = built("profile-noise", analog, profile=profile)
        assert optimizer.model is analog
    with pytest.raises(
        MethodError, match="was given profile 'gaussian', but the model is converted for 'pcm-ibm'"
    ):
        built("profile-noise", analog, profile=load_profile("gaussian"))


def test_profile_noise_without_a_profile():
    with pytest.raises(MethodError, match="method 'profile-noise' needs a device profile"):
        built("profile-noise")
    assert [name for name in NAMES if parse_method(name).needs_profile] == ["profile-noise"]


@pytest.mark.parametrize("name", [*NAMES, "sam+clip+noise", "rwp+clip", "profile-noise+clip"])
def test_passes_in_a_step_are_as_the_table_says(name):
    network = model()
    optimizer, _ = built(name, network, profile=load_profile("pcm-ibm"))
    passes = 0

    def closure():
        nonlocal passes
        passes += 1
        optimizer.zero_grad()
        loss = network(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert passes == parse_method(name).gradients_per_step


def test_modifiers_are_these():
    assert list(MODIFIERS) == ["clip", "noise", "noisy", "vant", "qat-const"]
