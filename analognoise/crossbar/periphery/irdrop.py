"""Voltage lost in the wires of an array (IR drop), by a fast formula and by an exact nodal solve.

Rows are driven from one side, by 0 V too where an input is zero, and columns end in a virtual ground; the
first row is the farthest from it (as in aihwkit), the first column the nearest to the drivers. Devices and
wires are linear, so the currents are a linear function of the inputs, whatever these are: the wires change
the conductances that an array seems to have, and a product costs nothing more.

With r the wire's resistance from one cell to the next times the unit of conductance, the fast formula is

    G'_ij = G_ij / ((1 + r Σ_k G_kj (n − max(i, k))) (1 + r Σ_l G_il (1 + min(j, l))))

for i, k = 0 … n − 1 rows and j, l the columns: each cell sees the voltage that all cells of its column, and
of its row, would lose on the wire that they share with it, taken to first order and then as a divider. Its
error is of second order: less than 2 % of the loss for losses up to 5 % of the current, and 5 % of it up to
15 % (tests/crossbar/test_irdrop.py compares it with the exact solution).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from analognoise.devices.profile import DeviceProfile
from analognoise.errors import ProfileError

# An exact solve has two unknowns for each cell, and a right-hand side for each row.
MOST_CELLS = 1 << 14


def fast(conductances: Tensor, row_ratio: float, column_ratio: float) -> Tensor:
    """Conductances that an array seems to have behind its wires, by the formula above.

    Args:
        conductances: ``[..., columns, rows]``.
        row_ratio: r of the wires along the rows, 0 for ideal ones.
        column_ratio: r of those along the columns.

    Returns:
        A new tensor of the same shape.
    """
    seen = conductances
    if column_ratio:
        seen = seen / _shared(conductances.flip(-1), dim=-1).flip(-1).mul_(column_ratio).add_(1)
    if row_ratio:
        seen = seen / _shared(conductances, dim=-2).mul_(row_ratio).add_(1)
    return seen.clone() if seen is conductances else seen


def _shared(values: Tensor, dim: int) -> Tensor:
    """Σ_k values_k · (1 + min(i, k)) for every i: each cell's load times the wire shared with i."""
    count = values.shape[dim]
    place = torch.arange(1, count + 1, dtype=values.dtype, device=values.device)
    place = place.view(-1, *(1,) * (-1 - dim))
    up_to = (values * place).cumsum(dim)
    total = values.cumsum(dim)
    beyond = total.narrow(dim, count - 1, 1) - total
    return up_to + beyond * place


def exact(conductances: Tensor, row_ratio: float, column_ratio: float) -> Tensor:
    """The same, solved node by node (Kirchhoff's current law at every crossing), for small arrays.

    Args:
        conductances: ``[..., columns, rows]``; each array of at most 16,384 cells.
        row_ratio: r of the wires along the rows, 0 for ideal ones.
        column_ratio: r of those along the columns.

    Raises:
        ProfileError: when the arrays are larger.
    """
    *_, columns, rows = conductances.shape
    if rows * columns > MOST_CELLS:
        raise ProfileError(
            f'periphery.ir_drop.method = "exact" takes arrays of up to {MOST_CELLS:,} cells, found one of '
            f'{rows} rows and {columns} columns: set method = "fast", or smaller tile.rows and tile.columns'
        )
    if not (row_ratio or column_ratio):
        return conductances.clone()
    flat = conductances.detach().double().cpu().numpy().reshape(-1, columns, rows)
    seen = np.stack([_solve(array.T, row_ratio, column_ratio) for array in flat])
    return torch.from_numpy(seen).to(conductances).view_as(conductances)


def _solve(conductances: np.ndarray, row_ratio: float, column_ratio: float) -> np.ndarray:
    """``[rows, columns]`` to ``[columns, rows]``: current of every column for 1 V at each row in turn."""
    from scipy import sparse  # slow to import, and seldom needed
    from scipy.sparse.linalg import splu

    rows, columns = conductances.shape
    at_row = np.arange(rows * columns).reshape(rows, columns)
    at_column = at_row + rows * columns
    # A wire without resistance: small enough to make no difference, large enough to be solved.
    tiny = 1e-9 / max(float(np.abs(conductances).sum()), 1e-300)
    along_row, along_column = 1 / (row_ratio or tiny), 1 / (column_ratio or tiny)
    links = [
        (at_row, at_column, conductances),
        (at_row[:, :-1], at_row[:, 1:], np.full((rows, columns - 1), along_row)),
        (at_column[:-1], at_column[1:], np.full((rows - 1, columns), along_column)),
    ]
    one, other, value = (np.concatenate([link[part].ravel() for link in links]) for part in range(3))
    driven, sensed = at_row[:, 0], at_column[-1]
    grounded = np.concatenate([driven, sensed])
    to_ground = np.concatenate([np.full(rows, along_row), np.full(columns, along_column)])
    places = (
        np.concatenate([one, other, one, other, grounded]),
        np.concatenate([one, other, other, one, grounded]),
    )
    system = sparse.csc_matrix((np.concatenate([value, value, -value, -value, to_ground]), places))
    drives = np.zeros((2 * rows * columns, rows))
    drives[driven, np.arange(rows)] = along_row
    return np.asarray(splu(system).solve(drives))[sensed] * along_column


def lay_out(blocks: Tensor) -> Tensor:
    """``[devices, groups, columns, rows]`` blocks along the diagonal of the array that holds them,
    ``[devices, groups · columns, groups · rows]``.
    """
    devices, groups, columns, rows = blocks.shape
    whole = blocks.new_zeros(devices, groups, columns, groups, rows)
    whole.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 3, 1))
    return whole.view(devices, groups * columns, groups * rows)


def cut_out(whole: Tensor, groups: int) -> Tensor:
    """The blocks that :func:`lay_out` laid out."""
    devices, columns, rows = whole.shape
    parts = whole.view(devices, groups, columns // groups, groups, rows // groups)
    return parts.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()


def behind_wires(devices: Tensor, profile: DeviceProfile) -> Tensor:
    """Conductances ``[devices, groups, columns, rows]`` of a tile as its ports see them; themselves where the
    profile has no IR drop. Each device of a cell lies in an array of its own.
    """
    ratios = profile.wire_ratios
    if ratios is None:
        return devices
    assert profile.surroundings is not None
    assert profile.surroundings.ir_drop is not None
    solve = exact if profile.surroundings.ir_drop.method == "exact" else fast
    groups = devices.shape[1]
    if groups == 1:
        return solve(devices[:, 0], *ratios).unsqueeze(1)
    return cut_out(solve(lay_out(devices), *ratios), groups)
