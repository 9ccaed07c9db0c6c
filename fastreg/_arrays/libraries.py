"""Whose array: the table of libraries by the array's class.

Contract
--------
- ``TABLE[type(x)]`` is the row of `x`, a :class:`Library`.  A class is looked for when an array of
  it is seen first: the row of a subclass is that of the class that it derives from.
- No framework is imported: an array of a framework exists only where its module is loaded, so that
  it makes no difference which is imported first.
- A class with ``__jax_array__`` has no row of its own before JAX is imported, and is looked for
  again until then.  The row of any other class is final: its framework is loaded before it.
- A class in the table lives as long as the process.  So it has :data:`MANY` at most; further ones
  (a program may make classes in a loop) are looked for at each call.
- Code traced by torch.compile may call only :func:`port_of`; Dynamo treats its result as a
  constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import cupy_arrays, jax_arrays, keras_arrays, numpy_arrays, torch_arrays
from .device_array import DeviceArray, DeviceCount, DeviceValue
from .library import DeviceArrays, Library, loaded

ALL_NUMPY = frozenset((np.ndarray,)).issuperset
"""Return whether all types of arrays are NumPy's own: ``ALL_NUMPY(map(type, arrays))``."""

VARIABLE, HOLDER = keras_arrays.Variables.port, jax_arrays.Holders.port
HOLDERS = (VARIABLE, HOLDER)
"""The ports of wrappers, which are attributes: see ``Library.port``."""

MANY = 512
"""The most classes that are kept."""

_OTHER = Library()

TABLE: dict[type, Library] = dict.fromkeys((DeviceArray, DeviceValue, DeviceCount), DeviceArrays())
"""The rows of classes that were seen.  A plain dict: to read it takes no lock, and to add a row is
one step."""

_FINDERS: tuple[tuple[str, Callable[[Any, type], Library | None]], ...] = (
    ("numpy", numpy_arrays.library_of),
    ("torch", torch_arrays.library_of),
    ("jax", jax_arrays.library_of),
    ("cupy", cupy_arrays.library_of),
    ("keras", keras_arrays.library_of),
    ("jax", jax_arrays.holder_of),
)


def library_of(kind: type) -> Library:
    """Return the row of a class."""
    return TABLE.get(kind) or _found(kind)


def _found(kind: type) -> Library:
    row: Library | None = None
    for name, find in _FINDERS:
        module = loaded(name)
        row = None if module is None else find(module, kind)
        if row is not None:
            break
    else:
        row = _OTHER
        if hasattr(kind, "__jax_array__"):
            return row
    if len(TABLE) < MANY:
        TABLE[kind] = row
    return row


# What torch.compiler.disable sets: Dynamo would guard the length of the table, and compile again
# after each class that is seen first.  So nothing else reads the table.
library_of._torchdynamo_disable = True  # type: ignore[attr-defined]


def owner(x: Any) -> tuple[Library, Any]:
    """Return the row of an array, and the array; a wrapper is replaced by the array that it holds.

    Wrappers are ``keras.Variable`` and, if JAX is loaded, objects with ``__jax_array__``.
    """
    row = library_of(type(x))
    return owner(held(x, row.port)) if row.port in HOLDERS else (row, x)


def held(x: Any, port: str) -> Any:
    """Return the array that a wrapper holds."""
    return x.value if port == VARIABLE else x.__jax_array__()


def is_dtensor(x: Any) -> bool:
    """Return whether `x` is a DTensor of torch, whatever its placements."""
    return port_of(type(x)) == "dtensors"


def has_dtensors(arrays: Iterable[Any]) -> bool:
    """Return whether one of many is a DTensor: 400 take some 5 us, for they are of few classes."""
    return "dtensors" in [port_of(kind) for kind in set(map(type, arrays))]


def is_tracer(x: Any) -> bool:
    """Return whether `x` is a tracer of JAX."""
    return library_of(type(x)).is_tracer


def holds_jax_array(x: Any) -> bool:
    """Return whether `x` is an object with ``__jax_array__`` (nnx.Param)."""
    return port_of(type(x)) == HOLDER


def port_of(kind: type) -> str:
    """Return the port of a class: see ``Library.port``."""
    return library_of(kind).port


# What torch.compiler.assume_constant_result sets.
port_of._dynamo_marked_constant = True  # type: ignore[attr-defined]
