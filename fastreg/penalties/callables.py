"""What callables that users pass as penalties give: one number, and a gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import cuda, host
from .._base import dtypes, errors


def has_gradient(rule: Any) -> bool:
    """Return whether a callable offers a ``gradient(w)`` of its own penalty.

    A class that redefines ``__call__`` alone has inherited the gradient of another penalty, which
    would be silently wrong.
    """
    if not callable(getattr(rule, "gradient", None)):
        return False
    classes = type(rule).__mro__
    owners = {
        method: next((place for place, one in enumerate(classes) if method in vars(one)), -1)
        for method in ("gradient", "__call__")
    }
    return owners["gradient"] <= owners["__call__"]


def number(value: Any, name: str) -> float:
    """Read the number that a callable gave: a Python or NumPy number or a 0-d array.

    An array on a device is copied to the host, and waited for.

    Raises
    ------
    TypeError
        For anything else, an array of several numbers too.
    ValueError
        For an integer that is too large for a float.
    """
    if isinstance(value, (bool, int, float)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name} must fit a float, not be {errors.described(value)}") from None
    try:
        view, dtype = cuda.any_view(value, name)
        if view.size != 1:
            raise errors.number_error(value, name)
        if cuda.is_on_cuda(value):
            view, dtype = cuda.host_copy(value, name)
    except (TypeError, ValueError):
        raise errors.number_error(value, name) from None
    return float(dtypes.to_float64(view, dtype).reshape(()))


def followed_number(value: Any, name: str) -> Any:
    """Return the penalty, 0-d, that a callable gave for `name`, as its framework traces it.

    Raises
    ------
    TypeError
        For an array of several numbers.
    """
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise errors.number_error(value, penalty_label(name))
    return value.reshape(()) if shape else value


def penalty_label(name: str) -> str:
    """Return what messages call the penalty that a callable gave for the tensor `name`."""
    return f"the penalty that the rule of tensors[{name!r}] gives"


def slope_of(gradient: Any, w: Any, name: str) -> npt.NDArray[np.float64]:
    """Read the gradient that a callable gave for the tensor `name`, in float64.

    Raises
    ------
    TypeError, ValueError
        When it is no array of numbers, or not of the shape of `w`.
    """
    label = f"the gradient that the rule of tensors[{name!r}] gives"
    view, dtype = host.host_view(gradient, label, False)
    shape = host.host_view(w, f"tensors[{name!r}]", False)[0].shape
    if view.shape != shape:
        raise ValueError(
            f"{label} has shape {view.shape}; it must have that of the tensor, {shape}"
        )
    return dtypes.to_float64(view, dtype)
