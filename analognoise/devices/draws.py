"""Random numbers of a tile's devices, at once or a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from analognoise.seeds import Stream

# Numbers of which torch gives no part to another thread.
OF_ONE_THREAD = 1 << 15


class Draws:
    """Standard normals for every device of a tile, by process.

    Args:
        stream: key of the tile, with the drift time where numbers are drawn anew at each.
        shape: of the devices.
        device: where the numbers are needed.
        drawn_on: where they are drawn, since generators differ; by default likewise.
    """

    def __init__(
        self,
        stream: Stream,
        shape: Sequence[int],
        device: torch.device,
        drawn_on: torch.device | None = None,
    ) -> None:
        self._stream, self._shape, self._device = stream, tuple(shape), device
        self._drawn_on = device if drawn_on is None else drawn_on

    def __call__(self, process: str) -> Tensor:
        """The numbers of a process, "program", "drift" or "read"."""
        return self._stream.at(process=process).normal(self._shape, self._drawn_on).to(self._device)

    @property
    def come_in_pieces(self) -> bool:
        """Whether :meth:`pieces` gives them, too: on the processor."""
        return self._device.type == self._drawn_on.type == "cpu"

    def pieces(
        self, process: str, most: int, out: Tensor, *devices: Tensor | None
    ) -> Iterator[tuple[Tensor, ...]]:
        """The same numbers, written into a contiguous tensor a piece at a time as they are asked for.

        Torch's threads share every piece evenly: the last one is cut where some would have less.

        Args:
            process: as above.
            most: numbers of a piece, a multiple of 16.
            out: where they go.
            devices: contiguous tensors of as many numbers, or None.

        Yields:
            a piece of ``out`` in one dimension, and of each of ``devices`` the same one, or None.
        """
        stream = self._stream.at(process=process)

        def parts(tensor: Tensor) -> list[Tensor]:
            found = stream.pieces(tensor.view(-1), most)
            last = found[-1]
            whole = 0 if len(last) == most else len(last) // OF_ONE_THREAD * OF_ONE_THREAD
            return [*found[:-1], *(part for part in (last[:whole], last[whole:]) if len(part))]

        cut = [repeat(None) if own is None else parts(own) for own in devices]
        normals = stream.normal_pieces(parts(out))
        return zip(normals, *cut, strict=False)  # what repeats has no end
