"""Results in the kind of their input: torch tensors for torch, JAX arrays for JAX, else NumPy's.

Contract
--------
- No framework is imported: an object of a framework exists only where its module is loaded.
- A gradient is written into memory that this module has made, or that a check let through.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dtypes, errors
from .._base.float_environment import Default
from . import cuda, host
from .libraries import library_of, owner
from .library import loaded


def check_targets(targets: Sequence[Any], names: Sequence[str], argument: str = "grads") -> None:
    """Do what :func:`checked_target` does for many, which an argument has by these names."""
    for target, name in zip(targets, names, strict=True):
        if getattr(target, "requires_grad", False):  # the name is made only where it is needed
            checked_target(target, f"{argument}[{name!r}]")


def checked_target(target: Any, name: str) -> Any:
    """Return what will be written in place, unless autograd is following it."""
    if getattr(target, "requires_grad", False):
        library_of(type(target)).check_target(target, name)
    return target


def written(target: Any) -> Any:
    """Return what was written, and tell torch, so that autograd notices what it had saved."""
    library_of(type(target)).mark_written(target)
    return target


def all_written(targets: Sequence[Any]) -> None:
    """Do what :func:`written` does for many."""
    kinds = set(map(type, targets))
    if len(kinds) == 1:
        library_of(kinds.pop()).mark_written(targets)
        return
    for target in targets:
        written(target)


def plain_written(tensors: Sequence[Any]) -> None:
    """Do what :func:`written` does for tensors that are all torch's own."""
    if tensors:
        library_of(type(tensors[0])).mark_written(tensors)


def unrecorded() -> AbstractContextManager[Any]:
    """Return a context in which torch records no gradients; nothing where torch is not loaded."""
    torch = loaded("torch")
    return nullcontext() if torch is None else torch.no_grad()


def wrap_value(value: Any, w: Any) -> Any:
    """Return a penalty in the kind of `w`: a 0-d torch tensor or JAX array, else the float itself.

    Its dtype is float64 for float64 input and float32 for all others, whatever the half
    precision of `w`, so that the value neither overflows nor loses digits.  What is on a device
    already stays there.
    """
    library, array = owner(w)
    return library.wrap_value(value, array)


def empty_like(w: Any, name: str) -> Any:
    """Return a writable array for the gradient of `w`, of its kind where that can be written.

    For a JAX array this is an array of another kind, which :func:`wrap_gradient` turns into one.
    """
    library, array = owner(w)
    if cuda.is_on_cuda(array):
        return library.cuda_empty_like(array, name, cuda.describe(array, name, False, None))
    return library.empty_like(array, host.host_view(array, name, False))


def wrap_gradient(gradient: Any, w: Any) -> Any:
    """Turn what :func:`empty_like` gave into the kind of `w`."""
    library, array = owner(w)
    return library.wrap_gradient(gradient, array)


def rounded(target: Any, numbers: npt.NDArray[np.float64], name: str, add: bool = False) -> Any:
    """Return what float64 numbers make of a checked gradient, rounded to its dtype at the end.

    It is a NumPy array to be copied into `target`, of bits where that is bfloat16.
    """
    view, dtype = host.host_view(target, name, True)
    if view.shape != numbers.shape or dtype not in dtypes.FLOATS:
        raise errors.changed_error(name)
    with Default(), np.errstate(all="ignore"):
        if add:
            numbers = numbers + dtypes.to_float64(view, dtype)
        if dtype == "bf16":
            return dtypes.to_bfloat16(numbers.astype(np.float32))
        return numbers.astype(view.dtype)


def require_fitting(target: Any, result: npt.NDArray[Any], name: str) -> None:
    """Refuse a gradient that is not what :func:`rounded` made `result` for, or not any longer."""
    view, dtype = host.host_view(target, name, True)
    if view.shape != result.shape or dtypes.stored(dtype) != result.dtype:
        raise errors.changed_error(name)


def assign(target: Any, numbers: npt.NDArray[np.float64], name: str, add: bool = False) -> None:
    """Write or add float64 numbers to a checked gradient, rounded to its dtype at the end."""
    result = rounded(target, numbers, name, add)
    host.host_view(target, name, True)[0][...] = result
