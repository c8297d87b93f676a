"""Digital correction of the mean decay of a tile (contract 4 of the design).

A chip can read a tile's column currents for known inputs right after programming and again at any later time,
and multiply the tile's outputs by the ratio of the two (Joshi et al. 2020, doi 10.1038/s41467-020-16108-9,
"global drift compensation"; aihwkit's GlobalDriftCompensation). With one factor for each column the chip
keeps as many numbers as a tile has outputs, and columns whose devices drift more than others are corrected
each by itself.

A digital recalibration may come on top, or alone: it corrects what the layers after a tile see, from a few
unlabelled inputs (:mod:`analognoise.evaluation.recalibration`). Both together go by one name, as in
``"global+batchnorm"``.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from analognoise.errors import ConversionError, nearest

COMPENSATIONS = ("global", "column", "none")
RECALIBRATIONS = ("batchnorm", "affine")
DEFAULT = "global"


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


def split_compensation(text: str) -> tuple[str, str | None]:
    """What a tile's outputs are corrected by, and the recalibration if there is one.

    Args:
        text: one of :data:`COMPENSATIONS`, one of :data:`RECALIBRATIONS` (then the tiles have none), or both
            as in ``"global+batchnorm"``.

    Raises:
        ConversionError: when it is none of them.
    """
    tile, plus, recalibration = text.strip().partition("+")
    if not plus and tile in RECALIBRATIONS:
        return "none", tile
    if tile in COMPENSATIONS and (recalibration in RECALIBRATIONS if plus else True):
        return tile, recalibration or None
    known = (*COMPENSATIONS, *RECALIBRATIONS)
    wrong = recalibration if plus and tile in COMPENSATIONS else tile
    raise ConversionError(
        f"unknown drift compensation {text!r}{nearest(wrong, known)}: known are {', '.join(known)}, and one "
        "of the first three with one of the last two, as in global+batchnorm"
    )


def name_compensation(tile: str, recalibration: str | None) -> str:
    """The one name of both; :func:`split_compensation` is its inverse."""
    if recalibration is None:
        return tile
    return recalibration if tile == "none" else f"{tile}+{recalibration}"


def name_chips(profile: str, compensation: str) -> str:
    """What results call the chips of a device: its name, and the compensation where it is not the default."""
    return profile if compensation == DEFAULT else f"{profile} ({compensation})"


def split_name(chips: str) -> tuple[str, str | None]:
    """Device and compensation out of what :func:`name_chips` gave; None where none is named."""
    device, bracket, rest = chips.rpartition(" (")
    try:
        split_compensation(rest.removesuffix(")"))
    except ConversionError:
        return chips, None
    return (device, rest.removesuffix(")")) if bracket else (chips, None)


def compensation_list(texts: str | Iterable[str]) -> tuple[str, ...]:
    """Compensations by name, out of one text with commas or several.

    Raises:
        ConversionError: when there is none, one is unknown, or one is there twice.
    """
    parts = texts.split(",") if isinstance(texts, str) else texts
    found = [name_compensation(*split_compensation(str(part))) for part in parts if str(part).strip()]
    if not found:
        raise ConversionError(f"no drift compensation given: name at least one, for example {DEFAULT}")
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice:
        raise ConversionError(f"drift compensation {twice!r} is given twice: leave one out")
    return tuple(found)


def read_out(weights: Tensor, compensation: str = "global", room: Tensor | None = None) -> Tensor:
    """Mean of abs(W) over the tile's programmed cells, as one-hot inputs read it out.

    Args:
        weights: net weights ``[groups, columns, rows]``.
        compensation: ``"column"`` gives a value for each column, ``[groups, columns, 1]``; any other one for
            the tile, a scalar tensor.
        room: memory for as many numbers; new without.
    """
    magnitudes = torch.abs(weights, out=room)
    return magnitudes.mean(dim=2, keepdim=True) if compensation == "column" else magnitudes.mean()


def read_outs(weights: list[Tensor], compensation: str) -> tuple[Tensor, list[tuple[int, ...]]]:
    """:func:`read_out` of several tiles, bit for bit, in one dimension, and the shape of each."""
    magnitudes = torch._foreach_abs(weights)
    if compensation == "column":
        means = [magnitude.mean(dim=2) for magnitude in magnitudes]
        return torch.cat([mean.view(-1) for mean in means]), [(*mean.shape, 1) for mean in means]
    # A mean is a sum, and a call to divide it.
    sums = torch.stack([magnitude.sum() for magnitude in magnitudes])
    return sums / torch.tensor([tensor.numel() for tensor in weights]), [()] * len(weights)


def factor(reference: Tensor, now: Tensor) -> Tensor:
    """α = reference / now, the factor on the outputs; 1 where nothing can be read (all zero)."""
    return (reference / now).nan_to_num_(nan=1.0, posinf=1.0)
