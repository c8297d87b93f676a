"""Sharpness against exact Hessians, float64 references and losses whose answers are known."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import analognoise as an
from analognoise.errors import DataError, MethodError
from analognoise.landscape import KINDS
from analognoise.metrics import NotFiniteError

Batches = list[tuple[Tensor, Tensor]]


def classes(count: int = 24, dtype: torch.dtype = torch.float64) -> Batches:
    """Two batches of unequal size, five inputs, three classes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 5, generator=generator, dtype=dtype)
    y = torch.randint(0, 3, (count,), generator=generator)
    return [(x[:17], y[:17]), (x[17:], y[17:])]


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def mean_loss(model: nn.Module, batches: Batches) -> Tensor:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return functional.cross_entropy(model(x), y)


def exact_hessian(model: nn.Module, batches: Batches) -> Tensor:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat)


class Quadratic(nn.Module):
    """L = ½ wᵀ diag(curvatures) w + slope · w for whatever input."""

    def __init__(self, curvatures: list[float], start: list[float], slope: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))
        self.register_buffer("slope", torch.tensor(slope, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        value = 0.5 * (self.curvatures * self.weight**2).sum() + (self.slope * self.weight).sum()
        return value.expand(len(x))


def output_mean(output: Tensor, _: Tensor) -> Tensor:
    return output.mean()


POINT: Batches = [(torch.zeros(1, 1), torch.zeros(1))]


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perturb", ["all", "weights"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sam", {"rho": 0.07}),
        ("asam", {"rho": 0.6, "eta": 0.02}),
        ("samson", {"rho": 0.3, "eta": 0.02}),
        ("samson", {"rho": 0.9, "p": 2}),
    ],
)
def test_one_ascent_step_equals_a_reference_in_float64(
    kind: str, options: dict[str, Any], perturb: str
) -> None:
    model, batches = net(), classes()
    found = an.sharpness(model, batches, kind, perturb=perturb, **options)

    named = dict(model.named_parameters())
    clean = mean_loss(model, batches)
    gradients = dict(zip(named, torch.autograd.grad(clean, list(named.values())), strict=True))
    scaled: dict[str, tuple[Any, Any]] = {}
    for name, weight in named.items():
        w, g = weight.detach().numpy(), gradients[name].numpy()
        scale: Any = np.ones_like(w)
        if "weight" in name and kind != "sam":
            scale = np.abs(w) + options.get("eta", 0.01)
            if kind == "samson":
                scale = scale / (
                    np.abs(w).max() if options.get("p", math.inf) == math.inf else np.sqrt((w**2).sum())
                )
        if perturb == "all" or "weight" in name:
            scaled[name] = (scale, g)
    norm = math.sqrt(sum(((t * g) ** 2).sum() for t, g in scaled.values()))
    moved = {
        name: torch.from_numpy(
            weight.detach().numpy()
            + (options["rho"] * scaled[name][0] ** 2 * scaled[name][1] / norm if name in scaled else 0)
        )
        for name, weight in named.items()
    }
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    climbed = functional.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)

    assert found.value == pytest.approx((climbed - clean).item(), abs=1e-10)
    assert found.value > 1e-3
    assert found.loss == pytest.approx(clean.item(), abs=1e-12)
    assert found.converged is None
    assert found.passes == 3  # the loss, its gradient, the loss at the point found
    assert found.parameters == (57 if perturb == "all" else 48)


@pytest.mark.parametrize("kind", ["sam", "asam", "samson"])
def test_on_a_convex_loss_every_further_step_finds_no_less_and_converges(kind: str) -> None:
    torch.manual_seed(0)
    model, batches = nn.Linear(5, 3).double(), classes()
    rises = [an.sharpness(model, batches, kind, steps=steps) for steps in (1, 2, 4, 30)]
    values = [rise.value for rise in rises]
    assert values == sorted(values)
    assert values[1] > values[0]
    assert rises[-1].converged
    assert rises[-1].passes == 1 + 2 * 30


def test_many_steps_find_the_worst_point_of_a_quadratic() -> None:
    # Maximum of ½ (4 a² + b²) + b on a² + b² ≤ ρ²: on the axis of a once ρ > 1/3, with b = 1/3 there.
    rho = 2.0
    model = Quadratic([4.0, 1.0], [0.0, 0.0], [1e-3, 1.0])
    found = an.sharpness(model, POINT, "sam", rho=rho, steps=60, loss=output_mean)
    angles = torch.linspace(0, 2 * math.pi, 2_000_001, dtype=torch.float64)
    a, b = rho * angles.cos(), rho * angles.sin()
    assert found.value == pytest.approx((2 * a**2 + b**2 / 2 + 1e-3 * a + b).max().item(), rel=1e-9)
    one = an.sharpness(model, POINT, "sam", rho=rho, loss=output_mean)
    assert one.value < found.value


def test_quadratic_answers() -> None:
    # w = (1, 2): the gradient is (3, 2), the step ρ (3, 2)/√13, the rise ρ √13 + ½ ρ² (3·9 + 1·4)/13.
    model = Quadratic([3.0, 1.0], [1.0, 2.0], [0.0, 0.0])
    rise = an.sharpness(model, POINT, "sam", rho=0.1, loss=output_mean)
    assert rise.value == pytest.approx(0.1 * math.sqrt(13) + 0.005 * 31 / 13, abs=1e-12)
    largest = an.sharpness(model, POINT, "eigenvalue", loss=output_mean)
    assert largest.value == pytest.approx(3.0, abs=1e-9)
    assert largest.converged
    # The Hessian is diagonal: random signs give its trace exactly, every time.
    trace = an.sharpness(model, POINT, "trace", draws=3, loss=output_mean)
    assert trace.value == pytest.approx(4.0, abs=1e-12)
    assert trace.standard_error == pytest.approx(0.0, abs=1e-12)
    assert trace.converged


def test_random_rise_of_a_quadratic_is_half_the_trace_times_the_variance() -> None:
    # E[L(w + e) - L(w)] = ½ s² (3 + 1) with s = noise · max|w|: 0.08; one draw has a standard deviation of
    # sqrt(s² |g|² + ½ s⁴ (9 + 1)) = 0.731.
    model = Quadratic([3.0, 1.0], [1.0, 2.0], [0.0, 0.0])
    found = an.sharpness(model, POINT, "random", noise=0.1, draws=4000, loss=output_mean)
    error = math.sqrt(0.04 * 13 + 0.5 * 0.0016 * 10) / math.sqrt(4000)
    assert found.standard_error == pytest.approx(error, rel=0.05)
    assert found.value == pytest.approx(0.08, abs=4 * error)
    assert not found.converged
    assert found.passes == 4001


def test_largest_eigenvalue_is_that_of_the_exact_hessian() -> None:
    model, batches = net(), classes()
    exact = torch.linalg.eigvalsh(exact_hessian(model, batches))
    found = an.sharpness(model, batches, "eigenvalue")
    assert found.value == pytest.approx(exact[-1].item(), rel=0.01)
    assert found.converged
    assert found.bracket is not None
    low, high = found.bracket
    assert ((exact >= low) & (exact <= high)).any()
    assert high - low <= 2 * 0.01 * found.value
    fine = an.sharpness(model, batches, "eigenvalue", tolerance=1e-9)
    assert fine.value == pytest.approx(exact[-1].item(), rel=1e-12)
    assert fine.passes > found.passes


def test_eigenvalue_of_the_weights_alone_is_that_of_their_block() -> None:
    model, batches = net(), classes()
    inside = torch.cat([torch.full((p.numel(),), "weight" in n) for n, p in model.named_parameters()])
    block = exact_hessian(model, batches)[inside][:, inside]
    found = an.sharpness(model, batches, "eigenvalue", perturb="weights", tolerance=1e-6)
    assert found.value == pytest.approx(torch.linalg.eigvalsh(block)[-1].item(), rel=1e-9)


def test_eigenvalue_is_the_most_positive_not_the_largest_in_size() -> None:
    model = Quadratic([-5.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert an.sharpness(model, POINT, "eigenvalue", loss=output_mean).value == pytest.approx(2.0, abs=1e-9)


def test_lanczos_starts_again_when_its_basis_is_full() -> None:
    spectrum = torch.linspace(0, 1, 400).tolist()
    model = Quadratic([*spectrum, 1.002], [0.0] * 401, [0.0] * 401)
    found = an.sharpness(model, POINT, "eigenvalue", iterations=600, tolerance=1e-4, loss=output_mean)
    assert found.converged
    assert found.passes > 34
    assert found.value == pytest.approx(1.002, rel=1e-6)


def test_an_eigenvalue_that_does_not_converge_gives_its_last_bracket() -> None:
    model, batches = net(), classes()
    exact = torch.linalg.eigvalsh(exact_hessian(model, batches))
    found = an.sharpness(model, batches, "eigenvalue", iterations=2, tolerance=1e-6)
    assert found.converged is False
    assert found.passes == 3
    assert found.bracket is not None
    low, high = found.bracket
    assert low < found.value <= exact[-1].item()
    assert ((exact >= low) & (exact <= high)).any()
    assert "not converged" in str(found)
    assert "bracket" in str(found)


def test_a_flat_loss_has_no_curvature() -> None:
    model = Quadratic([0.0, 0.0], [1.0, 2.0], [1.0, -1.0])
    found = an.sharpness(model, POINT, "eigenvalue", loss=output_mean)
    assert (found.value, found.bracket, found.converged) == (0.0, (0.0, 0.0), True)
    assert an.sharpness(model, POINT, "trace", loss=output_mean).value == 0.0


def test_trace_lies_within_its_standard_error() -> None:
    model, batches = net(), classes()
    hessian = exact_hessian(model, batches)
    found = an.sharpness(model, batches, "trace", draws=400)
    # Var zᵀHz = 2 (‖H‖² - Σ h_ii²) for random signs.
    error = math.sqrt(2 * ((hessian**2).sum() - (hessian.diagonal() ** 2).sum()).item() / 400)
    assert found.standard_error == pytest.approx(error, rel=0.15)
    assert found.value == pytest.approx(hessian.trace().item(), abs=3 * error)
    assert found.converged is (found.standard_error <= 0.01 * found.value)


# --- what is left alone -----------------------------------------------------------------------------------


class Rich(nn.Module):
    """BatchNorm, dropout, a frozen layer and a recurrent one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.recurrent = nn.LSTM(6, 4, batch_first=True)
        self.last = nn.Linear(4, 3)
        self.broken = False

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.frozen(self.drop(torch.relu(self.norm(self.first(x)))))
        if self.broken and torch.is_grad_enabled():
            raise RuntimeError("out of order")
        return self.last(self.recurrent(hidden[:, None])[0][:, 0])


def snapshot(model: nn.Module) -> list[Any]:
    return [
        {name: value.clone() for name, value in model.state_dict().items()},
        [(id(p), p.grad, p.grad if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]


def check_same(before: list[Any], after: list[Any]) -> None:
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    for (one, grad, kept), (other, now, _) in zip(before[1], after[1], strict=True):
        assert one == other
        assert grad is now
        assert grad is None or torch.equal(kept, now)
    assert before[2] == after[2]
    assert torch.equal(before[3], after[3])
    assert before[4:] == after[4:]


@pytest.mark.parametrize("eval_mode", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_model_is_left_as_found_and_the_seed_settles_all(kind: str, eval_mode: bool) -> None:
    torch.manual_seed(3)
    model = Rich().train()
    model.norm.eval()
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*classes(dtype=torch.float32), strict=True)))
    loader = DataLoader(data, batch_size=7, generator=torch.Generator().manual_seed(4))
    functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
    before = snapshot(model)
    with torch.no_grad():
        found = an.sharpness(model, loader, kind, eval_mode=eval_mode, seed=5)
    check_same(before, snapshot(model))
    torch.rand(3)
    assert an.sharpness(model, loader, kind, eval_mode=eval_mode, seed=5) == found
    assert found.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if kind in ("random", "trace"):
        assert an.sharpness(model, loader, kind, eval_mode=eval_mode, seed=6).value != found.value
    model.broken = True
    before = snapshot(model)
    if kind == "random":  # takes no gradient: let the loss break down
        model.first.weight.data[0, 0] = math.nan
        before = snapshot(model)
        with pytest.raises(NotFiniteError):
            an.sharpness(model, loader, kind)
        before[0]["first.weight"][0, 0] = model.first.weight.data[0, 0] = 0.0
    else:
        with pytest.raises(RuntimeError, match="out of order"):
            an.sharpness(model, loader, kind)
    check_same(before, snapshot(model))


def test_weights_come_back_when_the_climb_ends_in_nan() -> None:
    model = Quadratic([1.0], [1.0], [0.0])
    calls = []

    def failing(output: Tensor, _: Tensor) -> Tensor:
        calls.append(0)
        return output.mean() * (math.nan if len(calls) > 2 else 1.0)

    with pytest.raises(NotFiniteError, match=r"batch 0: the loss is nan at the weights moved as asked"):
        an.sharpness(model, POINT, "sam", loss=failing)
    assert model.weight.tolist() == [1.0]
    assert model.weight.grad is None
    assert model.state_dict()  # no climb is left open


def test_batchnorm_counts_with_its_running_statistics_unless_asked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double().train()
    batches = classes()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    measured = an.sharpness(model, batches, "sam").loss
    own = an.sharpness(model, batches, "sam", eval_mode=False).loss
    reference = sum(functional.cross_entropy(model(x), y).item() * len(y) for x, y in batches) / 24
    assert own == pytest.approx(reference, abs=1e-12)
    fresh = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    fresh[0].load_state_dict(model[0].state_dict())
    fresh[2].load_state_dict(model[2].state_dict())
    assert measured == pytest.approx(functional.cross_entropy(fresh.eval()(x), y).item(), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_model_is_as_sharp_as_its_digital_weights_and_its_chip_stays(kind: str) -> None:
    model, batches = net(torch.float32), classes(dtype=torch.float32)
    digital = an.sharpness(model, batches, kind)
    analog = an.convert_to_analog(model, an.load_profile("pcm-ibm")).eval()
    assert an.sharpness(analog, batches, kind) == digital  # no chip is needed
    an.drift_to_(an.program_(analog, seed=1), "1d")
    with torch.no_grad():
        before = analog(batches[0][0])
    assert an.sharpness(analog, batches, kind) == digital
    with torch.no_grad():
        assert torch.equal(analog(batches[0][0]), before)  # warnings are errors: the chip is not stale


def test_attention_has_second_derivatives_here() -> None:
    torch.manual_seed(0)

    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x).mean(1))

    x, y = torch.randn(6, 4, 8), torch.arange(6) % 3
    assert an.sharpness(Attending(), [(x, y)], "eigenvalue", tolerance=0.1).value > 0


@pytest.mark.parametrize(("layer", "cudnn"), [(nn.LSTM(5, 3), False), (nn.Linear(5, 3), True)])
def test_cudnn_stays_on_where_it_has_the_derivatives(layer: nn.Module, cudnn: bool) -> None:
    seen = []

    def forward(model: nn.Module, batch: Any) -> Tensor:
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic))
        output = model(batch[0])
        return output[0] if isinstance(output, tuple) else output

    an.sharpness(layer, classes(dtype=torch.float32), "eigenvalue", iterations=1, forward=forward)
    assert set(seen) == {(cudnn, True)}
    assert torch.backends.cudnn.enabled


def test_a_compiled_model_gives_the_same() -> None:
    model, batches = net(), classes()
    for kind in ("random", "eigenvalue"):
        assert an.sharpness(torch.compile(model), batches, kind) == an.sharpness(model, batches, kind)


def test_forward_loss_and_dicts_of_ones_own() -> None:
    model, batches = net(), classes()
    plain = an.sharpness(model, batches, "asam")
    dicts = [{"features": x, "labels": y} for x, y in batches]
    own = an.sharpness(
        model,
        dicts,
        "asam",
        forward=lambda model, batch: model(batch["features"]),
        loss=lambda output, target: 2 * functional.cross_entropy(output, target),
    )
    assert own.value == pytest.approx(2 * plain.value, rel=1e-12)


def test_tied_weights_move_once() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    x, y = torch.randn(8, 4, dtype=torch.float64), torch.arange(8) % 4
    found = an.sharpness(model, [(x, y)], "eigenvalue", tolerance=1e-6)
    assert found.parameters == 16
    hessian = torch.autograd.functional.hessian(
        lambda w: functional.cross_entropy(torch.tanh(x @ w.T) @ w.T, y), model[0].weight.detach()
    )
    exact = torch.linalg.eigvalsh(hessian.reshape(16, 16))
    assert found.value == pytest.approx(exact[-1].item(), rel=1e-9)


def test_result_as_plain_values_and_words() -> None:
    found = an.sharpness(net(), classes(), "samson")
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["kind"] == "samson"
    assert content["options"]["p"] == "inf"
    assert content["bracket"] is None
    with pytest.raises(AttributeError):
        found.value = 0.0  # type: ignore[misc]
    assert str(found).startswith("samson: ")


# --- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("sma", {}, r"unknown kind 'sma' \(did you mean 'sam'\?\): known are sam, asam"),
        ("Trace", {}, r"did you mean 'trace'"),
        ("sam", {"rho": 0}, r"rho must be a number above 0, found 0"),
        ("sam", {"rho": -0.1}, r"rho must be a number above 0, found -0\.1"),
        ("asam", {"rho": math.nan}, r"rho must be a number above 0, found nan"),
        ("samson", {"p": 3}, r"p must be 2 or math\.inf, found 3"),
        ("asam", {"eta": -1}, r"eta must be a number, at least 0, found -1"),
        ("sam", {"steps": 0}, r"steps must be a whole number, at least 1, found 0"),
        ("random", {"noise": 0.0}, r"noise must be a number above 0, found 0\.0"),
        ("random", {"draws": 1}, r"draws must be a whole number, at least 2, found 1"),
        ("trace", {"rho": 0.1}, r"kind 'trace' takes no rho; it takes draws"),
        ("eigenvalue", {"tolerance": 0}, r"tolerance must be a number above 0, found 0"),
        ("sam", {"perturb": "weight"}, r"perturb must be .* found 'weight' \(did you mean 'weights'\?\)"),
        ("sam", {"seed": 0.5}, r"seed must be a whole number, found 0\.5"),
    ],
)
def test_wrong_arguments(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        an.sharpness(net(), classes(), kind, **options)


def test_nothing_to_move() -> None:
    with pytest.raises(MethodError, match="Tanh has no parameters to move"):
        an.sharpness(nn.Tanh(), classes())
    with pytest.raises(MethodError, match="has no parameter that requires a gradient"):
        an.sharpness(net().requires_grad_(False), classes())
    model = nn.Linear(5, 3).double()
    model.weight.requires_grad_(False)
    with pytest.raises(MethodError, match="no parameter whose name contains 'weight' that requires"):
        an.sharpness(model, classes(), perturb="weights")


def test_data_that_is_none() -> None:
    with pytest.raises(DataError, match="has no batch"):
        an.sharpness(net(), [])
    with pytest.raises(DataError, match="no batch of the data has a label that counts"):
        an.sharpness(net(), [(torch.zeros(2, 5).double(), torch.tensor([-100, -100]))])
    data = TensorDataset(*classes()[0])
    with pytest.raises(DataError, match="shuffles"):
        an.sharpness(net(), DataLoader(data, batch_size=4, shuffle=True))


def test_nan_names_the_batch() -> None:
    batches = classes()
    batches[1][0][0, 0] = math.nan
    with pytest.raises(NotFiniteError, match="batch 1: the loss is nan at the weights as they are"):
        an.sharpness(net(), batches)


def test_an_infinite_gradient_names_the_parameter() -> None:
    model = Quadratic([1.0], [0.0], [0.0])
    with pytest.raises(NotFiniteError, match=r"the gradient holds NaN .* in parameter 'weight'"):
        an.sharpness(model, POINT, "sam", loss=lambda output, _: output.mean().sqrt())


def test_an_operator_without_second_derivative_is_said() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1.0

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient * 1.0

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Any:
            return Once.apply(self.inner(x))

    with pytest.raises(MethodError, match="Model has an operator without second derivative"):
        an.sharpness(Model(), classes(), "trace")
    assert an.sharpness(Model(), classes(), "sam").value > 0


def test_an_exact_minimum_has_no_direction_of_ascent() -> None:
    model = Quadratic([1.0, 2.0], [0.0, 0.0], [0.0, 0.0])
    with pytest.warns(RuntimeWarning, match="the gradient is zero at these weights"):
        found = an.sharpness(model, POINT, "sam", loss=output_mean)
    assert found.value == 0.0


@pytest.mark.parametrize("clipping", ["learned", "max"])
def test_of_a_quantized_model_what_it_computes_with_is_moved(clipping: str) -> None:
    model = an.quantize(net(), bits=3, clipping=clipping)
    batches = classes()
    at = an.dequantize(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind in KINDS:
        found, expected = (an.sharpness(one, batches, kind) for one in (model, at))
        assert found.value == expected.value
        assert found.loss == pytest.approx(float(mean_loss(model, batches).detach()), rel=1e-12)
        assert found.parameters == expected.parameters  # learned ranges are no weights
    # Moves that rounding would swallow count.
    gradient = sum(float(p.grad.square().sum()) for p in backward(at, batches).parameters()) ** 0.5
    tiny = an.sharpness(model, batches, "sam", rho=1e-5).value
    assert tiny == pytest.approx(1e-5 * gradient, rel=1e-3)
    at.zero_grad()  # it shares the biases
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    an.sharpness(model, batches, "sam")
    assert all(p.grad is None for p in model.parameters())


def backward(model: nn.Module, batches: Batches) -> nn.Module:
    model.zero_grad()
    mean_loss(model, batches).backward()
    return model


def test_inputs_stay_quantized_and_must_have_been_seen() -> None:
    model, batches = an.quantize(net(), bits=8, activation_bits=2), classes()
    with pytest.raises(MethodError, match=r"layer '0' takes the range of its inputs .* run a batch"):
        an.sharpness(model, batches)
    model(batches[0][0])
    expected = float(mean_loss(model, batches).detach())
    assert an.sharpness(model, batches, "random").loss == pytest.approx(expected, rel=1e-12)
    assert an.sharpness(an.dequantize(model), batches, "random").loss != pytest.approx(expected, rel=1e-3)
