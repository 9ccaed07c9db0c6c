"""The entry points of the native core, in NumPy: the fallback without a compiler, and the oracle.

Contract
--------
- The same bits as the native core for every dtype, layout and call: see docs/numerics.md.
- All gradients of a call are written or none.  Everything is checked, and the new gradients are
  computed beside the old ones, before anything is written; then one call into NumPy's own code
  writes all, which neither a signal nor another thread's exception can interrupt.
- The caller's floating point environment changes nothing, where the C library lets it be set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._arrays import host
from .._base import arguments, dtypes, memory, penalty
from .._base.float_environment import Default
from .._base.penalty import ADD, PROX, VALUE, Call, call_of_one
from . import canonical, checks, elements
from .canonical import canonical_sum
from .reference_steps import measure_step as measure_step
from .reference_steps import take_step as take_step

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]


class _Result(NamedTuple):
    """What one checked tensor comes to; nothing of it has been written."""

    penalty: float
    """0.0 where it was not asked for."""
    written: Any
    """What its gradient or proximal step becomes, None where that stays."""
    zeros: int = 0


def _evaluate(
    call: Call, weight: tuple[Array, str], target: Array | None, pair: tuple[float, float]
) -> _Result:
    """Return the result of one checked tensor for a call that asks for no proximal step."""
    outputs, scale, grad_scale = call.outputs, float(call.scale), float(call.grad_scale)
    view, dtype = weight
    sums = canonical.Sums((pair[0] * scale, pair[1] * scale), dtype)
    if not (sums.has_l1 or sums.has_l2):
        stays = target is None or outputs & ADD
        return _Result(0.0, None if stays or target is None else target.dtype.type(0))
    result = None if target is None else np.empty_like(target)
    if target is None or result is None:
        (flat,) = canonical.flattened(view)
        flat_target = flat_result = None
    else:
        flat, flat_target, flat_result = canonical.flattened(view, target, result)
    factors = penalty.coefficients(pair, scale, grad_scale)
    for part in canonical.slabs(view.size):
        weights = flat[part]
        if outputs & VALUE:
            sums.add(weights)
        if flat_result is not None:
            old = flat_target[part] if flat_target is not None and outputs & ADD else None
            flat_result[part] = canonical.stored(
                elements.gradient(weights, old, dtype, factors, sums.has_l1, sums.has_l2), dtype
            )
    return _Result(sums.penalty() if outputs & VALUE else 0.0, result)


def _evaluate_prox(
    call: Call, weight: tuple[Array, str], target: Array, pair: tuple[float, float]
) -> _Result:
    """Return the proximal step of one checked tensor, and the penalty and zeros of that."""
    scale, step = float(call.scale), float(call.grad_scale)
    view, dtype = weight
    sums = canonical.Sums((pair[0] * scale, pair[1] * scale), dtype)
    result = np.empty_like(target)
    flat, flat_result = canonical.flattened(view, result)
    thresholds = penalty.thresholds(pair, scale, step)
    zeros = 0
    for part in canonical.slabs(view.size):
        weights = flat[part]
        if sums.has_l1 or sums.has_l2:
            stored = canonical.stored(
                elements.prox(weights, dtype, thresholds, sums.has_l1, sums.has_l2), dtype
            )
        else:
            stored = weights
        flat_result[part] = stored
        if call.outputs & VALUE:
            sums.add(stored)
            zeros += stored.size - int(np.count_nonzero(elements.widened(stored, dtype)))
    return _Result(sums.penalty(), result, zeros)


def evaluate_one(*arguments: Any) -> Any:
    """Evaluate one tensor; parameters and results are those of the core (``_core.pyi``)."""
    result = _evaluated(call_of_one(*arguments)._replace(per_tensor=True))
    if isinstance(result, tuple):
        return tuple(one for (one,) in result)
    return result[0] if isinstance(result, list) else None


def evaluate_many(*arguments: Any) -> Any:
    """Evaluate many tensors; parameters and results are those of the core (``_core.pyi``)."""
    return _evaluated(Call(*arguments))


def _evaluated(call: Call) -> Any:
    """Make a call, or write nothing at all when a tensor is refused."""
    copied = [host.host_view(target, "grads", True) for target, _ in call.copies]
    seen = [checks.Seen("grads", view, True) for view in copied]
    views, targets = checks.checked_views(call)
    checks.require_current(seen)
    evaluate: Any = _evaluate_prox if call.outputs & PROX else _evaluate
    with Default(), np.errstate(all="ignore"):
        found: list[_Result] = [
            evaluate(call, view, target, call.strengths[rule])
            for view, target, rule in zip(views, targets or repeat(None), call.which, strict=False)
        ]
    changed = [index for index, one in enumerate(found) if one.written is not None]
    canonical.write(
        [*(targets[index] for index in changed), *(view for view, _ in copied)],
        [*(found[index].written for index in changed), *(source for _, source in call.copies)],
    )
    if not call.outputs & VALUE:
        return None
    values = [one.penalty for one in found]
    result = values if call.per_tensor else canonical_sum(values)
    if not call.outputs & PROX:
        return result
    zeros, sizes = [one.zeros for one in found], [view.size for view, _ in views]
    return result, *((zeros, sizes) if call.per_tensor else (sum(zeros), sum(sizes)))


def norm_sums(tensors: Sequence[Any], exponent: int, written: bool) -> Any:
    """Return the sums that norms are made of, of views; see ``_core.pyi``."""
    if not all(type(one) is tuple for one in tensors):
        return NotImplemented
    with Default(), np.errstate(all="ignore"):
        return [_norm_sums(view, dtype, exponent) for view, dtype in tensors]


def _norm_sums(view: Array, dtype: str, exponent: int) -> tuple[float, float, float, int, int]:
    (flat,) = canonical.flattened(view)
    sums = canonical.Measured(exponent)
    for part in canonical.slabs(view.size):
        sums.add(dtypes.to_float64(flat[part], dtype))
    return sums.found()


def scale_tensors(tensors: Sequence[Any], factor: float, checked: bool) -> Any:
    """Scale views in place, all or none; see ``_core.pyi``."""
    if not all(type(one) is tuple for one in tensors):
        return NotImplemented
    with Default(), np.errstate(all="ignore"):
        results = [_scaled(view, dtype, factor) for view, dtype in tensors]
    canonical.write([view for view, _ in tensors], results)
    return None


def _scaled(view: Array, dtype: str, factor: float) -> Array:
    if dtype == "bf16":
        # As one axis: what is made of an array without axes would be a number.
        numbers = dtypes.from_bfloat16(view.reshape(-1)) * np.float32(factor)
        return dtypes.to_bfloat16(numbers).reshape(view.shape)
    compute: Any = np.float64 if dtype == "f64" else np.float32
    products: Array = view.astype(compute) * compute(factor)
    return products.astype(view.dtype)


def accumulate_parameters(*_: Any) -> Any:
    """Leave torch's parameters to the caller, who has a longer way for the same result."""
    return NotImplemented


def have_members(dicts: Sequence[dict[str, Any]], members: Sequence[Any]) -> bool:
    """Return whether the values of dicts, one dict after the other, are these very objects."""
    values = [*chain.from_iterable(map(dict.values, dicts))]
    return len(values) == len(members) and all(map(is_, values, members))


def shares_address(weights: Sequence[Any]) -> bool:
    """Return whether two arrays start at the same lowest address; empty ones do not count."""
    views = [host.host_view(weight, "w", False)[0] for weight in weights]
    lowest = [memory.byte_bounds(view)[0] for view in views if view.size]
    return len(set(lowest)) < len(lowest)


def set_num_threads(count: int) -> None:
    """Check `count` and change nothing: the fallback runs on the caller's thread."""
    arguments.thread_count(count, "n")


def get_num_threads() -> int:
    """Return 1."""
    return 1


def set_instruction_set(name: str) -> None:
    """Accept "numpy", the only one that the fallback has."""
    arguments.choice(name, "name", instruction_sets())


def instruction_set() -> str:
    """Return "numpy"."""
    return "numpy"


def instruction_sets() -> tuple[str, ...]:
    """Return ("numpy",)."""
    return ("numpy",)
