"""The one formula of OrthogonalRegularizer, for NumPy and whatever has NumPy's functions.

Contract
--------
- The penalty is a strength times the mean of ``abs(cos(angle))`` over all pairs of rows (or
  columns), in the dtype of the matrix.  A row of zeros has no direction, and no gradient.
- Rows keep their direction however short or long they are: squares neither overflow nor vanish.
- A strength of zero switches the penalty off, NaN or not, like a term of L1L2; so do fewer than two
  rows.  It may be traced.
- Frameworks differentiate :func:`evaluate`; :func:`gradient` is the same in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._base import errors


class Angles(NamedTuple):
    """A penalty, and what its gradient is made of."""

    value: Any
    strength: Any
    """Of one pair; 0 where there is none."""
    units: Any
    cosines: Any
    norms: Any
    largest: Any


def require_matrix(w: Any) -> None:
    """Raise ValueError unless an array has two axes."""
    if len(w.shape) != 2:
        raise errors.matrix_error(tuple(w.shape))


def evaluate(
    xp: Any,
    matrix: Any,
    strength: Any,
    mode: str,
    off_diagonal: Callable[[Any], Any],
    detach: Callable[[Any], Any],
) -> Angles:
    """Return the penalty of a floating matrix, 0-d, by ``numpy``, ``torch`` or another `xp`.

    `off_diagonal` makes zeros of a diagonal, maybe in place; `detach` a constant for the gradient.
    """
    if mode == "columns":
        matrix = xp.swapaxes(matrix, 0, 1)
    rows, columns = matrix.shape
    pairs = rows * (rows - 1) / 2
    strength = strength / pairs if pairs else strength * 0.0
    if type(strength) is not float or strength == 0.0:
        matrix = xp.where(strength != 0.0, matrix, 0.0)
    # A row's direction is the same whatever it is divided by: a constant for the gradient.
    largest = detach(xp.amax(xp.abs(matrix), axis=1, keepdims=True)) if columns else matrix
    scaled = matrix / xp.where(largest == 0.0, 1.0, largest)
    squares = xp.sum(xp.square(scaled), axis=1, keepdims=True)
    # The root's slope at 0 is infinite, and would make NaN of the zeros that come back.
    is_zero = squares == 0.0
    norms = xp.sqrt(xp.where(is_zero, 1.0, squares))
    units = xp.where(is_zero, 0.0, scaled / norms)
    cosines = off_diagonal(xp.matmul(units, xp.swapaxes(units, 0, 1)))
    value = strength * (0.5 * xp.sum(xp.abs(cosines)))
    return Angles(value, strength, units, cosines, norms, largest)


def gradient(xp: Any, angles: Angles, factor: Any, mode: str) -> Any:
    """Return the gradient with respect to the matrix, times a factor."""
    towards = (angles.strength * factor) * xp.matmul(xp.sign(angles.cosines), angles.units)
    across = towards - angles.units * xp.sum(angles.units * towards, axis=1, keepdims=True)
    # Without a largest element a row is one of zeros, which has no gradient.
    is_zero = angles.largest == 0.0
    slope = xp.where(is_zero, 0.0, across / xp.where(is_zero, 1.0, angles.norms * angles.largest))
    return xp.swapaxes(slope, 0, 1) if mode == "columns" else slope
