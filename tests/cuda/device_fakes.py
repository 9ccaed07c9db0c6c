"""Arrays and array libraries that say they are on CUDA, over the memory of the stand-in.

Needs FASTREG_CUDA_LIBRARY to name the library that tests/cuda builds; CTest runs it so.
"""

from __future__ import annotations

import ctypes
import types
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import stand_in_arrays


class Runtime(stand_in_arrays.Runtime):
    """The stand-in's runtime calls, and what only it tells."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped: list[int] = []
        self.library.stand_in_waits.restype = ctypes.c_size_t
        self.library.stand_in_live_allocations.restype = ctypes.c_size_t

    def free_dropped(self) -> None:
        """Free what arrays have dropped; not at once, since freeing waits for the device."""
        while self.dropped:
            self.call("cudaFree", ctypes.c_void_p(self.dropped.pop()))

    def clear(self, address: int, size: int, stream: int) -> None:
        """Queue zeros: what a call on this stream must come after."""
        self.call(
            "cudaMemsetAsync",
            ctypes.c_void_p(address),
            0,
            ctypes.c_size_t(size),
            ctypes.c_void_p(stream),
        )

    def drain(self) -> None:
        self.library.stand_in_drain()

    @property
    def waits(self) -> int:
        """How often the host has waited for a device."""
        return int(self.library.stand_in_waits())

    @property
    def allocations(self) -> int:
        return int(self.library.stand_in_live_allocations())

    @contextmanager
    def memory_limit(self, size: int) -> Any:
        self.library.stand_in_set_memory_limit(ctypes.c_size_t(size))
        try:
            yield
        finally:
            self.library.stand_in_set_memory_limit(ctypes.c_size_t(2**63))

    @contextmanager
    def capture(self, stream: int) -> Any:
        """Capture a stream; gives a list that the replay is put into."""
        graphs: list[Callable[[], None]] = []
        self.call("cudaStreamBeginCapture", ctypes.c_void_p(stream), 0)
        graph = ctypes.c_void_p()
        try:
            yield graphs
        finally:
            self.call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        executable = ctypes.c_void_p()
        self.call("cudaGraphInstantiate", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        graphs.append(lambda: self.call("cudaGraphLaunch", executable, ctypes.c_void_p(stream)))


class Memory:
    """Device memory with the numbers of a NumPy array in it, where its strides put them."""

    def __init__(self, runtime: Runtime, numbers: np.ndarray, device: int = 0, offset: int = 0):
        self.runtime = runtime
        self.device = device
        span = numbers
        while isinstance(span.base, np.ndarray):
            span = span.base
        self.base = runtime.malloc(span.nbytes + offset, device)
        low = span.__array_interface__["data"][0]
        ctypes.memmove(self.base + offset, low, span.nbytes)
        self.size = span.nbytes
        self.low = self.base + offset
        self.address = self.low + numbers.__array_interface__["data"][0] - low

    def host(self) -> bytearray:
        """Return a copy of the whole memory, once all work is done."""
        self.runtime.call("cudaDeviceSynchronize")
        return bytearray(ctypes.string_at(self.low, self.size))

    def __del__(self) -> None:
        self.runtime.dropped.append(self.base)


class DeviceArray:
    """An array with ``__cuda_array_interface__``; a view where `numbers` is one."""

    def __init__(
        self,
        runtime: Runtime,
        numbers: np.ndarray,
        *,
        device: int = 0,
        stream: int | None = None,
        read_only: bool = False,
        offset: int = 0,
        memory: Memory | None = None,
    ) -> None:
        self.memory = Memory(runtime, numbers, device, offset) if memory is None else memory
        self.stream, self.read_only = stream, read_only
        self.numbers = numbers  # shape, strides and dtype
        self.address = self.memory.address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return stand_in_arrays.cuda_array_interface(
            self.numbers, self.address, self.read_only, self.stream
        )

    def host(self) -> np.ndarray:
        """Return the numbers, once all work is done."""
        kind, copy = self.numbers.dtype, self.memory.host()
        start = self.address - self.memory.low
        return np.ndarray(self.numbers.shape, kind, copy, start, self.numbers.strides)


# ---------------------------------------------------------------------------------- DLPack


class Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", Deleter))


class ManagedVersioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    )


_python = ctypes.pythonapi
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_python.PyCapsule_GetName.restype = ctypes.c_char_p
_python.PyCapsule_GetName.argtypes = (ctypes.py_object,)
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_python.PyCapsule_SetName.argtypes = (ctypes.py_object, ctypes.c_char_p)
_raw_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_GetName", _python))
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _python)
)

CODES = {"f": 2, "i": 0, "u": 1, "b": 6, "c": 5}


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _drop(capsule: int) -> None:
    """Do what the destructor of a capsule does that nobody took."""
    name = _raw_name(capsule)
    kind = {b"dltensor": Managed, b"dltensor_versioned": ManagedVersioned}.get(name)
    if kind is not None:
        managed = kind.from_address(_raw_pointer(capsule, name))
        managed.deleter(ctypes.addressof(managed))


_descriptions: list[Any] = []  # of all capsules: their deleters cannot free themselves


class Producer:
    """A library's array that offers ``__dlpack__`` alone, with capsules made here."""

    def __init__(
        self,
        runtime: Runtime,
        numbers: np.ndarray,
        *,
        device: int = 0,
        version: int | None = 1,
        read_only: bool = False,
        ready_on: int | None = None,
        device_type: int = 2,
        dtype: tuple[int, int] | None = None,
    ) -> None:
        self.runtime, self.numbers = runtime, numbers
        self.memory = Memory(runtime, numbers, device)
        self.address = self.memory.address
        self.version, self.read_only, self.ready_on = version, read_only, ready_on
        self.device_type = device_type
        kind = numbers.dtype
        is_bfloat16 = kind == ml_dtypes.bfloat16
        code = 4 if is_bfloat16 else CODES[kind.kind]
        self.dtype = (code, 8 * kind.itemsize) if dtype is None else dtype
        self.streams: list[int | None] = []
        self.living = 0
        """Capsules that nobody has dropped."""

    host = DeviceArray.host

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.memory.device)

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        self.streams.append(stream)
        if self.ready_on is not None and stream not in (None, -1):
            event = ctypes.c_void_p()
            self.runtime.call("cudaEventCreateWithFlags", ctypes.byref(event), 2)
            self.runtime.call("cudaEventRecord", event, ctypes.c_void_p(self.ready_on))
            self.runtime.call("cudaStreamWaitEvent", ctypes.c_void_p(stream), event, 0)
        versioned = self.version is not None and max_version is not None
        managed: Any = ManagedVersioned() if versioned else Managed()
        shape = (ctypes.c_int64 * self.numbers.ndim)(*self.numbers.shape)
        size = self.numbers.itemsize
        strides = (ctypes.c_int64 * self.numbers.ndim)(*(s // size for s in self.numbers.strides))
        managed.tensor = Tensor(
            self.address - 8, self.device_type, self.memory.device, self.numbers.ndim,
            *self.dtype, 1, shape, strides, 8,
        )  # fmt: skip

        owners = [self]  # the memory lives as long as the capsule

        @Deleter
        def deleter(_: int) -> None:
            owners.pop().living -= 1

        managed.deleter = deleter
        if versioned:
            managed.major, managed.flags = self.version, int(self.read_only)
        _descriptions.append((managed, shape, strides, deleter))
        self.living += 1
        name = b"dltensor_versioned" if versioned else b"dltensor"
        return _python.PyCapsule_New(
            ctypes.addressof(managed), name, ctypes.cast(_drop, ctypes.c_void_p)
        )


class Taken:
    """What a consumer makes of a capsule: it owns the memory until it is deleted."""

    def __init__(self, capsule: Any) -> None:
        name = _python.PyCapsule_GetName(capsule)
        self.is_versioned = name == b"dltensor_versioned"
        kind: Any = ManagedVersioned if self.is_versioned else Managed
        self.managed = kind.from_address(_python.PyCapsule_GetPointer(capsule, name))
        self.capsule_name = b"used_" + name
        _python.PyCapsule_SetName(capsule, self.capsule_name)
        tensor = self.managed.tensor
        self.address = tensor.data + tensor.byte_offset
        self.place = (tensor.device_type, tensor.device)
        self.shape = tuple(tensor.shape[: tensor.ndim])
        self.strides = tuple(tensor.strides[: tensor.ndim])
        self.type = (tensor.code, tensor.bits, tensor.lanes)

    def __del__(self) -> None:
        self.managed.deleter(ctypes.addressof(self.managed))


# ------------------------------------------------------------------------------ whole libraries


def fake_cupy(runtime: Runtime) -> types.ModuleType:
    """CuPy, as far as fastreg asks for it: arrays are made on the current device and stream."""
    cupy = types.ModuleType("cupy")
    state = {"device": 0, "stream": None}

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def __enter__(self) -> None:
            self.before, state["device"] = state["device"], self.number

        def __exit__(self, *_: object) -> None:
            state["device"] = self.before

    class ndarray(DeviceArray):  # noqa: N801
        def __init__(self, numbers: np.ndarray) -> None:
            super().__init__(runtime, numbers, device=state["device"], stream=state["stream"])
            self.data = types.SimpleNamespace(ptr=self.address)
            self.shape, self.dtype = numbers.shape, numbers.dtype
            self.device = types.SimpleNamespace(id=state["device"])

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, self.memory.device)

        def __dlpack__(self, **_: Any) -> Any:
            raise AssertionError("CuPy's arrays are taken by their interface")

        def __float__(self) -> float:
            return float(self.host())

        def __int__(self) -> int:
            return int(self.host())

    ndarray.__module__ = "cupy"
    cupy.ndarray = ndarray
    cupy.state = state
    cupy.array = ndarray
    cupy.cuda = types.SimpleNamespace(Device=Device)
    cupy.empty = lambda shape, dtype: ndarray(np.full(shape, 77, dtype))
    cupy.empty_like = lambda x: ndarray(np.full_like(x.numbers, 77))
    return cupy


def fake_jax(runtime: Runtime) -> dict[str, types.ModuleType]:
    """JAX with one CUDA device, as far as fastreg asks for it: the modules by name."""
    names = ("jax", "jax.dlpack", "jax.numpy")
    jax, dlpack, jax_numpy = (types.ModuleType(name) for name in names)
    jax.stream = runtime.stream()
    jax.buffers = weakref.WeakSet()

    class Device:
        platform = "gpu"

    class OneDevice:
        device_set = frozenset((Device,))

    class Array:
        """Over a producer's memory, or over what JAX took from a capsule."""

        def __init__(self, numbers: np.ndarray, taken: Taken | None = None) -> None:
            self.taken = taken
            self.shape, self.dtype, self.deleted = numbers.shape, numbers.dtype, False
            self.numbers, self.sharding = numbers, OneDevice
            if taken is None:
                self.producer = Producer(runtime, numbers, version=None, ready_on=jax.stream)

        @property
        def address(self) -> int:
            return self.producer.address if self.taken is None else self.taken.address

        def is_deleted(self) -> bool:
            return self.deleted

        def devices(self) -> tuple[Any]:
            return (types.SimpleNamespace(platform="gpu"),)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, *, stream: int, max_version: Any = None) -> Any:
            assert stream != -1, "JAX takes the number for a stream's address"
            return self.producer.__dlpack__(stream=stream)

        @property
        def __cuda_array_interface__(self) -> Any:
            raise AssertionError("JAX's interface names no stream")

        def astype(self, dtype: Any) -> Array:
            made = Array(self.host().astype(dtype))
            made.cast_from = self
            return made

        def host(self) -> np.ndarray:
            runtime.call("cudaStreamSynchronize", ctypes.c_void_p(jax.stream))
            copy = np.empty(self.shape, self.dtype)
            ctypes.memmove(copy.ctypes.data, self.address, copy.nbytes)
            return copy

        def __float__(self) -> float:
            return float(self.host())

    class Tracer:
        pass

    def from_dlpack(owner: Any) -> Array:
        assert owner.__dlpack_device__() == (2, 0)
        taken = Taken(owner.__dlpack__(stream=jax.stream))
        kinds = {(2, 16): np.float16, (2, 32): np.float32, (2, 64): np.float64}
        kind = kinds.get(taken.type[:2], ml_dtypes.bfloat16)
        return Array(np.empty(taken.shape, kind), taken)

    def zeros(size: int, dtype: str, device: type[OneDevice]) -> Array:
        assert tracing[-1] == "eager"
        assert device is OneDevice
        made = Array(np.zeros(size, dtype))
        runtime.clear(made.address, size, jax.stream)
        jax.buffers.add(made.producer)
        return made

    tracing = ["traced"]

    @contextmanager
    def ensure_compile_time_eval() -> Any:
        tracing.append("eager")
        yield
        tracing.pop()

    jax.Array, jax.core = Array, types.SimpleNamespace(Tracer=Tracer)
    jax.ensure_compile_time_eval = ensure_compile_time_eval
    dlpack.from_dlpack, jax_numpy.zeros = from_dlpack, zeros
    return dict(zip(names, (jax, dlpack, jax_numpy), strict=True))


def numbers(shape: Any, dtype: Any, seed: int = 0) -> np.ndarray:
    """Return numbers of both signs; integers too."""
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)
