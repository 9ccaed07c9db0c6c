"""Values of penalties inside a program of JAX, with their derivatives.

Contract
--------
- One call of the core per program and evaluation, whatever the number of tensors, where the program
  runs on a platform that the core serves; ``jax.numpy`` elsewhere, with the same meaning: an
  absent term adds nothing even at NaN, NaN propagates, half precision is computed in float32.
- Reverse mode is a ``custom_vjp`` whose backward pass is elementwise and computed by XLA alone
  (``gradient.compiled``): it is fused with the update, and stays where the weights are.  Backward
  passes can be differentiated again, in either mode; the forward pass refuses forward mode, as
  every ``custom_vjp`` does.
- Arrays that are known to be sharded are computed where their shards are, outside of programs too.
- Strengths that are traced have gradients as well.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import ffi, placement
from . import gradient as _gradient
from .program import Form, local
from .sharding import summed_over_shards
from .strengths import coefficients, scaled_strengths


def evaluated(
    form: Form, weights: tuple[Any, ...], operands: tuple[Any, ...], slopes: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Return each tensor's value, and their canonical sum."""
    # Inside `shard_map` a cotangent must have its primal's varying axes (vma), so all inputs are
    # first given the same ones.  The gradient of that is JAX's, the sum over the devices.
    mixed = ffi.alike((*weights, *operands))
    weights, operands = mixed[: len(weights)], mixed[len(weights) :]
    result: tuple[Any, Any] = _evaluated(form, weights, operands, slopes)
    return result


def _evaluated_fwd(form: Form, weights: Any, operands: Any, slopes: Any) -> Any:
    result = _forward(form, weights, operands, slopes)
    return result, (weights, operands, slopes, result[1])


def _evaluated_bwd(form: Form, residuals: Any, cotangents: Any) -> Any:
    weights, operands, slopes, total = residuals
    form = _placed(form, weights)
    values_bar, total_bar = cotangents
    upstream = values_bar + total_bar
    if form.mesh is None:
        upstream = after(upstream, total)
    weights_bar = tuple(
        _weight_bar(form, weights, operands, slopes, upstream, index)
        for index in range(len(weights))
    )
    operands_bar = [np.zeros(np.shape(operand), jax.dtypes.float0) for operand in operands]
    if None in form.terms:
        sums = _unit_sums(form, weights)
        for rule, terms in enumerate(form.terms):
            if terms is None:
                mine = np.asarray([which == rule for which in form.which])
                operands_bar[rule] = jnp.stack(
                    [jnp.where(mine, upstream * each, 0).sum() for each in sums]
                ).astype(operands[rule].dtype)
    return weights_bar, tuple(operands_bar), jax.tree_util.tree_map(jnp.zeros_like, slopes)


def after(upstream: Any, total: Any) -> Any:
    """Return `upstream`, made to depend on the value on the CPU.

    Where a program updates donated parameters in place, all other reads of them must come first.
    XLA for CPUs sees that only if the update depends on those reads; else it copies all parameters
    in every call: 16.8M took 33 ms instead of 9.  The price: a gradient alone computes the value,
    too.
    """
    total = jax.lax.stop_gradient(total)
    tied: Any = jax.lax.platform_dependent(
        upstream,
        total,
        # Nothing is larger than infinity, but XLA does not think of that.
        cpu=lambda upstream, total: jnp.where(total > jnp.inf, total, upstream),
        default=lambda upstream, total: upstream,
    )
    return tied


def _weight_bar(
    form: Form, weights: Any, operands: Any, slopes: Any, upstream: Any, index: int
) -> Any:
    w, rule = weights[index], form.which[index]
    if not jnp.issubdtype(w.dtype, jnp.floating):
        return np.zeros(w.shape, jax.dtypes.float0)
    both = coefficients(operands[rule], slopes[rule])
    return _gradient.compiled(
        w, form.terms[rule], both, jax.lax.index_in_dim(upstream, index, keepdims=False)
    )


def _unit_sums(form: Form, weights: Any) -> tuple[Any, Any]:
    """Return the sums of abs(w) and of w*w of each tensor: what strengths are multiplied with."""
    sums = []
    for pair in ((1.0, 0.0), (0.0, 1.0)):
        unit = scaled_strengths(*pair, 1.0, ())
        unit_form = form._replace(
            which=(0,) * len(weights),
            terms=(unit.terms,),
            constants=unit.constants if form.constants else (),
        )
        sums.append(_forward(unit_form, weights, (unit.operand,), (unit.slopes,))[0])
    return sums[0], sums[1]


def _forward_jvp(form: Form, primals: Any, tangents: Any) -> Any:
    # Only where a forward or backward pass is itself differentiated.
    weights, operands, slopes = primals
    weights_dot, operands_dot, _ = tangents
    dots = []
    sums = _unit_sums(form, weights) if None in form.terms else None
    one = jnp.ones((), form.dtype)
    for index, (w, w_dot) in enumerate(zip(weights, weights_dot, strict=True)):
        rule = form.which[index]
        dot = jnp.zeros((), form.dtype)
        if jnp.issubdtype(w.dtype, jnp.floating):
            both = coefficients(operands[rule], slopes[rule])
            gradient = _gradient.compiled(w.astype(form.dtype), form.terms[rule], both, one)
            dot = dot + (gradient * w_dot.astype(form.dtype)).sum()
        if sums is not None and form.terms[rule] is None:
            for each, strength_dot in zip(sums, operands_dot[rule], strict=True):
                dot = dot + (each[index] * strength_dot).astype(form.dtype)
        dots.append(dot)
    values_dot = jnp.stack(dots)
    return _forward(form, weights, operands, slopes), (values_dot, values_dot.sum())


def _placed(form: Form, weights: Any) -> Form:
    """Return the form of a call on these arrays, where they are."""
    if form.mesh is not None:
        return form
    mesh, specs = placement.mesh_and_specs(weights)
    if mesh is not None:
        return form._replace(mesh=mesh, specs=specs)
    if placement.are_spread(weights):
        # XLA partitions its own sums over devices, but not a call of the core.
        return form._replace(platforms=())
    return form


def _program(form: Form, weights: Any, operands: Any, slopes: Any) -> tuple[Any, Any]:
    if form.mesh is None:
        return local(form, weights, operands, slopes)
    return summed_over_shards(form, weights, operands, slopes)


# jitted here for eager calls (outside the caller's `jit`), such as grad without jit.
_compiled: Any = jax.jit(_program, static_argnums=0)
_forward: Any = jax.custom_jvp(
    lambda form, *arrays: _compiled(_placed(form, arrays[0]), *arrays), nondiff_argnums=(0,)
)
_forward.defjvp(_forward_jvp)
_evaluated: Any = jax.custom_vjp(_forward, nondiff_argnums=(0,))
_evaluated.defvjp(_evaluated_fwd, _evaluated_bwd)
