"""Penalties once per optimizer step: a hook that runs before ``optimizer.step()``.

Contract
--------
- The gradients are added once per step, whatever the number of backward() calls before it.
- Where step() gets gradients that are still scaled (``GradScaler`` with optimizers that unscale
  inside their kernels), the penalty's gradient is scaled by the same number.
- A closure computes gradients inside of step(): the penalty joins each of its evaluations, and the
  loss that it gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import _errors
from .._float_environment import product

Add = Callable[[float, float, bool], Any]
"""Adds gradients, given scale, grad_scale and whether the penalty is wanted; gives what has it as
``last``: to read it may need all processes."""


class StepHandle:
    """What keeps penalties before an optimizer's steps; made by ``Penalties.before_step``."""

    def __init__(
        self, optimizer: Any, add: Add, scale: float, grad_scale: float, value: bool
    ) -> None:
        self._optimizer = optimizer
        self._add = add
        self._scale = scale
        self._grad_scale = grad_scale
        self._value = value
        self._handle: Any = optimizer.register_step_pre_hook(self._before)

    @property
    def is_active(self) -> bool:
        """Whether steps still add penalties."""
        return self._handle is not None

    def remove(self) -> None:
        """Leave the optimizer's steps alone from now on."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def holds(self, parameters: Sequence[Any]) -> bool:
        """Say whether the optimizer updates all of these parameters.

        Between forward and backward, FSDP2 has others in a root module, which none updates.
        """
        return not self._missing(parameters)

    def require_held(self, names: Sequence[str], parameters: Sequence[Any]) -> None:
        """Refuse penalised parameters that the optimizer does not update.

        Raises
        ------
        ValueError
            With their names.
        """
        missing = [names[place] for place in self._missing(parameters)]
        if missing:
            raise ValueError(
                f"the parameters {_errors.listed(missing)} have a penalty, but optimizer does not "
                "hold them; make the optimizer of the module's parameters as they are now, or "
                "attach the part of the module that it trains"
            )

    def _missing(self, parameters: Sequence[Any]) -> list[int]:
        held = {id(one) for group in self._optimizer.param_groups for one in group["params"]}
        return [place for place, one in enumerate(parameters) if id(one) not in held]

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # args[0] is the optimizer.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._add(self._scale, product(self._grad_scale, _loss_scale(optimizer)), self._value)
            return None

        def penalised() -> Any:
            loss = closure()
            added = self._add(self._scale, self._grad_scale, True)
            return loss if loss is None else loss + added.last

        if "closure" in kwargs:
            return args, {**kwargs, "closure": penalised}
        return (args[0], penalised, *args[2:]), kwargs


def _loss_scale(optimizer: Any) -> float:
    """Give what the gradients are still multiplied by when step() runs."""
    # GradScaler sets it for the time of a step, on optimizers whose kernels unscale.  None: the
    # caller has unscaled.
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def require_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimizer.

    Raises
    ------
    TypeError
        For another kind.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, not {_errors.described(optimizer)}"
        )


def warn_of_weight_decay(
    optimizer: Any, names: Sequence[str], parameters: Sequence[Any], rules: Sequence[Any]
) -> None:
    """Warn where a parameter has an L2 penalty, and weight decay of its optimizer as well."""
    decayed = {
        id(one)
        for group in optimizer.param_groups
        if group.get("weight_decay", 0)
        for one in group["params"]
    }
    both = [
        name
        for name, one, rule in zip(names, parameters, rules, strict=True)
        if id(one) in decayed and float(getattr(rule, "l2", 0.0))
    ]
    if both:
        warnings.warn(
            f"the parameters {_errors.listed(both)} have an L2 penalty and the weight_decay of the "
            "optimizer, so they shrink twice; set weight_decay=0, or use L1 for them",
            UserWarning,
            stacklevel=3,
        )
