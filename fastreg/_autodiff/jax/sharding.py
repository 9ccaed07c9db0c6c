"""Penalties of sharded arrays: every device sums its shards, one all-reduce adds the sums up.

Contract
--------
- Weights and gradients stay where they are: the sums of all tensors are one small vector, and the
  backward pass is elementwise.
- What is replicated over an axis of the mesh counts once: the first device along it gives its sum.
- Inside a ``shard_map`` that leaves axes to JAX, arrays are parts along its own axes, and the
  result is the penalty of this part: sums are taken over the other axes alone.
- Sums are added up in JAX's default float, float32 unless float64 is enabled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..._base import errors
from . import ffi
from .program import Form, local
from .strengths import real

try:
    from jax import shard_map

    _UNCHECKED = {"check_vma": False}
except ImportError:  # before JAX 0.8
    from jax.experimental.shard_map import shard_map

    _UNCHECKED = {"check_rep": False}


def summed_over_shards(form: Form, weights: Any, operands: Any, slopes: Any) -> tuple[Any, Any]:
    """Return values and total as :func:`local` does, of weights sharded as `form` says."""
    axes = free_axes(form.mesh)
    # Named only where some are not free: older versions of JAX take no names.
    named = {} if len(axes) == len(form.mesh.axis_names) else {"axis_names": set(axes)}
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
        **named,
        **_UNCHECKED,
    )(weights, operands, slopes)
    results = summed.astype(form.dtype), summed.sum().astype(form.dtype)
    values, total = ffi.alike((*results, *weights, *operands))[:2]
    return values, total


def free_axes(mesh: Any) -> tuple[str, ...]:
    """Return the axes of a mesh that are not those of a ``shard_map`` around this call."""
    types = getattr(mesh, "axis_types", None)
    manual = getattr(getattr(jax.sharding, "AxisType", None), "Manual", None)
    if manual is None or not isinstance(types, tuple):  # JAX 0.5
        return tuple(mesh.axis_names)
    return tuple(name for name, kind in zip(mesh.axis_names, types, strict=True) if kind != manual)


def _mesh_here(mesh: Any) -> Any:
    """Return a mesh as the ``shard_map`` around this call, if there is one, has left it."""
    context = getattr(jax.sharding, "get_abstract_mesh", lambda: None)()
    if context is None or context.shape != mesh.shape:
        return mesh
    return mesh if len(free_axes(context)) == len(mesh.axis_names) else context


def checked_specs(
    mesh: Any, specs: Any, params: Any, names: Sequence[str]
) -> tuple[Any, list[Any]]:
    """Return a mesh as it is here, and the spec of each leaf, of a tree that may be a prefix."""
    if not hasattr(mesh, "axis_names"):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, not {errors.described(mesh)}")

    mesh = _mesh_here(mesh)
    if not free_axes(mesh):
        raise ValueError(
            "inside a shard_map over all axes of the mesh arrays are parts of their own; sum the "
            "penalties of the parts: jax.lax.psum(reg(w), axis)"
        )

    def is_spec(x: Any) -> bool:
        return x is None or isinstance(x, (PartitionSpec, jax.sharding.Sharding))

    try:
        whole = jax.tree_util.tree_map(
            lambda spec, part: jax.tree_util.tree_map(lambda _: _Placed(spec), part),
            specs,
            params,
            is_leaf=is_spec,
        )
    except ValueError as error:
        raise ValueError(
            "specs must be a PartitionSpec, or a tree of them that params has a part for each of: "
            f"{error}"
        ) from None
    given = [placed.spec for placed in jax.tree_util.tree_leaves(whole)]
    leaves = jax.tree_util.tree_leaves(params)
    return mesh, [
        _checked_spec(mesh, spec, getattr(leaf, "shape", ()), errors.leaf_label(name))
        for spec, leaf, name in zip(given, leaves, names, strict=True)
    ]


class _Placed:
    """A spec as a leaf of a tree, where None and PartitionSpec may be something else."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec


def _checked_spec(mesh: Any, spec: Any, shape: tuple[int, ...], leaf: str) -> Any:
    if isinstance(spec, jax.sharding.NamedSharding):
        if spec.mesh.shape != mesh.shape:
            raise ValueError(
                f"the sharding of {leaf} is over the mesh {dict(spec.mesh.shape)}, and not over "
                f"{dict(mesh.shape)}; all of a call are over one mesh"
            )
        spec = spec.spec
    if not isinstance(spec, PartitionSpec):
        raise TypeError(
            f"the spec of {leaf} must be a PartitionSpec or NamedSharding, not "
            f"{errors.described(spec)}; PartitionSpec() is for what is replicated"
        )
    if len(spec) > len(shape):
        raise ValueError(f"the spec of {leaf}, {spec}, has more entries than its shape {shape}")
    for axis, entry in enumerate(spec):
        names = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        for name in names:
            if name not in free_axes(mesh):
                raise ValueError(
                    f"the spec of {leaf}, {spec}, names {name!r}, which is no axis of the mesh, or "
                    "one of a shard_map around this call; its axes are "
                    f"{errors.listed(free_axes(mesh))}"
                )
        parts = math.prod(mesh.shape[name] for name in names)
        if shape[axis] % parts:
            raise ValueError(
                f"{leaf} has {shape[axis]} elements along axis {axis}, which {parts} devices "
                f"({', '.join(map(repr, names))}) cannot share equally; pad it, or replicate that "
                "axis: None in its spec"
            )
    return spec


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
