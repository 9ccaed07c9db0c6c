"""Foreign objects as NumPy views, without copying; and results in the kind of their input.

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
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _checks  # which imports this module too: both use the other inside functions only

Array = npt.NDArray[Any]

_NAMES: dict[Any, str] = {
    np.dtype(np.float16): "f16",
    np.dtype(np.float32): "f32",
    np.dtype(np.float64): "f64",
    np.dtype(np.bool_): "bool",
    np.dtype(np.int8): "i8",
    np.dtype(np.int16): "i16",
    np.dtype(np.int32): "i32",
    np.dtype(np.int64): "i64",
    np.dtype(np.uint8): "u8",
    np.dtype(np.uint16): "u16",
    np.dtype(np.uint32): "u32",
    np.dtype(np.uint64): "u64",
}
_SPOKEN = {name: str(dtype) for dtype, name in _NAMES.items()} | {"bf16": "bfloat16"}

FLOATS = frozenset(("f16", "bf16", "f32", "f64"))
"""Element types that have a gradient."""

_DLPACK_CPU = (1, 3)  # kDLCPU and kDLCUDAHost: memory that the host can read
_DLPACK_DEVICES = {2: "cuda", 8: "metal", 10: "rocm", 13: "cuda_managed", 14: "oneapi"}


def spoken(name: str) -> str:
    """Give the long name of an element type, as users write it: "f16" is float16."""
    return _SPOKEN[name]


def host_view(x: Any, name: str, writable: bool) -> tuple[Array, str]:
    """View the elements of `x` as NumPy array.

    Parameters
    ----------
    x
        A NumPy array or scalar, a torch CPU tensor, a JAX CPU array, a ``keras.Variable`` of
        these, or an object with the buffer protocol or ``__dlpack__``.
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
        return _torch_view(torch, x, name)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(x, getattr(jax, "Array", ())):
        return _jax_view(jax, x, name, writable)
    keras: Any = sys.modules.get("keras")
    if keras is not None:
        variable: Any = getattr(keras, "Variable", ())
        if isinstance(x, variable):
            return host_view(x.value, name, writable)
        if isinstance(x, getattr(keras, "KerasTensor", ())):
            raise _checks.special_array_error(
                name, "a symbolic KerasTensor, which has no elements yet", "pass the array itself"
            )
    if isinstance(x, (bytes, bytearray)):  # buffers, but of text rather than of numbers
        raise _checks.kind_error(x, name)
    try:
        buffer = memoryview(x)
    except TypeError:
        pass
    else:
        try:
            view = np.asarray(buffer)
        except (ValueError, NotImplementedError):
            raise _checks.dtype_error(name, f"{buffer.format!r} (a buffer format)") from None
        return _numpy_view(view, name, writable)
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _dlpack_view(x, name, writable)
    if hasattr(x, "__cuda_array_interface__"):
        raise _checks.device_error(name, "cuda")
    raise _checks.kind_error(x, name)


def _named(view: Array, name: str) -> tuple[Array, str]:
    """Name the element type of a view, or refuse it; bfloat16 becomes its bits."""
    dtype = view.dtype
    known = _NAMES.get(dtype)
    if known is not None:
        return view, known
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return view.view(np.uint16), "bf16"
    if not dtype.isnative and dtype.newbyteorder("=") in _NAMES:
        raise _checks.byte_order_error(name, dtype)
    if dtype.kind == "c":
        raise _checks.dtype_error(name, dtype, f"pass numpy.abs({name}) or its real parts")
    if dtype.kind in "OSUTmM" or dtype.names is not None:
        raise _checks.dtype_error(name, dtype, "pass an array of numbers")
    raise _checks.dtype_error(name, dtype)


def _numpy_view(x: Any, name: str, writable: bool) -> tuple[Array, str]:
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            raise _checks.special_array_error(
                name, "a masked array", f"pass {name}.filled(0) or {name}.compressed()"
            )
        if isinstance(x, np.generic) and writable:
            raise _checks.read_only_error(name, f"a NumPy scalar ({type(x).__name__})")
        x = np.asarray(x)
    if writable and not x.flags.writeable:
        raise _checks.read_only_error(name)
    return _named(x, name)


def _torch_view(torch: Any, x: Any, name: str) -> tuple[Array, str]:
    """View a torch tensor; what does not simply lie in host memory is refused by its own name."""
    kind = type(x)
    if kind is not torch.Tensor and kind is not torch.nn.Parameter:
        if kind.__name__ == "DTensor":
            raise _checks.special_array_error(
                name, "a DTensor, whose elements lie on several devices", f"pass {name}.to_local()"
            )
        if kind.__name__ == "FakeTensor":
            raise _checks.special_array_error(
                name, "a FakeTensor, which has no elements", "call this outside of tracing"
            )
        if isinstance(x, torch.nn.parameter.UninitializedTensorMixin):
            raise _checks.special_array_error(
                name, "a lazy parameter, which has no elements yet", "run the module once first"
            )
        if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
            raise _checks.special_array_error(
                name,
                f"a {kind.__module__}.{kind.__qualname__}, a tensor class with its own dispatch",
                "pass the plain tensor it wraps",
            )
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise _checks.special_array_error(
            name, "a tensor of a torch.func transform", "call this outside of torch.func"
        )
    with torch._C.DisableTorchFunctionSubclass():
        if x.layout is not torch.strided:
            raise _checks.special_array_error(
                name,
                f"a torch tensor of layout {x.layout}",
                f"pass {name}.values() (zeros add nothing to a penalty) or {name}.to_dense()",
            )
        if x.is_nested:
            raise _checks.special_array_error(
                name, "a nested torch tensor", f"pass {name}.values() or its parts"
            )
        device = x.device.type
        if device == "meta":
            raise _checks.special_array_error(
                name, "a torch tensor on the device 'meta', which has no elements", "allocate it"
            )
        if device != "cpu":
            raise _checks.device_error(name, str(x.device))
        if x.is_quantized:
            raise _checks.dtype_error(name, x.dtype, f"pass {name}.dequantize()")
        if x.is_neg():
            raise _checks.special_array_error(
                name, "a torch tensor with the negative bit", f"pass {name}.resolve_neg()"
            )
        if x.dtype.is_complex:
            raise _checks.dtype_error(name, x.dtype, f"pass {name}.abs() or torch.view_as_real")
        if x._is_zerotensor():
            raise _checks.special_array_error(
                name, "a torch zero tensor without memory", f"pass {name}.clone()"
            )
        plain = x.detach()
        try:
            if plain.dtype == torch.bfloat16:  # a type that torch does not give to NumPy
                return plain.view(torch.int16).numpy().view(np.uint16), "bf16"
            return _named(plain.numpy(), name)
        except (TypeError, RuntimeError):
            raise _checks.dtype_error(name, x.dtype, f"pass {name}.float()") from None


def _jax_view(jax: Any, x: Any, name: str, writable: bool) -> tuple[Array, str]:
    if isinstance(x, jax.core.Tracer):
        raise _checks.special_array_error(
            name,
            "a JAX tracer, which has no elements yet",
            "call this outside of jax.jit, jax.grad and jax.vmap",
        )
    if writable:
        raise _checks.read_only_error(
            name,
            "a JAX array, which is immutable",
            "use gradient(...) and add what it gives, or pass a NumPy array",
        )
    if x.is_deleted():
        raise ValueError(f"{name} is a JAX array that was deleted or donated; pass a live one")
    devices = x.devices()
    if len(devices) != 1:
        raise _checks.special_array_error(
            name, f"a JAX array spread over {len(devices)} devices", "pass its addressable shards"
        )
    (device,) = devices
    if device.platform != "cpu":
        raise _checks.device_error(name, "cuda" if device.platform == "gpu" else device.platform)
    try:
        view = np.asarray(x)
    except TypeError:  # typed keys of jax.random
        raise _checks.dtype_error(name, x.dtype) from None
    return _named(view, name)


class _Capsule:
    """Hand NumPy a capsule that was asked for already, so that the producer runs once."""

    def __init__(self, capsule: Any, device: Any) -> None:
        self._capsule = capsule
        self._device = device

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> Any:
        return self._device


def _dlpack_view(x: Any, name: str, writable: bool) -> tuple[Array, str]:
    device = x.__dlpack_device__()
    kind = int(device[0])
    if kind not in _DLPACK_CPU:
        raise _checks.device_error(name, _DLPACK_DEVICES.get(kind, f"DLPack device {kind}"))
    try:
        capsule = x.__dlpack__(max_version=(1, 0))
    except TypeError:  # a producer from before DLPack 1.0
        capsule = x.__dlpack__()
    try:
        view = np.from_dlpack(_Capsule(capsule, (1, 0)))
    except (RuntimeError, BufferError, TypeError) as error:
        raise _checks.dtype_error(name, f"that NumPy cannot import by DLPack ({error})") from None
    if writable and not view.flags.writeable:
        if "dltensor_versioned" not in repr(capsule):  # the only way to see a capsule's name
            raise _checks.read_only_error(
                name,
                f"a {type(x).__module__}.{type(x).__qualname__} whose DLPack capsule has no "
                "version and so cannot say that it may be written",
                "pass a NumPy view of it",
            )
        raise _checks.read_only_error(name)
    return _named(view, name)


# ------------------------------------------------------- results in the kind of their input


def _framework(w: Any) -> tuple[str, Any, Any]:
    """Say which framework's results `w` asks for: its name, module, and the array itself."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(w, getattr(torch, "Tensor", ())):
        return "torch", torch, w
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(w, getattr(jax, "Array", ())):
        return "jax", jax, w
    keras: Any = sys.modules.get("keras")
    variable: Any = getattr(keras, "Variable", ())
    if isinstance(w, variable):
        return _framework(w.value)
    return "host", None, w


def torch_is_loaded() -> bool:
    """Say whether there can be torch tensors at all."""
    return "torch" in sys.modules


def refuse_lost_gradient(w: Any, name: str) -> None:
    """Refuse a torch tensor whose gradient a plain number would silently lose.

    Raises
    ------
    TypeError
        When `w` requires a gradient and torch records gradients now.
    """
    framework, torch, x = _framework(w)
    if framework == "torch" and x.requires_grad and torch.is_grad_enabled():
        raise _checks.needs_gradient_error(name)


def wrap_value(value: float, w: Any) -> Any:
    """Give a penalty in the kind of `w`: a 0-d torch tensor or JAX array, else the float itself.

    Its dtype is float64 for float64 input and float32 for all others, whatever the half
    precision of `w`, so that the value neither overflows nor loses digits.
    """
    framework, module, x = _framework(w)
    if framework == "torch":
        dtype = module.float64 if x.dtype == module.float64 else module.float32
        return module.tensor(value, dtype=dtype, device=x.device)
    if framework == "jax":
        double = np.dtype(x.dtype) == np.float64
        return module.device_put(
            np.asarray(value, np.float64 if double else np.float32), x.sharding
        )
    return value


def empty_like(w: Any, name: str) -> Any:
    """Make a writable array for the gradient of `w`, of its kind where that kind can be written.

    For a JAX array this is a NumPy array, which :func:`wrap_gradient` turns into a JAX array.
    """
    framework, module, x = _framework(w)
    if framework == "torch":
        host_view(x, name, False)  # refuses before anything is allocated
        return module.empty_like(x.detach())
    if framework == "jax":
        host_view(x, name, False)
        return np.empty_like(np.asarray(x))
    if isinstance(x, np.ndarray):
        return np.empty_like(x)
    view, _ = host_view(x, name, False)
    return np.empty_like(np.asarray(x) if isinstance(x, np.generic) else view)


def wrap_gradient(gradient: Any, w: Any) -> Any:
    """Turn what :func:`empty_like` gave into the kind of `w`."""
    framework, module, x = _framework(w)
    return module.device_put(gradient, x.sharding) if framework == "jax" else gradient


def number(value: Any, name: str) -> float:
    """Read the number that a callable gave: a Python or NumPy number or a 0-d array.

    Raises
    ------
    TypeError
        For anything else, an array of several numbers too.
    """
    if isinstance(value, (bool, int, float)):
        return float(value)
    try:
        view, dtype = host_view(value, name, False)
    except (TypeError, ValueError):
        raise _checks.number_error(value, name) from None
    if view.size != 1:
        raise _checks.number_error(value, name)
    return float(to_float64(view, dtype).reshape(()))


# --------------------------------------------------------------------- element types


def to_float64(view: Array, dtype: str) -> npt.NDArray[np.float64]:
    """Convert a view's elements to float64, exactly but for integers above 2**53."""
    if dtype == "bf16":
        return from_bfloat16(view).astype(np.float64)
    return view.astype(np.float64)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """Widen bfloat16 bits (uint16) to float32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def to_bfloat16(numbers: npt.NDArray[np.float32]) -> Array:
    """Round float32 to bfloat16 bits (uint16), to nearest even; NaN stays a quiet NaN."""
    bits = numbers.view(np.uint32)
    result = bits >> 16
    result &= 1
    result += 0x7FFF
    result += bits  # wraps for some NaN, which the next lines replace
    result >>= 16
    missing = np.isnan(numbers)
    if missing.any():
        result[missing] = (bits[missing] >> 16) | 0x40
    return result.astype(np.uint16)


def assign(target: Any, numbers: npt.NDArray[np.float64], name: str, add: bool = False) -> None:
    """Write or add float64 numbers to a checked gradient, rounded to its dtype at the end."""
    view, dtype = host_view(target, name, True)
    with np.errstate(all="ignore"):
        if add:
            numbers = numbers + to_float64(view, dtype)
        view[...] = to_bfloat16(numbers.astype(np.float32)) if dtype == "bf16" else numbers


def slope_of(gradient: Any, w: Any, name: str) -> npt.NDArray[np.float64]:
    """Read the gradient that a callable gave for the tensor `name`, in float64.

    Raises
    ------
    TypeError, ValueError
        When it is no array of numbers, or not of the shape of `w`.
    """
    label = f"the gradient that the rule of tensors[{name!r}] gives"
    view, dtype = host_view(gradient, label, False)
    shape = host_view(w, f"tensors[{name!r}]", False)[0].shape
    if view.shape != shape:
        raise ValueError(
            f"{label} has shape {view.shape}; it must have that of the tensor, {shape}"
        )
    return to_float64(view, dtype)


# ------------------------------------------------------------------------------- places


def is_readable(x: Any) -> bool:
    """Say whether :func:`host_view` takes `x`."""
    try:
        host_view(x, "x", False)
    except (TypeError, ValueError, BufferError):
        return False
    return True


def memory(x: Any, name: str) -> tuple[Any, ...] | None:
    """Say where the elements of an array are: equal answers mean the same set of elements.

    The order of the elements does not count, so an array and its transpose or reverse are equal.
    None for an empty array, which is nowhere.
    """
    view, dtype = host_view(x, name, False)
    if view.size == 0:
        return None
    address = _checks.byte_bounds(view)[0]
    axes = sorted(
        (abs(stride), extent)
        for stride, extent in zip(view.strides, view.shape, strict=True)
        if extent > 1 and stride
    )
    merged: list[tuple[int, int]] = []
    for stride, extent in axes:
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = merged[-1][0], merged[-1][1] * extent
        else:
            merged.append((stride, extent))
    return address, dtype, tuple(merged)


def share_of_zeros(x: Any, name: str) -> float:
    """Give the share of elements that are 0 (of either sign), from 0 to 1; 0.0 when empty."""
    view, dtype = host_view(x, name, False)
    if view.size == 0:
        return 0.0
    if dtype == "bf16":
        count = sum(int(np.count_nonzero(part & 0x7FFF)) for part in _parts(view))
    else:
        count = int(np.count_nonzero(view))
    return 1.0 - count / view.size


def _parts(view: Array) -> Any:
    flat = view.flat
    return (flat[start : start + 65536] for start in range(0, view.size, 65536))
