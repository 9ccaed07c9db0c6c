"""The outputs of a call, as bit flags, and the coefficients of its terms.

The same as ``csrc/penalty.h``: strengths are applied in float64 and in this order of operations,
whatever the caller's floating point environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .float_environment import Default, product

VALUE, GRADIENT, ADD, PROX = 1, 2, 4, 8
VALUE_AND_GRADIENT = VALUE | GRADIENT
VALUE_AND_ADD = VALUE | GRADIENT | ADD
PROXIMAL = GRADIENT | PROX
"""The proximal step is written where a gradient would be."""
VALUE_AND_PROXIMAL = VALUE | GRADIENT | PROX
"""With it the penalty and the number of zeros, of what is written."""

Strengths: TypeAlias = Sequence[tuple[Any, Any]]
"""Pairs (l1, l2), one per rule of a call: floats, or numbers that a framework traces."""


class Call(NamedTuple):
    """A call of many tensors, as ``evaluate_many`` of the core takes it: see ``_core.pyi``."""

    outputs: int
    names: Sequence[str] | None
    """None for one tensor, which messages call "w", and its gradient "grad" or "out"."""
    weights: Sequence[Any]
    gradients: Sequence[Any] | None
    strengths: Strengths
    which: Sequence[int]
    scale: Any
    grad_scale: Any
    """With PROX the step."""
    per_tensor: bool = False
    copies: Sequence[tuple[Any, Any]] = ()

    @property
    def numbers(self) -> tuple[Strengths, Sequence[int], Any, Any]:
        """The strengths, and what they are multiplied with."""
        return self.strengths, self.which, self.scale, self.grad_scale

    def weight_label(self, index: int) -> str:
        return "w" if self.names is None else f"tensors[{self.names[index]!r}]"

    def gradient_label(self, index: int) -> str:
        if self.names is None:
            return "grad" if self.outputs & ADD else "out"
        if self.outputs & PROX:  # of many tensors, in place
            return self.weight_label(index)
        return f"grads[{self.names[index]!r}]"

    @property
    def written(self) -> str:
        """What messages call the thing that is written."""
        return "proximal step" if self.outputs & PROX else "gradient"


def call_of_one(
    outputs: int, weight: Any, gradient: Any, l1: float, l2: float, scale: Any, grad_scale: Any
) -> Call:
    """Return the call that ``evaluate_one`` of the core makes."""
    gradients = None if outputs == VALUE else (gradient,)
    return Call(outputs, None, (weight,), gradients, ((l1, l2),), (0,), scale, grad_scale)


def coefficients(pair: tuple[float, float], scale: float, grad_scale: float) -> tuple[float, float]:
    """Return the factors of sign(w) and w in a gradient, in float64."""
    l1, l2 = pair
    return product(l1, scale, grad_scale), product(l2, scale, grad_scale, 2.0)


def thresholds(pair: tuple[float, float], scale: float, step: float) -> tuple[float, float]:
    """Return what a proximal step subtracts from abs(w), and what it divides by, in float64."""
    l1, l2 = pair
    with Default(), np.errstate(over="ignore", under="ignore"):
        return step * (l1 * scale), 1.0 + step * (2.0 * (l2 * scale))


def rounded(coefficient: float, dtype: str) -> float:
    """Return a coefficient, rounded once to the dtype of the arithmetic of gradients."""
    if dtype == "f64":
        return coefficient
    with Default(), np.errstate(over="ignore", under="ignore"):
        return float(np.float32(coefficient))
