"""Results in the kind of their input: torch tensors for torch, JAX arrays for JAX, else NumPy.

Contract
--------
- No framework is imported: an object of a framework exists only where its module is loaded.
- A gradient is written into memory that this module has made, or that a check let through.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _arrays, _device, _dtypes, _errors


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
        raise _errors.needs_gradient_error(name)


def checked_target(target: Any, name: str) -> Any:
    """Give back what will be written in place, unless autograd is following it.

    Raises
    ------
    TypeError
        For a torch tensor that requires a gradient while torch records gradients.
    """
    torch: Any = sys.modules.get("torch")
    tensor: Any = getattr(torch, "Tensor", ())
    if (
        isinstance(target, tensor)
        and target.requires_grad
        and torch.is_grad_enabled()
        # A lazy parameter is refused later, for having no elements.
        and not isinstance(target, torch.nn.parameter.UninitializedTensorMixin)
    ):
        raise _errors.recorded_target_error(name)
    return target


def written(target: Any) -> Any:
    """Give back what was written, and tell torch, so that autograd notices what it had saved."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(target, getattr(torch, "Tensor", ())):
        torch.autograd.graph.increment_version(target)
    return target


def unrecorded() -> AbstractContextManager[Any]:
    """Give a context in which torch records no gradients; nothing where torch is not loaded."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.no_grad()


def wrap_value(value: float, w: Any) -> Any:
    """Give a penalty in the kind of `w`: a 0-d torch tensor or JAX array, else the float itself.

    Its dtype is float64 for float64 input and float32 for all others, whatever the half
    precision of `w`, so that the value neither overflows nor loses digits.
    """
    framework, module, x = _framework(w)
    if framework == "torch":
        dtype = module.float64 if x.dtype == module.float64 else module.float32
        if isinstance(value, module.Tensor):  # on a device already, where it stays
            return value.to(dtype)
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
        if _device.is_on_cuda(x):
            _device.device_view(x, name, False, None)
        else:
            _arrays.host_view(x, name, False)  # refuses before anything is allocated
        return module.empty_like(x.detach())
    if framework == "jax":
        _arrays.host_view(x, name, False)
        return np.empty_like(np.asarray(x))
    if isinstance(x, np.ndarray):
        return np.empty_like(x)
    if _device.is_on_cuda(x):
        raise TypeError(
            f"{name} is a {type(x).__qualname__} on CUDA, whose kind fastreg cannot make; pass out="
        )
    view, _ = _arrays.host_view(x, name, False)
    return np.empty_like(np.asarray(x) if isinstance(x, np.generic) else view)


def wrap_gradient(gradient: Any, w: Any) -> Any:
    """Turn what :func:`empty_like` gave into the kind of `w`."""
    framework, module, x = _framework(w)
    return module.device_put(gradient, x.sharding) if framework == "jax" else gradient


def assign(target: Any, numbers: npt.NDArray[np.float64], name: str, add: bool = False) -> None:
    """Write or add float64 numbers to a checked gradient, rounded to its dtype at the end."""
    view, dtype = _arrays.host_view(target, name, True)
    with np.errstate(all="ignore"):
        if add:
            numbers = numbers + _dtypes.to_float64(view, dtype)
        view[...] = _dtypes.to_bfloat16(numbers.astype(np.float32)) if dtype == "bf16" else numbers
