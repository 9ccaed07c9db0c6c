"""torch's rows: plain tensors, those of other classes, fake ones and DTensors.

Contract: exact tensors on CUDA are described by DLPack's exchange table, others by their methods.
"""

from __future__ import annotations

from typing import Any

from .._base import dtypes, errors, memory
from .._base.core import core, stream_number
from . import cuda_memory, host_memory, torch_memory
from .cuda_memory import View
from .cuda_results import Total
from .host_memory import HostView
from .library import Library, loaded


class Torch(Library):
    """Tensors of torch, of one class."""

    name = "torch"
    port = "torch"

    def __init__(self, torch: Any, kind: type) -> None:
        self._torch = torch
        self.is_plain = kind is torch.Tensor or kind is torch.nn.Parameter
        self._increment_version = torch.autograd.graph.increment_version
        # torch does not load this module by itself, which takes half a second.
        self.is_dtensor = _is_of(kind, "torch.distributed.tensor", "DTensor")
        self.is_fake = _is_of(kind, "torch._subclasses.fake_tensor", "FakeTensor")
        if self.is_dtensor:
            self.port = "dtensors"

    def needs_port(self, x: Any, records: bool) -> bool:
        return (
            self.is_dtensor  # no one process has its elements
            or self.is_fake
            or (records and x.requires_grad and self._torch.is_grad_enabled())
            or (self.is_plain and has_no_elements(self._torch, x))
        )

    def host_view(self, x: Any, name: str, writable: bool) -> HostView:
        torch = self._torch
        self._require_plain(x, name)
        with torch._C.DisableTorchFunctionSubclass():
            if x.device.type != "cpu":
                raise host_memory.not_on_host(name, str(x.device))
            torch_memory.require_memory(torch, x, name, writable)
            return self._at(x, name)

    def is_on_cuda(self, x: Any) -> bool:
        return bool(x.device.type == "cuda" and self._torch.version.hip is None)

    def stream(self, x: Any) -> int | None:
        device = x.device.index
        stream = core().torch_stream(device)
        if stream is None:
            stream = self._torch.cuda.current_stream(device).cuda_stream
        return stream_number(stream)

    def cuda_view(self, x: Any, name: str, writable: bool, stream: int | None) -> View:
        torch = self._torch
        self._require_plain(x, name)
        with torch._C.DisableTorchFunctionSubclass():
            torch_memory.require_memory(torch, x, name, writable)
            description = core().describe_by_exchange(x)
            if description is not None:
                return cuda_memory.described(description, name, owner=x)
            return View(*self._at(x, name), x.device.index)

    def _at(self, x: Any, name: str) -> HostView:
        """Return an array at the address of a tensor, and its dtype."""
        dtype = dtypes.SHORT.get(str(x.dtype).removeprefix("torch."))
        if dtype is None:
            raise errors.dtype_error(name, x.dtype, f"pass {name}.float()")
        size = x.element_size()
        strides = [stride * size for stride in x.stride()]
        return memory.at(x.data_ptr(), tuple(x.shape), strides, dtypes.stored(dtype), x), dtype

    def _require_plain(self, x: Any, name: str) -> None:
        """Raise TypeError, naming the kind, unless a tensor is strided and of real numbers."""
        torch = self._torch
        if not self.is_plain:
            self._require_known_class(x, name)
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise errors.special_array_error(
                name, "a tensor of a torch.func transform", "call this outside of torch.func"
            )
        with torch._C.DisableTorchFunctionSubclass():
            if x.layout is not torch.strided:
                raise errors.special_array_error(
                    name,
                    f"a torch tensor of layout {x.layout}",
                    f"pass {name}.values() (zeros add nothing to a penalty) or {name}.to_dense()",
                )
            if x.is_nested:
                raise errors.special_array_error(
                    name, "a nested torch tensor", f"pass {name}.values() or its parts"
                )
            if x.device.type == "meta":
                raise errors.special_array_error(
                    name,
                    "a torch tensor on the device 'meta', which has no elements",
                    "allocate it",
                )
            if x.is_quantized:
                raise errors.dtype_error(name, x.dtype, f"pass {name}.dequantize()")
            if x.dtype.is_complex:
                raise errors.dtype_error(name, x.dtype, f"pass {name}.abs() or torch.view_as_real")

    def _require_known_class(self, x: Any, name: str) -> None:
        """Refuse a tensor of a class that computes in its own way, or has no elements."""
        torch, kind = self._torch, type(x)
        if self.is_dtensor:
            raise errors.special_array_error(
                name,
                "a DTensor, whose elements lie on several devices",
                f"use fastreg.torch.attach, or pass {name}.to_local() for what this process has",
            )
        if self.is_fake:
            raise errors.special_array_error(
                name, "a FakeTensor, which has no elements", "call this outside of tracing"
            )
        if self._is_lazy(x):
            raise errors.special_array_error(
                name, "a lazy parameter, which has no elements yet", "run the module once first"
            )
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            raise errors.special_array_error(
                name,
                f"a {kind.__module__}.{kind.__qualname__}, a tensor class with its own dispatch",
                "pass the plain tensor it wraps",
            )

    def _is_lazy(self, x: Any) -> bool:
        return isinstance(x, self._torch.nn.parameter.UninitializedTensorMixin)

    def wrap_value(self, value: Any, x: Any) -> Any:
        torch = self._torch
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        if isinstance(value, torch.Tensor):
            return value.to(dtype)
        return torch.tensor(value, dtype=dtype, device=x.device)

    def empty_like(self, x: Any, view: HostView) -> Any:
        return self._torch.empty_like(x.detach())

    def cuda_empty_like(self, x: Any, name: str, view: View) -> Any:
        return self._torch.empty_like(x.detach())

    def cuda_total(self, x: Any, device: int, stream: int, dtype: str) -> Total:
        torch = self._torch
        kind = torch.float64 if dtype == "f64" else torch.int64
        made = torch.empty((), dtype=kind, device=x.device)
        return Total(made.data_ptr(), made, lambda _: made)

    def check_target(self, target: Any, name: str) -> None:
        if (
            target.requires_grad
            and self._torch.is_grad_enabled()
            and not self._is_lazy(target)  # refused later, for having no elements
        ):
            raise errors.recorded_target_error(name)

    def mark_written(self, targets: Any) -> None:
        try:
            self._increment_version(targets)
        except TypeError:  # an older torch, which takes one at a time
            for target in targets:
                self._increment_version(target)


def library_of(torch: Any, kind: type) -> Library | None:
    """Return the row of a class of torch, or None for another class."""
    return Torch(torch, kind) if issubclass(kind, getattr(torch, "Tensor", ())) else None


def has_no_elements(torch: Any, x: Any) -> bool:
    """Return whether a plain tensor only stands for one."""
    return bool(
        x.is_meta
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        # DeepSpeed's ZeRO-3 has taken them: the port refuses it by name.
        or x.__dict__.get("ds_numel", x.numel()) != x.numel()
    )


def _is_of(kind: type, module: str, name: str) -> bool:
    """Return whether a class is one of torch that this module has, or derives from it."""
    return issubclass(kind, getattr(loaded(module), name, ()))
