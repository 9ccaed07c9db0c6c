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

from .._base.core import DEFAULT_STREAM, core
from . import cuda
from .device_array import CODES, DeviceArray, DeviceValue
from .libraries import framework


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
    kind, module, x = framework(w)
    view = cuda.describe(x, name, False, None)
    if kind == "torch":
        return module.empty_like(x.detach())
    if kind == "cupy":
        with module.cuda.Device(view.device or 0):
            return module.empty_like(x)
    if kind == "jax" and view.dtype in CODES:
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
