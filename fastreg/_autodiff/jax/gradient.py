"""The gradient of a penalty as XLA computes it, to be fused with what uses it.

Contract
--------
- The bits of the core: ``c1*sign(w) + c2*w`` with every operation rounded, in float32, float64 for
  float64, then rounded to the dtype of `w` once; sign(+-0) = +0, so that c1 < 0 gives -0 there; NaN
  stays NaN.
- XLA for CPUs takes subnormal numbers for zeros in arithmetic and comparisons.  Signs are read and
  put on as bits, which is exact; but a subnormal `c1` or `c2` counts as 0, and so does a `w`, or a
  product ``c2*w``, that is subnormal in the type of the arithmetic, in the second term.
- Differentiable again: a bit pattern has no derivative, so the rule is written out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .strengths import TERM_L1, TERM_L2


def gradient(w: Any, terms: int | None, coefficients: Any, upstream: Any) -> Any:
    """Return the gradient of a floating tensor in its dtype, from ``[l1, 2 * l2]``.

    Without `terms` the device decides: a coefficient of 0 is an absent term.
    """
    compute = _compute_dtype(w)
    c1, c2 = coefficients.astype(compute) * upstream.astype(compute)
    return _slope(terms, w, c1, c2).astype(w.dtype)


def _compute_dtype(w: Any) -> Any:
    return np.float64 if w.dtype == np.float64 else np.float32


def _rounded_slope(terms: int | None, w: Any, c1: Any, c2: Any) -> Any:
    x = w.astype(_compute_dtype(w))
    if terms == 0:
        return jnp.zeros_like(x)
    if terms == TERM_L1:
        return _signed(w, c1)
    if terms == TERM_L2:
        return c2 * x
    signed = _signed(w, c1)
    both = signed + _rounded_product(x, c2)
    if terms is not None:
        return both
    alone = jnp.where(c1 != 0, signed, jnp.zeros_like(x))
    return jnp.where(c2 != 0, jnp.where(c1 != 0, both, c2 * x), alone)


def _slope_jvp(terms: int | None, primals: Any, tangents: Any) -> tuple[Any, Any]:
    w, c1, c2 = primals
    w_dot, c1_dot, c2_dot = tangents
    slope = _slope(terms, w, c1, c2)
    slope_dot = jnp.zeros_like(slope)
    if terms is None or terms & TERM_L1:
        slope_dot += c1_dot * _signed(w, jnp.ones_like(c1))
    if terms is None or terms & TERM_L2:
        slope_dot += c2_dot * w.astype(slope.dtype) + c2 * w_dot.astype(slope.dtype)
    return slope, slope_dot


_slope: Any = jax.custom_jvp(_rounded_slope, nondiff_argnums=(0,))
_slope.defjvp(_slope_jvp)

# jitted here for eager calls (outside the caller's `jit`).
compiled: Any = jax.jit(gradient, static_argnums=1)


def _signed(w: Any, c: Any) -> Any:
    """Return ``c * sign(w)``, where sign is +0 for both zeros and NaN for NaN.

    By bits alone, since comparisons take subnormal numbers for zeros: those of `w` as it is, since
    its conversion may do so too.
    """
    own, bits = _UNSIGNED[w.dtype.itemsize], _UNSIGNED[c.dtype.itemsize]
    width = own(8 * w.dtype.itemsize - 1)
    pattern = _bits(w, own)
    magnitude = pattern & ((own(1) << width) - own(1))
    infinity = int(np.asarray(np.inf, w.dtype).view(own))
    sign = (pattern >> width).astype(bits) << bits(8 * c.dtype.itemsize - 1)
    coefficient = _bits(c, bits)
    zero = coefficient & bits(1 << (8 * c.dtype.itemsize - 1))
    signed = jnp.where(magnitude == 0, zero, coefficient ^ sign)
    result = jax.lax.bitcast_convert_type(signed, c.dtype)
    return jnp.where(magnitude > own(infinity), jnp.full_like(result, jnp.nan), result)


def _rounded_product(w: Any, c: Any) -> Any:
    """Return ``c * w`` in a form that compilers cannot contract with an addition behind it.

    XLA lets LLVM make a fused multiply-add of any product and sum, and drops what asks for the
    rounding (``reduce_precision``, ``optimization_barrier``).  The sign is put on anew, as bits:
    it is the one that the product has, so the bits are the same.
    """
    bits = _UNSIGNED[w.dtype.itemsize]
    sign = bits(1 << (8 * w.dtype.itemsize - 1))
    magnitude = _bits(c * w, bits) & ~sign
    signs = (_bits(w, bits) ^ _bits(c, bits)) & sign
    return jax.lax.bitcast_convert_type(magnitude | signs, w.dtype)


_UNSIGNED: dict[int, Any] = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def _bits(x: Any, bits: Any) -> Any:
    return jax.lax.bitcast_convert_type(x, bits)
