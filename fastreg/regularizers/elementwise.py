"""L1, L2 and L1L2: sums over elements, which the core evaluates in one pass."""

from __future__ import annotations

from typing import Any, overload

import numpy as np

from .._arrays import results
from .._autodiff import dispatch
from .._base import arguments
from .._base.array_types import AnyArray, Factor, Framework, Host, Made, Other, Real, Target
from .._base.penalty import GRADIENT, PROXIMAL, VALUE, VALUE_AND_ADD, VALUE_AND_GRADIENT
from .._engine import backend, calls
from .._engine.recording import claim, unclaimed
from .base import Configured

_ndarray = np.ndarray


class Elementwise(Configured):
    """The one implementation of L1, L2 and L1L2: two strengths, either of which may be 0."""

    __slots__ = ("_l1", "_l2")

    _l1: float
    _l2: float

    @overload
    def __call__(self, w: Host, *, scale: Real = 1.0) -> float: ...
    @overload
    def __call__(self, w: Framework[Made], *, scale: Factor = 1.0) -> Made: ...
    @overload
    def __call__(self, w: Other, *, scale: Factor = 1.0) -> Any: ...
    def __call__(self, w: Any, *, scale: Any = 1.0) -> Any:
        """Return the penalty ``scale * (l1 * sum(abs(w)) + l2 * sum(w**2))``.

        Parameters
        ----------
        w : array
            Of any shape and layout, in host memory or on a CUDA device: float16, bfloat16, float32,
            float64, or an integer type or bool.
        scale : float, optional
            A factor, for example 1 / batch size for an activity penalty.

        Returns
        -------
        float, torch.Tensor, jax.Array, cupy.ndarray or DeviceValue
            Computed in float64, summed in the fixed order of the numerics contract.  A float for
            NumPy and other host arrays; 0-d for torch and JAX (float64 for float64 input, else
            float32), and differentiable where `w` requires grad or is traced.  On a CUDA device the
            penalty stays there, and nothing waits for it: 0-d, of the type of `w` (float64 for
            CuPy), for other kinds an object with ``__dlpack__`` and ``__cuda_array_interface__``
            whose ``float()`` copies it.  TypeError for an object that is not an array of numbers in
            host memory or on a CUDA device; ValueError when a strength times `scale` is not finite.

        Examples
        --------
        >>> import numpy
        >>> L1(0.5)(numpy.array([1.0, -2.0]))
        1.5
        >>> L2(0.5)(numpy.array([1.0, -2.0]), scale=0.5)
        1.25
        """
        if type(w) is _ndarray:
            value = backend.evaluate_one(VALUE, w, None, self._l1, self._l2, scale, 1.0)
            if value is NotImplemented:
                value = calls.complete_one(VALUE, w, None, self._l1, self._l2, scale, 1.0)
            return value
        port = dispatch.port_for_value(w, self._l1, self._l2, scale)
        if port is not None:
            return port.total((w,), ((self._l1, self._l2),), (0,), scale)
        value = backend.evaluate_one(VALUE, w, None, self._l1, self._l2, scale, 1.0)
        if value is NotImplemented:
            value = calls.complete_one(VALUE, w, None, self._l1, self._l2, scale, 1.0)
        if unclaimed:
            claim(self._strengths)
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
        """Return the gradient ``scale * grad_scale * (l1 * sign(w) + 2 * l2 * w)``.

        Parameters
        ----------
        w : array
            As for a call, float16, bfloat16, float32 or float64.
        out : array, optional
            Writable, with the shape and dtype of `w`; `w` itself is allowed.
        scale, grad_scale : float, optional
            Factors; `grad_scale` is that of loss scaling in mixed precision.

        Returns
        -------
        array
            `out`, or a new array of the type, shape, dtype and layout of `w`.  sign is 0 at both
            zeros and NaN at NaN.  TypeError, ValueError or BufferError for arguments that do not
            fit, before anything is written.

        Examples
        --------
        >>> import numpy
        >>> L1L2(l1=0.5, l2=0.25).gradient(numpy.array([1.0, -2.0, 0.0]))
        array([ 1. , -1.5,  0. ])
        """
        if type(w) is not _ndarray and out is None:
            port = dispatch.port_for_gradient(w, self._l1, self._l2, scale, grad_scale)
            if port is not None:
                return port.gradients((w,), self._strengths(), (0,), scale, grad_scale)[0]
        result = out if type(out) is _ndarray else self._target(w, out)
        found = backend.evaluate_one(GRADIENT, w, result, self._l1, self._l2, scale, grad_scale)
        if found is NotImplemented:
            calls.complete_one(GRADIENT, w, result, self._l1, self._l2, scale, grad_scale)
        return result if type(result) is type(w) is _ndarray else self._made(result, w, out)

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
        """Return the penalty and its gradient from one pass over `w`.

        Parameters are those of :meth:`gradient`; `grad_scale` does not change the penalty.

        Returns
        -------
        tuple
            The penalty as a call returns it, and the gradient.

        Examples
        --------
        >>> import numpy
        >>> L2(0.5).value_and_grad(numpy.array([1.0, -2.0]))
        (2.5, array([ 1., -2.]))
        """
        if type(w) is not _ndarray and out is None:
            port = dispatch.port_for_gradient(w, self._l1, self._l2, scale, grad_scale)
            if port is not None:
                call = (w,), self._strengths(), (0,), scale
                value = port.total(*call)
                return value, port.gradients(*call, grad_scale)[0]
        result = out if type(out) is _ndarray else self._target(w, out)
        value = backend.evaluate_one(
            VALUE_AND_GRADIENT, w, result, self._l1, self._l2, scale, grad_scale
        )
        if value is NotImplemented:
            value = calls.complete_one(
                VALUE_AND_GRADIENT, w, result, self._l1, self._l2, scale, grad_scale
            )
        if type(result) is type(w) is _ndarray:
            return value, result
        return results.wrap_value(value, w), self._made(result, w, out)

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
        """Add the gradient to `grad` in-place, in one pass over both, and return the penalty.

        Parameters
        ----------
        w : array
            As for :meth:`gradient`.
        grad : array
            Writable, with the shape and dtype of `w`, of any layout; `w` itself is allowed and
            acts as if `w` were copied first.
        scale, grad_scale : float, optional
            As for :meth:`gradient`; errors are its too.

        Returns
        -------
        float
            The penalty, a Python float for all arrays in host memory; on a CUDA device
            0-d as for a call, in float64.

        Examples
        --------
        >>> import numpy
        >>> grad = numpy.ones(2)
        >>> L2(0.5).accumulate(numpy.array([1.0, -2.0]), grad)
        2.5
        >>> grad
        array([ 2., -1.])
        """
        foreign = type(grad) is not _ndarray
        if foreign:
            results.checked_target(grad, "grad")
        value = backend.evaluate_one(VALUE_AND_ADD, w, grad, self._l1, self._l2, scale, grad_scale)
        if value is NotImplemented:
            value = calls.complete_one(
                VALUE_AND_ADD, w, grad, self._l1, self._l2, scale, grad_scale
            )
        if foreign:
            if unclaimed:
                claim(self._strengths)
            results.written(grad)
        return value

    @overload
    def prox(self, w: Host, step: Real, out: None = None, *, scale: Real = 1.0) -> Host: ...
    @overload
    def prox(
        self, w: Framework[Made], step: Factor, out: None = None, *, scale: Factor = 1.0
    ) -> Made: ...
    @overload
    def prox(self, w: Other, step: Factor, out: None = None, *, scale: Factor = 1.0) -> Any: ...
    @overload
    def prox(self, w: AnyArray, step: Real, out: Target, *, scale: Real = 1.0) -> Target: ...
    def prox(self, w: Any, step: Any, out: Any = None, *, scale: Any = 1.0) -> Any:
        """Return the proximal step: of all u the one with the least |u - w|**2 / 2 + step * f(u).

        f is the penalty, times `scale`.  This is ``sign(w) * max(abs(w) - step * l1, 0) /
        (1 + 2 * step * l2)``, element by element: what L1 makes small becomes exactly 0.

        Parameters
        ----------
        w : array
            As for :meth:`gradient`.
        step : float
            Finite and >= 0: the learning rate, where the step follows one of gradient descent.
        out : array, optional
            Writable, with the shape and dtype of `w`; `w` itself is allowed.
        scale : float, optional
            A factor >= 0.

        Returns
        -------
        array
            `out`, or a new array of the type, shape, dtype and layout of `w`, which torch's
            autograd does not follow.  Elements that become 0 are +0; NaN stays NaN.  Without any
            term it is a copy.  TypeError, ValueError or BufferError for arguments that do not fit,
            before anything is written.

        Examples
        --------
        >>> import numpy
        >>> w = numpy.array([1.0, -2.0, 0.25])
        >>> L1(0.5).prox(w, 1.0)
        array([ 0.5, -1.5,  0. ])
        >>> L1L2(l1=0.5, l2=0.5).prox(w, 1.0, out=w)
        array([ 0.25, -0.75,  0.  ])
        """
        if type(w) is not _ndarray and out is None:
            port = dispatch.port_for_gradient(w, self._l1, self._l2, scale, step)
            if port is not None:
                return port.proximal((w,), self._strengths(), (0,), scale, step)[0]
        result = out if type(out) is _ndarray else self._target(w, out)
        found = backend.evaluate_one(PROXIMAL, w, result, self._l1, self._l2, scale, step)
        if found is NotImplemented:
            calls.complete_one(PROXIMAL, w, result, self._l1, self._l2, scale, step)
        return result if type(result) is type(w) is _ndarray else self._made(result, w, out)

    def _strengths(self) -> tuple[tuple[float, float], ...]:
        """Return the current strengths, as the core takes them."""
        return ((self._l1, self._l2),)

    @staticmethod
    def _target(w: Any, out: Any) -> Any:
        """Return where the gradient of `w` goes: a new array, or a checked `out`."""
        if out is None:
            return np.empty_like(w) if type(w) is _ndarray else results.empty_like(w, "w")
        return results.checked_target(out, "out")

    def _made(self, result: Any, w: Any, out: Any) -> Any:
        """Return a computed gradient as the array type of `w`, or as `out`."""
        if unclaimed:
            claim(self._strengths)
        return results.wrap_gradient(result, w) if out is None else results.written(out)


def _strength(term: str) -> arguments.Checked[float]:
    return arguments.Checked(
        arguments.strength, f"Strength of ``{term}``; may be set between calls."
    )


def _default(value: object, default: float, name: str) -> float:
    """Return a checked strength; None stands for the default, as in Keras."""
    return default if value is None else arguments.strength(value, name)


class L1(Elementwise):
    """The penalty ``l1 * sum(abs(w))``, as ``keras.regularizers.L1``.

    Parameters
    ----------
    l1 : float, optional
        Strength, finite and >= 0; Python or NumPy number, else a TypeError or ValueError.  None
        means the default, 0.01.

    Examples
    --------
    >>> import numpy
    >>> L1(0.1)(numpy.full(3, 2.0, numpy.float16))
    0.6000000000000001
    """

    __slots__ = ()

    _arguments = ("l1",)
    l1: arguments.Checked[float] = _strength("sum(abs(w))")

    def __init__(self, l1: Real | None = 0.01) -> None:
        self._l1 = _default(l1, 0.01, "l1")
        self._l2 = 0.0


class L2(Elementwise):
    """The penalty ``l2 * sum(w**2)``, as ``keras.regularizers.L2``: no half, no root.

    Parameters
    ----------
    l2 : float, optional
        Strength, finite and >= 0; Python or NumPy number, else a TypeError or ValueError.  None
        means the default, 0.01.

    Examples
    --------
    >>> import numpy
    >>> L2(0.5)(numpy.array([3, -4], numpy.int8))
    12.5
    """

    __slots__ = ()

    _arguments = ("l2",)
    l2: arguments.Checked[float] = _strength("sum(w**2)")

    def __init__(self, l2: Real | None = 0.01) -> None:
        self._l1 = 0.0
        self._l2 = _default(l2, 0.01, "l2")


class L1L2(Elementwise):
    """The penalty ``l1 * sum(abs(w)) + l2 * sum(w**2)``, as ``keras.regularizers.L1L2``.

    Parameters
    ----------
    l1, l2 : float, optional
        Strengths, finite and >= 0; Python or NumPy numbers.  None means the default, 0.0.  A term
        of strength 0 is absent: it adds nothing even at NaN.

    Examples
    --------
    >>> import numpy
    >>> L1L2(l1=0.5, l2=0.25)(numpy.array([1.0, -2.0]))
    2.75
    """

    __slots__ = ()

    _arguments = ("l1", "l2")
    l1: arguments.Checked[float] = _strength("sum(abs(w))")
    l2: arguments.Checked[float] = _strength("sum(w**2)")

    def __init__(self, l1: Real | None = 0.0, l2: Real | None = 0.0) -> None:
        self._l1 = _default(l1, 0.0, "l1")
        self._l2 = _default(l2, 0.0, "l2")


#: What ``__call__`` may be where the core computes the penalty.
SAME_PENALTY: set[Any] = {Elementwise.__call__}


def is_fused(rule: Any) -> bool:
    """Return whether the core can evaluate a rule: no subclass with methods of its own."""
    kind = type(rule)
    return (
        isinstance(rule, Elementwise)
        and kind.__call__ in SAME_PENALTY
        and kind.gradient is Elementwise.gradient
        and kind.prox is Elementwise.prox
    )
