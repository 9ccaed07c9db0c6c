"""A small ``keras.backend``: array functions in which penalties of your own can be trained.

Contract
--------
- ``from fastreg import backend as K`` serves the functions that penalties are usually written
  with; arguments and results are those of NumPy, names and argument names those of Keras.
- Where a layer needs the gradient of such a function it runs the function on arrays that autograd
  (https://github.com/HIPS/autograd, the extra ``autodiff``) records.  Every function here records
  there, and is plain NumPy everywhere else.  Plain NumPy functions may not record: use these.
- autograd is never imported here, so that ``import fastreg.backend`` costs nothing.

>>> import numpy
>>> from fastreg import backend as K
>>> def l1_reg(weight_matrix):
...     return 0.01 * K.sum(K.abs(weight_matrix))
>>> round(float(l1_reg(numpy.array([1.0, -2.0]))), 6)
0.03
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "abs",
    "cast",
    "clip",
    "concatenate",
    "cos",
    "dot",
    "epsilon",
    "exp",
    "expand_dims",
    "eye",
    "flatten",
    "floatx",
    "int_shape",
    "log",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "ndim",
    "ones_like",
    "permute_dimensions",
    "pow",
    "prod",
    "reshape",
    "shape",
    "sign",
    "sin",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "sum",
    "tanh",
    "transpose",
    "var",
    "zeros_like",
]

# Names as in Keras hide builtins in this file: none of them is used below as a builtin.

Axis = int | Sequence[int] | None


def _numpy() -> Any:
    """Return the module that records where recording is possible, else NumPy itself.

    An array that autograd records exists only once autograd is imported; its functions pass plain
    arrays through to NumPy.
    """
    return sys.modules.get("autograd.numpy", np)


def _axis(axis: Axis) -> int | tuple[int, ...] | None:
    """Keras takes a list of axes, NumPy a tuple."""
    return axis if axis is None or isinstance(axis, int) else tuple(axis)


# ------------------------------------------------------------------------ element by element


def abs(x: Any) -> Any:
    """Return the absolute values; the gradient is the sign, 0 at 0.

    >>> abs(np.array([-1.0, 2.0]))
    array([1., 2.])
    """
    return _numpy().abs(x)


def square(x: Any) -> Any:
    """Return ``x * x``.

    >>> square(np.array([-1.0, 2.0]))
    array([1., 4.])
    """
    return _numpy().square(x)


def sqrt(x: Any) -> Any:
    """Return square roots; NaN below 0, where the old ``keras.backend`` said 0.

    The gradient at 0 is infinite: add :func:`epsilon` under the root of a norm.

    >>> sqrt(np.array([4.0]))
    array([2.])
    """
    return _numpy().sqrt(x)


def exp(x: Any) -> Any:
    """Return ``e**x``.

    >>> exp(np.array([0.0]))
    array([1.])
    """
    return _numpy().exp(x)


def log(x: Any) -> Any:
    """Return natural logarithms.

    >>> log(np.array([1.0]))
    array([0.])
    """
    return _numpy().log(x)


def sin(x: Any) -> Any:
    """Return sines.

    >>> sin(np.array([0.0]))
    array([0.])
    """
    return _numpy().sin(x)


def cos(x: Any) -> Any:
    """Return cosines.

    >>> cos(np.array([0.0]))
    array([1.])
    """
    return _numpy().cos(x)


def tanh(x: Any) -> Any:
    """Return hyperbolic tangents.

    >>> tanh(np.array([0.0]))
    array([0.])
    """
    return _numpy().tanh(x)


def sign(x: Any) -> Any:
    """Return -1, 0 or 1; the gradient is 0.

    >>> sign(np.array([-3.0, 0.0]))
    array([-1.,  0.])
    """
    return _numpy().sign(x)


def pow(x: Any, a: Any) -> Any:
    """Return ``x**a``.

    >>> pow(np.array([2.0]), 3)
    array([8.])
    """
    return _numpy().power(x, a)


def maximum(x: Any, y: Any) -> Any:
    """Return the larger of two, element by element; where equal, each gets half the gradient.

    >>> maximum(np.array([-1.0, 2.0]), 0)
    array([0., 2.])
    """
    return _numpy().maximum(x, y)


def minimum(x: Any, y: Any) -> Any:
    """Return the smaller of two, element by element; where equal, each gets half the gradient.

    >>> minimum(np.array([-1.0, 2.0]), 0)
    array([-1.,  0.])
    """
    return _numpy().minimum(x, y)


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


# ---------------------------------------------------------------------------------- reductions


def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the sum over all or some axes.

    >>> sum(np.ones((2, 3)), axis=1)
    array([3., 3.])
    """
    return _numpy().sum(x, axis=_axis(axis), keepdims=keepdims)


def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the mean over all or some axes.

    >>> mean(np.array([[1.0, 3.0]]), axis=[0, 1]).item()
    2.0
    """
    return _numpy().mean(x, axis=_axis(axis), keepdims=keepdims)


def max(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the largest over all or some axes; equal ones share the gradient.

    >>> max(np.array([[1.0, 3.0]]), axis=1)
    array([3.])
    """
    return _numpy().max(x, axis=_axis(axis), keepdims=keepdims)


def min(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the smallest over all or some axes; equal ones share the gradient.

    >>> min(np.array([[1.0, 3.0]]), axis=1)
    array([1.])
    """
    return _numpy().min(x, axis=_axis(axis), keepdims=keepdims)


def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the product over all or some axes.

    >>> prod(np.array([2.0, 3.0])).item()
    6.0
    """
    return _numpy().prod(x, axis=_axis(axis), keepdims=keepdims)


def var(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the variance over all or some axes, without Bessel's correction.

    >>> var(np.array([1.0, 3.0])).item()
    1.0
    """
    return _numpy().var(x, axis=_axis(axis), keepdims=keepdims)


def std(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Return the standard deviation over all or some axes, without Bessel's correction.

    >>> std(np.array([1.0, 3.0])).item()
    1.0
    """
    return _numpy().std(x, axis=_axis(axis), keepdims=keepdims)


# ------------------------------------------------------------------------------- linear algebra


def dot(x: Any, y: Any) -> Any:
    """Return the product of two matrices; :func:`numpy.dot` for other ranks.

    >>> dot(np.eye(2), np.ones((2, 1))).ravel()
    array([1., 1.])
    """
    return _numpy().dot(x, y)


def matmul(x: Any, y: Any) -> Any:
    """Return the product of two matrices, or of two stacks of them.

    >>> matmul(np.eye(2), np.ones((2, 1))).ravel()
    array([1., 1.])
    """
    return _numpy().matmul(x, y)


def transpose(x: Any) -> Any:
    """Return `x` with its axes in reverse order.

    >>> transpose(np.ones((2, 3))).shape
    (3, 2)
    """
    return _numpy().transpose(x)


def permute_dimensions(x: Any, pattern: Sequence[int]) -> Any:
    """Return `x` with its axes in the order of `pattern`.

    >>> permute_dimensions(np.ones((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    return _numpy().transpose(x, tuple(pattern))


# --------------------------------------------------------------------------------------- shapes


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


# ------------------------------------------------------------------------------------ constants


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
