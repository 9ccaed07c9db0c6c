"""OrthogonalRegularizer: angles between the rows of a matrix, in NumPy."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from .._arrays import results
from .._autodiff import dispatch, orthogonal
from .._base import arguments, dtypes
from .._base.array_types import AnyArray, Factor, Framework, Host, Made, Other, Real, Target
from .._base.float_environment import Default
from .._base.penalty import VALUE, VALUE_AND_ADD, VALUE_AND_GRADIENT, call_of_one
from .._engine import checks
from .base import Configured


def _checked_mode(value: Any, name: str) -> str:
    return arguments.choice(value, name, ("rows", "columns"))


class OrthogonalRegularizer(Configured):
    """Push the rows (or columns) of a matrix to be orthogonal, as the class of Keras does.

    The penalty is `factor` times the mean of ``abs(cos(angle))`` over all pairs of rows (or
    columns).  A row of zeros is orthogonal to all; with fewer than two rows the penalty is 0.0.

    Parameters
    ----------
    factor : float, optional
        Strength, finite and >= 0, else a TypeError or ValueError.
    mode : {"rows", "columns"}, optional
        What is to be orthogonal.

    Notes
    -----
    Computed in float64 with the closed-form gradient, by NumPy: the bits are not part of the
    numerics contract.  Keras' "columns" is wrong for NumPy arrays, this one is not; rows shorter
    than 1e-6 keep their direction here, where Keras shrinks them.

    Examples
    --------
    >>> import numpy
    >>> OrthogonalRegularizer(factor=1.0)(numpy.array([[1.0, 0.0], [3.0, 4.0]]))
    0.6
    >>> round(OrthogonalRegularizer(1.0, mode="columns")(numpy.array([[1.0, 2.0], [3.0, 5.0]])), 3)
    0.998
    """

    __slots__ = ("_factor", "_mode")

    _factor: float
    _mode: str
    _arguments = ("factor", "mode")
    factor: arguments.Checked[float] = arguments.Checked(
        arguments.strength, "Strength; may be set between calls."
    )
    mode: arguments.Checked[str] = arguments.Checked(
        _checked_mode, 'What is to be orthogonal, "rows" or "columns".'
    )

    def __init__(self, factor: Real = 0.01, mode: Literal["rows", "columns"] = "rows") -> None:
        self.factor = factor
        self.mode = mode

    @overload
    def __call__(self, w: Host, *, scale: Real = 1.0) -> float: ...
    @overload
    def __call__(self, w: Framework[Made], *, scale: Factor = 1.0) -> Made: ...
    @overload
    def __call__(self, w: Other, *, scale: Factor = 1.0) -> Any: ...
    def __call__(self, w: Any, *, scale: Any = 1.0) -> Any:
        """Return the penalty of a matrix; arguments and result are as for :class:`L1`."""
        port = dispatch.port_for_value(w, self._factor, scale)
        if port is not None:
            scale = port.factor(scale, "scale")
            return port.orthogonal(w, dispatch.product(port, self._factor, scale), self._mode)
        value, _ = self._evaluate(VALUE, w, None, scale, 1.0)
        return results.wrap_value(value, w)

    @overload
    def gradient(
        self, w: Host, out: None = None, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> Host: ...
    @overload
    def gradient(
        self, w: Framework[Made], out: None = None, *, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> Made: ...
    @overload
    def gradient(
        self, w: Other, out: None = None, *, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> Any: ...
    @overload
    def gradient(
        self, w: AnyArray, out: Target, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> Target: ...
    def gradient(self, w: Any, out: Any = None, *, scale: Any = 1.0, grad_scale: Any = 1.0) -> Any:
        """Return the gradient; arguments and result are as for :class:`L1`."""
        return self.value_and_grad(w, out, scale=scale, grad_scale=grad_scale)[1]

    @overload
    def value_and_grad(
        self, w: Host, out: None = None, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> tuple[float, Host]: ...
    @overload
    def value_and_grad(
        self, w: Framework[Made], out: None = None, *, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> tuple[Made, Made]: ...
    @overload
    def value_and_grad(
        self, w: Other, out: None = None, *, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> tuple[Any, Any]: ...
    @overload
    def value_and_grad(
        self, w: Host, out: Target, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> tuple[float, Target]: ...
    @overload
    def value_and_grad(
        self, w: Framework[Made], out: Target, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> tuple[Made, Target]: ...
    @overload
    def value_and_grad(
        self, w: Other, out: Target, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> tuple[Any, Target]: ...
    def value_and_grad(
        self, w: Any, out: Any = None, *, scale: Any = 1.0, grad_scale: Any = 1.0
    ) -> tuple[Any, Any]:
        """Return the penalty and its gradient; arguments and result are as for :class:`L1`."""
        if out is None:
            port = dispatch.port_for_gradient(w, self._factor, scale, grad_scale)
            # Only JAX's has it.
            computed = getattr(port, "orthogonal_value_and_grad", None)
            if port is not None and computed is not None:
                scale = port.factor(scale, "scale")
                grad_scale = port.factor(grad_scale, "grad_scale")
                pair: tuple[Any, Any] = computed(
                    w, dispatch.product(port, self._factor, scale), self._mode, grad_scale
                )
                return pair
        result = results.empty_like(w, "w") if out is None else results.checked_target(out, "out")
        value, slope = self._evaluate(VALUE_AND_GRADIENT, w, result, scale, grad_scale)
        results.assign(result, slope, "out")
        return results.wrap_value(value, w), (
            results.wrap_gradient(result, w) if out is None else results.written(out)
        )

    @overload
    def accumulate(
        self, w: Host, grad: AnyArray, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> float: ...
    @overload
    def accumulate(
        self, w: Framework[Made], grad: AnyArray, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> float | Made: ...
    @overload
    def accumulate(
        self, w: Other, grad: AnyArray, *, scale: Real = 1.0, grad_scale: Real = 1.0
    ) -> Any: ...
    def accumulate(self, w: Any, grad: Any, *, scale: Any = 1.0, grad_scale: Any = 1.0) -> Any:
        """Add the gradient to `grad` and return the penalty; as for :class:`L1`."""
        results.checked_target(grad, "grad")
        value, slope = self._evaluate(VALUE_AND_ADD, w, grad, scale, grad_scale)
        results.assign(grad, slope, "grad", add=True)
        results.written(grad)
        return value

    def _evaluate(
        self, outputs: int, w: Any, target: Any, scale: float, grad_scale: float
    ) -> tuple[float, npt.NDArray[np.float64]]:
        """Check a call and compute it in float64; the gradient is empty for a value alone."""
        call = call_of_one(outputs, w, target, self._factor, 0.0, scale, grad_scale)
        views, _ = checks.checked_views(call)
        view, dtype = views[0]
        orthogonal.require_matrix(view)
        matrix = dtypes.to_float64(view, dtype)
        with Default(), np.errstate(all="ignore"):  # no warnings: inf and NaN are valid inputs
            strength = self._factor * float(scale)
            angles = orthogonal.evaluate(np, matrix, strength, self._mode, _off_diagonal, _same)
            if outputs == VALUE:
                return float(angles.value), np.empty((0, 0))
            slope = orthogonal.gradient(np, angles, float(grad_scale), self._mode)
        return float(angles.value), slope


def _off_diagonal(matrix: Any) -> Any:
    np.fill_diagonal(matrix, 0.0)
    return matrix


def _same(x: Any) -> Any:
    return x
