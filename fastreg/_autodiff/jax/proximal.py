"""The proximal step of a penalty as XLA computes it, to be fused with what uses it.

Contract
--------
- The bits of the core: every operation is rounded, in float32, float64 for float64, then the result
  to the dtype of `w` once.
- XLA for CPUs takes subnormal numbers for zeros; the core does not.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .strengths import TERM_L1, TERM_L2


def prox(w: Any, terms: int | None, t1: Any, t2: Any) -> Any:
    """Return the proximal step of a floating array, in its dtype.

    Without `terms` the device decides, and `t1` is a pair: l1, which is absent if it is 0, and the
    number itself.
    """
    if terms == 0:
        return jnp.copy(w)
    compute = np.float64 if w.dtype == np.float64 else np.float32
    x = w.astype(compute)
    result = x
    if terms is None:
        l1, t1 = t1
        result = jnp.where(l1 != 0, _shrunk(x, t1.astype(compute)), x)
    elif terms & TERM_L1:
        result = _shrunk(x, t1.astype(compute))
    if terms is None or terms & TERM_L2:
        # XLA makes a product with the reciprocal, rounded twice, of a division by a constant; so
        # the divisor is made to hang on an element.
        result /= jnp.where(jnp.isnan(x), x, t2.astype(compute))
    return result.astype(w.dtype)


def _shrunk(x: Any, t1: Any) -> Any:
    left = jnp.abs(x) - t1
    return jnp.where(left > 0, jnp.copysign(left, x), jnp.where(jnp.isnan(left), left, 0))


# jitted here for eager calls (outside the caller's `jit`).
compiled: Any = jax.jit(prox, static_argnums=1)
