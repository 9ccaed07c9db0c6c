"""The entry points of the native core, in NumPy: the fallback without a compiler, and the oracle.

Contract
--------
- The same bits as the native core for every dtype, layout and call: see docs/numerics.md.
- Work goes in slabs of 8 chunks: temporaries take a few 100 KB beside the new gradients, whatever
  the size of the arrays.
- All gradients of a call are written or none.  Everything is checked, and the new gradients are
  computed beside the old ones, before anything is written; then one call into NumPy's own code
  writes all, which neither a signal nor another thread's exception can interrupt.
- The caller's floating point environment changes nothing, where the C library lets it be set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise, repeat
from operator import is_
from typing import Any

import numpy as np
import numpy.typing as npt

from .._arrays import host
from .._base import arguments, dtypes, memory, penalty
from .._base.float_environment import Default
from .._base.penalty import ADD, VALUE, Call, call_of_one
from . import checks

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

LANES = 32
ROWS = 128
CHUNK = LANES * ROWS
SLAB = 8 * CHUNK  # 256 KiB of float64: it stays in the second-level cache


def _chunk_sums(terms: Doubles) -> Doubles:
    """Sum each chunk of 4096 terms: 32 lanes, then halving.  The last chunk may be short."""
    whole = terms.size // CHUNK
    rest = terms.size - whole * CHUNK
    sums = np.empty(whole + (rest > 0))
    if whole:
        # Reducing the middle axis adds row after row to 32 lanes, in order.  `initial` is the
        # +0.0 of the contract: without it a lane of nothing but -0.0 would stay -0.0.
        rows = terms[: whole * CHUNK].reshape(whole, ROWS, LANES)
        sums[:whole] = _halved(np.add.reduce(rows, axis=1, initial=0.0))
    if rest:
        # Zeros behind the last term change no bits, for no lane is ever -0.0.
        padded = np.zeros((1, -(-rest // LANES), LANES))
        padded.reshape(-1)[:rest] = terms[whole * CHUNK :]
        sums[whole:] = _halved(np.add.reduce(padded, axis=1, initial=0.0))
    return sums


def _halved(lanes: Doubles) -> Doubles:
    half = LANES // 2
    while half:
        lanes = lanes[:, :half] + lanes[:, half:]
        half //= 2
    return lanes[:, 0]


def _tree(terms: Doubles) -> float:
    while terms.size > CHUNK:
        terms = np.concatenate(
            [_chunk_sums(terms[start : start + SLAB]) for start in range(0, terms.size, SLAB)]
        )
    return float(_chunk_sums(terms)[0]) if terms.size else 0.0


def canonical_sum(values: Sequence[float]) -> float:
    """Sum numbers in the fixed order of the numerics contract.

    Chunks of 4096 consecutive terms; in a chunk, lane j of 32 starts at +0.0 and adds the terms
    j, j + 32, j + 64, ... in this order; the lanes are halved (j += j + 16, then 8, 4, 2, 1); the
    chunk sums are summed in the same way until one is left.  Nothing to add gives +0.0.

    >>> canonical_sum([0.5, 0.25])
    0.75
    """
    with Default(), np.errstate(all="ignore"):
        return _tree(np.asarray(values, np.float64))


def _flat(view: Array) -> Any:
    """Return the elements in C order under one index: a view where strides allow, else ``.flat``.

    Both take ``flat[a:b]`` to read and to write, and neither copies the array.
    """
    steps = [
        (extent, stride)
        for extent, stride in zip(view.shape, view.strides, strict=True)
        if extent != 1
    ]
    for (_, outer), (extent, inner) in pairwise(steps):
        if outer != inner * extent:
            return view.flat
    return view.reshape(-1)


def _flattened(weight: Array, *others: Array) -> list[Any]:
    """Flatten a weight in its order of summation, and other arrays by the same indices."""
    order = memory.dense_order(weight)
    arrays = (weight, *others)
    return [_flat(array if order is None else array.transpose(order)) for array in arrays]


def _slabs(size: int) -> Iterator[slice]:
    return (slice(start, min(start + SLAB, size)) for start in range(0, size, SLAB))


#: No chunk sums: what an empty tensor has.
_NONE = np.empty(0)


def _evaluate(
    outputs: int,
    weight: tuple[Array, str],
    gradient: Array | None,
    pair: tuple[float, float],
    scale: float,
    grad_scale: float,
) -> tuple[float, Any]:
    """Return the penalty of one checked tensor, 0.0 where it was not asked for, and write nothing.

    With it what the gradient becomes, None where it stays.
    """
    view, dtype = weight
    strengths = pair[0] * scale, pair[1] * scale
    has_l1, has_l2 = strengths[0] != 0.0, strengths[1] != 0.0
    if not (has_l1 or has_l2):
        return 0.0, None if gradient is None or outputs & ADD else gradient.dtype.type(0)
    result = None if gradient is None else np.empty_like(gradient)
    if gradient is None or result is None:
        (flat,) = _flattened(view)
        flat_gradient = flat_result = None
    else:
        flat, flat_gradient, flat_result = _flattened(view, gradient, result)
    sums: tuple[list[Doubles], list[Doubles]] = [], []
    factors = penalty.coefficients(pair, scale, grad_scale)
    for part in _slabs(view.size):
        elements = flat[part]
        if outputs & VALUE:
            doubles = dtypes.to_float64(elements, dtype)
            if has_l2:
                sums[1].append(_chunk_sums(np.multiply(doubles, doubles)))
            if has_l1:
                sums[0].append(_chunk_sums(np.abs(doubles, out=doubles)))
        if flat_result is not None:
            old = flat_gradient[part] if flat_gradient is not None and outputs & ADD else None
            slope = _slope(elements, old, dtype, factors, has_l1, has_l2)
            # An overflow of this rounding to infinity is right, a warning would not be.
            flat_result[part] = dtypes.to_bfloat16(slope) if dtype == "bf16" else slope
    if not outputs & VALUE:
        return 0.0, result
    value = 0.0
    if has_l1:
        value = strengths[0] * _tree(np.concatenate([_NONE, *sums[0]]))
    if has_l2:
        squares = strengths[1] * _tree(np.concatenate([_NONE, *sums[1]]))
        value = value + squares if has_l1 else squares
    return value, result


def _slope(
    elements: Array,
    old: Array | None,
    dtype: str,
    factors: tuple[float, float],
    has_l1: bool,
    has_l2: bool,
) -> Array:
    """Return ``l1*sign(w) + (2*l2)*w``, and the old gradient added last, each operation rounded."""
    compute = np.float64 if dtype == "f64" else np.float32
    w = _widened(elements, dtype)
    with np.errstate(over="ignore", under="ignore"):
        l1, double_l2 = compute(factors[0]), compute(factors[1])
    if has_l1:
        slope = np.sign(w)  # +0 at both zeros, NaN at NaN
        slope *= l1
        if has_l2:
            slope += w * double_l2
    else:
        slope = w * double_l2
    if old is not None:
        slope += _widened(old, dtype)
    return slope


def _widened(elements: Array, dtype: str) -> Array:
    """Convert elements to the type of the gradient's arithmetic, float32 or float64."""
    if dtype == "bf16":
        return dtypes.from_bfloat16(elements)
    return elements.astype(np.float32) if dtype == "f16" else elements


def _write(targets: Sequence[Array], results: Sequence[Any]) -> None:
    """Write all results into their targets, of the same dtypes, or none.

    Python handles signals between its own instructions, and there are none in here: the loop is
    that of ``map`` and ``deque``, and the body NumPy's.  What can still fail is the allocation of a
    few bytes; then, and where a signal came just before or after the loop, it is run again before
    the exception goes on.
    """
    try:
        deque(map(np.ndarray.__setitem__, targets, repeat(...), results), maxlen=0)
    except BaseException:
        deque(map(np.ndarray.__setitem__, targets, repeat(...), results), maxlen=0)
        raise


def evaluate_one(*arguments: Any) -> float | None:
    """Evaluate one tensor; parameters and results are those of the core (``_core.pyi``)."""
    result = _evaluated(call_of_one(*arguments)._replace(per_tensor=True))
    return result[0] if isinstance(result, list) else None


def evaluate_many(*arguments: Any) -> float | list[float] | None:
    """Evaluate many tensors; parameters and results are those of the core (``_core.pyi``)."""
    return _evaluated(Call(*arguments))


def _evaluated(call: Call) -> float | list[float] | None:
    """Make a call, or write nothing at all when a tensor is refused."""
    copied = [host.host_view(target, "grads", True) for target, _ in call.copies]
    seen = [checks.Seen("grads", view, True) for view in copied]
    views, targets = checks.checked_views(call)
    checks.require_current(seen)
    with Default(), np.errstate(all="ignore"):
        found = [
            _evaluate(
                call.outputs,
                view,
                targets[index] if targets else None,
                call.strengths[call.which[index]],
                float(call.scale),
                float(call.grad_scale),
            )
            for index, view in enumerate(views)
        ]
    changed = [index for index, (_, result) in enumerate(found) if result is not None]
    _write(
        [*(targets[index] for index in changed), *(view for view, _ in copied)],
        [*(found[index][1] for index in changed), *(source for _, source in call.copies)],
    )
    if not call.outputs & VALUE:
        return None
    values = [value for value, _ in found]
    return values if call.per_tensor else canonical_sum(values)


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
