"""Foreign arrays in host memory as NumPy arrays, without copying.

Contract
--------
- :func:`host_view` never copies (a NumPy scalar, which has no memory of its own to share, is the
  exception).  A writable view is made only of memory that is known to be writable; JAX arrays are
  never written.
- How a view is made is up to the array's library: see ``libraries``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._base import memory
from . import torch_memory
from .host_memory import Array as Array
from .host_memory import HostView
from .libraries import owner


def host_view(x: Any, name: str, writable: bool) -> HostView:
    """Return the elements of `x` as a NumPy array, and its dtype: f16 bf16 f32 f64 bool i8 ... u64.

    Raises TypeError, with `name`, if `x` is not an array of numbers in host memory; raises
    BufferError when a writable view is asked for and the array is read-only, or does not say.
    """
    library, array = owner(x)
    return library.host_view(array, name, writable)


def is_current(view: HostView) -> bool:
    """Return whether what :func:`host_view` gave is still the memory of the array it was given.

    The code of another array's library may have resized or freed it meanwhile.  Buffers and DLPack
    capsules keep their memory; NumPy's arrays do not (``resize(refcheck=False)``), nor torch's
    storages.  No other library's code is run here.
    """
    array = view[0]
    base = array.base
    if base is None or array.size == 0:
        return True
    if isinstance(base, np.ndarray):
        if base.size == 0:
            return False
        low, high = memory.byte_bounds(array)
        base_low, base_high = memory.byte_bounds(base)
        return base_low <= low and high <= base_high
    tensor = memory.owner(base)
    return tensor is None or torch_memory.is_at(tensor, array)
