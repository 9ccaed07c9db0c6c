"""Calls whose tensors lie on a CUDA device: described, judged, and handed to the CUDA backend.

Contract
--------
- Kernels run on the stream that the tensors are used on: torch's current stream, or the stream
  that a ``__cuda_array_interface__`` names, else the default stream.  Nothing waits for the device.
- Values stay on the device: a 0-d torch tensor, or a :class:`DeviceValue`, which ``float()``
  copies.
- Everything is checked before anything is queued.
- Tensors are dense, and a gradient lies in memory as its weight does; other layouts are refused.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import _checks, _dtypes, _errors
from ._penalty import GRADIENT, VALUE

_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged
_DTYPES = ("f16", "bf16", "f32", "f64")  # in the order of the core's enumeration
_SIZES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}
_TYPESTRS = {"<f2": "f16", "<f4": "f32", "<f8": "f64"}
_CODES = {(2, 16): "f16", (4, 16): "bf16", (2, 32): "f32", (2, 64): "f64"}
_DEFAULT_STREAM = 1  # the legacy default stream, as DLPack and the array interface number it


@dataclass(frozen=True)
class DeviceView:
    """A tensor where it lies: strides count elements, `stream` None means that none was named."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device: int
    stream: int | None
    writable: bool
    owner: Any

    @property
    def size(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def layout(self) -> tuple[tuple[int, int], ...] | None:
        """Extents and strides without axes of one element, or None where there are gaps."""
        if self.size == 0:
            return ()
        strides = self.strides
        if strides is None:
            reversed_shape = self.shape[:0:-1]
            strides = tuple(itertools.accumulate(reversed_shape, lambda x, y: x * y, initial=1))[
                ::-1
            ]
        axes = [pair for pair in zip(self.shape, strides, strict=True) if pair[0] != 1]
        expected = 1
        for extent, stride in sorted(axes, key=lambda pair: pair[1]):
            if stride != expected:
                return None
            expected *= extent
        return tuple(axes)

    @property
    def elements(self) -> Any:
        """What is equal for two tensors of the same elements, or None for an empty one."""
        if self.size == 0:
            return None
        layout = self.layout
        if layout is None:
            return "cuda", self.device, self.dtype, self.address, self.shape, self.strides
        return "cuda", self.device, self.dtype, self.address, self.size


class DeviceValue:
    """A penalty in device memory: float64, 0-d, with ``__cuda_array_interface__``.

    ``float(value)`` and ``value.item()`` copy it to the host, and wait for it.
    """

    shape = ()
    ndim = 0
    dtype = "float64"

    def __init__(self, device: int, stream: int) -> None:
        self._core = _core()
        self._device = device
        self._stream = stream
        self._address = self._core.cuda_allocate(device, 8)

    def __del__(self) -> None:
        if hasattr(self, "_address"):
            self._core.cuda_release(self._device, self._address)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": (),
            "typestr": "<f8",
            "data": (self._address, False),
            "strides": None,
            "stream": self._stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CUDA[0], self._device)

    def item(self) -> float:
        """Copy the value to the host."""
        value: float = self._core.cuda_copy(self._device, self._stream, self._address, 1)[0]
        return value

    __float__ = item

    def __repr__(self) -> str:
        return f"<a penalty on CUDA device {self._device}; float(...) copies it>"


def _core() -> Any:
    from . import _core as core

    return core


def is_on_cuda(x: Any) -> bool:
    """Say whether an object says that its memory is a CUDA device's."""
    if hasattr(x, "__dlpack_device__"):
        try:
            return int(x.__dlpack_device__()[0]) in _CUDA
        except Exception:  # a framework's own refusal; host_view words it
            return False
    return hasattr(x, "__cuda_array_interface__")


def device_view(x: Any, name: str, writable: bool, stream: int | None) -> DeviceView:
    """Describe a tensor on a CUDA device; `stream` is where it will be used, if that is known.

    Raises
    ------
    TypeError
        For a tensor elsewhere, or of a dtype that has no kernel.
    BufferError
        When `writable` and `x` is not known to be writable.
    """
    if not is_on_cuda(x):
        raise TypeError(
            f"{name} is in host memory, but other tensors of the call are on CUDA; pass all of "
            "them on one device"
        )
    try:
        available, reason, _ = _core().cuda_state()
    except ImportError:
        available, reason = False, "there is no compiled core"
    if not available:
        raise _errors.device_error(name, "cuda", reason)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, getattr(torch, "Tensor", ())):
        view = _torch_view(torch, x, name)
    elif hasattr(x, "__cuda_array_interface__"):
        view = _interface_view(x, name)
    else:
        view = _dlpack_view(x, name, stream)
    if writable and not view.writable:
        raise _errors.read_only_error(name)
    return view


def _torch_view(torch: Any, x: Any, name: str) -> DeviceView:
    dtypes = {
        torch.float16: "f16",
        torch.bfloat16: "bf16",
        torch.float32: "f32",
        torch.float64: "f64",
    }
    if x.dtype not in dtypes or type(x) not in (torch.Tensor, torch.nn.Parameter) or x.is_neg():
        raise _errors.dtype_error(name, f"{x.dtype} (a {type(x).__name__} on CUDA)")
    index = x.device.index
    return DeviceView(
        x.data_ptr(),
        tuple(x.shape),
        tuple(x.stride()),
        dtypes[x.dtype],
        index,
        torch.cuda.current_stream(index).cuda_stream,
        True,
        x,
    )


def _interface_view(x: Any, name: str) -> DeviceView:
    interface = x.__cuda_array_interface__
    dtype = _TYPESTRS.get(interface["typestr"])
    if dtype is None:
        raise _errors.dtype_error(name, f"{interface['typestr']!r}, on CUDA")
    address, read_only = interface["data"]
    strides = interface.get("strides")
    size = int(interface["typestr"][2:])
    if strides is not None and any(stride % size for stride in strides):
        raise _errors.special_array_error(name, "an array of unaligned elements", "pass a copy")
    if hasattr(x, "__dlpack_device__"):
        device = int(x.__dlpack_device__()[1])
    else:
        device = int(getattr(getattr(x, "device", None), "id", 0))
    return DeviceView(
        int(address),
        tuple(interface["shape"]),
        None if strides is None else tuple(stride // size for stride in strides),
        dtype,
        device,
        interface.get("stream"),
        not read_only,
        x,
    )


def _dlpack_view(x: Any, name: str, stream: int | None) -> DeviceView:
    # The producer makes its data ready on this stream, before anything that is queued there later.
    wanted = _DEFAULT_STREAM if stream is None else stream
    try:
        capsule = x.__dlpack__(stream=wanted, max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = x.__dlpack__(stream=wanted)
    description = _core().dlpack_description(capsule)
    address, shape, strides, code, bits, kind, device, writable = description
    dtype = _CODES.get((code, bits))
    if dtype is None or kind not in _CUDA:
        raise _errors.dtype_error(name, f"{bits} bits of DLPack's kind {code}, on CUDA")
    return DeviceView(
        address,
        tuple(shape),
        None if strides is None else tuple(strides),
        dtype,
        device,
        wanted,
        writable,
        (x, capsule),
    )


def _require_fit(weight: DeviceView, gradient: DeviceView, label: str, weight_label: str) -> None:
    if gradient.dtype != weight.dtype:
        raise TypeError(
            f"{label} has dtype {_dtypes.spoken(gradient.dtype)}, but {weight_label} has "
            f"{_dtypes.spoken(weight.dtype)}; a gradient has the dtype of its weight"
        )
    if gradient.shape != weight.shape:
        raise ValueError(
            f"{label} has shape {gradient.shape}, but {weight_label} has {weight.shape}; a "
            "gradient has the shape of its weight"
        )
    if gradient.layout != weight.layout:
        raise ValueError(
            f"{label} lies in memory in another order than {weight_label}; on CUDA a gradient has "
            "the layout of its weight"
        )


def _require_disjoint(spans: list[tuple[int, int, bool, str]]) -> None:
    """Refuse an output that shares memory with anything else; `spans` are not empty."""
    ends = {True: (0, ""), False: (0, "")}  # the furthest so far of what is written, and read
    for start, end, written, label in sorted(spans):
        for other_written, (other_end, other) in ends.items():
            if start < other_end and (written or other_written):
                raise ValueError(
                    f"{label} overlaps {other} in memory without being the same array; pass a "
                    "copy of one of them"
                )
        ends[written] = max(ends[written], (end, label))


def evaluate_many(
    outputs: int,
    names: Sequence[str] | None,
    weights: Sequence[Any],
    gradients: Sequence[Any] | None,
    strengths: Sequence[tuple[float, float]],
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
    per_tensor: bool,
) -> Any:
    """Do on the device what the entry point of the same name does on the host.

    The total stays on the device.  With `per_tensor` the values are copied to the host.
    """
    scale = _checks.multiplier(scale, "scale")
    grad_scale = _checks.multiplier(grad_scale, "grad_scale")
    wants_gradient = bool(outputs & GRADIENT)
    stream: int | None = None
    views: list[DeviceView] = []
    targets: list[DeviceView] = []
    spans = []
    for index, weight in enumerate(weights):
        label = _checks.weight_label(names, index)
        view = device_view(weight, label, False, stream)
        stream = view.stream if stream is None else stream
        if view.device != (views[0] if views else view).device:
            raise ValueError(
                f"{label} is on CUDA device {view.device}, other tensors of the call on device "
                f"{views[0].device}; make one call for each device"
            )
        if view.layout is None:
            raise ValueError(f"{label} has gaps in memory; on CUDA pass {label}.contiguous()")
        views.append(view)
        end = view.address + view.size * _SIZES[view.dtype]
        target = None
        if wants_gradient:
            gradient_label = _checks.gradient_label(outputs, names, index)
            gradient = gradients[index] if gradients is not None else None
            target = device_view(gradient, gradient_label, True, stream)
            if target.device != view.device:
                raise ValueError(
                    f"{gradient_label} is on CUDA device {target.device}, but {label} on device "
                    f"{view.device}; they must be on one device"
                )
            _require_fit(view, target, gradient_label, label)
            targets.append(target)
            length = end - view.address
            spans.append((target.address, target.address + length, True, gradient_label))
        if view.size and (target is None or target.address != view.address):
            spans.append((view.address, end, False, label))
    _require_disjoint([span for span in spans if span[0] < span[1]])
    _checks.check_coefficients(
        strengths, which, [view.dtype for view in views], scale, grad_scale, wants_gradient
    )
    return _run(outputs, views, targets, strengths, which, scale, grad_scale, per_tensor, stream)


def _run(
    outputs: int,
    views: list[DeviceView],
    targets: list[DeviceView],
    strengths: Sequence[tuple[float, float]],
    which: Sequence[int],
    scale: float,
    grad_scale: float,
    per_tensor: bool,
    stream: int | None,
) -> Any:
    core = _core()
    device = views[0].device
    stream = _DEFAULT_STREAM if stream is None else stream
    others = {view.stream for view in (*views, *targets)} - {stream, None}
    tensors = [
        (
            view.address,
            targets[index].address if targets else 0,
            view.size,
            _DTYPES.index(view.dtype),
            which[index],
            None,
        )
        for index, view in enumerate(views)
    ]
    values = total = None
    if outputs & VALUE:
        if per_tensor:
            values = core.cuda_allocate(device, 8 * len(views))
        else:
            total = _new_value(views[0], device, stream)
    try:
        for other in others:
            core.cuda_wait(device, stream, other)
        address = 0 if total is None else _address(total)
        core.cuda_evaluate(
            outputs,
            device,
            stream,
            tensors,
            list(strengths),
            scale,
            grad_scale,
            values or 0,
            address,
        )
        for other in others:
            core.cuda_wait(device, other, stream)
        if values is not None:
            return core.cuda_copy(device, stream, values, len(views))
    finally:
        if values is not None:
            core.cuda_release(device, values)
    return total


def _new_value(view: DeviceView, device: int, stream: int) -> Any:
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(view.owner, getattr(torch, "Tensor", ())):
        owner: Any = view.owner
        return torch.empty((), dtype=torch.float64, device=owner.device)
    return DeviceValue(device, stream)


def _address(value: Any) -> int:
    address: int = value._address if isinstance(value, DeviceValue) else value.data_ptr()
    return address


def evaluate_one(
    outputs: int, weight: Any, gradient: Any, l1: float, l2: float, scale: Any, grad_scale: Any
) -> Any:
    """Do on the device what the entry point of the same name does on the host."""
    gradients = (gradient,) if outputs & GRADIENT else None
    strengths = ((l1, l2),)
    return evaluate_many(
        outputs, None, (weight,), gradients, strengths, (0,), scale, grad_scale, False
    )


def shares_address(weights: Sequence[Any]) -> bool:
    """Say whether two of the tensors begin at one address of one device."""
    seen = set()
    for weight in weights:
        view = device_view(weight, "w", False, None)
        if view.size == 0:
            continue
        if (view.device, view.address) in seen:
            return True
        seen.add((view.device, view.address))
    return False
