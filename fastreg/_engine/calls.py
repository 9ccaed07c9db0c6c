"""What the core does not do by itself: calls are described, judged and made here.

Contract
--------
- The core makes calls that are plainly right, of NumPy arrays and torch tensors in host memory. For
  all others it returns NotImplemented, and nothing has been written: arrays of other libraries,
  arrays on a CUDA device, wrong arguments, and memory that only seems to overlap.
- Foreign code, such as ``__dlpack__``, runs while views are made.  All views are re-validated
  afterwards; no foreign code runs between that check and the core's.
- Refusals come from ``checks``, whichever backend and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._arrays import cuda as cuda_arrays
from .._arrays import host, torch_memory
from .._arrays.results import plain_written
from .._base import errors
from .._base.core import core
from .._base.penalty import GRADIENT, VALUE, Call, Strengths, call_of_one
from . import backend, checks, cuda


def complete_one(*arguments: Any) -> Any:
    """Make the call for which ``backend.evaluate_one`` has returned NotImplemented."""
    found = _of_one_view(*arguments)
    if found is NotImplemented:
        found = complete(*call_of_one(*arguments))
    return of_one(found)


def of_one(found: Any) -> Any:
    """Return what a call of one tensor gives: numbers, where that of many gives lists of them."""
    if isinstance(found, tuple):
        return tuple(map(of_one, found))
    return found[0] if isinstance(found, list) else found


def evaluate_one(*arguments: Any) -> Any:
    """Make a call of one tensor; parameters and results are those of the core."""
    found = backend.evaluate_one(*arguments)
    return found if found is not NotImplemented else complete_one(*arguments)


def evaluate_many(*arguments: Any) -> Any:
    """Make a call of many tensors; parameters and results are those of the core."""
    found = backend.evaluate_many(*arguments)
    return found if found is not NotImplemented else complete(*arguments)


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
        call = Call(outputs, (), parameters, gradients, strengths, (), scale, grad_scale)
        value = cuda.evaluate_described(call, value)
    if outputs & GRADIENT:
        plain_written(gradients)
    return value


def shares_address(weights: Sequence[Any]) -> bool:
    """Return whether two of the arrays have the same lowest address; empty ones do not count."""
    found = backend.shares_address(weights)
    if found is NotImplemented and torch_memory.teach(core()):
        found = core().shares_address(weights)
    return bool(found if found is not NotImplemented else cuda.shares_address(weights))


def complete(*arguments: Any) -> Any:
    """Make the call for which ``backend.evaluate_many`` has returned NotImplemented."""
    given = Call(*arguments)
    scale, grad_scale = checks.factors(given)
    call = given._replace(scale=scale, grad_scale=grad_scale)
    learned = torch_memory.teach(core())
    if any(map(cuda_arrays.is_on_cuda, (*call.weights, *(call.gradients or ())))):
        described = core().describe_tensors(
            call.outputs, call.weights, call.gradients, *call.numbers
        )
        if described is NotImplemented:
            return cuda.evaluate_many(call)
        return cuda.evaluate_described(call, described)
    if call.names is None:  # one value is no sum, which would begin at +0
        call = call._replace(per_tensor=True)
    found = NotImplemented
    if learned or scale is not given.scale or grad_scale is not given.grad_scale:
        found = core().evaluate_many(*call._replace(names=()))
    return _of_views(call) if found is NotImplemented else found


def _of_one_view(
    outputs: int, weight: Any, gradient: Any, l1: float, l2: float, scale: Any, grad_scale: Any
) -> Any:
    """Make a call of one tensor in host memory that is plain once it is described."""
    arrays = (weight,) if outputs == VALUE else (weight, gradient)
    if torch_memory.teach(core()) or any(map(cuda_arrays.is_on_cuda, arrays)):
        return NotImplemented
    try:
        view = host.host_view(weight, "w", False)
        targets = None
        if outputs != VALUE:
            seen = checks.Seen("w", view, False)
            targets = (host.host_view(gradient, "gradient", True),)
            if not seen.is_current():
                return NotImplemented
    except Exception:  # worded by `complete`
        return NotImplemented
    numbers = ((l1, l2),), (0,), scale, grad_scale
    return core().evaluate_views(outputs, (view,), targets, *numbers, True, (), False)


def _of_views(call: Call) -> Any:
    """Make a call of arrays in host memory, whatever they are, or raise the error it deserves."""
    options = (*call.numbers, call.per_tensor)
    try:
        seen = [_seen(w, call.weight_label(i), False) for i, w in enumerate(call.weights)]
        if call.gradients is not None:
            seen += [_seen(g, call.gradient_label(i), True) for i, g in enumerate(call.gradients)]
        seen += [_seen(target, "grads", True) for target, _ in call.copies]
    except Exception:  # worded below, where both arrays are known
        found = NotImplemented
    else:
        checks.require_current(seen)
        count = len(call.weights)
        views = tuple([one.view for one in seen])
        targets = None if call.gradients is None else views[count : 2 * count]
        copied = _paired(views[len(views) - len(call.copies) :], call)
        found = core().evaluate_views(call.outputs, views[:count], targets, *options, copied, False)
    if found is not NotImplemented:
        return found
    seen = [_seen(target, "grads", True) for target, _ in call.copies]
    described, written = checks.checked_views(call)
    checks.require_current(seen)
    pairs = [(array, dtype) for array, (_, dtype) in zip(written, described, strict=False)]
    copied = _paired([one.view for one in seen], call)
    found = core().evaluate_views(
        call.outputs, tuple(described), tuple(pairs), *options, copied, True
    )
    if found is NotImplemented:  # another thread has changed an array since
        raise errors.changed_error()
    return found


def _seen(x: Any, label: str, writable: bool) -> checks.Seen:
    return checks.Seen(label, host.host_view(x, label, writable), writable)


def _paired(targets: Sequence[Any], call: Call) -> tuple[tuple[Any, Any], ...]:
    """Put views in the place of the arrays that are written with the gradients."""
    return tuple((view, source) for view, (_, source) in zip(targets, call.copies, strict=True))
