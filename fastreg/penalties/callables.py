"""Validate the value and gradient returned by user-defined penalties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import cuda, host
from .._base import dtypes, errors
from .._base.float_environment import Default


def has_gradient(rule: Any) -> bool:
    """Return whether a callable offers a ``gradient(w)`` of its own penalty."""
    return offers(rule, "gradient")


def offers(rule: Any, method: str) -> bool:
    """Return whether a callable offers a method that is of its own penalty.

    A class that redefines ``__call__`` alone has inherited the method of another penalty, which
    would be silently wrong.
    """
    if not callable(getattr(rule, method, None)):
        return False
    classes = type(rule).__mro__
    owners = {
        one: next((place for place, kind in enumerate(classes) if one in vars(kind)), -1)
        for one in (method, "__call__")
    }
    return owners[method] <= owners["__call__"]


def number(value: Any, name: str) -> float:
    """Return the number that a callable gave, also in a 0-d array; a device is waited for."""
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


def traced_number(value: Any, name: str) -> Any:
    """Return the penalty, 0-d, that a callable gave for `name`, as its framework traces it."""
    shape = tuple(getattr(value, "shape", ()))
    if math.prod(shape) != 1:
        raise errors.number_error(value, penalty_label(name))
    return value.reshape(()) if shape else value


def penalty_label(name: str) -> str:
    """Return what messages call the penalty that a callable gave for the tensor `name`."""
    return f"the penalty that the rule of tensors[{name!r}] gives"


def slope_of(gradient: Any, w: Any, name: str) -> npt.NDArray[np.float64]:
    """Return the gradient, in float64, that a callable returned for the tensor `name`."""
    shape = host.host_view(w, f"tensors[{name!r}]", False)[0].shape
    return checked_array(gradient, shape, f"rule of tensors[{name!r}]", "tensor", "gradient")


def checked_array(
    array: Any, shape: tuple[int, ...], rule: str, of: str, what: str
) -> npt.NDArray[np.float64]:
    """Return the array, called `what` in messages, that a rule gave, in float64."""
    view, dtype = host.host_view(array, f"the {what} that the {rule} gives", False)
    if view.shape != shape:
        raise ValueError(
            f"the {what} that the {rule} gives has shape {view.shape}; it must have that of "
            f"the {of}, {shape}"
        )
    with Default(), np.errstate(all="ignore"):  # no warnings: inf and NaN are valid inputs
        return dtypes.to_float64(view, dtype)
