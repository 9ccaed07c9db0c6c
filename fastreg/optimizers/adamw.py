"""Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .._base import arguments, errors, steps
from .._base.array_types import Real, Tensors
from .._base.steps import Settings
from .base import Clip, OnNonfinite, Optimizer, Rate, flags
from .rules import GivenModed, Mode


class AdamW(Optimizer):
    """AdamW that takes penalties into its step; in place, one pass.

    Without rules the update is that of ``torch.optim.AdamW``.

    Parameters
    ----------
    tensors, rules, mode, strength, independent, initial_lr, cautious, max_norm, clip, on_nonfinite
        As for :class:`SGD`.
    lr : float, function or array, optional
        The learning rate, given as for :class:`SGD`.
    betas, eps, weight_decay, amsgrad, maximize
        As in torch.  Moments are kept in float32 for half precision.  `weight_decay` multiplies all
        tensors with ``1 - lr * weight_decay``.
    scaled : bool, optional
        Whether proximal thresholds are those of Adam's metric, ``lr * l1 / (sqrt(v) / B + eps)``,
        one for each element: the step then minimises what the update does, and elements with small
        gradients become 0 early; one that has had no gradient yet becomes 0 at once.  With False
        every element has the threshold ``lr * l1``.  The same strength does about 100 times as much
        with True as with False.

    Examples
    --------
    >>> import numpy, fastreg
    >>> params = {"kernel": numpy.array([1.0, -0.25, 0.0])}
    >>> optimizer = fastreg.optimizers.AdamW(
    ...     params, lr=0.125, weight_decay=0.0, rules=fastreg.regularizers.L1(0.25)
    ... )
    >>> record = optimizer.step({"kernel": numpy.array([0.5, -0.125, 0.0])})
    >>> params["kernel"].round(6)
    array([0.8125, 0.    , 0.    ])
    >>> record.zeros, optimizer.steps
    (2, 1)
    """

    _algorithm = steps.ADAMW
    _name = "AdamW"

    def __init__(
        self,
        tensors: Tensors,
        lr: Rate = 1e-3,
        *,
        betas: tuple[Real, Real] = (0.9, 0.999),
        eps: Real = 1e-8,
        weight_decay: Real = 1e-2,
        amsgrad: bool = False,
        maximize: bool = False,
        rules: GivenModed = None,
        mode: Mode = "proximal",
        scaled: bool = True,
        strength: Rate = 1.0,
        independent: bool = False,
        initial_lr: Real | None = None,
        cautious: bool = False,
        max_norm: Real | None = None,
        clip: Clip = "total",
        on_nonfinite: OnNonfinite | None = None,
    ) -> None:
        self._betas = checked_betas(betas)
        self._eps = arguments.strength(eps, "eps")
        self._weight_decay = arguments.strength(weight_decay, "weight_decay")
        self._flags = flags(
            maximize=(maximize, steps.MAXIMIZE),
            amsgrad=(amsgrad, steps.AMSGRAD),
            cautious=(cautious, steps.CAUTIOUS),
        )
        self._is_scaled = arguments.flag(scaled, "scaled")
        kinds = "exp_avg", "exp_avg_sq", "max_exp_avg_sq"
        self._kinds = kinds if amsgrad else kinds[:2]
        super().__init__(
            tensors,
            lr,
            rules=rules,
            mode=mode,
            strength=strength,
            independent=independent,
            initial_lr=initial_lr,
            max_norm=max_norm,
            clip=clip,
            on_nonfinite=on_nonfinite,
        )

    def _plain(self, lr: float) -> Settings:
        return Settings(
            self._algorithm,
            steps.NONE,
            self._flags,
            lr,
            weight_decay=self._weight_decay,
            beta1=self._betas[0],
            beta2=self._betas[1],
            eps=self._eps,
        )


def checked_betas(
    betas: Any, label: str = "betas", number: Callable[[Any, str], float] = arguments.strength
) -> tuple[float, float]:
    """Return the factors of the moments, from 0 to below 1, each as `number` reads it."""
    if not isinstance(betas, Sequence) or isinstance(betas, str) or len(betas) != 2:
        raise TypeError(f"{label} must be a pair of numbers, not {errors.described(betas)}")
    found = [number(one, f"{label}[{place}]") for place, one in enumerate(betas)]
    for place, one in enumerate(found):
        if not one < 1.0:
            raise ValueError(f"{label}[{place}] must be a number from 0 to below 1, not {one!r}")
    return found[0], found[1]


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"AdamW": AdamW}
