"""What callables that users pass as penalties give: one number, and a gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _arrays, _device, _dtypes, _errors


def has_gradient(rule: Any) -> bool:
    """Say whether a callable offers a ``gradient(w)`` of its own penalty.

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
            raise ValueError(
                f"{name} must fit a float, not be {_errors.described(value)}"
            ) from None
    try:
        view, dtype = _device.any_view(value, name)
        if view.size != 1:
            raise _errors.number_error(value, name)
        if _device.is_on_cuda(value):
            view, dtype = _device.host_copy(value, name)
    except (TypeError, ValueError):
        raise _errors.number_error(value, name) from None
    return float(_dtypes.to_float64(view, dtype).reshape(()))


def followed_number(value: Any, name: str) -> Any:
    """Give the penalty of the tensor `name` that a callable gave, 0-d, as its framework follows it.

    Raises
    ------
    TypeError
        For an array of several numbers.
    """
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise _errors.number_error(value, penalty_label(name))
    return value.reshape(()) if shape else value


def penalty_label(name: str) -> str:
    """Give what messages call the penalty that a callable gave for the tensor `name`."""
    return f"the penalty that the rule of tensors[{name!r}] gives"


def slope_of(gradient: Any, w: Any, name: str) -> npt.NDArray[np.float64]:
    """Read the gradient that a callable gave for the tensor `name`, in float64.

    Raises
    ------
    TypeError, ValueError
        When it is no array of numbers, or not of the shape of `w`.
    """
    label = f"the gradient that the rule of tensors[{name!r}] gives"
    view, dtype = _arrays.host_view(gradient, label, False)
    shape = _arrays.host_view(w, f"tensors[{name!r}]", False)[0].shape
    if view.shape != shape:
        raise ValueError(
            f"{label} has shape {view.shape}; it must have that of the tensor, {shape}"
        )
    return _dtypes.to_float64(view, dtype)
