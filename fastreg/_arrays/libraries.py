"""Which framework an array belongs to.

Contract: no framework is imported; an object of a framework exists only where its module is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

ALL_NUMPY = frozenset((np.ndarray,)).issuperset
"""Return whether all types of arrays are NumPy's own: ``ALL_NUMPY(map(type, arrays))``."""


def framework(x: Any) -> tuple[str, Any, Any]:
    """Say whose array `x` is: "torch", "jax", "cupy" or "other", the module, and the array itself.

    The array is what a ``keras.Variable`` wraps, or an object with ``__jax_array__`` as flax nnx
    has; else `x`.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, getattr(torch, "Tensor", ())):
        return "torch", torch, x
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, getattr(jax, "Array", ())):
        return "jax", jax, x
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, getattr(cupy, "ndarray", ())):
        return "cupy", cupy, x
    keras: Any = sys.modules.get("keras")
    variable: Any = getattr(keras, "Variable", ())
    if isinstance(x, variable):
        return framework(x.value)
    if wraps_jax_array(x):
        return "jax", jax, x.__jax_array__()
    return "other", None, x


def wraps_jax_array(x: object) -> bool:
    """Return whether `x` is no array, but JAX takes it for the one that it holds."""
    jax = sys.modules.get("jax")
    # A reference of JAX (jax.new_ref) has the name with nothing behind it.
    if jax is None or not callable(getattr(type(x), "__jax_array__", None)):
        return False
    # Tracers have the name as well, and so has what Keras builds models of, to refuse by it.
    symbolic: Any = getattr(sys.modules.get("keras"), "KerasTensor", ())
    return not isinstance(x, (getattr(jax, "Array", ()), symbolic))


def is_jax_tracer(x: object) -> bool:
    """Return whether `x` only stands for an array: JAX traces a function."""
    core = getattr(sys.modules.get("jax"), "core", None)
    return isinstance(x, getattr(core, "Tracer", ()))


def is_dtensor(x: object) -> bool:
    """Return whether `x` is a DTensor of torch, whatever its placements."""
    # torch does not load the module by itself, which takes half a second.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, getattr(module, "DTensor", ()))


def has_dtensors(arrays: Iterable[object]) -> bool:
    """Return whether one of many is a DTensor: 400 take some 5 us, for they are of few types."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return False
    dtensor = getattr(module, "DTensor", ())
    return any(issubclass(kind, dtensor) for kind in set(map(type, arrays)))
