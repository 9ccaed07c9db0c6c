"""The maths of elements in NumPy: gradients and proximal steps, as ``csrc/*.inl`` have them.

Contract: docs/numerics.md, 6, 7 and 9, every operation rounded once, in float32 or for float64 in
float64; what is returned still has to be rounded to the dtype of the elements.  The caller has set
the floating point environment, and silenced NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dtypes

Array = npt.NDArray[Any]


def gradient(
    elements: Array,
    old: Array | None,
    dtype: str,
    factors: tuple[float, float],
    has_l1: bool,
    has_l2: bool,
) -> Array:
    """Return ``l1*sign(w) + (2*l2)*w``, and the old gradient added last, each operation rounded."""
    w = widened(elements, dtype)
    l1, double_l2 = _in_type_of(w, factors)
    if has_l1:
        slope = np.sign(w)  # +0 at both zeros, NaN at NaN
        slope *= l1
        if has_l2:
            slope += w * double_l2
    else:
        slope = w * double_l2
    if old is not None:
        slope += widened(old, dtype)
    return slope


def prox(
    elements: Array, dtype: str, thresholds: tuple[float, float], has_l1: bool, has_l2: bool
) -> Array:
    """Return ``sign(w) * max(abs(w) - t1, 0) / t2``, each operation rounded; one term is there."""
    w = widened(elements, dtype)
    return shrunk(w, _in_type_of(w, thresholds), has_l1, has_l2)


def shrunk(w: Array, thresholds: tuple[Any, Any], has_l1: bool, has_l2: bool) -> Array:
    """Return what :func:`prox` does; numbers or arrays as thresholds, of the type of `w`."""
    t1, t2 = thresholds
    if not has_l1:
        result: Array = w / t2
        return result
    left: Array = np.abs(w)
    left -= t1
    is_gone = left <= 0  # not where it is NaN
    np.copysign(left, w, out=left)
    left[is_gone] = 0
    if has_l2:
        left /= t2
    return left


def widened(elements: Array, dtype: str) -> Array:
    """Convert elements to the type of the arithmetic, float32 or float64."""
    if dtype == "bf16":
        return dtypes.from_bfloat16(elements)
    return elements.astype(np.float32) if dtype == "f16" else elements


def _in_type_of(w: Array, numbers: tuple[float, float]) -> tuple[Any, Any]:
    return w.dtype.type(numbers[0]), w.dtype.type(numbers[1])
