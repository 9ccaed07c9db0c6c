"""Strengths and scales: static Python scalars, which are exact, and traced scalars.

Contract
--------
- A rule whose numbers are all the host's goes into a program as the bits of two float64, scaled and
  checked as the core does: its values have the core's bits even where JAX has no float64.
- As soon as one of its numbers is a JAX array, a rule is computed in JAX's default float: float32,
  or float64 where JAX has it enabled.  It is not checked: NaN and infinities pass.
- What the gradient multiplies with is ``[l1, 2 * l2]``, scaled, in JAX's default float.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._base import arguments, errors, penalty
from ..._base.float_environment import Default
from ..._engine import checks

TERM_L1, TERM_L2 = 1, 2


class ScaledStrengths(NamedTuple):
    """The strengths of one rule of a call, as a program takes them."""

    operand: Any
    """uint32[2, 2], the bits of the strengths; or the strengths as JAX computes them."""
    slopes: Any
    """[l1, 2 * l2]; None where they follow from the operand."""
    terms: int | None
    """Which of the two are present, as bits; None where only the device knows."""
    constants: tuple[float, float]
    """The strengths; NaN where only the device knows."""


def real() -> Any:
    """Return JAX's default float: float32, or float64 where it is enabled."""
    return jnp.result_type(float)


def may_be_traced(number: Any) -> bool:
    """Return whether a number is JAX's, and so may be traced."""
    return isinstance(number, jax.Array)


def factor(number: Any, name: str) -> Any:
    """Return a scale of the host as a float, and one of JAX as it is."""
    if not may_be_traced(number):
        return arguments.multiplier(number, name)
    if number.shape != () or not jnp.issubdtype(number.dtype, jnp.number):
        raise TypeError(
            f"{name} must be one number, not {errors.described(number)} of shape "
            f"{tuple(number.shape)} and dtype {number.dtype}"
        )
    if jnp.issubdtype(number.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must be a real number, not of dtype {number.dtype}")
    return number


def scaled_strengths(l1: Any, l2: Any, scale: Any, slope_dtypes: Sequence[str]) -> ScaledStrengths:
    """Return two strengths, times a factor, as a program takes them.

    `slope_dtypes` are those of the floating tensors whose gradients use them: the coefficients must
    be finite there.  Empty where no gradient can be asked for.
    """
    if any(map(may_be_traced, (l1, l2, scale))):
        numbers = (_real(x, name) for x, name in ((l1, "l1"), (l2, "l2"), (scale, "scale")))
        l1, l2, scale = numbers
        return ScaledStrengths(
            jnp.stack([l1 * scale, l2 * scale]), None, None, (math.nan, math.nan)
        )
    scale = arguments.multiplier(scale, "scale")
    l1, l2 = float(l1), float(l2)
    checks.check_coefficients(
        ((l1, l2),), (0,) * len(slope_dtypes), slope_dtypes, scale, 1.0, bool(slope_dtypes)
    )
    with Default(), np.errstate(over="ignore", under="ignore"):
        scaled = l1 * scale, l2 * scale
        slopes = np.asarray((scaled[0], 2.0 * scaled[1]), real())
        terms = (TERM_L1 if scaled[0] != 0.0 else 0) | (TERM_L2 if scaled[1] != 0.0 else 0)
    bits = np.asarray(scaled, np.float64).view(np.uint32).reshape(2, 2)
    return ScaledStrengths(bits, slopes, terms, scaled)


def thresholds(l1: Any, l2: Any, scale: Any, step: Any, dtype: str) -> tuple[int | None, Any, Any]:
    """Return the terms, as of :class:`ScaledStrengths`, and the two numbers of a proximal step."""
    if any(map(may_be_traced, (l1, l2, scale, step))):
        named = ((l1, "l1"), (l2, "l2"), (scale, "scale"), (step, "step"))
        l1, l2, scale, step = (_real(x, name) for x, name in named)
        l1, l2 = l1 * scale, l2 * scale
        # Without a factor of 0 a term is absent, which only the device knows.
        return None, jnp.stack([l1, step * l1]), 1 + step * (2 * l2)
    scale, step = arguments.strength(scale, "scale"), arguments.strength(step, "step")
    checks.check_thresholds(((l1, l2),), (0,), (dtype,), scale, step)
    t1, t2 = penalty.thresholds((l1, l2), scale, step)
    kind = np.float64 if dtype == "f64" else np.float32
    with Default(), np.errstate(under="ignore"):
        terms = (TERM_L1 if l1 * scale != 0.0 else 0) | (TERM_L2 if l2 * scale != 0.0 else 0)
        return terms, np.asarray(t1, kind), np.asarray(t2, kind)


def as_reals(operand: Any, slopes: Any) -> Any:
    """Return the two strengths of a rule in JAX's default float."""
    return operand if slopes is None else slopes * np.asarray((1.0, 0.5), real())


def coefficients(operand: Any, slopes: Any) -> Any:
    """Return ``[l1, 2 * l2]`` of a rule in JAX's default float."""
    return operand * np.asarray((1.0, 2.0), real()) if slopes is None else slopes


def _real(number: Any, name: str) -> Any:
    # A strength was checked where it was set, and a scale may have any sign.
    return jnp.asarray(factor(number, name), real())
