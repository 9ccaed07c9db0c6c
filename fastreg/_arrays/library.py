"""The protocol of a row: the library of an array, one object for the arrays of a class.

:class:`Library` is the protocol, and the row of unknown libraries: their arrays are read by the
buffer protocol, DLPack or ``__cuda_array_interface__``, and results are NumPy's.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from .._base import errors
from .._base.core import core
from . import cuda_memory, host_memory
from .cuda_memory import View
from .cuda_results import Total
from .device_array import DeviceCount, DeviceValue
from .host_memory import HostView


def loaded(module: str) -> Any:
    """Return a module of a framework, or None where nothing has imported it."""
    return sys.modules.get(module)


class Library:
    """The library of the arrays of one class; this base class serves unknown libraries."""

    name = "other"
    """Its name in messages."""

    port = "keras"
    """The port that computes if :meth:`needs_port` is true; "" if it never is.

    "torch", "dtensors" or a key of ``_autodiff.dispatch.PORTS``.  For wrappers (``keras.Variable``,
    ``__jax_array__``): the attribute that returns the wrapped array.
    """

    is_plain = False
    """Whether the class is the library's own, not a subclass."""

    is_tracer = False
    """Whether its arrays are tracers of JAX."""

    def needs_port(self, x: Any, records: bool) -> bool:
        """Return whether the framework has to compute the penalty or the gradient of `x`.

        With ``records=True`` also if ``x.requires_grad`` and grad mode is on.  Values pass True,
        gradients False.
        """
        keras = loaded("keras")
        if not hasattr(keras, "KerasTensor"):
            return False
        return keras.backend.backend() in ("tensorflow", "openvino") and bool(
            keras.ops.is_tensor(x)
        )

    def host_view(self, x: Any, name: str, writable: bool) -> HostView:
        """Return `x` as a NumPy array over its memory, and its dtype: see ``host.host_view``."""
        if isinstance(x, (bytes, bytearray)):  # buffers, but of text rather than of numbers
            raise errors.kind_error(x, name)
        try:
            buffer = memoryview(x)
        except TypeError:
            pass
        else:
            return host_memory.of_buffer(buffer, name, writable)
        if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
            return host_memory.of_dlpack(x, name, writable)
        if cuda_memory.has_cuda_interface(x):
            raise host_memory.not_on_host(name, "cuda")
        raise errors.kind_error(x, name)

    def is_on_cuda(self, x: Any) -> bool:
        """Return whether `x` says that its memory is a CUDA device's."""
        if hasattr(x, "__dlpack_device__"):
            return cuda_memory.is_by_dlpack(x)
        return cuda_memory.has_cuda_interface(x)

    def stream(self, x: Any) -> int | None:
        """Return the CUDA stream on which `x` is used, or None where it names none."""
        return cuda_memory.stream_of_interface(x) if cuda_memory.has_cuda_interface(x) else None

    def cuda_view(self, x: Any, name: str, writable: bool, stream: int | None) -> View:
        """Return the view of an array on CUDA: see ``cuda.describe``."""
        if cuda_memory.has_cuda_interface(x):
            return cuda_memory.of_interface(x, name, writable)
        return cuda_memory.of_dlpack(
            x, name, writable, cuda_memory.NO_STREAM if stream is None else stream
        )

    def wrap_value(self, value: Any, x: Any) -> Any:
        """Return the penalty of `x` as its library has numbers: see ``results.wrap_value``."""
        return value

    def empty_like(self, x: Any, view: HostView) -> Any:
        """Return writable memory for the gradient of an array that lies on the host in `view`."""
        return np.empty_like(view[0])

    def cuda_empty_like(self, x: Any, name: str, view: View) -> Any:
        """Return writable memory for the gradient of an array that lies on CUDA in `view`."""
        raise TypeError(
            f"{name} is a {type(x).__qualname__} on CUDA, whose kind fastreg cannot make; pass out="
        )

    def wrap_gradient(self, gradient: Any, x: Any) -> Any:
        """Return a gradient that was written into new memory as an array like `x`."""
        return gradient

    def cuda_total(self, x: Any, device: int, stream: int, dtype: str) -> Total:
        """Return memory on the device for a number of `x`: "f64", its penalty, or "i64"."""
        kind: type[DeviceValue | DeviceCount] = DeviceValue if dtype == "f64" else DeviceCount
        made = kind(core().DeviceMemory(device, stream, 8))

        def finish(captured: bool) -> Any:
            if not captured:  # what a replay writes is not written yet
                made.memory.mark_written()
            return made

        return Total(made.memory.address, made.memory, finish)

    def check_target(self, target: Any, name: str) -> None:
        """Refuse to write in place what autograd records: see ``results.checked_target``."""

    def mark_written(self, targets: Any) -> None:
        """Tell autograd that an array, or each of a sequence, was written in place."""


class DeviceArrays(Library):
    """Arrays that fastreg has made on a CUDA device."""

    port = ""

    def stream(self, x: Any) -> int | None:
        own: int = x.memory.stream
        return own

    def cuda_view(self, x: Any, name: str, writable: bool, stream: int | None) -> View:
        return cuda_memory.of_device_array(x)
