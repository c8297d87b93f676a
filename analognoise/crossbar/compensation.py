"""Digital correction of the mean decay of a tile (contract 4 of the design).

A chip can read a tile's column currents for known inputs right after programming and again at any later time,
and multiply the tile's outputs by the ratio of the two (Joshi et al. 2020, doi 10.1038/s41467-020-16108-9,
"global drift compensation"; aihwkit's GlobalDriftCompensation).
"""

from __future__ import annotations

from torch import Tensor

from analognoise.errors import ConversionError, nearest

COMPENSATIONS = ("global", "none")


def check_compensation(name: str) -> str:
    """The name itself.

    Raises:
        ConversionError: when there is no such compensation.
    """
    if name not in COMPENSATIONS:
        raise ConversionError(
            f"unknown drift compensation {name!r}{nearest(name, COMPENSATIONS)}: "
            f"known are {', '.join(COMPENSATIONS)}"
        )
    return name


def read_out(weights: Tensor) -> Tensor:
    """Mean of abs(W) over the tile's programmed cells, as one-hot inputs read it out; a scalar tensor."""
    return weights.abs().mean()


def global_factor(reference: Tensor, now: Tensor) -> Tensor:
    """α = reference / now, the factor on a tile's output; 1 where nothing can be read (an all-zero tile)."""
    return (reference / now).nan_to_num_(nan=1.0, posinf=1.0)
