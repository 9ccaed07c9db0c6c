"""One penalty term: a regularizer on one array of a layer, its value and its gradient.

Contract: a regularizer of your own has ``gradient(w)``, or is a function that autograd can record
(``fastreg.backend``).  Where neither holds, asking for the gradient is an error, never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from .. import regularizers
from .._arrays import results
from .._base import errors
from .._base.dtypes import Array
from .._base.float_environment import Default, product
from ..penalties import callables
from ..regularizers.elementwise import is_fused
from ..regularizers.saved_forms import converted, warn_of_nothing


def regularizer(
    identifier: Any, argument: str, custom_objects: Mapping[str, Any] | None = None
) -> Any:
    """Return what a regularizer keyword stands for, a callable or None.

    An instance of a class of ``keras.regularizers`` becomes the same one of fastreg, which needs no
    framework for its gradient.  Errors are those of ``regularizers.get``, with the keyword named.
    """
    with errors.prefixed(argument):
        if isinstance(identifier, Mapping):
            return regularizers.deserialize(identifier, custom_objects)
        found = converted(regularizers.get(identifier), custom_objects)
    warn_of_nothing(identifier, found, argument)
    return found


def value(rule: Any, array: Array, label: str, scale: float = 1.0) -> float:
    """Return the penalty of weights or outputs, times `scale`; errors call them `label`."""
    if is_fused(rule):
        penalty: float = rule(array, scale=scale)
        return penalty
    return product(_number(rule(_given(array)), label), scale)


def accumulate(
    rule: Any,
    array: Array,
    gradient: Array,
    label: str,
    scale: float = 1.0,
    grad_scale: float = 1.0,
) -> float:
    """Add the gradient of ``scale * rule(array)`` to `gradient` in-place; return the penalty.

    `gradient` has the shape and dtype of `array`; `grad_scale` is a factor of it alone.
    """
    if is_fused(rule) or type(rule) is regularizers.OrthogonalRegularizer:
        penalty: float = rule.accumulate(array, gradient, scale=scale, grad_scale=grad_scale)
        return penalty
    given = _given(array)
    if callables.has_gradient(rule):
        number = _number(rule(given), label)
        slope: Any = rule.gradient(given)
    else:
        number, slope = _recorded(rule, given, label)
    slope = callables.checked_array(
        slope, array.shape, f"regularizer of {label}", "array", "gradient"
    )
    with Default(), np.errstate(all="ignore"):  # no warnings: inf and NaN are valid inputs
        results.assign(gradient, slope * (scale * grad_scale), label, add=True)
    return product(number, scale)


def _given(array: Array) -> Array:
    """Return what a callable gets: half precision sums would overflow or stall."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def _number(given: Any, label: str) -> float:
    return callables.number(given, f"the penalty that the regularizer of {label} gives")


def _recorded(rule: Any, array: Array, label: str) -> tuple[float, Any]:
    """Return the number and the gradient of a function, recorded by autograd."""
    name = errors.name_of(rule)
    try:
        autograd = import_module("autograd")
        isbox = import_module("autograd.tracer").isbox
    except ImportError:
        raise TypeError(
            f"the regularizer of {label}, {name}, offers no gradient(w), and autograd, which could "
            "find it, is not installed; add that method, or install it: python -m pip install "
            "autograd"
        ) from None

    def recorded(w: Any) -> Any:
        try:
            result = rule(w)
        except Exception as error:
            _number(rule(array), label)  # what fails on a plain array too is an error of its own
            raise TypeError(
                f"the regularizer of {label}, {name}, does what autograd cannot record ({error}); "
                "build it of fastreg.backend functions without float(), .item() or numpy "
                "functions, or give it a method gradient(w)"
            ) from error
        if not isbox(result):
            raise TypeError(
                f"the regularizer of {label}, {name}, gave {errors.described(result)}, which "
                "autograd could not follow back to the array: its gradient would be lost; build "
                "it of fastreg.backend functions, or give it a method gradient(w)"
            )
        if result.shape not in ((), (1,)):
            raise TypeError(
                f"the regularizer of {label}, {name}, must give one number, not an array of shape "
                f"{result.shape}; sum it"
            )
        return result.reshape(())

    number, slope = autograd.value_and_grad(recorded)(array)
    return float(number), slope
