"""The ``dtype`` of a layer: that of its weights, and that of its arithmetic.

Contract: float32 and float64 layers compute in their own type.  Half precision layers store
weights, outputs and gradients in float16 or bfloat16 and compute in float32 in between, each result
rounded once: NumPy has no fast half precision product, and a sum in half precision stalls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._arrays import host
from .._base import dtypes, errors
from .._base.dtypes import Array
from ..regularizers.saved_forms import saved_form

NAMES = tuple(row.spoken for row in dtypes.FLOATS.values())


class Precision(NamedTuple):
    """A layer's dtype: its name as Keras writes it, and the two NumPy dtypes."""

    name: str
    storage: np.dtype[Any]
    compute: np.dtype[Any]

    def rounded(self, x: Array) -> Array:
        """Return a result in the storage dtype; too large a number becomes infinite."""
        if x.dtype == self.storage:
            return x
        with np.errstate(over="ignore", under="ignore"):
            return x.astype(self.storage)

    def computable(self, x: Array) -> Array:
        """Return a stored array in the compute dtype, itself where that is the same."""
        return x.astype(self.compute, copy=False)

    def config(self) -> Any:
        """Return the saved form, the one that Keras writes."""
        return saved_form("keras", "DTypePolicy", {"name": self.name}, None)


def get(dtype: Any) -> Precision:
    """Return the :class:`Precision` of a layer's ``dtype`` argument.

    It is None (float32), a name, a dtype, or a dtype policy of Keras, saved or not; others are a
    TypeError or ValueError, and bfloat16 is an ImportError without the package ml_dtypes.

    >>> get("float16")
    Precision(name='float16', storage=dtype('float16'), compute=dtype('float32'))
    """
    name = _name(dtype)
    if name not in NAMES:
        remedy = (
            '; a layer of dtype "float16" or "bfloat16" computes in float32 already'
            if name.startswith("mixed_")
            else ""
        )
        raise ValueError(
            f"dtype must be one of {errors.listed(NAMES)}, not {name!r}"
            f"{errors.suggestion(name, NAMES)}{remedy}"
        )
    if name == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            raise ImportError(
                "dtype 'bfloat16' needs the package ml_dtypes, because NumPy has no such type; "
                "install ml_dtypes, or pass dtype='float16' or 'float32'"
            ) from None
        storage: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    else:
        storage = np.dtype(name)
    return Precision(name, storage, np.dtype(np.float64 if name == "float64" else np.float32))


def _name(dtype: Any) -> str:
    if dtype is None:
        return "float32"
    if isinstance(dtype, str):
        return dtype
    if isinstance(dtype, Mapping):
        config = dtype.get("config")
        name = config.get("name") if isinstance(config, Mapping) else None
    elif type(dtype).__module__.startswith("keras."):
        name = getattr(dtype, "name", None)
    else:
        try:
            name = np.dtype(dtype).name
        except TypeError:
            name = None
    if isinstance(name, str):
        return name
    raise TypeError(
        f"dtype must be a name like 'float32' or a NumPy dtype, not {errors.described(dtype)}"
    )


def numbers(x: Any, name: str) -> Array:
    """Return an argument as an array of a NumPy dtype, a view where it can be."""
    view, dtype = host.host_view(x, name, False)
    return dtypes.from_bfloat16(view) if dtype == "bf16" else view
