"""The port for JAX: penalties of arrays that are traced or sharded.

Contract
--------
- The functions of ``dispatch.Port``; they can be traced, differentiated in reverse and mapped by
  ``vmap``.  The ``custom_vjp`` is in ``derivatives``.
- Concrete arrays that are sharded over several devices are computed where their shards are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._arrays.libraries import is_tracer, owner
from ..._base import dtypes as _dtypes
from ..._base import errors
from ..._base.float_environment import product
from ..._base.penalty import Strengths
from .. import orthogonal as _orthogonal
from . import ffi
from . import gradient as _gradient
from . import proximal as _proximal
from . import strengths as _strengths
from .derivatives import after, evaluated
from .program import Form
from .strengths import factor as factor


def total(
    weights: Sequence[Any],
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    *,
    mesh: Any = None,
    specs: Sequence[Any] = (),
    names: Sequence[str] = (),
) -> jax.Array:
    """Return the penalty of all tensors, 0-d; float64 if one of them is, else float32.

    `names` are what messages call the tensors; without them, one tensor's penalty is no sum, which
    would begin at +0 where the penalty is -0.
    """
    each, result = _evaluate(weights, strengths, which, scale, mesh, specs, names)
    alone: jax.Array = each.reshape(()) if len(weights) == 1 and not names else result
    return alone


def values(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any
) -> tuple[jax.Array, ...]:
    """Return the penalty of each tensor, 0-d each, from one call of the core."""
    result, _ = _evaluate(weights, strengths, which, scale)
    dtypes = [np.float64 if w.dtype == np.float64 else np.float32 for w in map(_array, weights)]
    return tuple(result[index].astype(dtype) for index, dtype in enumerate(dtypes))


def gradients(
    weights: Sequence[Any],
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
    value: Any = None,
) -> list[jax.Array]:
    """Return ``scale * grad_scale * (l1 * sign(w) + 2 * l2 * w)`` of each, in its dtype.

    If a program also returns the `value`, gradients are computed after it: see
    ``derivatives.after``.
    """
    scale, grad_scale = factor(scale, "scale"), factor(grad_scale, "grad_scale")
    scaled = [(product(l1, scale), product(l2, scale)) for l1, l2 in strengths]
    return [
        _gradient_of(_array(w), *scaled[rule], grad_scale, value)
        for w, rule in zip(weights, which, strict=True)
    ]


def _gradient_of(w: Any, l1: Any, l2: Any, factor: Any, value: Any) -> jax.Array:
    dtype = _require_floating(w)
    rule = _strengths.scaled_strengths(l1, l2, factor, (dtype,))
    both = _strengths.coefficients(rule.operand, rule.slopes)
    one = jnp.ones((), w.dtype)
    # A value that varies over more axes of a shard_map than `w` would make its gradient vary, too.
    if is_tracer(value) and ffi.alike((w, value))[0] is w:
        one = after(*ffi.alike((jnp.ones((), value.dtype), value)))
    result: jax.Array = _gradient.compiled(w, rule.terms, both, one)
    return result


def proximal(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, step: Any
) -> list[jax.Array]:
    """Return the proximal step of each, in its dtype."""
    made = []
    for w, rule in zip(map(_array, weights), which, strict=True):
        dtype = _require_floating(w)
        numbers = _strengths.thresholds(*strengths[rule], scale, step, dtype)
        made.append(_proximal.compiled(w, *numbers))
    return made


def orthogonal(w: Any, factor: Any, mode: str) -> jax.Array:
    """Return the penalty of ``OrthogonalRegularizer``, 0-d; float64 for float64, else float32."""
    w = _strong(_array(w))
    _dtype_of(w, "w")
    _orthogonal.require_matrix(w)
    dtype = np.float64 if w.dtype == np.float64 else np.float32
    with np.errstate(over="ignore"):  # what does not fit is an infinity, as in the core
        strength = jnp.asarray(factor, dtype)
    with jax.default_matmul_precision("highest"):
        angles = _orthogonal.evaluate(
            jnp,
            w.astype(dtype),
            strength,
            mode,
            lambda matrix: jnp.where(jnp.eye(len(matrix), dtype=bool), 0.0, matrix),
            jax.lax.stop_gradient,
        )
    result: jax.Array = angles.value
    return result


def orthogonal_value_and_grad(
    w: Any, factor: Any, mode: str, grad_scale: Any
) -> tuple[jax.Array, jax.Array]:
    """Return the result of :func:`orthogonal`, and its gradient times `grad_scale`."""
    w = _strong(_array(w))
    _require_floating(w)
    value, pull_back = jax.vjp(lambda w: orthogonal(w, factor, mode), w)
    upstream = jnp.asarray(grad_scale, value.dtype)
    (_gradient,) = pull_back(ffi.alike((upstream, value))[0])
    return value, _gradient


def _array(w: Any) -> Any:
    return owner(w)[1]


def _require_floating(w: Any) -> str:
    """Return the short name of an array's dtype; TypeError where it has no gradient."""
    dtype = _dtype_of(w, "w")
    if dtype not in _dtypes.FLOATS:
        raise TypeError(
            f"w has dtype {w.dtype}, for which there is no gradient; pass for example "
            "w.astype(numpy.float32)"
        )
    return dtype


def _strong(w: Any) -> Any:
    # ``jnp.asarray`` of what ``grad`` traces outside of a program copies all of it.
    return w if isinstance(w, jax.Array) and not w.weak_type else jnp.asarray(w)


def _dtype_of(w: Any, name: str) -> str:
    """Return the short name of an array's dtype; TypeError where it has no penalty."""
    known = _dtypes.SHORT.get(str(w.dtype))
    if known is None:
        is_complex = jnp.issubdtype(w.dtype, jnp.complexfloating)
        remedy = f"pass jax.numpy.abs({name}) or its real parts" if is_complex else ""
        raise errors.dtype_error(name, w.dtype, remedy)
    return known


def _evaluate(
    weights: Sequence[Any],
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    mesh: Any = None,
    specs: Sequence[Any] = (),
    names: Sequence[str] = (),
) -> Any:
    arrays = tuple(_strong(_array(w)) for w in weights)
    dtypes = [
        _dtype_of(w, name) for w, name in zip(arrays, names or ["w"] * len(arrays), strict=True)
    ]
    dtype = np.dtype(np.float64 if "f64" in dtypes else np.float32)
    if not arrays:
        return jnp.zeros((0,), dtype), jnp.zeros((), dtype)
    # A coefficient too large for float32 is refused where a gradient is asked for by name; a
    # gradient that JAX takes is infinite then.
    rules = [_strengths.scaled_strengths(l1, l2, scale, ()) for l1, l2 in strengths]
    platforms = ffi.platforms()
    form = Form(
        tuple(which),
        tuple(rule.terms for rule in rules),
        tuple(x for rule in rules for x in rule.constants) if "cuda" in platforms else (),
        dtype,
        platforms,
        mesh,
        tuple(specs),
    )
    operands = tuple(rule.operand for rule in rules)
    return evaluated(form, arrays, operands, tuple(rule.slopes for rule in rules))
