"""Views of host memory: NumPy arrays, buffers and DLPack capsules as NumPy arrays, without copying.

Contract
--------
- A view is a plain ``numpy.ndarray`` over the very memory of its array and the short name of its
  element type; bfloat16, which NumPy does not know, comes as its bits in uint16.
- A view is writable only where its memory is known to be: NumPy's flag and the read-only flag of
  versioned DLPack count, and a DLPack capsule without a version is read-only.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .._base import dtypes, errors
from .._base.core import core_or_none, why_off

Array: TypeAlias = npt.NDArray[Any]
HostView: TypeAlias = tuple[Array, str]

_DLPACK_CPU = (1, 3)  # kDLCPU and kDLCUDAHost: memory that the host can read
_DLPACK_DEVICES = {2: "cuda", 8: "metal", 10: "rocm", 13: "cuda_managed", 14: "oneapi"}


def named(view: Array, name: str) -> HostView:
    """Return a view with the name of its element type; bfloat16 becomes its bits."""
    dtype = view.dtype
    known = dtypes.NAMES.get(dtype)
    if known is not None:
        return view, known
    row = dtypes.AS_BITS.get(dtype.name)
    if row is not None and row.stored.itemsize == dtype.itemsize:
        return view.view(row.stored), row.name
    if not dtype.isnative and dtype.newbyteorder("=") in dtypes.NAMES:
        raise errors.byte_order_error(name, dtype)
    if dtype.kind == "c":
        raise errors.dtype_error(name, dtype, f"pass numpy.abs({name}) or its real parts")
    if dtype.kind in "OSUTmM" or dtype.names is not None:
        raise errors.dtype_error(name, dtype, "pass an array of numbers")
    raise errors.dtype_error(name, dtype)


def of_numpy(x: Any, name: str, writable: bool) -> HostView:
    """Return the view of a NumPy array or scalar, of any subclass."""
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            raise errors.special_array_error(
                name, "a masked array", f"pass {name}.filled(0) or {name}.compressed()"
            )
        if isinstance(x, np.generic) and writable:
            raise errors.read_only_error(name, f"a NumPy scalar ({type(x).__name__})")
        x = np.asarray(x)
    if writable and not x.flags.writeable:
        raise errors.read_only_error(name)
    return named(x, name)


def of_buffer(buffer: memoryview, name: str, writable: bool) -> HostView:
    """Return the view of an object with the buffer protocol."""
    try:
        view = np.asarray(buffer)
    except (ValueError, NotImplementedError):
        raise errors.dtype_error(name, f"{buffer.format!r} (a buffer format)") from None
    return of_numpy(view, name, writable)


def of_dlpack(x: Any, name: str, writable: bool) -> HostView:
    """Return the view of an object with ``__dlpack__`` and ``__dlpack_device__``."""
    dtype = ""
    try:
        kind = int(x.__dlpack_device__()[0])
        capsule = _capsule_of(x) if kind in _DLPACK_CPU else None
        if capsule is not None and (compiled := core_or_none()) is not None:
            # NumPy follows a shape that is not there
            (_, _, _, code, bits, lanes, *_), _, _ = compiled.describe_capsule(capsule)
            dtype = dtypes.spoken_of_dlpack(code, bits, lanes)
    except Exception as error:  # the other library's, of any kind
        raise errors.dlpack_error(name, x, error) from error
    if capsule is None:
        raise not_on_host(name, _DLPACK_DEVICES.get(kind, f"DLPack device {kind}"))
    try:
        view = np.from_dlpack(_Capsule(capsule, (1, 0)))
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        dtype = f"{dtype}, which" if dtype else "that"
        raise errors.dlpack_dtype_error(
            name, f"{dtype} NumPy cannot import by DLPack ({error})"
        ) from None
    if view.size and view.flags.owndata:  # what NumPy makes of a null pointer
        raise errors.dlpack_error(name, x, ValueError("it has elements, and no memory"))
    if writable and not view.flags.writeable:
        if "dltensor_versioned" not in repr(capsule):  # the only way to see a capsule's name
            raise errors.unversioned_error(name, x)
        raise errors.read_only_error(name)
    return named(view, name)


def not_on_host(name: str, device: str) -> TypeError:
    """Build the error for an array on another device, where only host memory will do."""
    return errors.device_error(name, device, why_off() if device.startswith("cuda") else "")


class _Capsule:
    """Hand NumPy a capsule that was asked for already, so that the producer runs once."""

    def __init__(self, capsule: Any, device: Any) -> None:
        self._capsule = capsule
        self._device = device

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> Any:
        return self._device


def _capsule_of(x: Any) -> Any:
    try:
        return x.__dlpack__(max_version=(1, 0))
    except TypeError as error:  # a producer from before DLPack 1.0
        if type(error) is not TypeError:  # or one that refuses, with an error class of its own
            raise
        return x.__dlpack__()
