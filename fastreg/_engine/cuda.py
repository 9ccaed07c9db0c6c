"""The entry points of the core, for tensors on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._arrays import cuda, cuda_results
from .._arrays.cuda_memory import View
from .._arrays.device_array import DeviceArray
from .._arrays.host_memory import Array
from .._arrays.libraries import owner
from .._base import dtypes, memory
from .._base.core import DEFAULT_STREAM, core
from .._base.penalty import GRADIENT, PROX, VALUE, Call
from . import checks, recording


def evaluate_many(call: Call, *, into: Any = None) -> Any:
    """Do on the device what the entry point of the same name does on the host.

    The total stays on the device, as do the zeros of all proximal steps.  With `per_tensor` they
    are copied to the host, or stay on the device in `into`, a torch tensor of float64.
    """
    operands = Operands(_labelled(call))
    views, targets = checks.checked_views(call, operands.view)
    tensors = [
        tensor(view, targets[index] if targets else None, dtype, call.which[index])
        for index, (view, dtype) in enumerate(views)
    ]
    return operands.run(
        tensors, lambda described: evaluate_described(call, described, operands.capsules, into)
    )


def _wait(device: int, stream: int, producer: int, label: str) -> None:
    try:
        core().cuda_wait(device, stream, producer)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def evaluate_described(
    call: Call, tensors: Any, capsules: Sequence[Any] = (), into: Any = None
) -> Any:
    """Make a call of tensors that have been described and judged."""
    outputs, scale, grad_scale = call.outputs, float(call.scale), float(call.grad_scale)
    strengths = call.strengths  # alone: what is captured keeps no more of the call
    device, stream = tensors.device, tensors.stream
    values = total = zeros = all_zeros = None
    counts = outputs & PROX
    if into is not None:
        values = core().DeviceMemory(device, stream, into.data_ptr(), into)
    elif outputs & VALUE and call.per_tensor:
        size = 8 * max(len(tensors), 1)
        values = core().DeviceMemory(device, stream, size)
        zeros = core().DeviceMemory(device, stream, size) if counts else None
    elif outputs & VALUE:
        library, weight = owner(call.weights[0])
        total = library.cuda_total(weight, device, stream, "f64")
        all_zeros = library.cuda_total(weight, device, stream, "i64") if counts else None
    written = values, total, zeros, all_zeros
    captured = core().cuda_evaluate(
        tensors,
        outputs,
        strengths,
        scale,
        grad_scale,
        *(0 if one is None else one.address for one in written),
    )
    if captured:
        recording.captured(
            recording.CapturedCall(
                captured,
                outputs,
                device,
                lambda: strengths,
                scale,
                grad_scale,
                tensors.coefficient_types if outputs & GRADIENT else [],
                call.weights[0],
                [call.weights, call.gradients, capsules, *written],
            )
        )
    elif capsules:
        cuda_results.hold(core().StreamMark(device, stream), capsules)
    if into is not None:
        return into
    if values is not None:
        per_tensor = _copied(values, len(tensors), np.float64)
        if zeros is None:
            return per_tensor
        return per_tensor, _copied(zeros, len(tensors), np.int64), tensors.sizes
    if total is None:
        return None
    value = total.finish(bool(captured))
    if all_zeros is None:
        return value
    return value, all_zeros.finish(bool(captured)), sum(tensors.sizes)


def _copied(memory: Any, count: int, dtype: Any) -> list[Any]:
    copied = core().cuda_copy(memory.device, memory.stream, memory.address, 8 * count)
    numbers: list[Any] = np.frombuffer(copied, dtype).tolist()
    return numbers


def shares_address(weights: Sequence[Any]) -> bool:
    """Return whether two of the arrays, on the host or a device, have the same lowest address."""
    views = [cuda.any_view(weight, "w")[0] for weight in weights]
    lowest = [memory.byte_bounds(view)[0] for view in views if view.size]
    return len(set(lowest)) < len(lowest)


def _labelled(call: Call) -> list[tuple[str, Any]]:
    labelled = [(call.weight_label(i), w) for i, w in enumerate(call.weights)]
    if call.outputs & GRADIENT and call.gradients is not None:
        labelled += [(call.gradient_label(i), g) for i, g in enumerate(call.gradients)]
    return labelled


class Operands:
    """The arrays of a call by label: one device, and streams of which one makes the call."""

    def __init__(self, labelled: Sequence[tuple[str, Any]], is_captured: bool = False) -> None:
        self.views: list[View] = []
        self.device: int | None = None
        self.streams: dict[int, str] = {}
        """The streams that arrays name, and the first array that names each."""
        self._on_cuda = {label for label, x in labelled if cuda.is_on_cuda(x)}
        self.first = next(label for label, _ in labelled if label in self._on_cuda)
        """The first array on a device, with which the others are compared."""
        for label, x in labelled:
            if is_captured and type(x) is DeviceArray:
                continue  # a capture cannot wait for the stream that used it last
            stream = cuda.named_stream(x) if label in self._on_cuda else None
            if stream is not None:
                self.streams.setdefault(stream, label)
        self.stream = next(iter(self.streams), DEFAULT_STREAM)

    def view(self, x: Any, name: str, writable: bool) -> tuple[Array, str]:
        """Do what ``host.host_view`` does on the host; the array is not to be read."""
        if name not in self._on_cuda:
            cuda.any_view(x, name)
            raise TypeError(
                f"{name} is in host memory, but {self.first} is on CUDA; pass both on one device"
            )
        view = cuda.describe(x, name, writable, self.stream)
        if self.device is None:
            self.device = view.device
        elif view.device not in (None, self.device):
            raise ValueError(
                f"{name} is on CUDA device {view.device}, but {self.first} on device "
                f"{self.device}; make one call for each device"
            )
        self.views.append(view)
        return view.shadow, view.dtype

    @property
    def capsules(self) -> list[Any]:
        """What keeps the memory of the views alive."""
        return [view.capsule for view in self.views if view.capsule is not None]

    def run(self, tensors: Sequence[tuple[Any, ...]], body: Callable[[Any], Any]) -> Any:
        """Return ``body(tensors)``, which queues work on them in the order of all their streams."""
        device = 0 if self.device is None else self.device
        others = {stream: label for stream, label in self.streams.items() if stream != self.stream}
        for stream, label in others.items():
            _wait(device, self.stream, stream, label)
        try:
            result = body(core().DeviceTensors(device, self.stream, tensors))
        except ValueError as error:
            raise ValueError(f"{self.streams.get(self.stream, self.first)}: {error}") from None
        for stream, label in others.items():
            _wait(device, stream, self.stream, label)
        return result


def tensor(view: Array, target: Array | None, dtype: str, which: int) -> tuple[Any, ...]:
    """Put one tensor as the core takes it: addresses of the elements of index 0.

    The layout is None where weight and gradient are without gaps and in one order.
    """
    size = view.itemsize
    layout = None
    if view.size and (memory.dense_order(view) is None or not _lies_as(target, view)):
        strides = [[s // size for s in x.strides] for x in (view, target) if x is not None]
        layout = (view.shape, strides[0], strides[1] if target is not None else ())
    return (
        _address(view),
        0 if target is None else _address(target),
        view.size,
        dtypes.NUMBERS[dtype],
        which,
        layout,
    )


def _lies_as(target: Array | None, view: Array) -> bool:
    """Return whether a gradient, if there is one, has the strides of its weight."""
    return target is None or all(
        extent == 1 or one == other
        for extent, one, other in zip(view.shape, target.strides, view.strides, strict=True)
    )


def _address(shadow: Array) -> int:
    address: int = shadow.__array_interface__["data"][0]
    return address
