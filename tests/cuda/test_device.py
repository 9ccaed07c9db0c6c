"""Device tensors from Python to the kernels and back, on the stand-in for a GPU.

Needs FASTREG_CUDA_LIBRARY to name the library that tests/cuda builds; CTest runs it so.
"""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Any

import numpy as np
import pytest

import fastreg
from fastreg import _device
from fastreg.regularizers import L1, L1L2, L2

LIBRARY = os.environ.get("FASTREG_CUDA_LIBRARY", "")
pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")


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


@pytest.fixture
def runtime() -> Runtime:
    return Runtime()


def numbers(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_info_finds_the_device() -> None:
    available, reason, devices = _device._core().cuda_state()
    assert (available, reason, devices) == (True, "", 2)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rule", [L1(0.01), L2(0.3), L1L2(0.01, 0.3)], ids=repr)
@pytest.mark.parametrize("size", [0, 1, 33, 4097, 20003])
def test_bits_are_those_of_the_host(runtime: Runtime, dtype: Any, rule: Any, size: int) -> None:
    w, g = numbers(size, dtype), numbers(size, dtype, 1)
    stream = runtime.stream()
    weight = DeviceArray(runtime, w, stream=stream)
    grad = DeviceArray(runtime, g, stream=stream)
    value = rule.accumulate(weight, grad, scale=0.5, grad_scale=3.0)
    assert isinstance(value, _device.DeviceValue)
    expected = rule.accumulate(w, g, scale=0.5, grad_scale=3.0)
    assert float(value) == expected
    assert grad.host().tobytes() == g.tobytes()
    assert float(rule(weight)) == rule(w)
    out = DeviceArray(runtime, np.empty_like(w), stream=stream)
    rule.gradient(weight, out)
    assert out.host().tobytes() == rule.gradient(w).tobytes()


def test_fortran_order_and_unaligned(runtime: Runtime) -> None:
    w = np.asfortranarray(numbers((7, 300), np.float32))
    g = np.asfortranarray(numbers((7, 300), np.float32, 1))
    weight, grad = DeviceArray(runtime, w, offset=4), DeviceArray(runtime, g, offset=12)
    assert float(L2(0.5).accumulate(weight, grad)) == L2(0.5).accumulate(w, g)
    assert grad.host().tobytes() == g.tobytes()


def test_a_whole_model(runtime: Runtime) -> None:
    host = {f"layer{i}/kernel": numbers(37 * i, np.float32, i) for i in range(1, 40)}
    grads = {name: numbers(w.shape, np.float32, 99) for name, w in host.items()}
    on_device = {name: DeviceArray(runtime, w) for name, w in host.items()}
    device_grads = {name: DeviceArray(runtime, g) for name, g in grads.items()}
    penalty = fastreg.attach(on_device, {"*": L1L2(0.1, 0.2)}).accumulate(device_grads)
    assert float(penalty) == fastreg.attach(host, {"*": L1L2(0.1, 0.2)}).accumulate(grads)
    for name, g in grads.items():
        assert device_grads[name].host().tobytes() == g.tobytes()


def test_streams_of_several_tensors_are_ordered(runtime: Runtime) -> None:
    for _ in range(10):
        first, second = runtime.stream(), runtime.stream()
        w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
        weight = DeviceArray(runtime, w, stream=first)
        grad = DeviceArray(runtime, g, stream=second)
        clear = runtime.library.cudaMemsetAsync
        clear(ctypes.c_void_p(grad.address), 0, ctypes.c_size_t(g.nbytes), ctypes.c_void_p(second))
        L2(0.5).accumulate(weight, grad)
        g[:] = 0
        L2(0.5).accumulate(w, g)
        assert grad.host().tobytes() == g.tobytes()


def test_a_second_device(runtime: Runtime) -> None:
    w = numbers(5000, np.float32)
    weight = DeviceArray(runtime, w, device=1)
    assert float(L1(0.5)(weight)) == L1(0.5)(w)


def refused(runtime: Runtime, error: type[Exception], match: str, weight: Any, grad: Any) -> None:
    before = grad.host() if isinstance(grad, DeviceArray) else grad.copy()
    with pytest.raises(error, match=match):
        L2(0.5).accumulate(weight, grad)
    after = grad.host() if isinstance(grad, DeviceArray) else grad
    assert after.tobytes() == before.tobytes()


def test_bad_input_is_refused_and_nothing_is_written(runtime: Runtime) -> None:
    w = numbers((50, 4), np.float32)
    weight, grad = DeviceArray(runtime, w), DeviceArray(runtime, w)
    other = DeviceArray(runtime, w, device=1)
    refused(runtime, ValueError, "grad is on CUDA device 1, but w on device 0", weight, other)
    refused(runtime, TypeError, "grad is in host memory", weight, w.copy())
    with pytest.raises(TypeError, match="w is in host memory"):
        L2(0.5).accumulate(w, grad)
    locked = DeviceArray(runtime, w, read_only=True)
    refused(runtime, BufferError, "grad is a read-only array", weight, locked)
    double = DeviceArray(runtime, w.astype(np.float64))
    refused(runtime, TypeError, "grad has dtype float64, but w has float32", weight, double)
    flat = DeviceArray(runtime, w.reshape(-1))
    refused(runtime, ValueError, r"grad has shape \(200,\), but w has \(50, 4\)", weight, flat)
    transposed = DeviceArray(runtime, np.asfortranarray(w))
    refused(runtime, ValueError, "lies in memory in another order", weight, transposed)
    foreign = DeviceArray(runtime, w, stream=runtime.stream(1))
    refused(runtime, ValueError, "the stream is of device 1", foreign, grad)
    odd = DeviceArray(runtime, w, offset=2)
    refused(runtime, ValueError, "no multiple of its elements' size", odd, grad)
    with pytest.raises(TypeError, match="dtype '<i4'"):
        L2(0.5)(DeviceArray(runtime, np.arange(3, dtype=np.int32)))
    with pytest.raises(ValueError, match="other tensors of the call on device 0"):
        fastreg.attach({"a": weight, "b": other}, {"*": L2(0.1)}).value()


def test_out_of_memory_is_told(runtime: Runtime) -> None:
    w = numbers(100_000, np.float32)
    weight, grad = DeviceArray(runtime, w, stream=runtime.stream()), DeviceArray(runtime, w)
    limit = runtime.library.stand_in_set_memory_limit
    limit(ctypes.c_size_t(0))
    try:
        refused(runtime, MemoryError, "out of memory", weight, grad)
    finally:
        limit(ctypes.c_size_t(2**63))
    gc.collect()
    L2(0.5).accumulate(weight, grad)
