"""Penalties as functions of arrays and strengths, for programs that change strengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .._autodiff.jax import functions
from .._autodiff.jax.strengths import may_be_traced
from .._base import arguments
from .._base.array_types import AnyArray, Factor
from ..penalties.rules import GivenRules
from .attached import TreePenalties, attach


def penalty(x: AnyArray, *, l1: Factor = 0.0, l2: Factor = 0.0, scale: Factor = 1.0) -> jax.Array:
    """Return ``scale * (l1 * sum(abs(x)) + l2 * sum(x**2))``, with strengths that may be traced.

    Parameters
    ----------
    x : jax.Array
        Of any shape: float16, bfloat16, float32, float64, or an integer type or bool.
    l1, l2 : float or jax.Array
        Strengths.  Python and NumPy numbers are exact, and must be finite and >= 0.  As soon as one
        of the three numbers is a 0-d JAX array, they are computed in JAX's default float, and not
        checked.
    scale : float or jax.Array, optional
        A factor.

    Returns
    -------
    jax.Array
        0-d; float64 for float64, else float32.  Differentiable in reverse mode, also with respect
        to the strengths.

    Raises
    ------
    TypeError
        For another dtype, and for strengths that are no single real numbers.
    ValueError
        When a strength of the host is not finite, is negative, or is not finite after scaling.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from fastreg.jax import penalty
    >>> step = jax.jit(lambda w, l1: penalty(w, l1=l1))
    >>> [float(step(jnp.asarray([1.0, -2.0]), l1)) for l1 in (0.5, 1.0)]  # compiled once
    [1.5, 3.0]
    """
    return functions.total((x,), ((_strength(l1, "l1"), _strength(l2, "l2")),), (0,), scale)


def _strength(number: Any, name: str) -> Any:
    return number if may_be_traced(number) else arguments.strength(number, name)


def sharded_penalty(
    mesh: jax.sharding.Mesh, specs: Any, rules: GivenRules | TreePenalties
) -> Callable[..., jax.Array]:
    """Make a function that gives the penalty of sharded parameters where their shards are.

    Every device sums its own shards; one all-reduce of a small vector adds the sums up.  Gradients
    are sharded as the parameters are, and take no communication.  What is replicated over an axis
    of the mesh counts once.

    Parameters
    ----------
    mesh : jax.sharding.Mesh
    specs : PartitionSpec or NamedSharding, or tree of them
        How the parameters are sharded; a tree may be a prefix of theirs.  Devices must share each
        axis equally.
    rules : regularizer, mapping or TreePenalties
        As for :func:`attach`.  One regularizer is for all leaves.

    Returns
    -------
    callable
        ``f(params, *, scale=1.0, rules=None)``, for an array or a tree; pure.  Its `rules`, instead
        of those given here, may be an argument of a compiled function, for schedules: strengths of
        the others are constants there.  Its sum is as exact as JAX's default float: 1e-7 relative
        in float32, 1e-15 where float64 is enabled.

    Raises
    ------
    TypeError, ValueError
        By the function, when mesh, specs and parameters do not fit; the leaf is named.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from jax.sharding import Mesh, PartitionSpec
    >>> from fastreg import regularizers
    >>> from fastreg.jax import sharded_penalty
    >>> mesh = Mesh(jax.devices()[:1], ("data",))
    >>> value = sharded_penalty(mesh, PartitionSpec("data"), regularizers.L1(0.5))
    >>> jax.value_and_grad(value)(jnp.asarray([1.0, -2.0]))
    (Array(1.5, dtype=float32), Array([ 0.5, -0.5], dtype=float32))
    """

    default = rules

    def value(params: Any, *, scale: Any = 1.0, rules: Any = None) -> jax.Array:
        chosen = default if rules is None else rules
        penalties = chosen if isinstance(chosen, TreePenalties) else attach(params, chosen)
        return penalties.value(params, scale=scale, mesh=mesh, specs=specs)

    return value
