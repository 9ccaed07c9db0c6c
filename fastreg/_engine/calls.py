"""What the core does not do by itself: calls are described, judged and made here.

Contract
--------
- The core makes calls that are plainly right, of NumPy arrays and torch tensors in host memory. For
  all others it returns NotImplemented, and nothing has been written: arrays of other libraries,
  arrays on a CUDA device, wrong arguments, and memory that only seems to overlap.
- Foreign code, as a library's ``__dlpack__``, runs while arrays are described. After it each is
  looked at again, and none runs between that and the core's own look.
- Refusals come from ``checks``, whichever backend and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._arrays import cuda as cuda_arrays
from .._arrays import host, torch_memory
from .._arrays.results import all_written
from .._base import errors
from .._base.arguments import multiplier
from .._base.core import core
from .._base.penalty import GRADIENT, VALUE, Strengths
from . import backend, checks, cuda

Pairs = Sequence[tuple[Any, Any]]


def complete_one(
    outputs: int, weight: Any, gradient: Any, l1: float, l2: float, scale: Any, grad_scale: Any
) -> Any:
    """Make the call for which ``backend.evaluate_one`` has returned NotImplemented."""
    gradients = None if outputs == VALUE else (gradient,)
    found = complete(
        outputs, None, (weight,), gradients, ((l1, l2),), (0,), scale, grad_scale, None, ()
    )
    return found[0] if isinstance(found, list) else found


def evaluate_one(*arguments: Any) -> Any:
    """Make a call of one tensor; parameters and results are those of the core."""
    found = backend.evaluate_one(*arguments)
    return found if found is not NotImplemented else complete_one(*arguments)


def evaluate_many(
    outputs: int,
    names: Sequence[str],
    weights: Sequence[Any],
    gradients: Sequence[Any] | None,
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
    per_tensor: bool,
    copies: Pairs = (),
) -> Any:
    """Make a call of many tensors; parameters and results are those of the core."""
    arguments = (outputs, names, weights, gradients, strengths, which, scale, grad_scale)
    found = backend.evaluate_many(*arguments, per_tensor, copies)
    return found if found is not NotImplemented else complete(*arguments, per_tensor, copies)


def finish_parameters(
    outputs: int,
    found: tuple[Any, Sequence[Any]],
    parameters: Sequence[Any],
    strengths: Strengths,
    scale: Any,
    grad_scale: Any,
) -> Any:
    """Do what is left where ``backend.accumulate_parameters`` has returned a pair."""
    value, gradients = found
    if value is not None and type(value) is not float:  # tensors on a device, described
        value = cuda.evaluate_described(
            outputs, value, parameters, strengths, scale, grad_scale, False, gradients
        )
    if outputs & GRADIENT:
        all_written(gradients)
    return value


def shares_address(weights: Sequence[Any]) -> bool:
    """Return whether two of the arrays have the same lowest address; empty ones do not count."""
    found = backend.shares_address(weights)
    if found is NotImplemented and torch_memory.teach(core()):
        found = core().shares_address(weights)
    return bool(found if found is not NotImplemented else cuda.shares_address(weights))


def complete(
    outputs: int,
    names: Sequence[str] | None,
    weights: Sequence[Any],
    gradients: Sequence[Any] | None,
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
    per_tensor: bool | None,
    copies: Pairs = (),
) -> Any:
    """Make the call for which ``backend.evaluate_many`` has returned NotImplemented.

    `per_tensor` is None for one tensor, whose value is a list in host memory alone.
    """
    factors = multiplier(scale, "scale"), multiplier(grad_scale, "grad_scale")
    arguments = (strengths, which, *factors)
    learned = torch_memory.teach(core())
    if any(map(cuda_arrays.is_on_cuda, weights if gradients is None else (*weights, *gradients))):
        described = core().describe_tensors(outputs, weights, gradients, *arguments)
        if described is not NotImplemented:
            return cuda.evaluate_described(
                outputs, described, weights, strengths, *factors, bool(per_tensor), gradients
            )
        return cuda.evaluate_many(outputs, names, weights, gradients, *arguments, bool(per_tensor))
    as_list = per_tensor is not False
    found = NotImplemented
    if learned or factors[0] is not scale or factors[1] is not grad_scale:
        found = core().evaluate_many(outputs, (), weights, gradients, *arguments, as_list, copies)
    if found is NotImplemented:
        found = _of_views(outputs, names, weights, gradients, arguments, as_list, copies)
    return found


def _of_views(
    outputs: int,
    names: Sequence[str] | None,
    weights: Sequence[Any],
    gradients: Sequence[Any] | None,
    arguments: tuple[Any, ...],
    per_tensor: bool,
    copies: Pairs,
) -> Any:
    """Make a call of arrays in host memory, whatever they are, or raise the error it deserves."""
    try:
        seen = [
            _seen(weight, checks.weight_label(names, index), False)
            for index, weight in enumerate(weights)
        ]
        if gradients is not None:
            seen += [
                _seen(gradient, checks.gradient_label(outputs, names, index), True)
                for index, gradient in enumerate(gradients)
            ]
        seen += [_seen(target, "grads", True) for target, _ in copies]
    except Exception:  # worded below, where both arrays are known
        found = NotImplemented
    else:
        checks.require_current(seen)
        count = len(weights)
        views = tuple([one.view for one in seen])
        targets = None if gradients is None else views[count : 2 * count]
        copied = _paired(views[len(views) - len(copies) :], copies)
        found = core().evaluate_views(
            outputs, views[:count], targets, *arguments, per_tensor, copied, False
        )
    if found is not NotImplemented:
        return found
    seen = [_seen(target, "grads", True) for target, _ in copies]
    described, written = checks.checked_views(outputs, names, weights, gradients, *arguments)
    checks.require_current(seen)
    pairs = [(array, dtype) for array, (_, dtype) in zip(written, described, strict=False)]
    copied = _paired([one.view for one in seen], copies)
    found = core().evaluate_views(
        outputs, tuple(described), tuple(pairs), *arguments, per_tensor, copied, True
    )
    if found is NotImplemented:  # another thread has changed an array since
        raise errors.changed_error()
    return found


def _seen(x: Any, label: str, writable: bool) -> checks.Seen:
    return checks.Seen(label, host.host_view(x, label, writable), writable)


def _paired(targets: Sequence[Any], copies: Pairs) -> tuple[tuple[Any, Any], ...]:
    """Put views in the place of the arrays that are written with the gradients."""
    return tuple((view, source) for view, (_, source) in zip(targets, copies, strict=True))
