"""The settings of an optimizer's step, and the numbers that follow from them.

The same as ``csrc/step.h``: numbers are computed in float64, from left to right as written here,
and rounded once to the type of the arithmetic, whatever the caller's floating point environment.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from .float_environment import Default
from .penalty import rounded

SGD, ADAMW = 0, 1
NONE, GRADIENT, PROXIMAL, SCALED, DECOUPLED = range(5)
"""What a step does for the penalty; SCALED is the proximal step by AdamW's preconditioner."""
NESTEROV, MAXIMIZE, AMSGRAD, CAUTIOUS = 1, 2, 4, 8
UNCLIPPED, CLIP_DATA, CLIP_TOTAL = 0, 1, 2


class Settings(NamedTuple):
    """What a step of a tensor is given, in the order in which the core takes it.

    Numbers that the step does not use are 0.0.
    """

    algorithm: int
    mode: int
    flags: int
    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.0
    beta2: float = 0.0
    eps: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    factor: float = 0.0
    """What decoupled strengths are multiplied with."""

    @property
    def has_first(self) -> bool:
        """Whether there is a momentum, or a first moment."""
        return self.algorithm == ADAMW or self.momentum != 0.0

    @property
    def has_second(self) -> bool:
        """Whether there is a second moment."""
        return self.algorithm == ADAMW

    @property
    def has_largest(self) -> bool:
        """Whether the largest second moment is kept."""
        return self.algorithm == ADAMW and bool(self.flags & AMSGRAD)


class Numbers(NamedTuple):
    """The numbers of a step of a tensor, in docs/numerics.md, 12, under these names."""

    inverse_scale: float
    clip: float
    weight_decay: float
    momentum: float
    undamped: float
    """1 - dampening"""
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    eps: float
    lr: float
    shrink: float
    """1 - lr * weight_decay"""
    size: float
    """A = lr / (1 - beta1**t)"""
    correction: float
    """B = sqrt(1 - beta2**t)"""
    l1: float
    double_l2: float
    lr_l1: float
    lr_double_l2: float
    divisor: float
    """1 + lr * (2 * l2)"""
    decoupled_l1: float
    decoupled_shrink: float
    """1 - factor * (2 * l2)"""


SPOKEN = {
    "inverse_scale": "1 / loss_scale",
    "size": "lr / (1 - beta1**t)",
    "shrink": "1 - lr * weight_decay",
    "double_l2": "2 * l2",
    "lr_l1": "lr * l1",
    "lr_double_l2": "lr * 2 * l2",
    "divisor": "1 + lr * 2 * l2",
    "decoupled_l1": "the decoupled l1",
    "decoupled_shrink": "1 - 2 * the decoupled l2",
}
"""What messages call numbers that are not an argument."""


def power(base: float, exponent: int) -> float:
    """Return a power by squaring from the lowest bit, for `pow` differs between libraries.

    >>> power(0.5, 3)
    0.125
    """
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def numbers(
    settings: Settings, steps: int, loss_scale: float, factor: float, dtype: str
) -> Numbers:
    """Return the numbers of a tensor's next step, in float32, or in float64 for float64.

    `steps` is how many steps the tensor took, `factor` the c of the clip.
    """
    return Numbers(
        *[rounded(number, dtype) for number in exact(settings, steps, loss_scale, factor)]
    )


@functools.lru_cache(256)
def exact(settings: Settings, steps: int, loss_scale: float, factor: float) -> Numbers:
    """Return the numbers of a tensor's next step in float64."""
    one = settings
    lr, l1, l2 = one.lr, one.l1, one.l2
    with Default(), np.errstate(all="ignore"):
        size = correction = 0.0
        if one.algorithm == ADAMW:
            size = float(np.float64(lr) / (1.0 - power(one.beta1, steps + 1)))
            correction = math.sqrt(1.0 - power(one.beta2, steps + 1))
        return Numbers(
            1.0 / loss_scale,
            factor,
            one.weight_decay,
            one.momentum,
            1.0 - one.dampening,
            one.beta1,
            1.0 - one.beta1,
            one.beta2,
            1.0 - one.beta2,
            one.eps,
            lr,
            1.0 - lr * one.weight_decay,
            size,
            correction,
            l1,
            2.0 * l2,
            lr * l1,
            lr * (2.0 * l2),
            1.0 + lr * (2.0 * l2),
            one.factor * l1,
            1.0 - one.factor * (2.0 * l2),
        )
