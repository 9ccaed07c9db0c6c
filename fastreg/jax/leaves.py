"""The leaves of a tree of parameters: their names, zeros for gradients, shares of zeros.

Contract
--------
- A leaf's name is its path, joined by "/".  An object with
  ``__jax_array__`` (nnx.Param) is one leaf; its inner key is left out of the name: "dense/kernel",
  not "dense/kernel/value".
- Other objects are leaves too, such as an activation function in a module of equinox.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._arrays.libraries import holds_jax_array, is_tracer
from .._autodiff import dispatch
from .._base import dtypes, errors
from .._base.errors import leaf_label
from ..penalties import report

_ARRAYS_ALONE = "pass a tree of arrays alone, for example equinox.filter(params, equinox.is_array)"


def names_of(tree: Any) -> list[str]:
    """Return the names of a tree's leaves, in their order."""
    names = []
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=holds_jax_array):
        if not holds_jax_array(node):
            names.append(_name(path))
            continue
        inner = [rest for rest, _ in jax.tree_util.tree_leaves_with_path(node)]
        names += [_name(path if len(inner) == 1 else (*path, *rest)) for rest in inner]
    return names


def _name(path: Any) -> str:
    # What keystr(path, simple=True, separator="/") gives, which JAX 0.5 does not have.
    return "/".join(str(_of_key(key)) for key in path)


def _of_key(key: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return key


def require_array(leaf: Any, name: str) -> None:
    """Raise TypeError unless a leaf that has a penalty is an array."""
    if not hasattr(leaf, "dtype"):
        raise TypeError(
            f"{leaf_label(name)} must be an array, not {errors.described(leaf)}; give it the rule "
            f"None, or {_ARRAYS_ALONE}"
        )


def require_floating(weights: Sequence[Any], names: Sequence[str]) -> None:
    """Raise TypeError unless leaves that have a penalty have a gradient, too."""
    for name, weight in zip(names, weights, strict=True):
        dtype = str(getattr(weight, "dtype", "float32"))  # a rule may take what is no array
        if dtypes.SHORT.get(dtype) not in dtypes.FLOATS:
            raise TypeError(
                f"{leaf_label(name)} has dtype {dtype}, for which there is no gradient; give it "
                "the rule None"
            )


def zeros_like(leaf: Any, name: str) -> Any:
    """Return zeros for the gradient of a leaf without penalty, placed as the leaf is."""
    if isinstance(leaf, (bool, int, float, complex)) or (
        hasattr(leaf, "dtype") and not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    ):
        return jnp.zeros_like(leaf)
    raise TypeError(
        f"{leaf_label(name)} is {errors.described(leaf)}, which has no gradient; {_ARRAYS_ALONE}"
    )


def share_of_zeros(leaf: Any, name: str) -> float:
    """Return the share of elements that are 0 (of either sign); 0.0 without elements."""
    if is_tracer(leaf):
        raise TypeError(
            f"{leaf_label(name)} is a JAX tracer, which has no elements yet; call report() outside "
            "of compiled and transformed functions"
        )
    dtype = getattr(leaf, "dtype", None)
    if dtype is None or (dtype not in dtypes.NAMES and dtype != jnp.bfloat16) or not leaf.size:
        return 0.0
    if dispatch.port_for_gradient(leaf) is None:
        return report.share_of_zeros(leaf, leaf_label(name))
    return 1.0 - int(_count_of_others(leaf)) / int(leaf.size)


def _others(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jnp.floating):
        # As bits: a comparison on CPUs takes subnormal numbers for zeros.
        bits: Any = {2: np.uint16, 4: np.uint32, 8: np.uint64}[x.dtype.itemsize]
        x = jax.lax.bitcast_convert_type(x, bits) << bits(1)
    return jnp.sum(x != 0, dtype=np.uint32)


_count_of_others: Any = jax.jit(_others)
