"""Evaluation of a plan: penalties and gradients, from the core and from callables."""

from __future__ import annotations

from collections.abc import Callable
from itertools import compress
from typing import Any

import numpy as np

from .._arrays import cuda, results
from .._arrays.libraries import has_dtensors
from .._autodiff import dispatch
from .._base import arguments
from .._base.float_environment import Default, product
from .._base.penalty import ADD, VALUE, Call
from .._engine import backend, calls, checks
from .._engine.recording import claim, unclaimed
from . import callables
from .plan import Arrays, Plan
from .rules import called, rule_name


def value(plan: Plan, weights: Arrays, scale: Any) -> Any:
    """Return the canonical sum of the penalties, as :func:`total` does or differentiable."""
    port = dispatch.port_for_values(weights, plan.names)
    if port is None:
        try:
            return total(VALUE, plan, weights, None, scale, 1.0)
        except TypeError:
            port = _port_for_numbers(plan, weights, scale)
            if port is None:
                raise
    return differentiable_value(port, plan, weights, scale)


def _port_for_numbers(plan: Plan, weights: Arrays, *factors: Any) -> Any:
    """Return the port of traced factors or strengths; asked only where the core refused them."""
    numbers = (*factors, *(number for pair in plan.strengths() for number in pair))
    port = dispatch.port_for_numbers(*numbers)
    if port is not None:
        dispatch.require_jax(weights, plan.names)
    return port


def total(
    outputs: int,
    plan: Plan,
    weights: Arrays,
    gradients: Arrays | None,
    scale: Any,
    grad_scale: Any,
    per_tensor: bool = False,
) -> Any:
    """Do what `outputs` asks for, and return the canonical sum of the penalties.

    It is a float, or for tensors on a device what a regularizer gives there; with `per_tensor` a
    list of each tensor's penalty; None where `outputs` does not ask for the value.
    """
    if plan.others:
        penalties = (
            values(plan, weights, scale)
            if gradients is None
            else _with_callables(outputs, plan, weights, gradients, scale, grad_scale)
        )
        return penalties if per_tensor or penalties is None else backend.canonical_sum(penalties)
    call = (
        outputs,
        plan.names,
        weights,
        gradients,
        plan.strengths(),
        plan.which,
        scale,
        grad_scale,
        per_tensor,
    )
    result = backend.evaluate_many(*call)
    if result is NotImplemented:
        result = calls.complete(*call)
    if unclaimed:
        claim(plan.strengths)
    return result


def values(plan: Plan, weights: Arrays, scale: Any, port: Any = None) -> list[float]:
    """Return each tensor's penalty, from a `port` where one is given; callables run."""
    if not plan.others and port is None:
        fused_values: list[float] = total(VALUE, plan, weights, None, scale, 1.0, True)
        return fused_values
    factor = arguments.multiplier(scale, "scale")
    fused, strengths = tuple(compress(weights, plan.fused)), plan.strengths()
    if port is None:
        names = tuple(compress(plan.names, plan.fused))
        merged = iter(
            calls.evaluate_many(VALUE, names, fused, None, strengths, plan.which, scale, 1.0, True)
        )
    else:
        merged = map(float, port.values(fused, strengths, plan.which, factor))
    return [
        next(merged) if is_fused else product(called(plan.rules[name], name, weight), factor)
        for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True)
    ]


def new_gradients(
    outputs: int, plan: Plan, weights: Arrays, scale: Any, grad_scale: Any
) -> tuple[Any, dict[str, Any]]:
    """Return what :func:`total` gives, and new gradients by name in the kinds of the tensors."""
    _require_gradients(plan)
    port = dispatch.port_for_gradients(weights, plan.names)
    if port is None:
        try:
            return _new_gradients(outputs, plan, weights, scale, grad_scale)
        except TypeError:
            port = _port_for_numbers(plan, weights, scale, grad_scale)
            if port is None:
                raise
    penalty = differentiable_value(port, plan, weights, scale) if outputs & VALUE else 0.0
    made = traced_gradients(port, plan, weights, scale, grad_scale)
    return penalty, dict(zip(plan.names, made, strict=True))


def _new_gradients(
    outputs: int, plan: Plan, weights: Arrays, scale: Any, grad_scale: Any
) -> tuple[Any, dict[str, Any]]:
    gradients = tuple(
        np.empty_like(weight)
        if type(weight) is np.ndarray
        else results.empty_like(weight, f"tensors[{name!r}]")
        for name, weight in zip(plan.names, weights, strict=True)
    )
    penalty = total(outputs, plan, weights, gradients, scale, grad_scale)
    return penalty, {
        name: gradient if type(weight) is np.ndarray else results.wrap_gradient(gradient, weight)
        for name, weight, gradient in zip(plan.names, weights, gradients, strict=True)
    }


def require_whole(plan: Plan, weights: Arrays) -> None:
    """Refuse sharded tensors whose rules are callables: penalties of whole tensors."""
    if plan.others and has_dtensors(weights):
        from .._arrays import torch_shards  # only where there are DTensors

        others = [not is_fused for is_fused in plan.fused]
        torch_shards.require_whole(
            list(compress(weights, others)), list(compress(plan.names, others))
        )


def differentiable_value(port: Any, plan: Plan, weights: Arrays, scale: Any) -> Any:
    """Return the sum of the penalties as a framework traces it: the fused ones, then callables."""
    require_whole(plan, weights)
    fused, factor = tuple(compress(weights, plan.fused)), port.factor(scale, "scale")
    value = port.total(fused, plan.strengths(), plan.which, factor)
    for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True):
        if not is_fused:
            penalty = callables.traced_number(plan.rules[name](weight), name) * factor
            value = penalty if value is None else value + penalty
    return value


def traced_gradients(
    port: Any,
    plan: Plan,
    weights: Arrays,
    scale: Any,
    grad_scale: Any,
    gradient_of: Callable[[Any, Any], Any] = lambda rule, weight: rule.gradient(weight),
) -> list[Any]:
    """Return a new gradient of each array; `gradient_of` gives that of a callable."""
    fused = tuple(compress(weights, plan.fused))
    made = iter(port.gradients(fused, plan.strengths(), plan.which, scale, grad_scale))
    factor = port.factor(scale, "scale") * port.factor(grad_scale, "grad_scale")
    return [
        next(made) if is_fused else gradient_of(plan.rules[name], weight) * factor
        for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True)
    ]


def _with_callables(
    outputs: int,
    plan: Plan,
    weights: Arrays,
    gradients: Arrays,
    scale: Any,
    grad_scale: Any,
) -> list[float] | None:
    """Do what one call to the core does, for a plan that has callables."""
    _require_gradients(plan)
    for name, weight in zip(plan.names, weights, strict=True):
        if cuda.is_on_cuda(weight):
            raise TypeError(
                f"tensors[{name!r}] is on CUDA, where the gradients that callables give cannot be "
                "added; leave the callables out of the rules, or pass copies in host memory"
            )
    # Strengths of 0 stand for the callables here: this is the check of all arrays at once.
    strengths = plan.strengths()
    which = iter(plan.which)
    every = (*strengths, (0.0, 0.0))
    rules = tuple(next(which) if is_fused else len(strengths) for is_fused in plan.fused)
    checks.checked_views(
        Call(outputs, plan.names, weights, gradients, every, rules, scale, grad_scale)
    )
    value_factor = float(scale)
    factor = product(value_factor, float(grad_scale))
    called_values: dict[str, float] = {}
    labels = []
    copies = []  # the core writes them with its own gradients: all or nothing
    for name, weight, gradient, is_fused in zip(
        plan.names, weights, gradients, plan.fused, strict=True
    ):
        if not is_fused:
            rule = plan.rules[name]
            with results.unrecorded():  # the gradient is asked for by name, not of autograd
                value = called(rule, name, weight) if outputs & VALUE else 0.0
            slope = callables.slope_of(rule.gradient(weight), weight, name)
            with Default(), np.errstate(all="ignore"):
                called_values[name] = value * value_factor
                numbers = slope * factor
            label, adds = f"grads[{name!r}]", bool(outputs & ADD)
            copies.append((gradient, results.rounded(gradient, numbers, label, adds)))
            labels.append(label)
    for (gradient, result), label in zip(copies, labels, strict=True):
        results.require_fitting(gradient, result, label)  # later rules may have changed it
    fused_values = calls.evaluate_many(
        outputs,
        tuple(compress(plan.names, plan.fused)),
        tuple(compress(weights, plan.fused)),
        tuple(compress(gradients, plan.fused)),
        strengths,
        plan.which,
        scale,
        grad_scale,
        True,
        tuple(copies),
    )
    if not outputs & VALUE:
        return None
    merged = iter(fused_values)
    return [called_values[name] if name in called_values else next(merged) for name in plan.names]


def _require_gradients(plan: Plan) -> None:
    """Refuse callables that offer no gradient."""
    if not plan.others:
        return
    for name, is_fused in zip(plan.names, plan.fused, strict=True):
        rule = plan.rules[name]
        if not is_fused and not callables.has_gradient(rule):
            raise TypeError(
                f"the rule of tensors[{name!r}], {rule_name(rule)}, offers no gradient(w); add "
                "that method, or ask for value() only"
            )
