"""Which framework an array belongs to.

Contract: no framework is imported; an object of a framework exists only where its module is loaded.
"""

from __future__ import annotations

import sys
from typing import Any


def framework(x: Any) -> tuple[str, Any, Any]:
    """Say whose array `x` is: "torch", "jax", "cupy" or "other", the module, and the array itself.

    The array is what a ``keras.Variable`` wraps, else `x`.
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
    return "other", None, x
