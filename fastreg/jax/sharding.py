"""Penalties of sharded arrays: every device sums its shards, one all-reduce adds the sums up.

Contract
--------
- Weights and gradients stay where they are: the sums of all tensors are one small vector, and the
  backward pass is elementwise.
- What is replicated over an axis of the mesh counts once: the first device along it gives its sum.
- Sums are added up in JAX's default float, float32 unless float64 is enabled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from .evaluated import Form, local
from .strengths import real

try:
    from jax import shard_map

    _UNCHECKED = {"check_vma": False}
except ImportError:  # before JAX 0.8
    from jax.experimental.shard_map import shard_map

    _UNCHECKED = {"check_rep": False}


def summed_over_shards(form: Form, weights: Any, operands: Any, slopes: Any) -> tuple[Any, Any]:
    """Give what a call on one device gives, for weights that are sharded as `form` says."""
    axes = tuple(form.mesh.axis_names)
    unsharded = [_unsharded_axes(spec, axes) for spec in form.specs]
    # A shard's sum keeps the digits that JAX has, also where the result is rounded to float32.
    partial = form._replace(mesh=None, specs=(), dtype=jnp.dtype(real()))

    def on_shards(weights: Any, operands: Any, slopes: Any) -> Any:
        values, _ = local(partial, weights, operands, slopes)
        counts = jnp.stack([_is_first_along(names) for names in unsharded])
        return jax.lax.psum(jnp.where(counts, values, 0), axes)

    summed = shard_map(
        on_shards,
        mesh=form.mesh,
        in_specs=(form.specs, PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        **_UNCHECKED,
    )(weights, operands, slopes)
    return summed.astype(form.dtype), summed.sum().astype(form.dtype)


def _unsharded_axes(spec: Any, axes: Sequence[str]) -> list[str]:
    used: set[Any] = set()
    for entry in spec:
        used.update(entry if isinstance(entry, tuple) else (entry,))
    return [name for name in axes if name not in used]


def _is_first_along(names: Sequence[str]) -> Any:
    first = jnp.asarray(True)
    for name in names:
        first &= jax.lax.axis_index(name) == 0
    return first
