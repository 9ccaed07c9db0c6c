"""Arrays on the stand-in for a GPU: what a framework's device array looks like from outside.

FASTREG_CUDA_LIBRARY names the library that tests/cuda builds. Without it everything here imports,
and ``Runtime()`` fails.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np

LIBRARY = os.environ.get("FASTREG_CUDA_LIBRARY", "")


class Runtime:
    """The stand-in's runtime calls, by their C names."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(LIBRARY)

    def call(self, function: str, *arguments: Any) -> None:
        error = getattr(self.library, function)(*arguments)
        assert error == 0, f"{function}: error {error}"

    def stream(self, device: int = 0) -> int:
        self.call("cudaSetDevice", device)
        stream = ctypes.c_void_p()
        self.call("cudaStreamCreateWithFlags", ctypes.byref(stream), 1)
        self.call("cudaSetDevice", 0)
        assert stream.value is not None
        return stream.value


class DeviceArray:
    """An array that says it is on CUDA, by ``__cuda_array_interface__`` and DLPack's device."""

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
        runtime.call("cudaSetDevice", device)
        address = ctypes.c_void_p()
        size = max(numbers.nbytes + offset, 1)
        runtime.call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        runtime.call("cudaSetDevice", 0)
        assert address.value is not None
        self.base = address.value
        ctypes.memmove(self.address, numbers.ctypes.data, numbers.nbytes)

    @property
    def address(self) -> int:
        return self.base + self.offset

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        contiguous = self.numbers.flags.c_contiguous
        return {
            "shape": self.numbers.shape,
            "typestr": self.numbers.dtype.str,
            "data": (self.address, self.read_only),
            "strides": None if contiguous else self.numbers.strides,
            "stream": self.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device_index)

    def host(self) -> np.ndarray:
        self.runtime.call("cudaDeviceSynchronize")
        copy = np.empty_like(self.numbers)
        ctypes.memmove(copy.ctypes.data, self.address, copy.nbytes)
        return copy

    def __del__(self) -> None:
        self.runtime.call("cudaFree", ctypes.c_void_p(self.base))
