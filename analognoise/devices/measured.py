"""A curve through measured points, which may stand in a CSV file beside the profile."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, ValidationInfo, model_validator
from torch import Tensor

from analognoise.devices.base import BaseCurve, Function
from analognoise.devices.problems import Problem, show

Numbers = Annotated[tuple[float, ...], Field(strict=False, min_length=1)]

MOST_X = 2.0  # read noise sees conductances that programming put above g_max; more is another unit


class Table(BaseCurve):
    """Points (x, y), linear between them, with the first y below the first point and the last y above the
    last.

    In the file the points may stand in a CSV beside it: ``csv = "points.csv"``, two columns x,y with or
    without that header; ``#`` begins a comment line. The curve then holds the points, not the file's name.
    """

    curve: Literal["table"] = "table"
    x: Numbers = Field(description="arguments, increasing")
    y: Numbers = Field(description="values at these")

    @property
    def joints(self) -> tuple[float, ...]:
        """The x of every point."""
        return self.x

    @property
    def _value(self) -> float | None:
        return self.y[0] if len(set(self.y)) == 1 else None

    def _raw(self, factor: float, scale: float) -> Function:
        knots = torch.tensor(self.x, dtype=torch.float64) / factor
        values = torch.tensor(self.y, dtype=torch.float64) * scale
        # The inner knots, and each segment's first knot, first value and slope.
        exact = (knots[1:-1], knots[:-1], values[:-1], values.diff() / knots.diff())
        first, last = float(knots[0]), float(knots[-1])
        made: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = {}

        def table(g: Tensor) -> Tensor:
            kind = (g.dtype, g.device)
            if kind not in made:
                with torch.inference_mode(False):
                    made[kind] = tuple(part.to(dtype=g.dtype, device=g.device).contiguous() for part in exact)
            inner, start, value, slope = made[kind]
            segment = torch.bucketize(g.contiguous(), inner)
            return g.clamp(first, last).sub_(start[segment]).mul_(slope[segment]).add_(value[segment])

        return table

    @model_validator(mode="before")
    @classmethod
    def _take_csv(cls, value: Any, info: ValidationInfo) -> Any:
        return _points_of_csv(value, info) if isinstance(value, Mapping) and "csv" in value else value

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        if len(self.x) != len(self.y):
            raise Problem(
                "y",
                f"has {len(self.y)} values but must have as many as x, which has {len(self.x)}",
            )
        if self.reference is None and self.x and self.x[-1] > MOST_X:
            raise Problem(
                f"x[{len(self.x) - 1}]",
                f"is {self.x[-1]:g} but x is G / g_max: it goes from 0 to 1, and at most to {MOST_X:g}",
            )
        for index, (value, after) in enumerate(pairwise(self.x), 1):
            if after <= value:
                raise Problem(f"x[{index}]", f"is {after:g} but must be above the {value:g} before it")
        return self


def _points_of_csv(table: Mapping[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """The table with the points that its ``csv`` holds, in place of the file's name."""
    name, folder = table["csv"], (info.context or {}).get("folder")
    if not isinstance(name, str):
        raise Problem("csv", f"is {show(name)} but must be the name of a file beside the profile")
    if "x" in table or "y" in table:
        raise Problem("csv", f"is {show(name)} but x or y is given as well: give one or the other")
    if folder is None:
        raise Problem(
            "csv", f"is {show(name)} but nothing lies beside a profile that is not read from a file"
        )
    try:
        lines = folder.joinpath(name).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Problem("csv", f"is {show(name)}, which cannot be read beside the profile ({reason})") from None
    points: list[list[float]] = []
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in line.split(",")]
        if not line.strip() or cells[0].startswith("#") or (not points and cells == ["x", "y"]):
            continue
        try:
            x, y = (float(cell) for cell in cells)
        except ValueError:
            raise Problem(
                "csv", f"is {show(name)}, where line {number} is {show(line)} but must be two numbers x,y"
            ) from None
        if points and x <= points[-1][0]:
            raise Problem(
                "csv",
                f"is {show(name)}, where line {number} has x = {x:g} but x must increase: "
                f"the line before it has {points[-1][0]:g}",
            )
        points.append([x, y])
    if not points:
        raise Problem("csv", f"is {show(name)}, which holds no points but must hold lines of two numbers x,y")
    rest = {key: item for key, item in table.items() if key != "csv"}
    return {**rest, "x": [x for x, _ in points], "y": [y for _, y in points]}
