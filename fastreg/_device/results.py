"""Results on a device, in the kind of their input.

Contract
--------
- torch and CuPy make the memory themselves, in the order of their current stream.
- JAX arrays cannot be written.  What JAX gets is a view, handed over by DLPack when the work that
  writes it has been queued; the memory is a buffer of JAX's that nobody else has seen, since JAX
  alone knows when its own streams have read what it dropped.
- For all other kinds a penalty is a :class:`DeviceValue`, and a new gradient cannot be made.
- A penalty is float64, as it is computed; JAX makes float32 of it unless it was told of float64.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from .. import _dtypes
from .._frameworks import framework
from .library import DEFAULT_STREAM, core

_CODES = {"f16": (2, 16), "bf16": (4, 16), "f32": (2, 32), "f64": (2, 64)}  # DLPack's kind, bits
_TYPESTRS = {"f16": "<f2", "f32": "<f4", "f64": "<f8"}
_CUDA = 2  # kDLCUDA


class DeviceArray:
    """An array in device memory that fastreg has written, without gaps: for others to take.

    It has ``__dlpack__`` and, but for bfloat16, ``__cuda_array_interface__``.
    """

    def __init__(self, memory: Any, shape: tuple[int, ...], dtype: str) -> None:
        self.memory = memory
        self.shape = shape
        self.dtype_name = dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> str:
        """The type of the elements."""
        return _dtypes.spoken(self.dtype_name)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype_name not in _TYPESTRS:
            raise AttributeError("__cuda_array_interface__ has no bfloat16")
        return {
            "shape": self.shape,
            "typestr": _TYPESTRS[self.dtype_name],
            "data": (self.memory.address, False),
            "strides": None,
            "stream": self.memory.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.memory.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export the memory; the consumer's stream waits for what writes it.

        Raises
        ------
        ValueError
            For stream 0, which DLPack does not allow.
        BufferError
            When a copy is asked for, or another device.
        """
        if stream == 0:
            raise ValueError("stream must be 1 for the legacy default stream, or 2 or more, not 0")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(f"dl_device must be {self.__dlpack_device__()}, not {dl_device}")
        if copy:
            raise BufferError("copy must be False or None: this exports its own memory only")
        if stream != -1:
            self.memory.make_wait(DEFAULT_STREAM if stream is None else int(stream))
        code, bits = _CODES[self.dtype_name]
        is_versioned = max_version is not None and max_version[0] >= 1
        return self.memory.export(self.shape, code, bits, is_versioned)

    def __repr__(self) -> str:
        return f"<{self.dtype} array of shape {self.shape} on CUDA device {self.memory.device}>"


class DeviceValue(DeviceArray):
    """A penalty in device memory: float64, 0-d, with the two interfaces of :class:`DeviceArray`.

    ``float(value)`` and ``value.item()`` copy it to the host, and wait for it.
    """

    def __init__(self, memory: Any) -> None:
        super().__init__(memory, (), "f64")

    def item(self) -> float:
        """Copy the penalty to the host."""
        value: float = self.memory.read()
        return value

    __float__ = item

    def __repr__(self) -> str:
        return f"<a penalty on CUDA device {self.memory.device}; float(...) copies it>"


class Total(NamedTuple):
    """Where a penalty is to be written, and how the caller gets it when that has been queued."""

    address: int
    memory: Any
    """What keeps it."""
    finish: Callable[[bool], Any]
    """Is told whether the call was captured."""


def new_total(weight: Any, device: int, stream: int) -> Total:
    """Make memory for a penalty in the kind of `weight`."""
    kind, module, x = framework(weight)
    made: Any
    if kind == "torch":
        made = module.empty((), dtype=module.float64, device=x.device)
        return Total(made.data_ptr(), made, lambda _: made)
    if kind == "cupy":
        with module.cuda.Device(device):
            made = module.empty((), "float64")
        return Total(made.data.ptr, made, lambda _: made)
    if kind == "jax":
        made = DeviceValue(_jax_memory(module, x, 8, stream))
        return Total(made.memory.address, made.memory, lambda _: to_jax(made))
    made = DeviceValue(core().DeviceMemory(device, stream, 8))

    def finish(captured: bool) -> Any:
        if not captured:  # what a replay writes is not written yet
            made.memory.mark_written()
        return made

    return Total(made.memory.address, made.memory, finish)


def empty_like(w: Any, name: str) -> Any:
    """Make memory for the gradient of an array on a device.

    Raises
    ------
    TypeError
        For a kind of array that fastreg cannot make.
    """
    from . import arrays

    kind, module, x = framework(w)
    view = arrays.describe(x, name, False, None)
    if kind == "torch":
        return module.empty_like(x.detach())
    if kind == "cupy":
        with module.cuda.Device(view.device or 0):
            return module.empty_like(x)
    if kind == "jax" and view.dtype in _CODES:
        size = view.shadow.size * view.shadow.itemsize
        memory = _jax_memory(module, x, size, DEFAULT_STREAM)
        return DeviceArray(memory, view.shadow.shape, view.dtype)
    if kind == "jax":
        return x  # refused later, for having no gradient
    raise TypeError(
        f"{name} is a {type(x).__qualname__} on CUDA, whose kind fastreg cannot make; pass out="
    )


def _jax_memory(jax: Any, like: Any, size: int, stream: int) -> Any:
    """Make memory of JAX's on the device of an array, for what is queued on a stream."""
    with jax.ensure_compile_time_eval():  # a buffer even while something is traced
        zeros = import_module("jax.numpy").zeros
        owner = zeros(max(size, 1), "uint8", device=like.sharding)
    capsule = owner.__dlpack__(stream=stream)
    (address, *_, device), _, _ = core().describe_capsule(capsule)
    return core().DeviceMemory(device, stream, address, (owner, capsule))


def to_jax(array: DeviceArray) -> Any:
    """Hand an array over to JAX; what writes it has been queued on its stream."""
    array.memory.mark_written()
    # JAX may use its memory for something else as soon as it has dropped the array.
    hold(core().StreamMark(array.memory.device, array.memory.stream), array.memory)
    return import_module("jax.dlpack").from_dlpack(array)


# What is read or written by kernels that may not have run yet, and what says when they have.
held: deque[tuple[Any, Any]] = deque()
_held_lock = threading.Lock()


def hold(mark: Any, what: Any) -> None:
    """Keep something until a mark has passed, and drop what was kept and has."""
    with _held_lock:
        held.append((mark, what))
        done = []
        while held and held[0][0].has_passed():
            done.append(held.popleft())
    # It is dropped here: that may run code of other libraries.
