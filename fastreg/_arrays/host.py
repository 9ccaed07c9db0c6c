"""Foreign objects as NumPy views, without copying.

Contract
--------
- :func:`host_view` gives a plain ``numpy.ndarray`` over the very memory of its argument and the
  short name of its element type; bfloat16, which NumPy does not know, comes as its bits in uint16.
- It never copies (a NumPy scalar, which has no memory of its own to share, is the exception) and
  never gives a writable view of what is not known to be writable: NumPy's flag and the read-only
  flag of versioned DLPack count, a DLPack capsule without a version is read-only, and JAX arrays
  are never written.
- No framework is imported: an object of a framework exists only where its module is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dtypes, errors, memory
from .._base.core import why_off
from . import torch_memory
from .libraries import wraps_jax_array

Array = npt.NDArray[Any]

_DLPACK_CPU = (1, 3)  # kDLCPU and kDLCUDAHost: memory that the host can read
_DLPACK_DEVICES = {2: "cuda", 8: "metal", 10: "rocm", 13: "cuda_managed", 14: "oneapi"}


def host_view(x: Any, name: str, writable: bool) -> tuple[Array, str]:
    """View the elements of `x` as NumPy array.

    Parameters
    ----------
    x
        A NumPy array or scalar, a torch CPU tensor, a JAX CPU array, a ``keras.Variable`` of
        these, what has ``__jax_array__``, or an object with the buffer protocol or ``__dlpack__``.
    name
        What errors call it, for example "w".
    writable
        Whether the caller will write into it.

    Returns
    -------
    tuple of numpy.ndarray and str
        The view, and one of f16 bf16 f32 f64 bool i8 i16 i32 i64 u8 u16 u32 u64.

    Raises
    ------
    TypeError
        For what is not an array of numbers in host memory.
    BufferError
        When `writable` and `x` is not known to be writable.
    """
    if isinstance(x, (np.ndarray, np.generic)):
        return _numpy_view(x, name, writable)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, getattr(torch, "Tensor", ())):
        return _torch_view(torch, x, name, writable)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, getattr(jax, "Array", ())):
        return _jax_view(jax, x, name, writable)
    keras: Any = sys.modules.get("keras")
    if keras is not None:
        variable: Any = getattr(keras, "Variable", ())
        if isinstance(x, variable):
            return host_view(x.value, name, writable)
        if isinstance(x, getattr(keras, "KerasTensor", ())):
            raise errors.special_array_error(
                name, "a symbolic KerasTensor, which has no elements yet", "pass the array itself"
            )
    if wraps_jax_array(x):
        return host_view(x.__jax_array__(), name, writable)
    if isinstance(x, (bytes, bytearray)):  # buffers, but of text rather than of numbers
        raise errors.kind_error(x, name)
    try:
        buffer = memoryview(x)
    except TypeError:
        pass
    else:
        try:
            view = np.asarray(buffer)
        except (ValueError, NotImplementedError):
            raise errors.dtype_error(name, f"{buffer.format!r} (a buffer format)") from None
        return _numpy_view(view, name, writable)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _dlpack_view(x, name, writable)
    if has_cuda_interface(x):
        raise _not_on_host(name, "cuda")
    raise errors.kind_error(x, name)


def has_cuda_interface(x: Any) -> bool:
    """Return whether an object has a ``__cuda_array_interface__``, and that is one."""
    return isinstance(getattr(x, "__cuda_array_interface__", None), Mapping)


def is_current(view: tuple[Array, str]) -> bool:
    """Return whether what :func:`host_view` gave is still the memory of the array it was given.

    The code of another array's library may have resized or freed it meanwhile.  Buffers and DLPack
    capsules keep their memory; NumPy's arrays do not (``resize(refcheck=False)``), nor torch's
    storages.  No other library's code is run here.
    """
    array = view[0]
    base = array.base
    if base is None or array.size == 0:
        return True
    if isinstance(base, np.ndarray):
        if base.size == 0:
            return False
        low, high = memory.byte_bounds(array)
        base_low, base_high = memory.byte_bounds(base)
        return base_low <= low and high <= base_high
    owner = memory.owner(base)
    return owner is None or torch_memory.is_at(owner, array)


def named(view: Array, name: str) -> tuple[Array, str]:
    """Name the element type of a view, or refuse it; bfloat16 becomes its bits."""
    dtype = view.dtype
    known = dtypes.NAMES.get(dtype)
    if known is not None:
        return view, known
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return view.view(np.uint16), "bf16"
    if not dtype.isnative and dtype.newbyteorder("=") in dtypes.NAMES:
        raise errors.byte_order_error(name, dtype)
    if dtype.kind == "c":
        raise errors.dtype_error(name, dtype, f"pass numpy.abs({name}) or its real parts")
    if dtype.kind in "OSUTmM" or dtype.names is not None:
        raise errors.dtype_error(name, dtype, "pass an array of numbers")
    raise errors.dtype_error(name, dtype)


def _numpy_view(x: Any, name: str, writable: bool) -> tuple[Array, str]:
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            raise errors.special_array_error(
                name, "a masked array", f"pass {name}.filled(0) or {name}.compressed()"
            )
        if isinstance(x, np.generic) and writable:
            raise errors.read_only_error(name, f"a NumPy scalar ({type(x).__name__})")
        x = np.asarray(x)
    if writable and not x.flags.writeable:
        raise errors.read_only_error(name)
    return named(x, name)


def require_plain_torch(torch: Any, x: Any, name: str) -> None:
    """Refuse, by its own name, a torch tensor that is no strided one of real numbers."""
    kind = type(x)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        if kind.__name__ == "DTensor":
            raise errors.special_array_error(
                name,
                "a DTensor, whose elements lie on several devices",
                f"use fastreg.torch.attach, or pass {name}.to_local() for what this process has",
            )
        if kind.__name__ == "FakeTensor":
            raise errors.special_array_error(
                name, "a FakeTensor, which has no elements", "call this outside of tracing"
            )
        if isinstance(x, torch.nn.parameter.UninitializedTensorMixin):
            raise errors.special_array_error(
                name, "a lazy parameter, which has no elements yet", "run the module once first"
            )
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            raise errors.special_array_error(
                name,
                f"a {kind.__module__}.{kind.__qualname__}, a tensor class with its own dispatch",
                "pass the plain tensor it wraps",
            )
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
                name, "a torch tensor on the device 'meta', which has no elements", "allocate it"
            )
        if x.is_quantized:
            raise errors.dtype_error(name, x.dtype, f"pass {name}.dequantize()")
        if x.dtype.is_complex:
            raise errors.dtype_error(name, x.dtype, f"pass {name}.abs() or torch.view_as_real")


def _torch_view(torch: Any, x: Any, name: str, writable: bool) -> tuple[Array, str]:
    require_plain_torch(torch, x, name)
    with torch._C.DisableTorchFunctionSubclass():
        if x.device.type != "cpu":
            raise _not_on_host(name, str(x.device))
        torch_memory.require_memory(torch, x, name, writable)
        dtype = torch_dtype(x, name)
        size = x.element_size()
        strides = [stride * size for stride in x.stride()]
        return memory.at(x.data_ptr(), x.shape, strides, dtypes.stored(dtype), x), dtype


def torch_dtype(x: Any, name: str) -> str:
    """Return the short name of the element type of a torch tensor, or refuse it."""
    dtype = dtypes.SHORT.get(str(x.dtype).removeprefix("torch."))
    if dtype is None:
        raise errors.dtype_error(name, x.dtype, f"pass {name}.float()")
    return dtype


def require_plain_jax(jax: Any, x: Any, name: str, writable: bool) -> None:
    """Refuse a JAX array that has no elements in one place, and one that would be written."""
    if isinstance(x, jax.core.Tracer):
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
            name, f"a JAX array spread over {len(devices)} devices", "pass its addressable shards"
        )


def _jax_view(jax: Any, x: Any, name: str, writable: bool) -> tuple[Array, str]:
    require_plain_jax(jax, x, name, writable)
    (device,) = x.devices()
    if device.platform != "cpu":
        raise _not_on_host(name, "cuda" if device.platform == "gpu" else device.platform)
    try:
        view = np.asarray(x)
    except TypeError:  # typed keys of jax.random
        raise errors.dtype_error(name, x.dtype) from None
    return named(view, name)


def _not_on_host(name: str, device: str) -> TypeError:
    """Build the error for an array on another device, where only host memory will do."""
    return errors.device_error(name, device, why_off() if device.startswith("cuda") else "")


class _Capsule:
    """Hand NumPy a capsule that was asked for already, so that the producer runs once."""

    def __init__(self, capsule: Any, device: Any) -> None:
        self._capsule = capsule
        self._device = device

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> Any:
        return self._device


def _capsule_of(x: Any) -> Any:
    try:
        return x.__dlpack__(max_version=(1, 0))
    except TypeError as error:  # a producer from before DLPack 1.0
        if type(error) is not TypeError:  # or one that refuses, with an error class of its own
            raise
        return x.__dlpack__()


def _dlpack_view(x: Any, name: str, writable: bool) -> tuple[Array, str]:
    try:
        kind = int(x.__dlpack_device__()[0])
        capsule = _capsule_of(x) if kind in _DLPACK_CPU else None
    except Exception as error:  # the other library's, of any kind
        raise errors.dlpack_error(name, x, error) from error
    if capsule is None:
        raise _not_on_host(name, _DLPACK_DEVICES.get(kind, f"DLPack device {kind}"))
    try:
        view = np.from_dlpack(_Capsule(capsule, (1, 0)))
    except (RuntimeError, BufferError, TypeError) as error:
        raise errors.dtype_error(name, f"that NumPy cannot import by DLPack ({error})") from None
    if writable and not view.flags.writeable:
        if "dltensor_versioned" not in repr(capsule):  # the only way to see a capsule's name
            raise errors.unversioned_error(name, x)
        raise errors.read_only_error(name)
    return named(view, name)
