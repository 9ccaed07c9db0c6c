"""The sums of norms, what they are together, and the factor of a clip: docs/numerics.md, 10 and 11.

The caller has set the floating point environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import backend

_MOST = 400
"""The largest exponent, of either sign, whose square and sums of it are safe in float64."""
_LEAST, _BEYOND = math.ldexp(1.0, -_MOST), math.ldexp(1.0, _MOST + 1)

_EPSILON = 1e-6
"""What torch adds to the norm."""


class Sums(NamedTuple):
    """What the core gives for a tensor."""

    l1: float
    squares: float
    """The sum of x * x."""
    maximum: float
    zeros: int
    nonfinite: int


class Total(NamedTuple):
    """The sums of several tensors together, of squares times ``2**exponent`` each."""

    sums: Sums
    exponent: int

    @property
    def l2(self) -> float:
        """The norm."""
        return scaled(math.sqrt(self.sums.squares), -self.exponent)


def total_of(
    sums: Sequence[Sums],
    squares_at: Callable[[int], Sequence[float]],
    gathered: Callable[[Sums], Sequence[Sums]] | None = None,
) -> Total:
    """Return the sums of tensors together.

    `squares_at` gives the sums of squares of the tensors' elements times 2**exponent, and
    `gathered` those of all processes, given those of this one.
    """
    total = together(sums)
    if gathered is not None:
        total = together(gathered(total))
    exponent = exponent_for(total.maximum)
    if exponent:
        squares = backend.canonical_sum(squares_at(exponent))
        if gathered is not None:
            rows = gathered(total._replace(squares=squares))
            squares = backend.canonical_sum([row.squares for row in rows])
        total = total._replace(squares=squares)
    return Total(total, exponent)


def together(sums: Sequence[Sums]) -> Sums:
    """Return the sums of several tensors, or processes, as those of one."""
    magnitudes = [one.maximum for one in sums]
    return Sums(
        backend.canonical_sum([one.l1 for one in sums]),
        backend.canonical_sum([one.squares for one in sums]),
        math.nan if any(map(math.isnan, magnitudes)) else max(magnitudes, default=0.0),
        sum(one.zeros for one in sums),
        sum(one.nonfinite for one in sums),
    )


def first_nonfinite(sums: Sequence[Sums]) -> int | None:
    """Return the place of the first tensor with an element that is not finite."""
    return next((place for place, one in enumerate(sums) if one.nonfinite), None)


def exponent_for(maximum: float) -> int:
    """Return what elements are scaled by, as a power of 2, so that their squares are safe."""
    if _LEAST <= maximum < _BEYOND or not math.isfinite(maximum) or maximum == 0.0:
        return 0
    exponent = math.frexp(maximum)[1] - 1
    return 0 if -_MOST <= exponent <= _MOST else -exponent


def scaled(number: float, exponent: int) -> float:
    """Return ``number * 2**exponent``, rounded once."""
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.copysign(math.inf, number)


def clip_factor(total: Total, most: float) -> float:
    """Return ``min(1, most / (norm + 1e-6))``, NaN where that is."""
    norm, epsilon = total.l2, _EPSILON
    if total.exponent < 0:  # the norm may be beyond float64, the quotient is not
        norm = math.sqrt(total.sums.squares)
        most, epsilon = scaled(most, total.exponent), scaled(epsilon, total.exponent)
    factor = most / (norm + epsilon)
    return math.nan if factor != factor else min(1.0, factor)


def nonfinite_message(label: str, count: int, remedy: str) -> str:
    """Return what an error says of the first tensor with elements that are not finite."""
    return (
        f"{label} has {count} element{'s' * (count > 1)} that {'are' if count > 1 else 'is'} "
        f"infinite or NaN, and nothing was {remedy}"
    )
