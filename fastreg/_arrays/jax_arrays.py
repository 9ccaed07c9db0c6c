"""JAX's rows: its arrays and tracers, and objects with ``__jax_array__``.

Contract: a JAX array is never written; a gradient is written into other memory, which is then
handed to JAX.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from .._base import dtypes, errors
from .._base.core import DEFAULT_STREAM, core, why_off
from . import cuda_memory, cuda_results, host_memory
from .cuda_memory import View
from .cuda_results import Total
from .device_array import DeviceArray, DeviceValue
from .host_memory import HostView
from .library import Library


class JAX(Library):
    """Arrays or tracers of JAX."""

    name = "jax"
    port = "jax"

    def __init__(self, jax: Any, kind: type) -> None:
        self._jax = jax
        self.is_tracer = issubclass(kind, jax.core.Tracer)

    def needs_port(self, x: Any, records: bool) -> bool:
        if self.is_tracer:
            return self._is_array(x)
        devices = x.sharding.device_set
        if len(devices) != 1:
            return True
        (device,) = devices
        return device.platform != "cpu" and (device.platform != "gpu" or bool(why_off()))

    def host_view(self, x: Any, name: str, writable: bool) -> HostView:
        self._require_plain(x, name, writable)
        (device,) = x.devices()
        if device.platform != "cpu":
            raise host_memory.not_on_host(
                name, "cuda" if device.platform == "gpu" else device.platform
            )
        try:
            view = np.asarray(x)
        except TypeError:  # typed keys of jax.random
            raise errors.dtype_error(name, x.dtype) from None
        return host_memory.named(view, name)

    def stream(self, x: Any) -> int | None:
        return None  # its __cuda_array_interface__ does not tell of its own streams

    def cuda_view(self, x: Any, name: str, writable: bool, stream: int | None) -> View:
        self._require_plain(x, name, writable)
        return cuda_memory.of_dlpack(
            x, name, writable, DEFAULT_STREAM if stream is None else stream
        )

    def wrap_value(self, value: Any, x: Any) -> Any:
        double = np.dtype(x.dtype) == np.float64
        if isinstance(value, self._jax.Array):
            return value if double else value.astype(np.float32)
        with np.errstate(over="ignore"):  # what float32 has not is an infinity
            number = np.asarray(value, np.float64 if double else np.float32)
        return self._jax.device_put(number, x.sharding)

    def empty_like(self, x: Any, view: HostView) -> Any:
        return np.empty_like(np.asarray(x))

    def cuda_empty_like(self, x: Any, name: str, view: View) -> Any:
        if view.dtype not in dtypes.FLOATS:
            return x  # refused later, for having no gradient
        size = view.shadow.size * view.shadow.itemsize
        memory = self._memory(x, size, DEFAULT_STREAM)
        return DeviceArray(memory, view.shadow.shape, view.dtype)

    def wrap_gradient(self, gradient: Any, x: Any) -> Any:
        if isinstance(gradient, DeviceArray):
            return _handed_over(gradient)
        return self._jax.device_put(gradient, x.sharding)

    def cuda_total(self, x: Any, device: int, stream: int, dtype: str) -> Total:
        made = DeviceValue(self._memory(x, 8, stream))
        return Total(made.memory.address, made.memory, lambda _: _handed_over(made))

    def _is_array(self, x: Any) -> bool:
        """Return whether a tracer stands for an array, and not for a reference (jax.new_ref)."""
        return isinstance(x, self._jax.Array)

    def _require_plain(self, x: Any, name: str, writable: bool) -> None:
        """Raise for a tracer, a deleted or sharded array, and if `writable`, which none is."""
        if self.is_tracer:
            if not self._is_array(x):
                raise errors.kind_error(x, name)
            raise errors.special_array_error(
                name,
                "a JAX tracer, which has no elements yet",
                "inside jax.jit, jax.grad and jax.vmap use reg(w), reg.gradient(w) or "
                "reg.value_and_grad(w), which write into nothing",
            )
        if writable:
            raise errors.read_only_error(
                name,
                "a JAX array, which is immutable",
                "use gradient(...) and add what it gives, or pass a NumPy array",
            )
        if x.is_deleted():
            raise ValueError(f"{name} is a JAX array that was deleted or donated; pass a live one")
        devices = x.devices()
        if len(devices) != 1:
            raise errors.special_array_error(
                name,
                f"a JAX array spread over {len(devices)} devices",
                "pass its addressable shards",
            )

    def _memory(self, like: Any, size: int, stream: int) -> Any:
        """Return memory of JAX's on the device of an array, for what is queued on a stream."""
        with self._jax.ensure_compile_time_eval():  # a buffer even while something is traced
            zeros = import_module("jax.numpy").zeros
            owner = zeros(max(size, 1), "uint8", device=like.sharding)
        capsule = owner.__dlpack__(stream=stream)
        (address, *_, device), _, _ = core().describe_capsule(capsule)
        return core().DeviceMemory(device, stream, address, (owner, capsule))


class Holders(Library):
    """Objects with ``__jax_array__``, as parameters of flax nnx are."""

    port = "__jax_array__"


def library_of(jax: Any, kind: type) -> Library | None:
    """Return the row of a class of JAX, or None for another class."""
    kinds = getattr(jax, "Array", ()), getattr(getattr(jax, "core", None), "Tracer", ())
    return JAX(jax, kind) if issubclass(kind, kinds) else None


def holder_of(jax: Any, kind: type) -> Library | None:
    """Return the row of a class with ``__jax_array__``, or None for another class."""
    # A reference of JAX (jax.new_ref) has the name with nothing behind it.
    return Holders() if callable(getattr(kind, "__jax_array__", None)) else None


def _handed_over(array: DeviceArray) -> Any:
    """Return an array as JAX's; what writes it has been queued on its stream."""
    array.memory.mark_written()
    # JAX may use its memory for something else as soon as it has dropped the array.
    cuda_results.hold(core().StreamMark(array.memory.device, array.memory.stream), array.memory)
    return import_module("jax.dlpack").from_dlpack(array)
