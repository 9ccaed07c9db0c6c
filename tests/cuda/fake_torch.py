"""A module that takes the place of torch: CUDA tensors in the stand-in's memory, no autograd.

``install`` must run before anything of fastreg has seen torch; the real one must not be imported.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from device_fakes import CODES, Memory, Runtime
from stand_in_arrays import LIBRARY


def _load_fake_tensor() -> Any:
    (path,) = Path(LIBRARY).parent.glob("_fake_tensor*.so")
    spec = importlib.util.spec_from_file_location("_fake_tensor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(*, has_table: bool) -> Any:
    """Put the module where fastreg looks for torch; without a table it is as an older torch."""
    assert "torch" not in sys.modules
    fake, runtime = _load_fake_tensor(), Runtime()
    torch: Any = types.ModuleType("torch")
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)  # for who asks if it is there
    state = {"grad": True}

    class Dtype:
        def __init__(self, name: str) -> None:
            self.name = name
            self.is_complex = name.startswith("complex")

        def __repr__(self) -> str:
            return f"torch.{self.name}"

    names = ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool", "complex64")
    dtypes = {name: Dtype(name) for name in names}

    class Device:
        def __init__(self, index: int) -> None:
            self.type, self.index = "cuda", index

        def __repr__(self) -> str:
            return f"cuda:{self.index}"

    class Tensor(fake.Tensor):
        """A tensor with numbers of its own, or a view of another's memory."""

        __torch_dispatch__ = None
        layout = "torch.strided"
        is_meta = is_nested = is_quantized = False

        def __init__(
            self,
            numbers: np.ndarray,
            device: int = 0,
            *,
            requires_grad: bool = False,
            memory: Memory | None = None,
            address: int | None = None,
            negative: bool = False,
            inference: bool = False,
            left: int | None = None,
        ) -> None:
            self.memory = Memory(runtime, numbers, device) if memory is None else memory
            kind = numbers.dtype
            self.numbers, self.negative, self.inference = numbers, negative, inference
            self.left = left  # bytes of the storage, where it was cut
            self.requires_grad, self._version = requires_grad, 0
            self.dtype, self.device = dtypes[str(kind)], Device(device)
            code = 4 if kind == ml_dtypes.bfloat16 else CODES[kind.kind]
            self.shape = numbers.shape
            self.place = self.memory.address if address is None else address
            steps = [stride // kind.itemsize for stride in numbers.strides]
            super().__init__(
                self.place, list(self.shape), steps, code, 8 * kind.itemsize, 2, device
            )

        @property
        def T(self) -> Tensor:  # noqa: N802
            return Tensor(self.numbers.T, self.device.index, memory=self.memory, address=self.place)

        def detach(self) -> Tensor:
            return Tensor(self.numbers, self.device.index, memory=self.memory, address=self.place)

        def __dlpack_device__(self) -> tuple[int, int]:
            raise AssertionError("torch's takes microseconds")

        def data_ptr(self) -> int:
            return self.place

        def stride(self) -> tuple[int, ...]:
            return tuple(stride // self.numbers.itemsize for stride in self.numbers.strides)

        def element_size(self) -> int:
            return self.numbers.itemsize

        def numel(self) -> int:
            return int(self.numbers.size)

        def storage_offset(self) -> int:
            return (self.place - self.memory.low) // self.numbers.itemsize

        def untyped_storage(self) -> Any:
            size = self.memory.size if self.left is None else self.left
            return types.SimpleNamespace(nbytes=lambda: size)

        def is_inference(self) -> bool:
            return self.inference

        def is_neg(self) -> bool:
            return self.negative

        def _is_zerotensor(self) -> bool:
            return False

        def to(self, dtype: Dtype) -> Tensor:
            """Convert; unlike torch it waits."""
            return Tensor(self.host().astype(dtype.name), self.device.index)

        def host(self) -> np.ndarray:
            """Return the numbers, once all work is done."""
            copy = self.memory.host()
            start = self.place - self.memory.low
            return np.ndarray(self.shape, self.numbers.dtype, copy, start, self.numbers.strides)

        def __float__(self) -> float:
            return float(self.host())

        def __int__(self) -> int:
            return int(self.host())

    Tensor.__torch_dispatch__ = fake.Tensor.__init__  # the same for all but classes with their own

    class Parameter(Tensor):
        def __init__(self, numbers: np.ndarray, device: int = 0) -> None:
            super().__init__(numbers, device, requires_grad=True)

    class Uninitialized:
        pass

    if not has_table:
        for kind in (Tensor, Parameter):
            kind.__dlpack_c_exchange_api__ = None

    @contextmanager
    def no_grad() -> Any:
        before, state["grad"] = state["grad"], False
        try:
            yield
        finally:
            state["grad"] = before

    @contextmanager
    def plain() -> Any:
        yield

    def increment_version(tensors: Any) -> None:
        for tensor in (tensors,) if isinstance(tensors, Tensor) else tensors:
            tensor._version += 1

    def empty(shape: Any, *, dtype: Dtype, device: Device) -> Tensor:
        return Tensor(np.full(shape, 77, dtype.name), device.index)

    def empty_like(x: Tensor) -> Tensor:
        return Tensor(np.full_like(x.numbers, 77), x.device.index)

    def set_stream(stream: int, device: int = 0) -> None:
        fake.set_stream(device, stream)

    def current_stream(device: int) -> Any:
        return types.SimpleNamespace(cuda_stream=fake.stream(device))

    vars(torch).update(dtypes)
    torch.Tensor = Tensor
    torch.strided = Tensor.layout
    torch.compiler = types.SimpleNamespace(is_compiling=lambda: False)
    torch.version = types.SimpleNamespace(hip=None)
    torch.nn = types.SimpleNamespace(
        Parameter=Parameter, parameter=types.SimpleNamespace(UninitializedTensorMixin=Uninitialized)
    )
    torch._C = types.SimpleNamespace(
        _functorch=types.SimpleNamespace(is_functorch_wrapped_tensor=lambda x: False),
        _are_functorch_transforms_active=lambda: False,
        DisableTorchFunctionSubclass=plain,
    )
    torch.autograd = types.SimpleNamespace(
        graph=types.SimpleNamespace(increment_version=increment_version)
    )
    torch.cuda = types.SimpleNamespace(current_stream=current_stream)
    torch.is_inference_mode_enabled = lambda: False
    torch.is_grad_enabled, torch.no_grad = lambda: state["grad"], no_grad
    torch.empty, torch.empty_like = empty, empty_like
    torch.fake, torch.runtime, torch.set_stream = fake, runtime, set_stream
    sys.modules["torch"] = torch
    return torch


def read_double(address: int) -> float:
    """Read a number of the stand-in's memory without waiting for anything."""
    return ctypes.c_double.from_address(address).value
