"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from typing import Any

from .._base import arguments, steps
from .._base.array_types import Real, Tensors
from .._base.steps import Settings
from .base import Clip, OnNonfinite, Optimizer, Rate, flags
from .rules import GivenModed, Mode


class SGD(Optimizer):
    """Gradient descent with momentum that takes penalties into its step; in place, one pass.

    Without rules the update is that of ``torch.optim.SGD``.

    Parameters
    ----------
    tensors : mapping or sequence of arrays
        The model's tensors by name, as for ``fastreg.attach``: kept, read at every step, written in
        place.  Of float16, bfloat16, float32 or float64, in host memory.
    lr : float, function or array
        The learning rate, or a function of how many steps were taken (0 at first) that gives it.
        It may be set between steps.  For tensors on a device also a 0-d array there, float32 or
        float64, which each step reads, a replay of a CUDA graph too.
    momentum, dampening, weight_decay, nesterov, maximize
        As in torch.  Momentum is kept in float32 for half precision.  `weight_decay` is added to
        the gradient, of all tensors.
    rules : mapping, or what ``fastreg.regularizers.get`` takes, optional
        L1, L2 or L1L2 by globs over names, as for ``fastreg.attach``.  Their strengths may be set
        between steps.  A pair (regularizer, mode) has a mode of its own.
    mode : {"proximal", "gradient", "decoupled"}, optional
        How rules act.  "proximal", the default for being what gives exact zeros and the same
        minimum as the loss with the penalty added: ``prox(w, lr)`` after the update.  "gradient":
        the penalty's gradient is added to that of the loss, as ``Penalties.accumulate`` does, and
        goes through momentum; no zeros.  "decoupled": beside the update, with a step of its own as
        AdamW's weight decay has it; L1 gives exact zeros.
    strength : float, function or array, optional
        What all strengths are multiplied with, given as `lr` is: a warm-up.
    independent : bool, optional
        Decoupled strengths are multiplied with ``lr / initial_lr`` instead of `lr`, so that they do
        not depend on the size of the learning rate, but follow its schedule.
    initial_lr : float, optional
        `lr` if not given; needed where that is a function.
    cautious : bool, optional
        Decoupled rules leave out elements that the update moves away from 0.
    max_norm : float, optional
        Clips by the global norm: all gradients are multiplied with
        ``min(1, max_norm / (norm + 1e-6))``.  It may be set between steps.
    clip : {"total", "data"}, optional
        Whether the penalties' gradients are in what is clipped; only rules of the mode "gradient"
        have any.
    on_nonfinite : {"raise", "skip", "ignore"}, optional
        What to do when a gradient is infinite or NaN: an error with the name of the first, a step
        that changes nothing, or nothing.  If not given "raise" with `max_norm`, else "ignore",
        which does not look.

    Examples
    --------
    >>> import numpy, fastreg
    >>> params = {"kernel": numpy.array([1.0, -0.25, 0.0]), "bias": numpy.array([0.5])}
    >>> optimizer = fastreg.optimizers.SGD(
    ...     params, lr=0.5, rules={"kernel": fastreg.regularizers.L1(0.25)}
    ... )
    >>> grads = {"kernel": numpy.array([0.25, -0.25, 0.125]), "bias": numpy.array([1.0])}
    >>> optimizer.step(grads)
    StepRecord(penalty=0.1875, norm=None, zeros=2, skipped=False, size=3)
    >>> params["kernel"], params["bias"]
    (array([0.75, 0.  , 0.  ]), array([0.]))
    """

    _algorithm = steps.SGD
    _name = "SGD"

    def __init__(
        self,
        tensors: Tensors,
        lr: Rate,
        *,
        momentum: Real = 0.0,
        dampening: Real = 0.0,
        weight_decay: Real = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        rules: GivenModed = None,
        mode: Mode = "proximal",
        strength: Rate = 1.0,
        independent: bool = False,
        initial_lr: Real | None = None,
        cautious: bool = False,
        max_norm: Real | None = None,
        clip: Clip = "total",
        on_nonfinite: OnNonfinite | None = None,
    ) -> None:
        self._momentum = arguments.strength(momentum, "momentum")
        self._dampening = arguments.multiplier(dampening, "dampening")
        self._weight_decay = arguments.strength(weight_decay, "weight_decay")
        self._flags = flags(
            nesterov=(nesterov, steps.NESTEROV),
            maximize=(maximize, steps.MAXIMIZE),
            cautious=(cautious, steps.CAUTIOUS),
        )
        if nesterov and (self._momentum == 0.0 or self._dampening != 0.0):
            raise ValueError(
                "nesterov=True needs a momentum > 0 and a dampening of 0, not momentum="
                f"{self._momentum!r} and dampening={self._dampening!r}"
            )
        self._kinds = ("momentum_buffer",) if self._momentum else ()
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
            self._momentum,
            self._dampening,
            self._weight_decay,
        )


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"SGD": SGD}
