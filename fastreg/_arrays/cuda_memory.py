"""Views of CUDA memory, by DLPack and ``__cuda_array_interface__``.

Contract
--------
- An array is described by its shadow: a NumPy array with the same address, shape and strides,
  never read or written.  So the host's functions for bounds, overlaps, ties and order take device
  arrays too.
- Nothing is copied, and a view is writable only where its memory is known to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._base import dtypes, errors, memory
from .._base.core import core, stream_number
from . import host_memory
from .device_array import DeviceArray
from .host_memory import Array

CUDA_DEVICES = (2, 13)  # kDLCUDA and kDLCUDAManaged
NO_STREAM = -1  # DLPack's: the consumer wants no stream to wait

# DLPack's kinds and lanes, by NumPy's letters: what is refused by its name.
_OTHER_KINDS = {(2, 1): "f", (5, 1): "c"}


class View(NamedTuple):
    """An array on a device."""

    shadow: Array
    """Its address, shape, strides and type of elements; not to be read."""
    dtype: str
    device: int | None
    """None for an empty array that does not say."""
    capsule: Any = None
    """Keeps the memory alive if its library would free it without waiting for fastreg's kernels."""


def has_cuda_interface(x: Any) -> bool:
    """Return whether an object has a ``__cuda_array_interface__`` that is a mapping."""
    return isinstance(getattr(x, "__cuda_array_interface__", None), Mapping)


def is_by_dlpack(x: Any) -> bool:
    """Return whether ``x.__dlpack_device__()`` is a CUDA device."""
    return int(x.__dlpack_device__()[0]) in CUDA_DEVICES


def stream_of_interface(x: Any) -> int | None:
    """Return the stream that a ``__cuda_array_interface__`` names, or None."""
    stream = x.__cuda_array_interface__.get("stream")
    return None if stream is None else stream_number(int(stream))


def of_interface(x: Any, name: str, writable: bool) -> View:
    """Return the view of an object with ``__cuda_array_interface__``."""
    interface = x.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise errors.special_array_error(name, "a masked array", "pass it without its mask")
    missing = [key for key in ("data", "shape", "typestr") if key not in interface]
    if missing:
        raise errors.special_array_error(
            name,
            f"{errors.described(x)} whose __cuda_array_interface__ lacks {missing[0]!r}",
            "pass another array",
        )
    address, is_read_only = interface["data"]
    shape = interface["shape"]
    if writable and is_read_only:
        raise errors.read_only_error(name)
    return _named(
        int(address),
        shape,
        interface.get("strides"),
        np.dtype(interface["typestr"]),
        name,
        None if 0 in shape else _device_of(int(address), name),
    )


def _device_of(address: int, name: str) -> int:
    try:
        device: int = core().cuda_device_of(address)
    except ValueError as error:
        raise ValueError(
            f"{name} has a __cuda_array_interface__ with the address {address:#x}, but {error}; "
            "pass an array in device memory"
        ) from None
    return device


def of_dlpack(x: Any, name: str, writable: bool, stream: int) -> View:
    """Return the view of an object with ``__dlpack__``, to be used on a stream."""
    # The producer makes its data ready on this stream, before anything that is queued there later.
    try:
        try:
            capsule = x.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:  # a producer from before DLPack 1.0
            capsule = x.__dlpack__(stream=stream)
        description, has_version, is_writable = core().describe_capsule(capsule)
    except Exception as error:
        raise errors.dlpack_error(name, x, error) from error
    kind = description[6]
    if kind not in CUDA_DEVICES:
        raise errors.special_array_error(
            name,
            f"{errors.described(x)} whose __dlpack_device__ says CUDA, but whose __dlpack__ "
            f"gives memory of device type {kind}",
            "pass a copy",
        )
    if writable and not is_writable:
        raise (errors.read_only_error(name) if has_version else errors.unversioned_error(name, x))
    return described(description, name, capsule)


def described(
    description: tuple[Any, ...], name: str, capsule: Any = None, owner: Any = None
) -> View:
    """Make a view of what the core says of a DLPack tensor."""
    address, shape, strides, code, bits, lanes, _, device = description
    dtype = dtypes.DLPACK.get((code, bits)) if lanes == 1 else None
    try:
        stored = (
            dtypes.stored(dtype) if dtype else np.dtype(f"{_OTHER_KINDS[code, lanes]}{bits / 8:g}")
        )
    except (KeyError, TypeError):
        raise errors.dlpack_dtype_error(name, dtypes.spoken_of_dlpack(code, bits, lanes)) from None
    if strides is not None:
        strides = [stride * (bits // 8) for stride in strides]
    return _named(address, shape, strides, stored, name, device, capsule, owner, dtype)


def _named(
    address: int,
    shape: Any,
    strides: Any,
    dtype: np.dtype[Any] | str,
    name: str,
    device: int | None,
    capsule: Any = None,
    owner: Any = None,
    known: str | None = None,
) -> View:
    """Make a view, or refuse the type of its elements where it is not known."""
    shadow = memory.at(address, shape, strides, np.dtype(dtype), owner)
    if known is None:
        shadow, known = host_memory.named(shadow, name)
    return View(shadow, known, device, capsule)


def of_device_array(x: DeviceArray) -> View:
    """Return the view of an array that fastreg has made."""
    shadow = memory.at(x.memory.address, x.shape, x.strides, dtypes.stored(x.dtype_name))
    return View(shadow, x.dtype_name, x.memory.device)
