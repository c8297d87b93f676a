"""IR drop: the fast formula against the exact solution, and that against what is known by hand."""

import pytest
import torch

from analognoise.crossbar.periphery.irdrop import behind_wires, cut_out, exact, fast, lay_out
from analognoise.devices.catalog import load_profile
from analognoise.errors import ProfileError


def array(columns, rows, seed=0):
    """Conductances up to 1, half of them nearly 0, as pairs have them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(columns, rows, generator=generator).abs_().mul_(0.3).clamp_(max=1)
    return values * (torch.rand(columns, rows, generator=generator) < 0.5)


def test_one_cell_is_a_series_of_three_resistances():
    seen = exact(torch.full((1, 1), 0.5), 0.1, 0.2)
    assert seen.item() == pytest.approx(1 / (1 / 0.5 + 0.1 + 0.2), rel=1e-6)


def test_two_rows_on_one_column_share_its_last_wire():
    r, g = 0.1, torch.tensor([[0.5, 0.8]])
    seen = exact(g, 0.0, r)
    # Row 0 is the farther one: driven alone, its current meets the wire to ground beside the other device.
    shared = 1 / (1 / r + 0.8)
    current = 1 / (1 / 0.5 + r + shared)
    assert seen[0, 0].item() == pytest.approx(current * shared / r, rel=1e-6)
    beyond = 1 / (1 / 0.5 + r)
    node = 0.8 / (0.8 + beyond + 1 / r)
    assert seen[0, 1].item() == pytest.approx(node / r, rel=1e-6)


@pytest.mark.parametrize(
    ("columns", "rows", "row_ratio", "column_ratio", "most"),
    [
        (32, 32, 1e-4, 1e-4, 0.02),
        (64, 64, 3e-5, 3e-5, 0.02),
        (64, 64, 1e-4, 1e-4, 0.02),
        (64, 64, 0.0, 2e-4, 0.02),
        (96, 24, 2e-4, 0.0, 0.02),
        (64, 64, 5e-4, 5e-4, 0.05),
        (8, 64, 1e-3, 1e-3, 0.05),
    ],
)
def test_the_formula_is_near_the_exact_solution(columns, rows, row_ratio, column_ratio, most):
    g = array(columns, rows).double()
    true, quick = exact(g, row_ratio, column_ratio), fast(g, row_ratio, column_ratio)
    x = torch.rand(100, rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for inputs in (x, x * torch.where(x > 0.5, 1.0, -1.0)):
        loss = (inputs @ (g - true).T).norm()
        error = (inputs @ (quick - true).T).norm()
        assert loss > 0.005 * (inputs @ g.T).norm()  # there is something to be wrong about
        assert error < most * loss


def test_without_resistance_nothing_is_lost():
    g = array(6, 5)
    for solve in (fast, exact):
        seen = solve(g, 0.0, 0.0)
        assert torch.equal(seen, g)
        assert seen is not g


def test_groups_lie_along_the_diagonal_and_come_back():
    blocks = torch.randn(2, 3, 4, 5)
    whole = lay_out(blocks)
    assert whole.shape == (2, 12, 15)
    assert torch.equal(whole[:, 4:8, 5:10], blocks[:, 1])
    assert whole.count_nonzero() == blocks.numel()
    assert torch.equal(cut_out(whole, 3), blocks)


def test_a_profile_says_how_it_is_computed():
    drop = {"wire_resistance": 4.0, "method": "exact"}
    profile = load_profile("pcm-ibm").replace({"periphery": {"ir_drop": drop}})
    g = 25 * torch.stack((array(6, 5), array(6, 5, seed=1))).unsqueeze(1)
    seen = behind_wires(g, profile)
    torch.testing.assert_close(seen[:, 0], exact(g[:, 0], 4e-6, 4e-6))
    quick = behind_wires(g, profile.replace({"periphery.ir_drop.method": "fast"}))
    assert 0 < (quick - seen).abs().max() < 0.05 * (g - seen).abs().max()
    columns = profile.replace({"periphery.ir_drop": {"wire_ratio": 1e-4, "wires": "columns"}})
    torch.testing.assert_close(behind_wires(g, columns)[:, 0], fast(g[:, 0], 0.0, 4e-6))
    assert behind_wires(g, load_profile("pcm-ibm")) is g


def test_large_arrays_are_not_solved_exactly():
    with pytest.raises(ProfileError, match=r"up to 16,384 cells, found one of 200 rows and 100 columns"):
        exact(torch.ones(100, 200), 1e-4, 1e-4)
