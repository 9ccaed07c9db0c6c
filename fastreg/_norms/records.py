"""What norms are: a record for each tensor, and a table of them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import NamedTuple


class Norm(NamedTuple):
    """The norms of one tensor, or of several together."""

    l1: float
    """The sum of abs(x)."""
    l2: float
    """The square root of the sum of x * x."""
    maximum: float
    """The largest abs(x); 0.0 without elements, NaN if an element is NaN."""
    zeros: int
    """How many elements are 0, of either sign."""
    nonfinite: int
    """How many elements are infinite or NaN."""


class Norms(dict[str, Norm]):
    """Norms by name: a dict for programs, a plain-text table of at most 80 columns as ``str``."""

    total: Norm
    """The norms of all tensors together; an array that is there twice counts once."""

    def __init__(self, rows: Mapping[str, Norm], total: Norm) -> None:
        super().__init__(rows)
        self.total = total

    def __str__(self) -> str:
        cells = [("tensor", *Norm._fields)]
        for name, row in (*self.items(), ("total", self.total)):
            l1, l2, maximum, zeros, nonfinite = row
            counts = str(zeros), str(nonfinite)
            cells.append((name, f"{l1:.6g}", f"{l2:.6g}", f"{maximum:.6g}", *counts))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        room = 80 - sum(widths[1:]) - 2 * len(widths[1:])
        lines = []
        for name, *numbers in cells:
            text = "  ".join(
                f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True)
            )
            # A long name goes on in further lines: the end of it is what tells tensors apart.
            *before, last = textwrap.wrap(name, min(widths[0], room)) or [""]
            lines += [*before, f"{last:<{min(widths[0], room)}}  {text}"]
        return "\n".join(lines)
