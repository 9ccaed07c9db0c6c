"""Device arrays without a framework: what those of frameworks look like from outside.

Contract
--------
- The runtime's calls go by their C names to a library: the stand-in for a GPU that tests/cuda
  builds (FASTREG_CUDA_LIBRARY names it), or libcudart where there is a GPU.
- An array is there when it has been made; nothing of the caller's streams waits for that.
- Without a library everything here imports, and ``Runtime()`` fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

LIBRARY = os.environ.get("FASTREG_CUDA_LIBRARY", "")

CUDA = 2  # kDLCUDA
LEGACY_STREAM = 1  # the default stream, as DLPack and the array interface number it
NON_BLOCKING = 1  # cudaStreamNonBlocking
NOT_READY = 600  # cudaErrorNotReady
WHATEVER_DIRECTION = 4  # cudaMemcpyDefault


class Runtime:
    """The runtime's calls, by their C names."""

    def __init__(self, path: str = LIBRARY) -> None:
        if not path:
            raise RuntimeError("FASTREG_CUDA_LIBRARY names no library")
        self.library = ctypes.CDLL(path)
        self.is_stand_in = hasattr(self.library, "stand_in_set_memory_limit")
        self._own_streams: dict[int, int] = {}

    def call(self, function: str, *arguments: Any) -> None:
        error = getattr(self.library, function)(*arguments)
        assert error == 0, f"{function}: error {error}"

    def device_count(self) -> int:
        count = ctypes.c_int()
        self.call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    @contextlib.contextmanager
    def on(self, device: int) -> Iterator[None]:
        """Make a device current, and the one that was, afterwards."""
        before = ctypes.c_int()
        self.call("cudaGetDevice", ctypes.byref(before))
        self.call("cudaSetDevice", device)
        try:
            yield
        finally:
            self.call("cudaSetDevice", before)

    def stream(self, device: int = 0) -> int:
        stream = ctypes.c_void_p()
        with self.on(device):
            self.call("cudaStreamCreateWithFlags", ctypes.byref(stream), NON_BLOCKING)
        assert stream.value is not None
        return stream.value

    def malloc(self, size: int, device: int = 0) -> int:
        address = ctypes.c_void_p()
        with self.on(device):
            self.call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        assert address.value is not None
        return address.value

    def copy(self, to: int, source: int, size: int, device: int = 0) -> None:
        """Copy to or from a device, on a stream of its own, and wait for that alone."""
        if device not in self._own_streams:
            self._own_streams[device] = self.stream(device)
        stream = ctypes.c_void_p(self._own_streams[device])
        with self.on(device):
            self.call(
                "cudaMemcpyAsync",
                ctypes.c_void_p(to),
                ctypes.c_void_p(source),
                ctypes.c_size_t(size),
                WHATEVER_DIRECTION,
                stream,
            )
            self.call("cudaStreamSynchronize", stream)

    def queue_copy(self, to: int, source: int, size: int, stream: int) -> None:
        """Queue a copy between addresses of the current device."""
        self.call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            WHATEVER_DIRECTION,
            ctypes.c_void_p(stream),
        )

    def wait(self, stream: int, producer: int, device: int = 0) -> None:
        """Have `stream` wait for what `producer` holds now."""
        event = ctypes.c_void_p()
        with self.on(device):
            self.call("cudaEventCreateWithFlags", ctypes.byref(event), 2)  # without timing
            self.call("cudaEventRecord", event, ctypes.c_void_p(producer))
            self.call("cudaStreamWaitEvent", ctypes.c_void_p(stream), event, 0)
            self.call("cudaEventDestroy", event)


def memory_of(array: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the bytes among which an array's elements lie, and where its first one is there."""
    if array.size == 0:
        return np.empty(0, np.uint8), 0
    reach = [(extent - 1) * step for extent, step in zip(array.shape, array.strides, strict=True)]
    below = -sum(step for step in reach if step < 0)
    count = below + sum(step for step in reach if step > 0) + array.itemsize
    address = array.ctypes.data - below
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address)), below


class DeviceMemory:
    """An array's numbers on a device, without a way for others to get at them."""

    def __init__(
        self,
        runtime: Runtime,
        numbers: np.ndarray,
        *,
        device: int = 0,
        stream: int | None = None,
        read_only: bool = False,
        offset: int = 0,
    ) -> None:
        self.runtime, self.device_index = runtime, device
        self.stream, self.read_only, self.offset = stream, read_only, offset
        self.numbers = numbers  # shape, strides and dtype
        memory, self.first = memory_of(numbers)
        self.bytes = memory.nbytes
        self.base = runtime.malloc(self.bytes + offset, device)
        runtime.copy(self.base + offset, memory.ctypes.data, self.bytes, device)

    @property
    def address(self) -> int:
        """Where the element of index 0 lies."""
        return self.base + self.offset + self.first

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, self.device_index)

    def host(self) -> np.ndarray:
        with self.runtime.on(self.device_index):
            self.runtime.call("cudaDeviceSynchronize")
        memory = np.empty(self.bytes, np.uint8)
        start = self.base + self.offset
        self.runtime.copy(memory.ctypes.data, start, self.bytes, self.device_index)
        like = self.numbers
        return np.ndarray(like.shape, like.dtype, memory, self.first, like.strides)

    def __del__(self) -> None:
        if hasattr(self, "base"):
            self.runtime.call("cudaFree", ctypes.c_void_p(self.base))


def cuda_array_interface(
    like: np.ndarray, address: int, read_only: bool, stream: int | None
) -> dict[str, Any]:
    """Describe an array at an address, with the shape, strides and dtype of another."""
    return {
        "shape": like.shape,
        "typestr": like.dtype.str,
        "data": (address, read_only),
        "strides": None if like.flags.c_contiguous else like.strides,
        "stream": stream,
        "version": 3,
    }


class DeviceArray(DeviceMemory):
    """An array that says it is on CUDA, by ``__cuda_array_interface__`` and DLPack's device."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return cuda_array_interface(self.numbers, self.address, self.read_only, self.stream)


class DLPackArray(DeviceMemory):
    """An array that is got by DLPack alone; bfloat16 has no other way."""

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None, **_: Any) -> Any:
        """Return a versioned capsule, for use on `stream`; the array must outlive it."""
        if stream != -1 and self.stream is not None:
            consumer = LEGACY_STREAM if stream is None else stream
            self.runtime.wait(consumer, self.stream, self.device_index)
        shape, item = self.numbers.shape, self.numbers.itemsize
        extents = (ctypes.c_int64 * len(shape))(*shape)
        strides = (ctypes.c_int64 * len(shape))(*(s // item for s in self.numbers.strides))
        kind = 4 if self.numbers.dtype.name == "bfloat16" else 2  # kDLBfloat, kDLFloat
        described = _VersionedTensor(
            version=_Version(1, 0),
            flags=1 if self.read_only else 0,
            tensor=_Tensor(
                data=self.base,
                device=_Device(CUDA, self.device_index),
                ndim=len(shape),
                dtype=_DataType(kind, 8 * item, 1),
                shape=extents,
                strides=strides,
                byte_offset=self.offset + self.first,
            ),
        )
        self._described = [*getattr(self, "_described", ()), described]
        return _new_capsule(ctypes.byref(described), b"dltensor_versioned", None)


# ---- DLPack 1.0's structures, without a deleter: Python's objects keep the memory


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32))


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _VersionedTensor(ctypes.Structure):
    _fields_ = (
        ("version", _Version),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
