"""Penalties once per optimizer step: a hook that runs before ``optimizer.step()``.

Contract
--------
- The gradients are added once per step, whatever the number of backward() calls before it.
- Where step() gets gradients that are still scaled (``GradScaler`` with optimizers that unscale
  inside their kernels), the penalty's gradient is scaled by the same number.
- A closure computes gradients inside step(): the penalty is added at each of its evaluations, and
  to the loss that it returns.
- A clip before step() does not see the penalty.  So the sum is clipped here, as
  ``clip_grad_norm_`` would clip it; or the caller says that nothing is clipped.
- An optimizer whose step() nobody calls would drop the penalty silently: see :class:`_Watch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .._base import arguments, errors
from .._base.float_environment import product
from .._base.warnings import warn

UNSAID: Any = object()
"""The default of max_norm, which has to be given."""

Add = Callable[[float, float, bool], Any]
"""Adds gradients, given scale, grad_scale and whether the penalty is wanted; returns an object with
the penalty as ``last``: to read it may be a collective operation."""


class StepHandle:
    """Handle of the optimizer pre-step hook of ``Penalties.before_step``."""

    def __init__(
        self,
        optimizer: Any,
        add: Add,
        max_norm: float | None,
        scale: Any,
        grad_scale: Any,
        value: bool,
    ) -> None:
        self._optimizer = optimizer
        self._add = add
        self._max_norm = max_norm
        self._scale = scale
        self._grad_scale = grad_scale
        self._value = value
        self._watch: _Watch | None = None
        self._handle: Any = optimizer.register_step_pre_hook(self._before)

    @property
    def is_active(self) -> bool:
        """Whether steps still add penalties."""
        return self._handle is not None

    def remove(self) -> None:
        """Remove the hook: steps add no penalties from now on."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def watch(self, name: str, parameter: Any) -> None:
        """Warn when `parameter` changes again and again while no step adds its penalty."""
        self._watch = _Watch(name, parameter, type(self._optimizer).__name__)

    def holds(self, parameters: Sequence[Any]) -> bool:
        """Return whether the optimizer updates all of these parameters.

        Between forward and backward, a root module of FSDP2 has others, which none updates.
        """
        return not self._missing(parameters)

    def require_held(self, names: Sequence[str], parameters: Sequence[Any]) -> None:
        """Raise ValueError for penalised parameters that the optimizer does not update."""
        missing = [names[place] for place in self._missing(parameters)]
        if missing:
            raise ValueError(
                f"the parameters {errors.listed(missing)} have a penalty, but optimizer does not "
                "hold them; make the optimizer of the module's parameters as they are now, or "
                "attach the part of the module that it trains"
            )

    def _missing(self, parameters: Sequence[Any]) -> list[int]:
        held = {id(one) for group in self._optimizer.param_groups for one in group["params"]}
        return [place for place, one in enumerate(parameters) if id(one) not in held]

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._is_seen()
        # args[0] is the optimizer.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            loss_scale = _loss_scale(optimizer)
            self._add(self._scale, product(self._grad_scale, loss_scale), self._value)
            self._clip(loss_scale)
            return None

        def penalised() -> Any:
            loss = closure()
            added = self._add(self._scale, self._grad_scale, True)
            self._clip(1.0)
            self._is_seen()
            return loss if loss is None else loss + added.last

        if "closure" in kwargs:
            return args, {**kwargs, "closure": penalised}
        return (args[0], penalised, *args[2:]), kwargs

    def _is_seen(self) -> None:
        if self._watch is not None:
            self._watch.has_stepped = True

    def _clip(self, loss_scale: Any) -> None:
        if self._max_norm is None:
            return
        held = [one for group in self._optimizer.param_groups for one in group["params"]]
        gradients = [one.grad for one in held if one.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / loss_scale
        torch.nn.utils.clip_grads_with_norm_(held, self._max_norm, norm)


class _Watch:
    """Warns when a parameter is trained by something else than the optimizer of a handle.

    It is a hook of the parameter: it is freed with it, and not copied.
    """

    _ENOUGH = 3

    def __init__(self, name: str, parameter: Any, optimizer: str) -> None:
        self._name = name
        self._optimizer = optimizer
        self._version: int | None = None
        self._missed = 0
        self.has_stepped = False
        """Whether a step has added the penalty since the last backward pass."""
        self._handle = parameter.register_post_accumulate_grad_hook(self._after_backward)

    def remove(self) -> None:
        self._handle.remove()

    def _after_backward(self, parameter: Any) -> None:
        version = parameter._version
        if version == self._version:  # micro-batches, or a step that a GradScaler skipped
            return
        is_missed = self._version is not None and not self.has_stepped
        self._missed = self._missed + 1 if is_missed else 0
        self._version, self.has_stepped = version, False
        if self._missed == self._ENOUGH:
            warn(
                f"the parameter {self._name!r} has changed {self._ENOUGH} times between backward "
                f"passes without a call of {self._optimizer}.step(), so before_step added no "
                "penalty; give it the optimizer whose step() is called, or put "
                "penalties.value() into the loss instead"
            )

    #: For ``engines.needs_autograd``: the hook may run before the penalty is added.
    _after_backward.reads_no_gradient = True  # type: ignore[attr-defined]


def _loss_scale(optimizer: Any) -> float:
    """Return the factor that gradients still have when step() runs."""
    # GradScaler sets it for the time of a step, on optimizers whose kernels unscale.  None: the
    # caller has unscaled.
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def unwrapped(optimizer: Any) -> Any:
    """Return the torch optimizer whose ``step()`` runs when that of `optimizer` is called.

    Those of Accelerate and Lightning wrap one, and call its ``step()``.
    """
    found, inner = None, optimizer
    for _ in range(8):
        if isinstance(inner, torch.optim.Optimizer):
            found = inner
        inner = getattr(inner, "optimizer", None)
    if found is None:
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer, not {errors.described(optimizer)}"
        )
    return found


def checked_max_norm(max_norm: Any) -> float | None:
    """Return `max_norm` as a number > 0, or None."""
    if max_norm is UNSAID:
        raise TypeError(
            "before_step() needs max_norm: it adds the penalty inside of optimizer.step(), after "
            "any clip of yours, which is another training than that of loss + penalty; pass "
            "max_norm=1.0, for example, and drop your own clip, or max_norm=None where nothing is "
            "clipped; loss = loss + penalties.value() needs neither, and goes with every clip"
        )
    if max_norm is None:
        return None
    number = arguments.multiplier(max_norm, "max_norm")
    if number <= 0.0:
        raise ValueError(f"max_norm must be a number > 0, or None, not {errors.described(number)}")
    return number


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
        warn(
            f"the parameters {errors.listed(both)} have an L2 penalty and the weight_decay of the "
            "optimizer, so they shrink twice; set weight_decay=0, or use L1 for them"
        )
