"""Foreign arrays on a CUDA device, described where they lie.

Contract
--------
- An array is described by its shadow: a NumPy array of the same address, shape and strides, which
  nobody reads or writes.  So what the host asks of arrays (bounds, overlaps, ties, order) is asked
  of device arrays by the same functions.
- Order of tries: exact torch tensors by DLPack's exchange table, other torch tensors by their
  methods; JAX arrays by ``__dlpack__``, since theirs is the one that orders streams; then
  ``__cuda_array_interface__``, then ``__dlpack__``.
- Nothing is copied, and what is not known to be writable is not written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._base import dtypes, errors, memory
from .._base.core import DEFAULT_STREAM, core, stream_number, why_off
from . import host, torch_memory
from .device_array import DeviceArray
from .libraries import framework

Array = npt.NDArray[Any]

CUDA_DEVICES = (2, 13)  # kDLCUDA and kDLCUDAManaged
_NO_STREAM = -1  # DLPack's: the consumer wants no stream to wait

_KINDS = {0: "i", 1: "u", 2: "f", 4: "bfloat", 5: "c", 6: "b"}  # DLPack's, by NumPy's letters


class View(NamedTuple):
    """An array on a device."""

    shadow: Array
    """Its address, shape, strides and type of elements; not to be read."""
    dtype: str
    device: int | None
    """None for an empty array that does not say."""
    capsule: Any = None
    """What keeps the memory, where the array's own library would not wait for fastreg's work."""


# ------------------------------------------------------------------------- where, and which stream


def is_on_cuda(x: Any) -> bool:
    """Return whether an object says that its memory is a CUDA device's."""
    if type(x) is np.ndarray:
        return False
    name, module, x = framework(x)
    try:
        if name == "torch":
            return bool(x.device.type == "cuda" and module.version.hip is None)
        if hasattr(x, "__dlpack_device__"):
            return int(x.__dlpack_device__()[0]) in CUDA_DEVICES
    except Exception:  # a framework's own refusal; host_view words it
        return False
    return host.has_cuda_interface(x)


def named_stream(x: Any) -> int | None:
    """Return the stream on which an array is used, or None where it names none."""
    if isinstance(x, DeviceArray):
        own: int = x.memory.stream
        return own
    name, module, x = framework(x)
    if name == "torch":
        return _torch_stream(module, x.device.index)
    if name != "jax" and host.has_cuda_interface(x):
        stream = x.__cuda_array_interface__.get("stream")
        return None if stream is None else stream_number(int(stream))
    return None


def _torch_stream(torch: Any, device: int) -> int:
    stream = core().torch_stream(device)
    if stream is None:
        stream = torch.cuda.current_stream(device).cuda_stream
    return stream_number(stream)


# ------------------------------------------------------------------------------------ description


def describe(x: Any, name: str, writable: bool, stream: int | None) -> View:
    """Describe an array on a CUDA device.

    Parameters
    ----------
    x
        What :func:`is_on_cuda` says is on one.
    name
        What errors call it.
    writable
        Whether the caller will write into it.
    stream
        Where it will be used, so that its library can have that stream wait for what it is
        still doing; None to look at it only.

    Raises
    ------
    TypeError
        For what is not an array of numbers that lies on a CUDA device, and where there is no CUDA.
    ValueError
        For memory that no device can use.
    BufferError
        When `writable` and `x` is not known to be writable.
    """
    reason = why_off()
    if reason:
        raise errors.device_error(name, "cuda", reason)
    if isinstance(x, DeviceArray):
        shadow = memory.at(x.memory.address, x.shape, None, dtypes.stored(x.dtype_name))
        return View(shadow, x.dtype_name, x.memory.device)
    kind, module, x = framework(x)
    if kind == "torch":
        view = _torch_view(module, x, name, writable)
    elif kind == "jax":
        host.require_plain_jax(module, x, name, writable)
        view = _dlpack_view(x, name, writable, DEFAULT_STREAM if stream is None else stream)
    elif host.has_cuda_interface(x):
        view = _interface_view(x, name, writable)
    else:
        view = _dlpack_view(x, name, writable, _NO_STREAM if stream is None else stream)
    shadow = view.shadow
    if shadow.size and not shadow.flags.aligned:
        raise errors.special_array_error(
            name, "an array whose elements are not aligned", "pass a copy"
        )
    return view


def _named(
    address: int,
    shape: Any,
    strides: Any,
    dtype: np.dtype[Any] | str,
    name: str,
    device: int | None,
    capsule: Any = None,
    owner: Any = None,
) -> View:
    """Make a view, or refuse the type of its elements; "bf16" is the one that is no NumPy type."""
    stored = dtypes.stored("bf16") if dtype == "bf16" else np.dtype(dtype)
    shadow = memory.at(address, shape, strides, stored, owner)
    if dtype == "bf16":
        return View(shadow, "bf16", device, capsule)
    shadow, known = host.named(shadow, name)
    return View(shadow, known, device, capsule)


def _described(
    description: tuple[Any, ...], name: str, capsule: Any = None, owner: Any = None
) -> View:
    """Make a view of what the core says of a DLPack tensor."""
    address, shape, strides, code, bits, _, device = description
    kind = _KINDS.get(code)
    try:
        dtype = "bf16" if (kind, bits) == ("bfloat", 16) else np.dtype(f"{kind}{bits // 8}")
    except TypeError:
        raise errors.dtype_error(name, f"{bits} bits of DLPack's kind {code}") from None
    if strides is not None:
        strides = [stride * (bits // 8) for stride in strides]
    return _named(address, shape, strides, dtype, name, device, capsule, owner)


def _torch_view(torch: Any, x: Any, name: str, writable: bool) -> View:
    host.require_plain_torch(torch, x, name)
    with torch._C.DisableTorchFunctionSubclass():
        torch_memory.require_memory(torch, x, name, writable)
        description = core().describe_by_exchange(x)
        if description is not None:
            return _described(description, name, owner=x)
        dtype = host.torch_dtype(x, name)
        size = x.element_size()
        strides = [stride * size for stride in x.stride()]
        shadow = memory.at(x.data_ptr(), tuple(x.shape), strides, dtypes.stored(dtype), x)
        return View(shadow, dtype, x.device.index)


def _interface_view(x: Any, name: str, writable: bool) -> View:
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


def _dlpack_view(x: Any, name: str, writable: bool, stream: int) -> View:
    # The producer makes its data ready on this stream, before anything that is queued there later.
    try:
        try:
            capsule = x.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:  # a producer from before DLPack 1.0
            capsule = x.__dlpack__(stream=stream)
        description, has_version, is_writable = core().describe_capsule(capsule)
    except Exception as error:
        raise errors.dlpack_error(name, x, error) from error
    if description[5] not in CUDA_DEVICES:
        raise errors.special_array_error(
            name,
            f"{errors.described(x)} whose __dlpack_device__ says CUDA, but whose __dlpack__ "
            f"gives memory of device type {description[5]}",
            "pass a copy",
        )
    if writable and not is_writable:
        raise (errors.read_only_error(name) if has_version else errors.unversioned_error(name, x))
    return _described(description, name, capsule)


# ---------------------------------------------------------------------------------- host or device


def any_view(x: Any, name: str) -> tuple[Array, str]:
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


def host_copy(x: Any, name: str) -> tuple[Array, str]:
    """Copy an array on a device to the host, and wait for it; what lies between elements as well.

    Returns
    -------
    tuple of numpy.ndarray and str
        As ``host.host_view`` gives it.
    """
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
