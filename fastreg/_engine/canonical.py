"""Sums, order and rounding in NumPy: what the fallback's calls are made of.

Contract
--------
- Canonical sums and the order of elements are those of docs/numerics.md, 3 and 4.
- Work goes in slabs of 8 chunks: temporaries take a few 100 KB, whatever the size of the arrays.
- The caller has set the floating point environment, and silenced NumPy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dtypes, memory
from .._base.float_environment import Default

Array = npt.NDArray[Any]
Doubles = npt.NDArray[np.float64]

LANES = 32
ROWS = 128
CHUNK = LANES * ROWS
SLAB = 8 * CHUNK  # 256 KiB of float64: it stays in the second-level cache


def chunk_sums(terms: Doubles) -> Doubles:
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


def tree(terms: Doubles) -> float:
    while terms.size > CHUNK:
        terms = np.concatenate(
            [chunk_sums(terms[start : start + SLAB]) for start in range(0, terms.size, SLAB)]
        )
    return float(chunk_sums(terms)[0]) if terms.size else 0.0


def canonical_sum(values: Sequence[float]) -> float:
    """Sum numbers in the fixed order of the numerics contract.

    Chunks of 4096 consecutive terms; in a chunk, lane j of 32 starts at +0.0 and adds the terms
    j, j + 32, j + 64, ... in this order; the lanes are halved (j += j + 16, then 8, 4, 2, 1); the
    chunk sums are summed in the same way until one is left.  Nothing to add gives +0.0.

    >>> canonical_sum([0.5, 0.25])
    0.75
    """
    with Default(), np.errstate(all="ignore"):
        return tree(np.asarray(values, np.float64))


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


def flattened(weight: Array, *others: Array) -> list[Any]:
    """Flatten a weight in its order of summation, and other arrays by the same indices."""
    order = memory.dense_order(weight)
    arrays = (weight, *others)
    return [_flat(array if order is None else array.transpose(order)) for array in arrays]


def slabs(size: int) -> Iterator[slice]:
    return (slice(start, min(start + SLAB, size)) for start in range(0, size, SLAB))


#: No chunk sums: what an empty tensor has.
NONE = np.empty(0)


def stored(numbers: Array, dtype: str) -> Array:
    """Round numbers to the dtype of elements; an overflow to infinity is right."""
    if dtype == "bf16":
        return dtypes.to_bfloat16(numbers)
    return numbers.astype(dtypes.stored(dtype), copy=False)


class Sums:
    """The sums of a tensor's terms, chunk by chunk, and the penalty that they make."""

    def __init__(self, strengths: tuple[float, float], dtype: str) -> None:
        self._l1, self._l2 = strengths
        self._dtype = dtype
        self.has_l1, self.has_l2 = self._l1 != 0.0, self._l2 != 0.0
        self._chunks: tuple[list[Doubles], list[Doubles]] = [], []

    def add(self, weights: Array) -> None:
        """Add a slab of elements."""
        doubles = dtypes.to_float64(weights, self._dtype)
        if self.has_l2:
            self._chunks[1].append(chunk_sums(np.multiply(doubles, doubles)))
        if self.has_l1:
            self._chunks[0].append(chunk_sums(np.abs(doubles, out=doubles)))

    def penalty(self) -> float:
        """Return the penalty of what was added."""
        value = 0.0
        if self.has_l1:
            value = self._l1 * tree(np.concatenate([NONE, *self._chunks[0]]))
        if self.has_l2:
            squares = self._l2 * tree(np.concatenate([NONE, *self._chunks[1]]))
            value = value + squares if self.has_l1 else squares
        return value


class Measured:
    """The sums that norms are made of, chunk by chunk, of elements times 2**exponent."""

    def __init__(self, exponent: int) -> None:
        self._exponent = exponent
        self._chunks: tuple[list[Doubles], list[Doubles]] = [NONE], [NONE]
        self._maximum, self._zeros, self._nonfinite = 0.0, 0, 0

    def add(self, numbers: Doubles) -> None:
        """Add a slab of elements."""
        magnitudes = np.abs(numbers)
        if self._exponent:
            magnitudes = np.ldexp(magnitudes, self._exponent)
        # The maximum of NumPy is NaN if an element is.
        self._maximum = float(np.maximum(self._maximum, magnitudes.max()))
        self._zeros += magnitudes.size - int(np.count_nonzero(magnitudes))
        self._nonfinite += magnitudes.size - int(np.count_nonzero(np.isfinite(magnitudes)))
        self._chunks[0].append(chunk_sums(magnitudes))
        self._chunks[1].append(chunk_sums(np.multiply(magnitudes, magnitudes)))

    def found(self) -> tuple[float, float, float, int, int]:
        """Return l1, the sum of squares, maximum, zeros and nonfinite."""
        l1, l2 = (tree(np.concatenate(one)) for one in self._chunks)
        return l1, l2, self._maximum, self._zeros, self._nonfinite


def write(targets: Sequence[Array], results: Sequence[Any]) -> None:
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
