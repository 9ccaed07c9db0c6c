"""Regularizers of Keras, for arrays: L1, L2, L1L2, OrthogonalRegularizer, get and (de)serialize.

Contract
--------
- Names, defaults and saved forms are those of ``keras.regularizers`` (Keras 3): what Keras saved
  loads here, and what :func:`serialize` gives loads in Keras.
- Better than Keras on purpose: the value is float64 arithmetic whatever the input's dtype, so
  half precision is right; integer arrays are right; strengths are Python floats and NumPy numbers
  are welcome; ``get("l1_l2")`` is L1L2(0.01, 0.01), as Keras documents; an unknown string is an
  error in :func:`deserialize` too; ``OrthogonalRegularizer(mode="columns")`` is right.
- Strengths may be set between calls (``regularizer.l1 = 1e-4``): they are checked then and read
  at every call.
- Regularizers are compared by class and configuration and can change, so like lists they have no
  hash: a key made of one would go stale.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import _arrays, _backend, _checks
from ._checks import ADD, GRADIENT, VALUE

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "OrthogonalRegularizer",
    "Regularizer",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "serialize",
]

_VALUE_AND_GRADIENT = VALUE | GRADIENT
_VALUE_AND_ADD = VALUE | GRADIENT | ADD

_ndarray = np.ndarray


class Regularizer:
    """Base class of regularizers, as in Keras: a callable of one array that gives a number.

    Subclasses define ``__call__(self, w)`` and, to be saved, ``get_config()``.  With a method
    ``gradient(w)``, which gives an array of the shape of `w`, they work in
    ``Penalties.accumulate`` too.

    Examples
    --------
    >>> import numpy
    >>> class Largest(Regularizer):
    ...     def __call__(self, w):
    ...         return float(numpy.abs(w).max())
    >>> Largest()(numpy.array([1.0, -3.0]))
    3.0
    """

    # Slots, so that a misspelt strength (``regularizer.L1 = 0.5``) is an AttributeError.
    __slots__ = ("__weakref__",)

    def __call__(self, w: Any) -> Any:
        """Give the penalty of `w`; 0.0 in the base class."""
        return 0.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Regularizer:
        """Make a regularizer from what :meth:`get_config` gave.

        >>> L1.from_config({"l1": 0.5})
        L1(l1=0.5)
        """
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """Give the arguments that make this regularizer, as plain Python objects.

        Raises
        ------
        NotImplementedError
            In classes that do not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define get_config()")


class _Configured(Regularizer):
    """What the regularizers of this module share: repr and comparison by configuration."""

    __slots__ = ()

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.get_config() == other.get_config()


class _Elementwise(_Configured):
    """The one implementation of L1, L2 and L1L2: two strengths, either of which may be 0."""

    __slots__ = ("_l1", "_l2")

    _l1: float
    _l2: float

    def __call__(self, w: Any, *, scale: float = 1.0) -> Any:
        """Give the penalty ``scale * (l1 * sum(abs(w)) + l2 * sum(w**2))``.

        Parameters
        ----------
        w : array
            Of any shape and layout, in host memory: float16, bfloat16, float32, float64, or an
            integer type or bool.
        scale : float, optional
            A factor, for example 1 / batch size for an activity penalty.

        Returns
        -------
        float, torch.Tensor or jax.Array
            Computed in float64, summed in the fixed order of the numerics contract.  A float for
            NumPy and other host arrays; 0-d for torch and JAX (float64 for float64 input, else
            float32).

        Raises
        ------
        TypeError
            For what is no array of numbers in host memory, and for a torch tensor that requires a
            gradient while torch records gradients: use :meth:`accumulate` or :meth:`gradient`.
        ValueError
            When a strength times `scale` is not finite.

        Examples
        --------
        >>> import numpy
        >>> L1(0.5)(numpy.array([1.0, -2.0]))
        1.5
        >>> L2(0.5)(numpy.array([1.0, -2.0]), scale=0.5)
        1.25
        """
        if type(w) is _ndarray:
            return _backend.evaluate_one(VALUE, w, None, self._l1, self._l2, scale, 1.0)
        _arrays.refuse_lost_gradient(w, "w")
        value = _backend.evaluate_one(VALUE, w, None, self._l1, self._l2, scale, 1.0)
        return _arrays.wrap_value(value, w)

    def gradient(
        self, w: Any, out: Any = None, *, scale: float = 1.0, grad_scale: float = 1.0
    ) -> Any:
        """Give the gradient ``scale * grad_scale * (l1 * sign(w) + 2 * l2 * w)``.

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
            `out`, or a new array of the kind, shape, dtype and layout of `w`.  sign is 0 at both
            zeros; NaN gives NaN.

        Raises
        ------
        TypeError, ValueError, BufferError
            For arguments that do not fit, before anything is written.

        Examples
        --------
        >>> import numpy
        >>> L1L2(l1=0.5, l2=0.25).gradient(numpy.array([1.0, -2.0, 0.0]))
        array([ 1. , -1.5,  0. ])
        """
        result = self._new(w) if out is None else out
        _backend.evaluate_one(GRADIENT, w, result, self._l1, self._l2, scale, grad_scale)
        return _arrays.wrap_gradient(result, w) if out is None else out

    def value_and_grad(
        self, w: Any, out: Any = None, *, scale: float = 1.0, grad_scale: float = 1.0
    ) -> tuple[Any, Any]:
        """Give the penalty and its gradient from one pass over `w`.

        Parameters are those of :meth:`gradient`; `grad_scale` does not change the penalty.

        Returns
        -------
        tuple
            The penalty in the kind that a call gives, and the gradient.

        Examples
        --------
        >>> import numpy
        >>> L2(0.5).value_and_grad(numpy.array([1.0, -2.0]))
        (2.5, array([ 1., -2.]))
        """
        result = self._new(w) if out is None else out
        value = _backend.evaluate_one(
            _VALUE_AND_GRADIENT, w, result, self._l1, self._l2, scale, grad_scale
        )
        if type(w) is _ndarray:
            return value, result
        return _arrays.wrap_value(value, w), (
            _arrays.wrap_gradient(result, w) if out is None else out
        )

    def accumulate(
        self, w: Any, grad: Any, *, scale: float = 1.0, grad_scale: float = 1.0
    ) -> float:
        """Add the gradient to `grad` in place, in one pass over both, and give the penalty.

        Parameters
        ----------
        w : array
            As for :meth:`gradient`.
        grad : array
            Writable, with the shape and dtype of `w`, of any layout; `w` itself is allowed and
            acts as if `w` were copied first.
        scale, grad_scale : float, optional
            As for :meth:`gradient`.

        Returns
        -------
        float
            The penalty, a Python float for every kind of array.

        Raises
        ------
        TypeError, ValueError, BufferError
            For arguments that do not fit, before anything is written.

        Examples
        --------
        >>> import numpy
        >>> grad = numpy.ones(2)
        >>> L2(0.5).accumulate(numpy.array([1.0, -2.0]), grad)
        2.5
        >>> grad
        array([ 2., -1.])
        """
        value: float = _backend.evaluate_one(
            _VALUE_AND_ADD, w, grad, self._l1, self._l2, scale, grad_scale
        )
        return value

    def _new(self, w: Any) -> Any:
        return np.empty_like(w) if type(w) is _ndarray else _arrays.empty_like(w, "w")


def _default(value: object, default: float, name: str) -> float:
    """Check a strength; None stands for the default, as in Keras."""
    return default if value is None else _checks.strength(value, name)


class L1(_Elementwise):
    """The penalty ``l1 * sum(abs(w))``, as ``keras.regularizers.L1``.

    Parameters
    ----------
    l1 : float, optional
        Strength, finite and >= 0; Python or NumPy number.  None means the default, 0.01.

    Raises
    ------
    TypeError, ValueError
        When `l1` is not such a number.

    Examples
    --------
    >>> import numpy
    >>> L1(0.1)(numpy.full(3, 2.0, numpy.float16))
    0.6000000000000001
    """

    __slots__ = ()

    def __init__(self, l1: float | None = 0.01) -> None:
        self._l1 = _default(l1, 0.01, "l1")
        self._l2 = 0.0

    @property
    def l1(self) -> float:
        """Strength of ``sum(abs(w))``; may be set between calls."""
        return self._l1

    @l1.setter
    def l1(self, value: float) -> None:
        self._l1 = _checks.strength(value, "l1")

    def get_config(self) -> dict[str, Any]:
        """Give ``{"l1": ...}``."""
        return {"l1": self._l1}


class L2(_Elementwise):
    """The penalty ``l2 * sum(w**2)``, as ``keras.regularizers.L2``: no half, no root.

    Parameters
    ----------
    l2 : float, optional
        Strength, finite and >= 0; Python or NumPy number.  None means the default, 0.01.

    Raises
    ------
    TypeError, ValueError
        When `l2` is not such a number.

    Examples
    --------
    >>> import numpy
    >>> L2(0.5)(numpy.array([3, -4], numpy.int8))
    12.5
    """

    __slots__ = ()

    def __init__(self, l2: float | None = 0.01) -> None:
        self._l1 = 0.0
        self._l2 = _default(l2, 0.01, "l2")

    @property
    def l2(self) -> float:
        """Strength of ``sum(w**2)``; may be set between calls."""
        return self._l2

    @l2.setter
    def l2(self, value: float) -> None:
        self._l2 = _checks.strength(value, "l2")

    def get_config(self) -> dict[str, Any]:
        """Give ``{"l2": ...}``."""
        return {"l2": self._l2}


class L1L2(_Elementwise):
    """The penalty ``l1 * sum(abs(w)) + l2 * sum(w**2)``, as ``keras.regularizers.L1L2``.

    Parameters
    ----------
    l1, l2 : float, optional
        Strengths, finite and >= 0; Python or NumPy numbers.  None means the default, 0.0.  A term
        of strength 0 is absent: it gives nothing even at NaN.

    Raises
    ------
    TypeError, ValueError
        When a strength is not such a number.

    Examples
    --------
    >>> import numpy
    >>> L1L2(l1=0.5, l2=0.25)(numpy.array([1.0, -2.0]))
    2.75
    """

    __slots__ = ()

    def __init__(self, l1: float | None = 0.0, l2: float | None = 0.0) -> None:
        self._l1 = _default(l1, 0.0, "l1")
        self._l2 = _default(l2, 0.0, "l2")

    @property
    def l1(self) -> float:
        """Strength of ``sum(abs(w))``; may be set between calls."""
        return self._l1

    @l1.setter
    def l1(self, value: float) -> None:
        self._l1 = _checks.strength(value, "l1")

    @property
    def l2(self) -> float:
        """Strength of ``sum(w**2)``; may be set between calls."""
        return self._l2

    @l2.setter
    def l2(self, value: float) -> None:
        self._l2 = _checks.strength(value, "l2")

    def get_config(self) -> dict[str, Any]:
        """Give ``{"l1": ..., "l2": ...}``."""
        return {"l1": self._l1, "l2": self._l2}


class OrthogonalRegularizer(_Configured):
    """Push the rows (or columns) of a matrix to be orthogonal, as the class of Keras does.

    The penalty is `factor` times the mean of ``abs(cos(angle))`` over all pairs of rows (or
    columns).  A row of zeros is orthogonal to all; with fewer than two rows the penalty is 0.0.

    Parameters
    ----------
    factor : float, optional
        Strength, finite and >= 0.
    mode : {"rows", "columns"}, optional
        What is to be orthogonal.

    Raises
    ------
    TypeError, ValueError
        When an argument does not fit.

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

    def __init__(self, factor: float = 0.01, mode: str = "rows") -> None:
        self.factor = factor
        self.mode = mode

    @property
    def factor(self) -> float:
        """Strength; may be set between calls."""
        return self._factor

    @factor.setter
    def factor(self, value: float) -> None:
        self._factor = _checks.strength(value, "factor")

    @property
    def mode(self) -> str:
        """What is to be orthogonal, "rows" or "columns"."""
        return self._mode

    @mode.setter
    def mode(self, value: str) -> None:
        self._mode = _checks.choice(value, "mode", ("rows", "columns"))

    def get_config(self) -> dict[str, Any]:
        """Give ``{"factor": ..., "mode": ...}``."""
        return {"factor": self._factor, "mode": self._mode}

    def __call__(self, w: Any, *, scale: float = 1.0) -> Any:
        """Give the penalty of a matrix; arguments and result are as for :class:`L1`."""
        _arrays.refuse_lost_gradient(w, "w")
        value, _ = self._evaluate(VALUE, w, None, scale, 1.0)
        return _arrays.wrap_value(value, w)

    def gradient(
        self, w: Any, out: Any = None, *, scale: float = 1.0, grad_scale: float = 1.0
    ) -> Any:
        """Give the gradient; arguments and result are as for :class:`L1`."""
        return self.value_and_grad(w, out, scale=scale, grad_scale=grad_scale)[1]

    def value_and_grad(
        self, w: Any, out: Any = None, *, scale: float = 1.0, grad_scale: float = 1.0
    ) -> tuple[Any, Any]:
        """Give the penalty and its gradient; arguments and result are as for :class:`L1`."""
        result = _arrays.empty_like(w, "w") if out is None else out
        value, slope = self._evaluate(_VALUE_AND_GRADIENT, w, result, scale, grad_scale)
        _arrays.assign(result, slope, "out")
        return _arrays.wrap_value(value, w), (
            _arrays.wrap_gradient(result, w) if out is None else out
        )

    def accumulate(
        self, w: Any, grad: Any, *, scale: float = 1.0, grad_scale: float = 1.0
    ) -> float:
        """Add the gradient to `grad` and give the penalty; as for :class:`L1`."""
        value, slope = self._evaluate(_VALUE_AND_ADD, w, grad, scale, grad_scale)
        _arrays.assign(grad, slope, "grad", add=True)
        return value

    def _evaluate(
        self, outputs: int, w: Any, target: Any, scale: float, grad_scale: float
    ) -> tuple[float, npt.NDArray[np.float64]]:
        """Check a call and compute it in float64; the gradient is empty for a value alone."""
        views, _ = _checks.checked_views(
            outputs,
            None,
            (w,),
            None if outputs == VALUE else (target,),
            ((self._factor, 0.0),),
            (0,),
            scale,
            grad_scale,
        )
        view, dtype = views[0]
        if view.ndim != 2:
            raise ValueError(
                f"w must have 2 axes for OrthogonalRegularizer, not shape {view.shape}; pass "
                "w.reshape(...)"
            )
        matrix = _arrays.to_float64(view, dtype)
        if self._mode == "columns":
            matrix = matrix.T
        pairs = len(matrix) * (len(matrix) - 1) / 2
        with np.errstate(all="ignore"):  # infinities and NaN are data, not news
            largest = np.abs(matrix).max(axis=1, keepdims=True, initial=0.0)
            scaled = matrix / np.where(largest == 0.0, 1.0, largest)
            norms = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
            units = scaled / np.where(norms == 0.0, 1.0, norms)
            cosines = units @ units.T
            np.fill_diagonal(cosines, 0.0)
            strength = self._factor * float(scale) / pairs if pairs else 0.0
            # A strength of zero switches the penalty off, NaN or not, like a term of L1L2.
            value = strength * (0.5 * float(np.abs(cosines).sum())) if strength else 0.0
            if outputs == VALUE:
                return value, np.empty((0, 0))
            if not strength:
                return value, np.zeros_like(view, np.float64)
            towards = (strength * float(grad_scale)) * (np.sign(cosines) @ units)
            across = towards - units * (units * towards).sum(axis=1, keepdims=True)
            lengths = norms * largest
            slope = across / np.where(lengths == 0.0, 1.0, lengths)
            slope[(lengths == 0.0)[:, 0]] = 0.0
        return value, slope.T if self._mode == "columns" else slope


l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal_regularizer = OrthogonalRegularizer


# ------------------------------------------------------------------- names and saved forms

_CLASSES: dict[str, type[Regularizer]] = {
    "L1": L1,
    "l1": L1,
    "L2": L2,
    "l2": L2,
    "L1L2": L1L2,
    "l1l2": L1L2,
    "OrthogonalRegularizer": OrthogonalRegularizer,
    "orthogonal_regularizer": OrthogonalRegularizer,
    "Regularizer": Regularizer,
    "regularizer": Regularizer,
}
_OWN = (L1, L2, L1L2, OrthogonalRegularizer, Regularizer)


def _by_name(name: str, argument: str) -> Regularizer:
    if name == "l1_l2":
        # The name of Keras 2's function, whose defaults Keras 3 still documents; "l1l2" is the
        # class, whose defaults are zero.
        return L1L2(l1=0.01, l2=0.01)
    if name not in _CLASSES:
        known = (*_CLASSES, "l1_l2")
        raise ValueError(
            f"{argument} must name a regularizer, not {name!r}"
            f"{_checks.suggestion(name, known)}; the names are {_checks.listed(known, 20)}"
        )
    return _CLASSES[name]()


def get(identifier: Any) -> Any:
    """Turn what stands for a regularizer into one, as ``keras.regularizers.get`` does.

    Parameters
    ----------
    identifier : None, str, dict, class or callable
        None gives None.  A string is a name with default strengths: "l1", "l2", "l1l2" (no
        penalty, as in Keras), "l1_l2" (0.01 and 0.01), "orthogonal_regularizer".  A dict is a
        saved form, see :func:`deserialize`.  A class is instantiated.  Any other callable is
        returned as it is.

    Returns
    -------
    callable or None

    Raises
    ------
    TypeError
        For other kinds, numbers for example.
    ValueError
        For an unknown name.

    Examples
    --------
    >>> get("l1")
    L1(l1=0.01)
    >>> get({"class_name": "L2", "config": {"l2": 0.5}})
    L2(l2=0.5)
    >>> get(None)
    """
    if identifier is None:
        return None
    if isinstance(identifier, str):
        return _by_name(identifier, "identifier")
    if isinstance(identifier, Mapping):
        return deserialize(identifier)
    result = identifier() if isinstance(identifier, type) else identifier
    if not callable(result):
        remedy = (
            "pass fastreg.regularizers.L1(...) or L2(...)"
            if isinstance(identifier, (int, float, np.generic))
            else "pass a name, a saved dict, a class, or a callable of one array"
        )
        raise TypeError(
            f"identifier must stand for a regularizer, not {_checks.described(identifier)}; "
            f"{remedy}"
        )
    return result


def serialize(regularizer: Any) -> Any:
    """Give the saved form of a regularizer: plain Python objects, those that Keras writes.

    Parameters
    ----------
    regularizer : Regularizer, callable, str or None
        None and strings are returned as they are.

    Returns
    -------
    dict, str or None
        ``{"module", "class_name", "config", "registered_name"}``.  The regularizers of this
        module are saved under "keras.regularizers", so Keras loads them.

    Raises
    ------
    TypeError
        For what cannot be saved: classes, lambdas, partials, objects without ``get_config``.
    NotImplementedError
        For a :class:`Regularizer` that does not define ``get_config``.

    Examples
    --------
    >>> serialize(L1(0.5))["config"]
    {'l1': 0.5}
    >>> deserialize(serialize(L1(0.5)))
    L1(l1=0.5)
    """
    if regularizer is None or isinstance(regularizer, str):
        return regularizer
    kind = type(regularizer)
    if kind in _OWN:
        return {
            "module": "keras.regularizers",
            "class_name": kind.__name__,
            "config": regularizer.get_config(),
            "registered_name": None,
        }
    if isinstance(regularizer, type):
        raise TypeError(
            f"regularizer must be an instance, not the class {regularizer.__qualname__}; pass "
            f"{regularizer.__name__}()"
        )
    if getattr(regularizer, "__name__", "") == "<lambda>":
        raise TypeError(
            "regularizer must have a name to be saved, not be a lambda; define it with def"
        )
    if kind.__name__ in ("function", "builtin_function_or_method"):
        return {
            "module": "builtins",
            "class_name": kind.__name__,
            "config": _registered_name(regularizer) or regularizer.__name__,
            "registered_name": kind.__name__,
        }
    if not hasattr(regularizer, "get_config"):
        raise TypeError(
            "regularizer must offer get_config() to be saved, not be "
            f"{_checks.described(regularizer)}; derive its class from Regularizer"
        )
    module: str | None = kind.__module__
    registered: str | None = _registered_name(kind) or kind.__name__
    if module == "__main__":
        module = None  # no other script could import it
    elif kind.__module__.startswith("keras."):
        module, registered = "keras.regularizers", None
    return {
        "module": module,
        "class_name": kind.__name__,
        "config": regularizer.get_config(),
        "registered_name": registered,
    }


def deserialize(config: Any, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """Make a regularizer from its saved form, as Keras or :func:`serialize` wrote it.

    Parameters
    ----------
    config : dict, str or None
        ``{"class_name": ..., "config": {...}}``, with or without "module" and
        "registered_name"; or a name as for :func:`get`; None gives None.
    custom_objects : mapping, optional
        Classes and functions by name, for what is not of this module.  What was registered with
        Keras is found where Keras is loaded.

    Returns
    -------
    callable or None

    Raises
    ------
    TypeError
        When `config` is of another kind, or the saved arguments do not fit the class.
    ValueError
        For an unknown name.

    Examples
    --------
    >>> deserialize({"class_name": "l1l2", "config": {"l1": 0.5}})
    L1L2(l1=0.5, l2=0.0)
    >>> def ridge(w):
    ...     return float((w**2).sum())
    >>> deserialize(serialize(ridge), {"ridge": ridge}) is ridge
    True
    """
    custom = {} if custom_objects is None else custom_objects
    if config is None:
        return None
    if isinstance(config, str):
        return custom[config] if config in custom else _by_name(config, "config")
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a dict, a name or None, not {_checks.described(config)}; pass what "
            "serialize(...) gave"
        )
    name = config.get("class_name")
    if not isinstance(name, str):
        raise ValueError(
            f"config must have a 'class_name', which is a string, not {_checks.described(name)}; "
            "pass what serialize(...) gave"
        )
    arguments = config.get("config")
    if name in ("function", "builtin_function_or_method"):
        return _custom(arguments, custom)
    if name == "__lambda__":
        raise ValueError(
            "config holds a lambda as bytecode, which is not loaded; pass the function itself"
        )
    registered = config.get("registered_name")
    for key in (registered, name):
        if isinstance(key, str) and key in custom:
            found = custom[key]
            break
    else:
        if name in _CLASSES and (registered is None or ">" not in registered):
            found = _CLASSES[name]
        else:
            found = _custom(registered or name, custom)
    if not isinstance(found, type):
        return found
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise TypeError(
            f"config['config'] must be a dict of arguments, not {_checks.described(arguments)}"
        )
    make: Callable[[Any], Any] | None = getattr(found, "from_config", None)
    return found(**arguments) if make is None else make(dict(arguments))


def _custom(name: Any, custom: Mapping[str, Any]) -> Any:
    """Find a class or function that is not of this module."""
    if isinstance(name, str):
        if name in custom:
            return custom[name]
        saving = _keras_saving()
        found = None if saving is None else saving.get_registered_object(name)
        if found is not None:
            return found
    raise ValueError(
        f"config names {name!r}, which is not a regularizer of fastreg"
        f"{_checks.suggestion(str(name), (*_CLASSES, *custom))}; pass "
        f"custom_objects={{{name!r}: ...}} or one of {_checks.listed(_CLASSES, 20)}"
    )


def _keras_saving() -> Any:
    """Give ``keras.saving`` where Keras is loaded: only then can something be registered."""
    return getattr(sys.modules.get("keras"), "saving", None)


def _registered_name(found: Any) -> str | None:
    saving = _keras_saving()
    if saving is None:
        return None
    name = saving.get_registered_name(found)
    return name if isinstance(name, str) and ">" in name else None
