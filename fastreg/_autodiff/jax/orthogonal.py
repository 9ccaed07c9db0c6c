"""The penalty of OrthogonalRegularizer in jax.numpy, which differentiates it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .strengths import is_followed


def penalty(w: Any, factor: Any, mode: str) -> Any:
    """Return ``factor`` times the mean of the absolute cosines between rows, or columns.

    Computed in float32, float64 for float64.  Rows of zeros have no direction, and no gradient.
    """
    if w.ndim != 2:
        raise ValueError(
            f"w must have 2 axes for OrthogonalRegularizer, not shape {w.shape}; pass "
            "w.reshape(...)"
        )
    dtype = np.float64 if w.dtype == np.float64 else np.float32
    matrix = w.astype(dtype)
    if mode == "columns":
        matrix = matrix.T
    rows = matrix.shape[0]
    pairs = rows * (rows - 1) / 2
    if not pairs or (not is_followed(factor) and factor == 0.0):
        return jnp.zeros((), dtype)
    # A row's direction is the same whatever it is divided by: a constant for the gradient.
    largest = jax.lax.stop_gradient(jnp.abs(matrix).max(axis=1, keepdims=True, initial=0))
    scaled = matrix / jnp.where(largest == 0, 1, largest)
    squares = jnp.square(scaled).sum(axis=1, keepdims=True)
    # The root has no derivative at 0, so it is not asked for it.
    units = jnp.where(squares == 0, 0, scaled / jnp.sqrt(jnp.where(squares == 0, 1, squares)))
    cosines = jnp.matmul(units, units.T, precision=jax.lax.Precision.HIGHEST)
    off_diagonal = jnp.where(jnp.eye(rows, dtype=bool), 0, cosines)
    with np.errstate(over="ignore"):  # what does not fit is an infinity, as in the core
        strength = jnp.asarray(factor, dtype)
    value = strength / pairs * (0.5 * jnp.abs(off_diagonal).sum())
    return jnp.where(strength == 0, 0, value) if is_followed(factor) else value
