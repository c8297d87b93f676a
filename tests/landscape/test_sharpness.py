"""Sharpness against exact Hessians, float64 references and losses whose answers are known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import analognoise as an
from tests.landscape.small_losses import POINT, Batches, Quadratic, classes, mean_loss, net, output_mean


def exact_hessian(model: nn.Module, batches: Batches) -> Tensor:
    shapes = {name: p.shape for name, p in model.named_parameters()}
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return functional.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.autograd.functional.hessian(loss, flat)


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


def test_result_as_plain_values_and_words() -> None:
    found = an.sharpness(net(), classes(), "samson")
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["kind"] == "samson"
    assert content["options"]["p"] == "inf"
    assert content["bracket"] is None
    with pytest.raises(AttributeError):
        found.value = 0.0  # type: ignore[misc]
    assert str(found).startswith("samson: ")
