"""How far a result is from the same formula in float64.

Contract: a value is held against the exact sums, relatively; a gradient against float64 arithmetic,
the largest difference over the largest gradient, on a sample that meets every tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fastreg.bench.cases import Case
from fastreg.bench.workloads import Array, Tensors

#: What the gradients hold before a call that is checked: as large as the penalty's own, so that
#: half precision shows both.
START = 2.0**-10
#: Elements that are looked at, over all tensors; every tensor has some.
SAMPLE = 65_536
SAMPLE_PER_TENSOR = 64


@dataclass(frozen=True)
class Errors:
    """Relative errors; None where the case has no value or no gradient."""

    value: float | None
    gradient: float | None


def errors(
    case: Case, tensors: Tensors, value: float | None, gradients: Iterable[Array] | None
) -> Errors:
    """Return the errors of a call that began with gradients full of START.

    Examples
    --------
    >>> tensors = Tensors([np.array([0.5, -0.5])], [])
    >>> errors(Case("f64", "L1", "value", 2), tensors, 1.001e-3, None).value  # doctest: +ELLIPSIS
    0.00099999...
    """
    l1, l2 = case.strengths
    value_error = gradient_error = None
    if value is not None:
        magnitudes, squares = tensors.sums
        exact = l1 * magnitudes + l2 * squares
        value_error = _relative(value, exact)
    if gradients is not None:
        start = START if case.returns.adds else 0.0
        limit = max(SAMPLE // len(tensors.weights), SAMPLE_PER_TENSOR)
        difference = largest = 0.0
        for weights, gradient in zip(tensors.weights, gradients, strict=True):
            w, found = (tensors.sample(array, limit) for array in (weights, gradient))
            expected = start + l1 * np.sign(w) + 2 * l2 * w
            finite = bool(np.isfinite(found).all())
            off = _largest(found - expected) if finite else float("inf")
            difference = max(difference, off)
            largest = max(largest, _largest(expected))
        gradient_error = difference / largest if largest else difference
    return Errors(value_error, gradient_error)


def _relative(value: float, exact: float) -> float:
    if not np.isfinite(value):
        return float("inf")
    return abs(value - exact) / exact if exact else abs(value)


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0.0))
