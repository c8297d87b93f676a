"""The training loop: the same to the last bit for a seed, and nothing around it disturbed."""

from __future__ import annotations

import copy
import math
import random
import re
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from analognoise.conversion import convert_to_analog
from analognoise.devices.catalog import load_profile
from analognoise.errors import DataError, MethodError, ModelError, TrainingError
from analognoise.tasks import TensorBatches, get_task
from analognoise.training.fit import fit
from analognoise.training.history import Epoch
from analognoise.training.measure import measure
from analognoise.training.recipes import METHODS, parse_method


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(samples: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes that a linear layer tells apart."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(samples) % 3
    return torch.randn(samples, 5, generator=generator) + 3 * functional.one_hot(y, 5), y


def network(dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Linear(5, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers, nn.Linear(8, 3))


def batches(seed: int = 0) -> TensorBatches:
    return TensorBatches(*blobs(), 20, seed=seed)


def train(model: nn.Module, recipe: str = "sgd", data=None, **options):
    settings = {"epochs": 3, "lr": 0.05, "seed": 0} | options
    return fit(model, batches() if data is None else data, recipe=recipe, **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_plain_training_equals_a_loop_written_by_hand(schedule):
    ours, theirs = network(), network()
    history = train(ours, schedule=schedule, momentum=0.8, weight_decay=0.01)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.8, weight_decay=0.01)
    data, losses, step = batches(), [], 0
    factor = {
        "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
        "linear": lambda done: 1 - done,
        "constant": lambda done: 1.0,
    }[schedule]
    for _ in range(3):
        total = 0.0
        for x, y in data:
            optimizer.param_groups[0]["lr"] = 0.05 * factor(step / 15)
            optimizer.zero_grad()
            loss = functional.cross_entropy(theirs(x), y)
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(y)
            step += 1
        losses.append(total / 96)
    assert same(ours, theirs)
    assert history.train_loss == pytest.approx(losses, rel=1e-6)
    assert history.gradients == [5, 10, 15]


@pytest.mark.parametrize("recipe", [*METHODS, "samson+clip+noise"])
def test_every_method_learns_and_repeats_itself(recipe):
    profile = load_profile("pcm-ibm")
    first, again, other = network(0.2, norm=True), network(0.2, norm=True), network(0.2, norm=True)
    history = train(first, recipe, epochs=8, profile=profile, validation=[blobs()])
    torch.rand(3)
    assert (
        train(again, recipe, epochs=8, profile=profile, validation=[blobs()]).to_dict() == history.to_dict()
    )
    assert same(first, again)
    train(other, recipe, epochs=8, profile=profile, seed=1)
    assert not same(first, other)
    share = 0.7 if recipe in ("noisy", "vant") else 0.5  # their losses hold noise of the outputs
    assert history.train_loss[-1] < share * history.train_loss[0]
    assert history.validation[-1] > 0.9
    assert history.gradients[-1] == 8 * 5 * METHODS[recipe.split("+")[0]].gradients_per_step


def test_generators_modes_and_grad_mode_are_left_as_found():
    model = network(0.5)
    model.eval()
    model[0].train()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    with torch.no_grad():
        train(model, "sam+noise", validation=[blobs()])
        assert not torch.is_grad_enabled()
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert [module.training for module in model] == [True, False, False, False]


def test_a_shuffling_loader_without_a_generator_follows_the_seed():
    data = TensorDataset(*blobs())
    models = [network(), network(), network()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.rand(1)
        train(model, data=DataLoader(data, batch_size=20, shuffle=True), seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_validation_changes_nothing():
    data = TensorDataset(*blobs())
    models = [network(0.5, norm=True), network(0.5, norm=True)]
    for model, validation in zip(models, (None, DataLoader(data, batch_size=50)), strict=True):
        train(model, data=DataLoader(data, batch_size=20, shuffle=True), validation=validation)
    assert same(*models)


def test_a_loader_used_before_trains_the_same():
    used = batches()
    list(used)
    models = [network(), network()]
    train(models[0], data=used)
    train(models[1])
    assert same(*models)


def test_a_converted_model_trains_like_the_digital_one_and_is_validated_digitally():
    digital = network()
    analog = convert_to_analog(network(), "pcm-ibm")
    history = train(analog, "sam+clip", validation=[blobs()])
    assert history.to_dict() == train(digital, "sam+clip", validation=[blobs()]).to_dict()
    assert same(digital, analog)
    # The last epoch's figure is that of the weights that are kept.
    assert history.validation[-1] == measure(digital, [blobs()]).value


def test_zero_climb_is_the_base_and_counts_one_gradient():
    models = [network(0.3), network(0.3)]
    plain = train(models[0], "sgd")
    climb = train(models[1], "sam:rho=0")
    assert same(*models)
    assert plain.gradients == climb.gradients


def test_training_goes_on_from_given_weights():
    model = network()
    train(model)
    tuned = copy.deepcopy(model)
    history = train(tuned, "sam", epochs=1, lr=1e-9)
    scratch = train(network(), "sam", epochs=1, lr=1e-9)
    assert history.train_loss[0] < 0.6 * scratch.train_loss[0]
    for a, b in zip(model.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_frozen_parameters_stay():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, "noise+clip:noise=0.1")
    assert torch.equal(model[0].weight, before)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ModelError, match="Sequential has no parameter with requires_grad=True"):
        train(model)


def test_epochs_are_reported_as_they_end():
    seen: list[Epoch] = []
    history = train(network(), "rwp", validation=[blobs()], on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [1, 2, 3]
    assert {epoch.epochs for epoch in seen} == {3}
    assert [epoch.train_loss for epoch in seen] == history.train_loss
    assert [epoch.validation for epoch in seen] == history.validation
    assert [epoch.gradients for epoch in seen] == history.gradients == [10, 20, 30]


def test_metrics():
    model = network()
    x, y = blobs()
    with torch.no_grad():
        scores = model.eval()(x)
    parts = [(x[:50], y[:50]), (x[50:], y[50:])]
    assert measure(model, parts).value == int((scores.argmax(1) == y).sum()) / 96
    loss = float(functional.cross_entropy(scores, y))
    assert measure(model, parts, metric="loss").value == pytest.approx(loss, rel=1e-6)
    assert measure(model, parts, metric="perplexity").value == pytest.approx(math.exp(loss), rel=1e-6)

    def hits(output, batch):
        return (output.argmax(1) == batch[1]).sum(), len(batch[1])

    assert measure(model, parts, metric=hits).value == measure(model, parts).value
    assert train(model, validation=parts, metric=hits, epochs=1).metric == "hits"


class Words(nn.Module):
    """Logits (B, L, C), as language models give them."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.table = nn.Embedding(7, 7)

    def forward(self, words):
        return self.table(words)


def sentences(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words, and as labels the words that follow; some do not count."""
    words = torch.randint(7, (samples, 5), generator=torch.Generator().manual_seed(seed))
    labels = (words + 1) % 7
    labels[0, :4] = labels[-1, 2] = -100
    return words, labels


def test_labels_that_do_not_count_and_classes_in_the_last_place():
    model = Words()
    data = [sentences(3, 0), sentences(2, 1), (sentences(1, 2)[0], torch.full((1, 5), -100))]
    logits = torch.cat([model(x).detach()[y != -100] for x, y in data])
    labels = torch.cat([y[y != -100] for _, y in data])
    assert len(labels) == 15  # 10 of 15 and 5 of 10 and 0 of 5
    loss = float(functional.cross_entropy(logits.double(), labels))
    hits = int((logits.argmax(1) == labels).sum())
    found = measure(model, data)
    assert (found.sum, found.count, found.value) == (hits, 15, hits / 15)
    assert measure(model, data, metric="loss").value == pytest.approx(loss, rel=1e-6)
    assert measure(model, data, metric="perplexity").value == pytest.approx(math.exp(loss), rel=1e-6)
    with pytest.raises(DataError, match="batch 0 to 0: no label counts"):
        measure(model, data[2:], metric="loss")
    history = train(
        model, data=data[:2], validation=data, epochs=20, lr=1.0, momentum=0.0, schedule="constant"
    )
    assert history.validation[-1] == 1.0
    # Targets that are no class numbers count by sample.
    x, _ = blobs()
    means = [(network().eval()(part) - 1).abs().mean().item() for part in (x[:90], x[90:])]
    regression = [(part, torch.ones(len(part), 3)) for part in (x[:90], x[90:])]
    found = measure(network(), regression, metric="loss", loss=functional.l1_loss)
    assert found.value == pytest.approx((90 * means[0] + 6 * means[1]) / 96, rel=1e-6)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_batches_of_numpy_arrays_named_tuples_and_lists():
    x, y = blobs()
    parts = list(zip(x.split(20), y.split(20), strict=True))
    plain = network()
    history = train(plain, data=parts, validation=parts)

    def forward(model, batch):
        assert isinstance(batch, Pair)
        return model(batch.x)

    for kind, options in (
        (lambda x, y: (x.numpy(), y.numpy()), {}),
        (lambda x, y: [x, y.numpy().astype("int32")], {}),
        (Pair, {"forward": forward}),
        (lambda x, y: Pair(x.numpy(), y.numpy()), {"forward": forward}),
    ):
        model = network()
        data = [kind(*part) for part in parts]
        assert train(model, data=data, validation=data, **options).to_dict() == history.to_dict()
        assert same(model, plain)


def test_validation_that_is_not_finite_is_a_breakdown():
    x, y = blobs()
    words = "'sgd' broke down in epoch 1: validation data, batch 1: the accuracy has the sum nan"
    with pytest.raises(TrainingError, match=words):
        train(network(), validation=[(x, y), (x * math.inf, y)])
    with pytest.raises(TrainingError, match=r"a mean loss of .* has no finite perplexity: use metric='loss'"):
        train(network(), validation=[(x * 1e5, (y + 1) % 3)], metric="perplexity")
    with pytest.raises(DataError, match="expected finite numbers"):
        train(network(), validation=[(x, y)], metric=lambda output, batch: (math.nan, 1))


class Named(nn.Module):
    """Takes a keyword, gives an object with logits, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, *, inputs):
        return {"logits": self.inner(inputs)}


def test_dict_batches_and_outputs_with_logits():
    x, y = blobs()
    named, plain = Named(), network()
    data = [{"inputs": a, "labels": b} for a, b in zip(x.split(20), y.split(20), strict=True)]
    pairs = list(zip(x.split(20), y.split(20), strict=True))
    history = train(named, data=data, validation=data)
    assert history.to_dict() == train(plain, data=pairs, validation=pairs).to_dict()
    assert same(named.inner, plain)


def test_forward_and_loss_of_ones_own():
    x, y = blobs()
    model, plain = network(), network()
    triples = [(x, None, y)]
    train(
        model,
        data=triples,
        forward=lambda model, batch: model(batch[0]),
        loss=lambda output, target: 2 * functional.cross_entropy(output, target),
        lr=0.025,
        schedule="constant",
        momentum=0.0,
    )
    train(plain, data=[(x, y)], schedule="constant", momentum=0.0)
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("recipe", ["sgd", "sam", "rwp", "profile-noise", "samson+clip+noise"])
def test_divergence_names_method_and_epoch(recipe):
    model = network()
    words = rf"training by method '{re.escape(recipe)}' broke down in epoch [12], step \d+: "
    with pytest.raises(TrainingError, match=words):
        train(model, recipe, lr=1e20, epochs=2, profile=load_profile("pcm-ibm"))


def test_a_gradient_that_overflows_is_a_breakdown():
    x, y = blobs()
    with pytest.raises(
        TrainingError, match="'sam' broke down in epoch 1, step 1: the norm of the gradient is inf"
    ):
        train(network(), "sam", data=[(x * 1e25, y)])


class Normed(nn.Module):
    """Its running variance overflows long before a loss does; the mask is infinite from the beginning."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


def test_running_statistics_that_overflow_are_a_breakdown():
    torch.manual_seed(0)
    model = Normed()
    train(model, epochs=1)
    with torch.no_grad():
        model.first.weight.mul_(1e21)
    words = r"broke down in epoch 1, step \d+: buffer 'norm.running_var': 8 of its 8 values are NaN or inf"
    with pytest.raises(TrainingError, match=words):
        train(model, epochs=1)


def test_divergence_in_the_last_step_is_found():
    # The loss of the only step is fine; what it does to the weights is not.
    x, y = blobs()
    with pytest.raises(TrainingError, match=r"broke down in epoch 1, step 1: parameter '0\.weight'"):
        train(network(), data=[(10 * x, y)], lr=3e38, epochs=1, schedule="constant")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, found 0"),
        ({"epochs": 1.5}, "epochs must be a whole number of at least 1, found 1.5"),
        ({"lr": 0.0}, "lr must be finite and above 0, found 0.0"),
        ({"lr": math.nan}, "lr must be finite and above 0, found nan"),
        ({"schedule": "cosin"}, r"unknown schedule 'cosin' \(did you mean 'cosine'\?\)"),
        ({"metric": "acuracy"}, "unknown metric 'acuracy'"),
        ({"data": []}, "the training data hold no batch"),
        ({"data": (pair for pair in [blobs()])}, "training data of type generator have no length"),
        ({"data": [blobs()[0]]}, "training data, batch 0: found a Tensor, expected"),
        ({"data": [(*blobs(), 1)]}, "training data, batch 0: found a tuple of 3 parts, expected"),
        ({"data": [{"x": blobs()[0]}], "forward": lambda m, b: m(b["x"])}, "keys x has no labels"),
        ({"validation": []}, "the validation data gave no batch"),
        (
            {"validation": [blobs(), (blobs()[0], blobs()[0])]},
            r"validation data, batch 1: labels are torch\.float32, expected integer class numbers",
        ),
        (
            {"validation": [blobs()], "metric": lambda o, b: 3},
            "batch 0: the metric '<lambda>' returned a int, expected",
        ),
        (
            {"validation": [blobs()], "metric": lambda o, b: (o, 3)},
            r"the metric '<lambda>' returned a sum of shape \(96, 3\), expected one number",
        ),
        ({"validation": blobs()[0]}, "the validation data is a Tensor: give a DataLoader or a list"),
        ({"validation": 3}, "the validation data is an int: give a DataLoader or a list"),
        ({"data": {"x": 1}}, "the training data is a dict: give a DataLoader or a list"),
        (
            {"loss": lambda o, y: functional.cross_entropy(o, y, reduction="none")},
            r"training data, batch 0: the loss function returned a value of shape \(20,\), expected",
        ),
        ({"loss": lambda o, y: 3.0}, "the loss function returned a value of type float, expected a tensor"),
        ({"loss": None}, "loss must be a function, found None"),
        ({"forward": 3}, "forward must be a function, found 3"),
        ({"on_epoch": "print"}, "on_epoch must be a function, found 'print'"),
        ({"epochs": "3"}, "epochs must be a whole number of at least 1, found '3'"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, found True"),
        ({"lr": "0.1"}, r"lr must be finite and above 0, found '0\.1'"),
        ({"lr": None}, "lr must be finite and above 0, found None"),
        ({"momentum": -1}, "momentum must be a number, at least 0 and below 1, found -1"),
        ({"momentum": math.nan}, "momentum must be a number, at least 0 and below 1, found nan"),
        ({"momentum": "0.9"}, r"momentum must be a number, at least 0 and below 1, found '0\.9'"),
        ({"weight_decay": -0.1}, r"weight_decay must be a finite number, at least 0, found -0\.1"),
        ({"weight_decay": math.inf}, "weight_decay must be a finite number, at least 0, found inf"),
        ({"seed": 1.5}, r"seed must be a whole number, found 1\.5"),
        ({"schedule": None}, "unknown schedule None: known are cosine"),
        ({"metric": 3}, "the metric is an int: pass one of accuracy, loss, perplexity"),
    ],
)
def test_impossible_settings_are_refused_and_change_nothing(options, message):
    model, before = network(), network()
    with pytest.raises(DataError, match=message):
        train(model, **options)
    if "validation" not in options:
        assert same(model, before)


class Once:
    """Has a length, but gives its batches a single time."""

    def __init__(self) -> None:
        self.batches = iter(batches())

    def __len__(self) -> int:
        return 5

    def __iter__(self):
        return self.batches


def test_data_that_run_dry_are_named():
    with pytest.raises(DataError, match="gave no batch in an epoch"):
        train(network(), data=Once())


def test_wrong_recipes_are_refused():
    with pytest.raises(MethodError, match="unknown method 'samm'"):
        train(network(), "samm")
    with pytest.raises(MethodError, match="a method is a name such as 'sam\\+clip' or a Recipe, found 3"):
        train(network(), 3)
    with pytest.raises(MethodError, match="'rho' of method 'sam' must be a number at least 0, found None"):
        parse_method("sam").replace(rho=None)
    with pytest.raises(ModelError, match=r"the model must be a torch\.nn\.Module, found int"):
        train(3)
    with pytest.raises(MethodError, match="needs a device profile"):
        train(network(), "profile-noise")


def test_digits_are_learnt():
    task = get_task("digits")
    model = task.build(0)
    history = fit(
        model, task.train(0, 64), recipe="sgd", epochs=15, lr=task.lr, seed=0, validation=task.validation
    )
    # 360 images: the standard error of an accuracy of 0.95 is 0.0115; 0.97 is usual after 15 epochs.
    assert history.validation[-1] > 0.93
    assert measure(model, task.test).value > 0.92
    assert measure(model, task.test).count == 360


class Breaks(nn.Module):
    """Its loss is NaN in the n-th pass in training mode, or its unused weight is."""

    def __init__(self, when, how):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.unused = nn.Linear(10, 6), nn.Linear(6, 4), nn.Linear(2, 2)
        self.when, self.how, self.passes = when, how, 0

    def forward(self, x):
        out = self.two(self.one(x).tanh())
        if self.training:
            self.passes += 1
            if self.passes == self.when:
                if self.how == "loss":
                    return out * math.nan
                with torch.no_grad():
                    self.unused.bias[0] = math.nan
        return out


@pytest.mark.parametrize("name", sorted(METHODS))
def test_nan_stops_any_method_by_name_epoch_and_step(name):
    x, y = torch.randn(12, 10, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4
    data = [(x, y), (x, y), (x, y)]
    each = METHODS[name].gradients_per_step
    profile = load_profile("pcm-ibm") if METHODS[name].needs_profile else None
    # The pass, counted from 1, whose loss is NaN, and where that is told: by the next loss for a second pass.
    cases = [(1, "epoch 1, step 1"), (2 * each + 1, "epoch 1, step 3"), (4 * each + 1, "epoch 2, step 2")]
    if each == 2:
        cases.append((2, "epoch 1, step 2"))
    for number, place in cases:
        with pytest.raises(TrainingError, match=rf"^training by method '{name}' broke down in {place}: "):
            fit(Breaks(number, "loss"), data, recipe=name, epochs=3, lr=0.01, profile=profile)
    # The loss stays finite, but no chip could be programmed with the weights: found when the epoch ends.
    with pytest.raises(TrainingError, match=r"epoch 1, step \d: .*'unused.bias'.* NaN"):
        fit(Breaks(1, "weight"), data, recipe=name, epochs=3, lr=0.01, profile=profile)
