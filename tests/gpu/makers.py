"""Makers of arrays: what the tests on devices need of a framework, so that each is written once.

Contract
--------
- A maker says by class attributes what its arrays can do, before anything is imported, so that no
  test is made for it that it cannot run.
- Making one imports its framework and looks for the device; :class:`MissingError` says what is not
  there.
- On the stand-in for a GPU, and with frameworks in host memory, the same tests run without a GPU:
  that keeps them from rotting, and says nothing about a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from inputs import numpy_dtype
from stand_in_arrays import (
    LEGACY_STREAM,
    LIBRARY,
    NOT_READY,
    DeviceArray,
    DLPackArray,
    Runtime,
    memory_of,
)

GRADIENTS = "gradients"  # arrays can be written in place
OFFSETS = "offsets"  # arrays can begin in the midst of memory
STREAMS = "streams"  # the caller orders work by streams
GRAPHS = "graphs"  # calls can be captured and replayed
EXHAUSTION = "exhaustion"  # the device's memory can be used up
AUTOGRAD = "autograd"  # torch's tensors
LAYOUTS = "layouts"  # arrays of any strides, integers among them
TRACED = "traced"  # functions that JAX compiles
ASYNCHRONOUS = "asynchronous"  # an array can be handed on while it is being computed
BULK = "bulk"  # the maker that stands for all in tests of size, which take long

OCCUPIED_MICROSECONDS = 300_000


class MissingError(Exception):
    """Why a maker cannot be had here."""


class Maker:
    """The base class: values of arrays that are made and read."""

    name = ""
    on_gpu = True
    dtypes: tuple[str, ...] = ("f16", "bf16", "f32", "f64")
    abilities: frozenset[str] = frozenset()
    rounds = 2  # how often to repeat what depends on who comes first
    has_negative_strides = True

    def device_count(self) -> int:
        return 1

    def make(self, numbers: np.ndarray, *, device: int = 0, offset: int = 0) -> Any:
        """Return an array with these numbers, `offset` elements past the start of its memory."""
        raise NotImplementedError

    def host(self, x: Any) -> np.ndarray:
        """Wait for an array, and copy it."""
        raise NotImplementedError

    def most_bytes(self) -> int:
        """Return how much memory one array may take in a test of size."""
        return 2**21

    # ---- with LAYOUTS

    def viewed(self, view: np.ndarray) -> Any:
        """Return an array with the elements, shape, strides and dtype of a view."""
        raise NotImplementedError

    # ---- with ASYNCHRONOUS

    def computed(self, numbers: np.ndarray) -> Any:
        """Return an array with these numbers that is still being computed."""
        raise NotImplementedError

    # ---- with STREAMS

    def stream(self, device: int = 0) -> Any:
        raise NotImplementedError

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """Have what is done inside queued on a stream."""
        raise NotImplementedError

    def assign(self, target: Any, source: Any) -> None:
        """Queue a copy between arrays of one device on the stream in use."""
        raise NotImplementedError

    def occupy(self, stream: Any) -> None:
        """Queue something that takes long."""
        raise NotImplementedError

    def unwaited(self, stream: Any) -> AbstractContextManager[Any]:
        """Fail when what is done inside waits for the stream, which is occupied meanwhile."""
        raise NotImplementedError

    # ---- with GRAPHS

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """Capture what `call` queues; give the function that replays it on the stream in use."""
        raise NotImplementedError

    # ---- with EXHAUSTION

    def exhausted(self) -> AbstractContextManager[Any]:
        """Use up the memory of device 0 for a while."""
        raise NotImplementedError


# ---------------------------------------------------------------------------- a device's runtime


def runtime_libraries() -> Iterator[str]:
    """Return where CUDA's runtime may be: loaded already, a framework's wheels, a toolkit."""
    yield from ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
    places = [Path(entry) / "nvidia" for entry in sys.path if entry]
    roots = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    found = [path for place in places for path in place.glob("*/lib/libcudart.so.*")]
    for root in (*filter(None, roots), "/usr/local/cuda"):
        found += Path(root).glob("lib64/libcudart.so*")
    yield from map(str, found)


def runtime_of_gpu() -> Runtime:
    """Return the first runtime that finds a device."""
    tried = []
    for path in runtime_libraries():
        try:
            runtime = Runtime(path)
        except OSError:
            continue
        tried.append(path)
        with contextlib.suppress(AssertionError):  # no driver, or one from before this library
            if runtime.device_count() > 0:
                return runtime
    if not tried:
        raise MissingError("there is no libcudart")
    raise MissingError(f"there is no CUDA device, say {', '.join(tried)}")


def require_fastreg_on_cuda() -> None:
    from fastreg import _info

    facts = _info.gather()["cuda"]
    if not facts["available"]:
        raise MissingError(f"fastreg finds no CUDA: {facts['reason']}")


class DeviceMaker(Maker):
    """What is the same for all frameworks on a GPU: the runtime under them."""

    abilities = frozenset((GRADIENTS, OFFSETS, STREAMS, GRAPHS, EXHAUSTION, LAYOUTS))

    def __init__(self) -> None:
        self.runtime = self._runtime()
        require_fastreg_on_cuda()

    def _runtime(self) -> Runtime:
        return runtime_of_gpu()

    def device_count(self) -> int:
        return self.runtime.device_count()

    def most_bytes(self) -> int:
        if self.runtime.is_stand_in:
            return super().most_bytes()
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.runtime.call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        on_host = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(free.value // 4, on_host // 8)

    def handle(self, stream: Any) -> int:
        """Return the runtime's number of a stream."""
        return int(stream)

    def occupy(self, stream: Any) -> None:
        if self.runtime.is_stand_in:
            return  # its streams are late by themselves
        # A function of one integer argument fits where one of a pointer is called: both come in
        # the same register. A function of Python's would need the lock that a caller may hold.
        sleep = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p)
        argument = ctypes.c_void_p(OCCUPIED_MICROSECONDS)
        handle = ctypes.c_void_p(self.handle(stream))
        self.runtime.call("cudaLaunchHostFunc", handle, sleep, argument)

    @contextlib.contextmanager
    def unwaited(self, stream: Any) -> Iterator[None]:
        self.occupy(stream)
        if self.runtime.is_stand_in:
            waits = self.runtime.library.stand_in_waits
            before = waits()
            yield
            assert waits() == before, "the host waited for the device"
            return
        yield
        query = self.runtime.library.cudaStreamQuery
        assert query(ctypes.c_void_p(self.handle(stream))) == NOT_READY, (
            "the host waited for the device"
        )

    @contextlib.contextmanager
    def exhausted(self) -> Iterator[None]:
        if self.runtime.is_stand_in:
            limit = self.runtime.library.stand_in_set_memory_limit
            limit(ctypes.c_size_t(0))
            try:
                yield
            finally:
                limit(ctypes.c_size_t(2**63))
            return
        held = []
        size = 2**40
        try:
            while size >= 512:  # below this the runtime does not go
                try:
                    held.append(self.runtime.malloc(size))
                except AssertionError:
                    self.runtime.library.cudaGetLastError()
                    size //= 2
            yield
        finally:
            for address in held:
                self.runtime.call("cudaFree", ctypes.c_void_p(address))


# ------------------------------------------------------------------------------- the frameworks


class _BareArray(DeviceArray):
    """An array that names the stream in use, as those of CuPy do."""

    maker: Bare

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**super().__cuda_array_interface__, "stream": self.maker.stream_in_use}


class Bare(DeviceMaker):
    """Arrays without a framework, over CUDA's runtime library."""

    name = "bare"
    abilities = DeviceMaker.abilities | {BULK}
    stream_in_use: int | None = None

    def make(self, numbers: np.ndarray, *, device: int = 0, offset: int = 0) -> Any:
        places = {"device": device, "offset": offset * numbers.itemsize}
        if numbers.dtype.name == "bfloat16":  # the array interface cannot name it
            return DLPackArray(self.runtime, numbers, **places)
        array = _BareArray(self.runtime, numbers, **places)
        array.maker = self
        return array

    def viewed(self, view: np.ndarray) -> Any:
        return self.make(view)

    def host(self, x: Any) -> np.ndarray:
        array: np.ndarray = x.host()
        return array

    def stream(self, device: int = 0) -> int:
        return self.runtime.stream(device)

    @contextlib.contextmanager
    def using(self, stream: int | None) -> Iterator[None]:
        before, self.stream_in_use = self.stream_in_use, stream
        try:
            yield
        finally:
            self.stream_in_use = before

    def assign(self, target: Any, source: Any) -> None:
        stream = self.stream_in_use or LEGACY_STREAM
        self.runtime.queue_copy(target.address, source.address, source.numbers.nbytes, stream)

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        stream = ctypes.c_void_p(self.stream())
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        runtime = self.runtime
        runtime.call("cudaStreamBeginCapture", stream, 0)  # the strictest mode
        try:
            with self.using(stream.value):
                call()
        finally:
            runtime.call("cudaStreamEndCapture", stream, ctypes.byref(graph))
        flags = ctypes.c_ulonglong(0)
        runtime.call("cudaGraphInstantiate", ctypes.byref(executable), graph, flags)

        def replay() -> None:
            in_use = ctypes.c_void_p(self.stream_in_use or LEGACY_STREAM)
            runtime.call("cudaGraphLaunch", executable, in_use)

        return replay


class StandIn(Bare):
    """The same on the stand-in for a GPU, which runs kernels on the host."""

    name = "stand_in"
    on_gpu = False
    rounds = 20  # its streams are late at random

    def _runtime(self) -> Runtime:
        return Runtime()


class Torch(DeviceMaker):
    """Torch's tensors on CUDA."""

    name = "torch"
    abilities = DeviceMaker.abilities | {AUTOGRAD}
    has_negative_strides = False

    def __init__(self) -> None:
        self.torch = torch = _imported("torch")
        if not torch.cuda.is_available():
            raise MissingError("torch finds no CUDA device")
        super().__init__()

    def place(self, device: int) -> Any:
        return self.torch.device("cuda", device)

    def device_count(self) -> int:
        return int(self.torch.cuda.device_count())

    def make(self, numbers: np.ndarray, *, device: int = 0, offset: int = 0) -> Any:
        return torch_tensor(self.torch, numbers, self.place(device), offset)

    def viewed(self, view: np.ndarray) -> Any:
        return torch_view(self.torch, view, self.place(0))

    def host(self, x: Any) -> np.ndarray:
        self.torch.cuda.synchronize(x.device)
        return numpy_array(self.torch, x)

    def stream(self, device: int = 0) -> Any:
        return self.torch.cuda.Stream(device)

    def handle(self, stream: Any) -> int:
        return int(stream.cuda_stream)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.torch.cuda.stream(stream)
        return context

    def assign(self, target: Any, source: Any) -> None:
        target.copy_(source)

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            call()
        replay: Callable[[], object] = graph.replay
        return replay

    @contextlib.contextmanager
    def strict(self) -> Iterator[None]:
        """Have torch fail where it would wait for the device."""
        self.torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            self.torch.cuda.set_sync_debug_mode("default")


class TorchOnHost(Maker):
    """Torch's tensors in host memory, so that the tests of torch run everywhere."""

    name = "torch_on_host"
    on_gpu = False
    abilities = frozenset((GRADIENTS, OFFSETS, AUTOGRAD, LAYOUTS))
    has_negative_strides = False

    def __init__(self) -> None:
        self.torch = _imported("torch")

    def place(self, device: int) -> Any:
        return self.torch.device("cpu")

    def make(self, numbers: np.ndarray, *, device: int = 0, offset: int = 0) -> Any:
        return torch_tensor(self.torch, numbers, self.place(device), offset)

    def viewed(self, view: np.ndarray) -> Any:
        return torch_view(self.torch, view, self.place(0))

    def host(self, x: Any) -> np.ndarray:
        return numpy_array(self.torch, x)

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        return call  # as a graph does, it runs nothing until it is replayed

    def strict(self) -> AbstractContextManager[Any]:
        return contextlib.nullcontext()


def torch_tensor(torch: Any, numbers: np.ndarray, place: Any, offset: int = 0) -> Any:
    """Return a tensor of the same shape, strides and bits, bfloat16 too."""
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    dtypes |= {"float32": torch.float32, "float64": torch.float64}
    dtype = dtypes[numbers.dtype.name]
    order = np.argsort([-stride for stride in numbers.strides], kind="stable")
    in_memory_order = np.ascontiguousarray(numbers.transpose(order)).reshape(-1)
    padded = np.concatenate([np.zeros(offset, numbers.dtype), in_memory_order])
    memory = torch.from_numpy(padded.view(f"i{numbers.itemsize}")).to(place).view(dtype)
    strides = [stride // numbers.itemsize for stride in numbers.strides]
    return memory.as_strided(numbers.shape, strides, offset)


def torch_view(torch: Any, view: np.ndarray, place: Any) -> Any:
    """Return a tensor with the elements, shape and strides of a view."""
    memory, first = memory_of(view)
    name = view.dtype.name
    dtype = getattr(torch, name)
    strides = [stride // view.itemsize for stride in view.strides]
    elements = torch.from_numpy(memory.copy()).to(place).view(dtype)
    return elements.as_strided(view.shape, strides, first // view.itemsize)


def numpy_array(torch: Any, x: Any) -> np.ndarray:
    """Return a tensor's numbers in C order, bfloat16 as ml_dtypes' type."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    name = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}.get(x.dtype, "f64")
    bits = x.detach().contiguous().view(integers).cpu().numpy()
    array: np.ndarray = bits.view(numpy_dtype(name))
    return array


class CuPy(DeviceMaker):
    """CuPy's arrays; its bfloat16 depends on the version, and is left to the others."""

    name = "cupy"
    dtypes = ("f16", "f32", "f64")

    def __init__(self) -> None:
        self.cupy = cupy = _imported("cupy")
        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise MissingError(f"CuPy finds no CUDA device: {error}") from None
        super().__init__()

    def make(self, numbers: np.ndarray, *, device: int = 0, offset: int = 0) -> Any:
        order = "C" if numbers.flags.c_contiguous else "F"
        with self.cupy.cuda.Device(device):
            memory = self.cupy.empty(numbers.size + offset, numbers.dtype)
            array = memory[offset:].reshape(numbers.shape, order=order)
            array.set(np.asarray(numbers, order=order))
            self.cupy.cuda.get_current_stream().synchronize()
        return array

    def viewed(self, view: np.ndarray) -> Any:
        memory, first = memory_of(view)
        kept = self.cupy.asarray(memory)
        pointer = self.cupy.cuda.MemoryPointer(kept.data.mem, first)
        return self.cupy.ndarray(view.shape, view.dtype, pointer, view.strides)

    def host(self, x: Any) -> np.ndarray:
        with x.device:
            self.cupy.cuda.Device().synchronize()
            array: np.ndarray = self.cupy.asnumpy(x)
        return array

    def stream(self, device: int = 0) -> Any:
        with self.cupy.cuda.Device(device):
            return self.cupy.cuda.Stream(non_blocking=True)

    def handle(self, stream: Any) -> int:
        return int(stream.ptr)

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = stream
        return context

    def assign(self, target: Any, source: Any) -> None:
        target[...] = source

    def captured(self, call: Callable[[], object]) -> Callable[[], object]:
        stream = self.stream()
        with stream:
            stream.begin_capture()
            call()
            graph = stream.end_capture()
        return lambda: graph.launch(self.cupy.cuda.get_current_stream())


class Jax(Maker):
    """JAX's arrays on a GPU: they cannot be written, and a test asks for their values."""

    name = "jax"
    dtypes = ("f16", "bf16", "f32")  # f64 is a setting of the whole process
    platform = "gpu"
    abilities = frozenset((ASYNCHRONOUS, TRACED))

    def __init__(self) -> None:
        # JAX would otherwise take three quarters of the device for itself.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        self.jax = jax = _imported("jax")
        try:
            self.devices = jax.devices(self.platform)
        except RuntimeError as error:
            raise MissingError(f"JAX finds no device: {error}") from None
        if self.on_gpu:
            require_fastreg_on_cuda()

    def device_count(self) -> int:
        return len(self.devices)

    def make(self, numbers: np.ndarray, *, device: int = 0, offset: int = 0) -> Any:
        return self.jax.device_put(numbers, self.devices[device])

    def host(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def computed(self, numbers: np.ndarray) -> Any:
        turns = 4000 if self.on_gpu else 40  # an even number

        def negated_often(x: Any) -> Any:
            return self.jax.lax.fori_loop(0, turns, lambda _, y: -y, x)

        negate = self.jax.jit(negated_often)
        x = self.make(numbers)
        negate(x).block_until_ready()  # compiled
        return negate(x)


class JaxOnHost(Jax):
    """JAX's arrays in host memory."""

    name = "jax_on_host"
    on_gpu = False
    platform = "cpu"


def _imported(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError as error:
        raise MissingError(f"{name} is not installed: {error}") from None


def is_stand_in(path: str) -> bool:
    """Return whether a library is the stand-in, rather than a backend for GPUs."""
    try:
        return bool(path) and Runtime(path).is_stand_in
    except OSError:
        return False


def makers_here() -> tuple[type[Maker], ...]:
    """Return the makers that this process tests: there is one backend in a process."""
    if is_stand_in(LIBRARY):
        return (StandIn,)
    return (Bare, Torch, CuPy, Jax, TorchOnHost, JaxOnHost)


def reasons() -> dict[str, str]:
    """Return why each maker for a GPU cannot be had here; nothing for one that can."""
    found = {}
    for kind in (Bare, Torch, CuPy, Jax):
        try:
            kind()
            found[kind.name] = ""
        except MissingError as missing:
            found[kind.name] = str(missing)
    return found
