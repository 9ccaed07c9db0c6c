"""Views of foreign arrays in CUDA memory, and of arrays in either memory.

Contract
--------
- Only :func:`host_copy` copies.  A writable view is made only of memory that is known to be
  writable.
- How an array is described is up to its library: see ``libraries``, and ``cuda_memory`` for what a
  description is.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._base import errors, memory
from .._base.core import DEFAULT_STREAM, core, why_off
from . import host
from .cuda_memory import View
from .host_memory import Array as Array
from .host_memory import HostView
from .libraries import owner


def is_on_cuda(x: Any) -> bool:
    """Return whether an object says that its memory is a CUDA device's."""
    if type(x) is np.ndarray:
        return False
    library, array = owner(x)
    try:
        return library.is_on_cuda(array)
    except Exception:  # a framework's own refusal; host_view words it
        return False


def named_stream(x: Any) -> int | None:
    """Return the stream on which an array is used, or None where it names none."""
    library, array = owner(x)
    return library.stream(array)


def describe(x: Any, name: str, writable: bool, stream: int | None) -> View:
    """Describe an array on a CUDA device; `writable` if the caller will write into it.

    `stream` waits for work that the library has queued on the array; None if no kernel will use it.
    """
    reason = why_off()
    if reason:
        raise errors.device_error(name, "cuda", reason)
    library, array = owner(x)
    view = library.cuda_view(array, name, writable, stream)
    shadow = view.shadow
    if shadow.size and not shadow.flags.aligned:
        raise errors.special_array_error(
            name, "an array whose elements are not aligned", "pass a copy"
        )
    return view


def any_view(x: Any, name: str) -> HostView:
    """Describe an array wherever it is, as ``host.host_view`` does; not to be read."""
    if is_on_cuda(x):
        return describe(x, name, False, None)[:2]
    return host.host_view(x, name, False)


def is_readable(x: Any) -> bool:
    """Return whether :func:`any_view` takes `x`."""
    try:
        any_view(x, "x")
    except (TypeError, ValueError, BufferError):
        return False
    return True


def host_copy(x: Any, name: str) -> HostView:
    """Copy an array on a device to the host, with what lies between elements, and wait for it."""
    stream = named_stream(x)
    stream = DEFAULT_STREAM if stream is None else stream
    view = describe(x, name, False, stream)
    shadow = view.shadow
    if shadow.size == 0:
        return shadow, view.dtype
    low, high = memory.byte_bounds(shadow)
    copied = core().cuda_copy(view.device, stream, low, high - low)
    start = shadow.__array_interface__["data"][0] - low
    copy: Array = np.ndarray(shadow.shape, shadow.dtype, copied, start, shadow.strides)
    return copy, view.dtype
