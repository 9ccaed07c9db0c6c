"""The port for symbolic tensors and other backends of Keras: penalties in ``keras.ops``.

The penalty of a ``KerasTensor`` is one operation of the symbolic model, and a usual call of a
regularizer once the model has arrays; backends without a port of their own (TensorFlow) compute it.
There, too, half precision and integers are computed in float32, a term of strength 0 is absent, and
the result is float64 for float64, else float32.  The order of the sum is the backend's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .. import regularizers
from .._autodiff import orthogonal as _orthogonal
from .._base import arguments
from .._base.float_environment import product
from .._base.penalty import Strengths
from ._framework import keras

_ops = keras.ops


@keras.saving.register_keras_serializable(package="fastreg")
class Penalty(keras.Operation):  # type: ignore[misc]
    """A regularizer, called on a tensor of a symbolic model."""

    def __init__(self, regularizer: Any, scale: float = 1.0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.regularizer = regularizer
        self.scale = scale

    def call(self, w: Any) -> Any:
        return self.regularizer(w, scale=self.scale)

    def compute_output_spec(self, w: Any) -> Any:
        return keras.KerasTensor((), _result_dtype(w))

    def get_config(self) -> dict[str, Any]:
        saved = regularizers.serialize(self.regularizer)
        return {"regularizer": saved, "scale": self.scale, "name": self.name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Penalty:
        return cls(**{**config, "regularizer": regularizers.deserialize(config["regularizer"])})


def total(weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any) -> Any:
    """Return the penalty of all tensors, 0-d; None of none."""
    if not weights:
        return None
    first, *others = values(weights, strengths, which, scale)
    for other in others:
        first = first + other
    return first


def values(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any
) -> list[Any]:
    """Return the penalty of each tensor, 0-d each."""
    scale = factor(scale, "scale")
    return [_value(w, *strengths[place], scale) for w, place in zip(weights, which, strict=True)]


def gradients(
    weights: Sequence[Any],
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
) -> list[Any]:
    """Return ``scale * grad_scale * (l1 * sign(w) + 2 * l2 * w)`` of each, in its dtype."""
    scale, grad_scale = factor(scale, "scale"), factor(grad_scale, "grad_scale")
    scaled = [
        (product(l1, scale, grad_scale), product(l2, scale, grad_scale)) for l1, l2 in strengths
    ]
    return [_gradient(w, *scaled[place]) for w, place in zip(weights, which, strict=True)]


def proximal(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, step: Any
) -> list[Any]:
    """Return the proximal step of each, in its dtype."""
    scale, step = arguments.strength(scale, "scale"), arguments.strength(step, "step")
    scaled = [(product(l1, scale), product(l2, scale)) for l1, l2 in strengths]
    return [_proximal(w, *scaled[place], step) for w, place in zip(weights, which, strict=True)]


def factor(number: Any, name: str) -> Any:
    """Return a scale as it can be multiplied: a float, or a tensor of the backend."""
    return number if _ops.is_tensor(number) else arguments.multiplier(number, name)


def orthogonal(w: Any, factor: Any, mode: Literal["rows", "columns"]) -> Any:
    """Return the penalty of ``OrthogonalRegularizer``, 0-d."""
    _orthogonal.require_matrix(w)
    if isinstance(w, keras.KerasTensor):
        return Penalty(regularizers.OrthogonalRegularizer(factor, mode))(w)
    return _orthogonal.evaluate(
        _ops,
        _ops.cast(w, _result_dtype(w)),
        factor,
        mode,
        lambda matrix: _ops.where(_ops.eye(matrix.shape[0], dtype="bool"), 0.0, matrix),
        _ops.stop_gradient,
    ).value


def _gradient(w: Any, l1: Any, l2: Any) -> Any:
    x = _ops.cast(w, _result_dtype(w))
    slope = _ops.zeros_like(x)
    if l1 != 0.0:
        slope = slope + l1 * _ops.sign(x)
    if l2 != 0.0:
        slope = slope + 2.0 * l2 * x
    return _ops.cast(slope, w.dtype)


def _proximal(w: Any, l1: float, l2: float, step: float) -> Any:
    x = _ops.cast(w, _result_dtype(w))
    if l1 != 0.0:
        # NaN is no number that a maximum leaves out.
        x = _ops.sign(x) * _ops.maximum(_ops.abs(x) - step * l1, 0.0)
    if l2 != 0.0:
        x = x / (1.0 + step * (2.0 * l2))
    return _ops.cast(x, w.dtype)


def _value(w: Any, l1: Any, l2: Any, scale: Any) -> Any:
    if isinstance(w, keras.KerasTensor):
        return Penalty(regularizers.L1L2(l1, l2), scale)(w)
    x = _ops.cast(w, _result_dtype(w))
    value = _ops.zeros((), x.dtype)
    for strength, term in ((product(l1, scale), _ops.abs), (product(l2, scale), _ops.square)):
        if strength != 0.0:
            value = value + strength * _ops.sum(term(x))
    return value


def _result_dtype(w: Any) -> str:
    return "float64" if keras.backend.standardize_dtype(w.dtype) == "float64" else "float32"
