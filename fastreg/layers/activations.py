"""Activations with their derivatives: linear, relu, tanh, sigmoid, softmax.

An activation is an object with the pair ``forward(z)`` and ``derivative(z, y, dy)``.  The first
returns the output ``y``, of the shape of ``z``; the second the gradient with respect to ``z``,
given ``dy``, that with respect to ``y``.  All arrays have the layer's compute dtype.  A class with
``needs_input = False`` gets None for ``z`` in ``derivative``, and its ``forward`` may overwrite
``z``: the layer then keeps one array instead of two.  Derivatives are those of Keras on torch: relu
has 0 at 0.  An underflow is 0, never an error, whatever ``numpy.errstate`` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .._base import errors
from .._base.dtypes import Array
from ..regularizers.saved_forms import saved_instance


class Activation(Protocol):
    """The protocol of an activation."""

    def forward(self, z: Array) -> Array:
        """Return the output."""

    def derivative(self, z: Any, y: Array, dy: Array) -> Array:
        """Return the gradient with respect to `z`."""


class _Named:
    """The built-in ones: no state, one instance each."""

    name: str
    needs_input = False

    def __repr__(self) -> str:
        return f"<activation {self.name}>"


class Linear(_Named):
    """The identity."""

    name = "linear"

    def forward(self, z: Array) -> Array:
        """Return `z`."""
        return z

    def derivative(self, z: Any, y: Array, dy: Array) -> Array:
        """Return `dy`."""
        return dy


class Relu(_Named):
    """The larger of `z` and 0.

    >>> Relu().forward(np.array([-1.0, 2.0]))
    array([0., 2.])
    """

    name = "relu"

    def forward(self, z: Array) -> Array:
        """Return ``max(z, 0)``, in-place."""
        return np.maximum(z, 0, out=z)

    def derivative(self, z: Any, y: Array, dy: Array) -> Array:
        """Return `dy` where the output was positive (or NaN), else 0."""
        slope: Array = np.where(y <= 0, 0, dy)
        return slope


class Tanh(_Named):
    """The hyperbolic tangent."""

    name = "tanh"

    def forward(self, z: Array) -> Array:
        """Return ``tanh(z)``, in-place."""
        with np.errstate(under="ignore"):
            return np.tanh(z, out=z)

    def derivative(self, z: Any, y: Array, dy: Array) -> Array:
        """Return ``dy * (1 - y**2)``."""
        with np.errstate(under="ignore"):
            slope = np.square(y)
            np.subtract(1, slope, out=slope)
            slope *= dy
        return slope


class Sigmoid(_Named):
    """The logistic function; it does not overflow.

    >>> Sigmoid().forward(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """

    name = "sigmoid"

    def forward(self, z: Array) -> Array:
        """Return ``1 / (1 + exp(-z))``, from the exponential that is at most 1."""
        with np.errstate(under="ignore"):
            small = np.exp(-np.abs(z))
            above: Array = np.where(z < 0, small, z.dtype.type(1))
            above /= 1 + small
        return above

    def derivative(self, z: Any, y: Array, dy: Array) -> Array:
        """Return ``dy * y * (1 - y)``."""
        with np.errstate(under="ignore"):
            slope = 1 - y
            slope *= y
            slope *= dy
        return slope


class Softmax(_Named):
    """Exponentials over the last axis, divided by their sum; it does not overflow.

    >>> Softmax().forward(np.array([[1000.0, 1000.0]]))
    array([[0.5, 0.5]])
    """

    name = "softmax"

    def forward(self, z: Array) -> Array:
        """Return ``exp(z) / sum(exp(z))`` along the last axis, in-place."""
        # no warning: a row with an infinity becomes NaN
        with np.errstate(invalid="ignore", under="ignore"):
            z -= z.max(axis=-1, keepdims=True)
            np.exp(z, out=z)
            z /= z.sum(axis=-1, keepdims=True)
        return z

    def derivative(self, z: Any, y: Array, dy: Array) -> Array:
        """Return ``y * (dy - sum(dy * y))``, the sum along the last axis."""
        with np.errstate(under="ignore"):
            product = dy * y
            product -= y * product.sum(axis=-1, keepdims=True)
        return product


_BUILT_IN: dict[str, Any] = {kind.name: kind() for kind in (Linear, Relu, Tanh, Sigmoid, Softmax)}


def get(identifier: Any, custom_objects: Mapping[str, Any] | None = None) -> Activation:
    """Return the activation that an argument stands for.

    Parameters
    ----------
    identifier : None, str, dict, or object with forward and derivative
        None is linear.  A function of ``keras.activations`` stands for its name.  A dict is what
        :func:`serialize` returned for an object of your own.
    custom_objects : mapping, optional
        Classes by name, for such dicts, and objects by name, for strings.  TypeError or ValueError
        for another type of argument, and for an unknown name.

    >>> get("relu")
    <activation relu>
    """
    custom = {} if custom_objects is None else custom_objects
    if identifier is None:
        return get("linear")
    if isinstance(identifier, Mapping):
        return _from_config(identifier, custom)
    if callable(identifier) and getattr(identifier, "__module__", "").startswith("keras."):
        identifier = identifier.__name__
    if isinstance(identifier, str):
        found = custom.get(identifier, _BUILT_IN.get(identifier))
        if found is None:
            raise ValueError(
                f"activation must be one of {errors.listed(_BUILT_IN)} or an object with forward "
                f"and derivative, not {identifier!r}{errors.suggestion(identifier, _BUILT_IN)}"
            )
        identifier = found
    if isinstance(identifier, type) or not (
        callable(getattr(identifier, "forward", None))
        and callable(getattr(identifier, "derivative", None))
    ):
        raise TypeError(
            f"activation must be one of {errors.listed(_BUILT_IN)} or an object with forward(z) "
            f"and derivative(z, y, dy), not {errors.described(identifier)}"
        )
    kept: Activation = identifier
    return kept


def serialize(activation: Any) -> Any:
    """Return the saved form: the name, or Keras' form of an object with ``get_config``."""
    if isinstance(activation, _Named):
        return activation.name
    return saved_instance(activation, "activation")


def _from_config(config: Mapping[str, Any], custom: Mapping[str, Any]) -> Activation:
    name = config.get("class_name")
    kind = custom.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(
            f"activation is the saved form of {name!r}, which is not known here; pass "
            f"custom_objects={{{name!r}: ...}}"
        )
    return get(kind(**(config.get("config") or {})))
