"""The outputs of a call, as bit flags, and the coefficients of its terms.

The same as ``csrc/penalty.h``: strengths are applied in float64 and in this order of operations,
whatever the caller's floating point environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .float_environment import Default, product

VALUE, GRADIENT, ADD = 1, 2, 4
VALUE_AND_GRADIENT = VALUE | GRADIENT
VALUE_AND_ADD = VALUE | GRADIENT | ADD

Strengths: TypeAlias = Sequence[tuple[Any, Any]]
"""Pairs (l1, l2), one per rule of a call: floats, or numbers that a framework traces."""


def coefficients(pair: tuple[float, float], scale: float, grad_scale: float) -> tuple[float, float]:
    """Return the factors of sign(w) and w in a gradient, in float64."""
    l1, l2 = pair
    return product(l1, scale, grad_scale), product(l2, scale, grad_scale, 2.0)


def rounded(coefficient: float, dtype: str) -> float:
    """Return a gradient's factor, rounded once to the dtype of the gradient's arithmetic."""
    if dtype == "f64":
        return coefficient
    with Default(), np.errstate(over="ignore", under="ignore"):
        return float(np.float32(coefficient))
