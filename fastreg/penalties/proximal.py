"""Proximal steps of a plan, in place: all of its tensors or none, with what they have come to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._arrays import cuda, host, results
from .._arrays.device_array import DeviceCount
from .._base import arguments, dtypes
from .._base.float_environment import Default, product
from .._base.penalty import VALUE_AND_PROXIMAL, Call
from .._engine import backend, calls, checks
from .._engine.recording import claim, unclaimed
from . import callables
from .plan import Arrays, Plan
from .rules import called, rule_name


class ProxRecord(NamedTuple):
    """What the tensors that have a penalty are after a proximal step.

    Of tensors on a CUDA device `penalty` and `zeros` stay there, 0-d in the kind of the first, and
    nothing waits for them.

    >>> ProxRecord(penalty=0.5, zeros=3, size=4).sparsity
    0.75
    """

    penalty: Any
    """The canonical sum of their penalties: a float; on a device float64."""
    zeros: Any
    """How many of their elements are 0, of either sign: an int; on a device int64."""
    size: int
    """How many elements they have."""

    @property
    def sparsity(self) -> Any:
        """The share of zeros, from 0 to 1; 0.0 without elements.

        On a device 0-d there; of arrays of no framework it is a float, and waited for.
        """
        zeros = int(self.zeros) if isinstance(self.zeros, DeviceCount) else self.zeros
        return zeros / self.size if self.size else 0.0


class Each(NamedTuple):
    """The penalty, zeros and elements of each tensor, in the order of a plan."""

    penalties: list[float]
    zeros: list[int]
    sizes: list[int]


def take(plan: Plan, weights: Arrays, step: Any, scale: Any) -> ProxRecord:
    """Take the proximal step of all tensors in place."""
    if plan.others:
        each = take_each(plan, weights, step, scale)
        total = backend.canonical_sum(each.penalties)
        return ProxRecord(total, sum(each.zeros), sum(each.sizes))
    return ProxRecord(*_fused(plan, weights, step, scale, False))


def take_each(plan: Plan, weights: Arrays, step: Any, scale: Any) -> Each:
    """Do what :func:`take` does, and return the results of each tensor."""
    if plan.others:
        return _with_callables(plan, weights, step, scale)
    return Each(*_fused(plan, weights, step, scale, True))


def require_prox(plan: Plan) -> None:
    """Refuse rules that offer no proximal step of their own penalty."""
    for name in compress(plan.names, (not is_fused for is_fused in plan.fused)):
        rule = plan.rules[name]
        if not callables.offers(rule, "prox"):
            raise TypeError(
                f"the rule of tensors[{name!r}], {rule_name(rule)}, offers no prox(w, step) of its "
                "own penalty; add that method, or give the tensor L1, L2, L1L2 or None"
            )


def _fused(plan: Plan, weights: Arrays, step: Any, scale: Any, per_tensor: bool) -> Any:
    results.check_targets(weights, plan.names, "tensors")
    found = calls.evaluate_many(
        VALUE_AND_PROXIMAL,
        plan.names,
        weights,
        weights,
        plan.strengths(),
        plan.which,
        scale,
        step,
        per_tensor,
    )
    if unclaimed:
        claim(plan.strengths)
    results.all_written(weights)
    return found


class _Made(NamedTuple):
    """The proximal step of one tensor that a callable gave; it has not been written."""

    penalty: float
    stored: npt.NDArray[Any]
    zeros: int


def _with_callables(plan: Plan, weights: Arrays, step: Any, scale: Any) -> Each:
    """Do what one call of the core does, for a plan that has callables."""
    require_prox(plan)
    results.check_targets(weights, plan.names, "tensors")
    for name, weight in zip(plan.names, weights, strict=True):
        if cuda.is_on_cuda(weight):
            raise TypeError(
                f"tensors[{name!r}] is on CUDA, where the proximal steps that callables give "
                "cannot be written; leave the callables out of the rules, or pass copies in host "
                "memory"
            )
    scale, step = arguments.strength(scale, "scale"), arguments.strength(step, "step")
    # Strengths of 0 stand for the callables here: this is the check of all arrays at once.
    strengths = plan.strengths()
    fused_rules = iter(plan.which)
    which = [next(fused_rules) if is_fused else len(strengths) for is_fused in plan.fused]
    every = (*strengths, (0.0, 0.0))
    outputs = VALUE_AND_PROXIMAL
    checks.checked_views(Call(outputs, plan.names, weights, weights, every, which, scale, step))
    made = {
        name: _made(plan.rules[name], name, weight, step, scale)
        for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True)
        if not is_fused
    }
    by_name = dict(zip(plan.names, weights, strict=True))
    for name, one in made.items():
        # Later rules may have changed it.
        results.require_fitting(by_name[name], one.stored, f"tensors[{name!r}]")
    fused = tuple(compress(weights, plan.fused))
    found = calls.evaluate_many(
        outputs,
        tuple(compress(plan.names, plan.fused)),
        fused,
        fused,
        strengths,
        plan.which,
        scale,
        step,
        True,
        tuple((by_name[name], one.stored) for name, one in made.items()),
    )
    results.all_written(weights)
    of_fused = zip(*found, strict=True)
    rows: Sequence[Any] = [
        (made[name].penalty, made[name].zeros, made[name].stored.size)
        if name in made
        else next(of_fused)
        for name in plan.names
    ]
    return Each(*map(list, zip(*rows, strict=True)))


def _made(rule: Any, name: str, weight: Any, step: float, scale: float) -> _Made:
    """Return what a callable makes of a tensor, rounded to its dtype, and the penalty of that."""
    label = f"tensors[{name!r}]"
    # The penalty counts `scale` times: so does its step.
    given = rule.prox(weight, product(step, scale))
    shape = host.host_view(weight, label, False)[0].shape
    numbers = callables.checked_array(given, shape, f"rule of {label}", "tensor", "proximal step")
    stored = results.rounded(weight, numbers, label)
    like = results.empty_like(weight, label)
    view, dtype = host.host_view(like, label, True)
    view[...] = stored
    with results.unrecorded():
        penalty = called(rule, name, results.wrap_gradient(like, weight))
    with Default(), np.errstate(all="ignore"):
        penalty = penalty * scale
        nonzero = np.count_nonzero(dtypes.to_float64(stored, dtype))
    return _Made(penalty, stored, stored.size - int(nonzero))
