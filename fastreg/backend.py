"""A small ``keras.backend``: array functions in which penalties of your own can be trained.

Arguments and results are those of NumPy, names and argument names those of Keras.  Where a layer
needs the gradient of a function it runs the function on arrays that autograd
(https://github.com/HIPS/autograd, the extra ``autodiff``) records.  Every function here records
there, and is plain NumPy everywhere else.  Plain NumPy functions may not record: use these.

>>> import numpy
>>> from fastreg import backend as K
>>> def l1_reg(weight_matrix):
...     return 0.01 * K.sum(K.abs(weight_matrix))
>>> round(float(l1_reg(numpy.array([1.0, -2.0]))), 6)
0.03
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

__all__ = ["abs", "cast", "clip", "cos", "exp", "log", "maximum", "minimum"]
__all__ += ["pow", "sign", "sin", "sqrt", "square", "tanh"]
__all__ += ["max", "mean", "min", "prod", "std", "sum", "var"]
__all__ += ["dot", "matmul", "permute_dimensions", "transpose"]
__all__ += ["concatenate", "expand_dims", "flatten", "int_shape", "ndim", "reshape", "shape"]
__all__ += ["squeeze", "stack"]
__all__ += ["epsilon", "eye", "floatx", "ones_like", "zeros_like"]

# Names as in Keras hide builtins in this file: none of them is used below as a builtin.

Axis = int | Sequence[int] | None
Function = TypeVar("Function", bound=Callable[..., Any])


class OfOne(Protocol):
    """A function of one array."""

    def __call__(self, x: Any) -> Any: ...


class OfTwo(Protocol):
    """A function of two arrays."""

    def __call__(self, x: Any, y: Any) -> Any: ...


class Reduction(Protocol):
    """A function of an array that takes some or all of its axes away."""

    def __call__(self, x: Any, axis: Axis = None, keepdims: bool = False) -> Any: ...


def _numpy() -> Any:
    """Return the module that records where recording is possible, else NumPy itself.

    An array that autograd records exists only once autograd is imported; its functions pass plain
    arrays through to NumPy.
    """
    return sys.modules.get("autograd.numpy", np)


def _axis(axis: Axis) -> int | tuple[int, ...] | None:
    """Return axes as NumPy takes them: Keras takes a list, NumPy a tuple."""
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


def _of_one(name: str, what: str, x: str, result: str) -> OfOne:
    def function(x: Any) -> Any:
        return getattr(_numpy(), name)(x)

    return _named(function, name, what, f"np.array({x})", result)


def _of_two(name: str, what: str, x: str, y: str, result: str) -> OfTwo:
    def function(x: Any, y: Any) -> Any:
        return getattr(_numpy(), name)(x, y)

    return _named(function, name, what, f"np.array({x}), np.array({y})", result)


def _reduction(name: str, what: str, result: str, note: str = "") -> Reduction:
    def function(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
        return getattr(_numpy(), name)(x, axis=_axis(axis), keepdims=keepdims)

    what = f"the {what} over all or some axes{note}"
    return _named(function, name, what, "np.array([[1.0, 3.0]]), axis=1", result)


def _named(function: Function, name: str, what: str, call: str, result: str) -> Function:
    """Return a function under its public name, with its docstring."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Return {what}.\n\n>>> {name}({call})\narray({result})\n"
    return function


_HALVES = "element by element; where equal, each gets half the gradient"
_SQUARE_ROOTS = """square roots; NaN below 0, where the old ``keras.backend`` said 0.

The gradient at 0 is infinite: add :func:`epsilon` under the root of a norm"""

abs: OfOne = _of_one(
    "abs", "absolute values; the gradient is the sign, 0 at 0", "[-1.0, 2.0]", "[1., 2.]"
)
square: OfOne = _of_one("square", "``x * x``", "[-1.0, 2.0]", "[1., 4.]")
sqrt: OfOne = _of_one("sqrt", _SQUARE_ROOTS, "[4.0]", "[2.]")
exp: OfOne = _of_one("exp", "``e**x``", "[0.0]", "[1.]")
log: OfOne = _of_one("log", "natural logarithms", "[1.0]", "[0.]")
sin: OfOne = _of_one("sin", "sines", "[0.0]", "[0.]")
cos: OfOne = _of_one("cos", "cosines", "[0.0]", "[1.]")
tanh: OfOne = _of_one("tanh", "hyperbolic tangents", "[0.0]", "[0.]")
sign: OfOne = _of_one("sign", "-1, 0 or 1; the gradient is 0", "[-3.0, 0.0]", "[-1.,  0.]")
maximum: OfTwo = _of_two(
    "maximum", f"the larger of two, {_HALVES}", "[-1.0, 2.0]", "0.0", "[0., 2.]"
)
minimum: OfTwo = _of_two(
    "minimum", f"the smaller of two, {_HALVES}", "[-1.0, 2.0]", "0.0", "[-1.,  0.]"
)


def pow(x: Any, a: Any) -> Any:
    """Return ``x**a``.

    >>> pow(np.array([2.0]), 3)
    array([8.])
    """
    return _numpy().power(x, a)


def clip(x: Any, min_value: Any, max_value: Any) -> Any:
    """Return `x` held between two bounds; the gradient is 0 outside of them.

    >>> clip(np.array([-1.0, 2.0]), 0.0, 1.0)
    array([0., 1.])
    """
    return _numpy().clip(x, min_value, max_value)


def cast(x: Any, dtype: Any) -> Any:
    """Return `x` with another dtype.

    >>> cast(np.array([1.0]), "float32").dtype
    dtype('float32')
    """
    return x.astype(np.dtype(dtype))


sum: Reduction = _reduction("sum", "sum", "[4.]")
mean: Reduction = _reduction("mean", "mean", "[2.]")
max: Reduction = _reduction("max", "largest", "[3.]", "; equal ones share the gradient")
min: Reduction = _reduction("min", "smallest", "[1.]", "; equal ones share the gradient")
prod: Reduction = _reduction("prod", "product", "[3.]")
var: Reduction = _reduction("var", "variance", "[1.]", ", without Bessel's correction")
std: Reduction = _reduction("std", "standard deviation", "[1.]", ", without Bessel's correction")

_STACKS = "the product of two matrices, or of two stacks of them"
_RANKS = "the product of two matrices; ``numpy.dot`` for other ranks"

dot: OfTwo = _of_two("dot", _RANKS, "[[1.0, 2.0]]", "[[3.0], [4.0]]", "[[11.]]")
matmul: OfTwo = _of_two("matmul", _STACKS, "[[1.0, 2.0]]", "[[3.0], [4.0]]", "[[11.]]")
transpose: OfOne = _of_one(
    "transpose", "`x` with its axes reversed", "[[1.0], [2.0]]", "[[1., 2.]]"
)


def permute_dimensions(x: Any, pattern: Sequence[int]) -> Any:
    """Return `x` with its axes in the order of `pattern`.

    >>> permute_dimensions(np.ones((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    return _numpy().transpose(x, tuple(pattern))


def reshape(x: Any, shape: Sequence[int]) -> Any:
    """Return `x` with another shape; one extent may be -1.

    >>> reshape(np.ones((2, 3)), (-1, 2)).shape
    (3, 2)
    """
    return _numpy().reshape(x, tuple(shape))


def flatten(x: Any) -> Any:
    """Return the elements of `x` along one axis.

    >>> flatten(np.ones((2, 3))).shape
    (6,)
    """
    return _numpy().reshape(x, (-1,))


def expand_dims(x: Any, axis: int = -1) -> Any:
    """Return `x` with a new axis of extent 1.

    >>> expand_dims(np.ones(2)).shape
    (2, 1)
    """
    return _numpy().expand_dims(x, axis)


def squeeze(x: Any, axis: int) -> Any:
    """Return `x` without an axis of extent 1.

    >>> squeeze(np.ones((2, 1)), 1).shape
    (2,)
    """
    return _numpy().squeeze(x, axis)


def concatenate(tensors: Sequence[Any], axis: int = -1) -> Any:
    """Join arrays along an axis.

    >>> concatenate([np.ones(1), np.zeros(1)])
    array([1., 0.])
    """
    return _numpy().concatenate(tuple(tensors), axis)


def stack(x: Sequence[Any], axis: int = 0) -> Any:
    """Join arrays along a new axis.

    >>> stack([np.ones(2), np.zeros(2)]).shape
    (2, 2)
    """
    return _numpy().stack(tuple(x), axis)


def shape(x: Any) -> tuple[int, ...]:
    """Return the extents of `x`.

    >>> shape(np.ones((2, 3)))
    (2, 3)
    """
    return tuple(x.shape)


int_shape = shape


def ndim(x: Any) -> int:
    """Return the number of axes.

    >>> ndim(np.ones((2, 3)))
    2
    """
    return len(x.shape)


def eye(size: int | Sequence[int], dtype: Any = None) -> Any:
    """Return the identity matrix, float32 unless asked otherwise.

    >>> eye(2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    return np.eye(rows, columns, dtype=floatx() if dtype is None else dtype)


def ones_like(x: Any, dtype: Any = None) -> Any:
    """Return ones in the shape of `x`.

    >>> ones_like(np.zeros(2))
    array([1., 1.])
    """
    return np.ones(x.shape, x.dtype if dtype is None else dtype)


def zeros_like(x: Any, dtype: Any = None) -> Any:
    """Return zeros in the shape of `x`.

    >>> zeros_like(np.ones(2))
    array([0., 0.])
    """
    return np.zeros(x.shape, x.dtype if dtype is None else dtype)


def epsilon() -> float:
    """Return the small number that keeps divisions and roots away from 0, 1e-7 as in Keras.

    >>> epsilon()
    1e-07
    """
    return 1e-7


def floatx() -> str:
    """Return the name of the usual dtype.

    >>> floatx()
    'float32'
    """
    return "float32"
