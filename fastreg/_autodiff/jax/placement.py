"""The placement of a call's arrays: on one device, or sharded over a known mesh.

Contract
--------
- The sharding of a concrete array is always known, that of a tracer only on explicit axes.  Under
  eager ``jax.grad`` the caller sees tracers, but the ``custom_vjp`` body sees concrete arrays: read
  shardings there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax


def mesh_and_specs(arrays: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the mesh that arrays are known to be sharded over, and their specs; else None."""
    placed: list[Any] = [_sharding(w) for w in arrays]
    if any(not isinstance(sharding, jax.sharding.NamedSharding) for sharding in placed):
        return None, ()
    meshes = {sharding.mesh for sharding in placed}
    specs = tuple(sharding.spec for sharding in placed)
    if len(meshes) != 1 or not any(entry is not None for spec in specs for entry in spec):
        return None, ()
    return placed[0].mesh, specs


def are_spread(arrays: Sequence[Any]) -> bool:
    """Return whether a concrete array is on several devices, however it is placed there."""
    return any(
        not isinstance(w, jax.core.Tracer) and len(w.sharding.device_set) > 1 for w in arrays
    )


def _sharding(w: Any) -> Any:
    if isinstance(w, jax.core.Tracer):
        return getattr(w.aval, "sharding", None)
    return w.sharding
