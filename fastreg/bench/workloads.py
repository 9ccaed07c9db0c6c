"""The arrays that a case is measured on.

Contract: weights are drawn from N(0, 0.05), the same ones each time. Cases of one dtype and place
share their arrays. Every array starts at a cache line: where NumPy puts it is chance, and worth a
factor of two to a loop that reads from the cache. The tensors of a model lie in one buffer, in
order, each at a line; that buffer serves as the one tensor of the same size as well, so that the
two are measured on the same memory. The floor has a destination of its own, because its sums of raw
bytes would leave NaN and infinity in a gradient of half precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import fsum, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastreg.bench.cases import Case
from fastreg.bench.shapes import MODELS

Array = NDArray[Any]

#: The bytes of a cache line; what PyTorch and JAX align to.
ALIGNMENT = 64
#: Elements that are converted to float64 at a time, so that no copy of everything is made.
BLOCK = 1 << 16


@dataclass(frozen=True)
class Tensors:
    """Weights, a gradient for each, and the exact sums over the weights."""

    weights: list[Array]
    gradients: list[Array]

    @cached_property
    def sums(self) -> tuple[float, float]:
        """The sums of ``|w|`` and of ``w**2``: float64, with blocks summed exactly.

        Examples
        --------
        >>> Tensors([np.array([1.0, -2.0]), np.array([3.0])], []).sums
        (6.0, 14.0)
        """
        magnitudes, squares = [], []
        for weights in self.weights:
            flat = weights.reshape(-1)
            for start in range(0, flat.size, BLOCK):
                block = np.abs(flat[start : start + BLOCK].astype(np.float64))
                magnitudes.append(float(block.sum()))
                squares.append(float(np.square(block).sum()))
        return fsum(magnitudes), fsum(squares)


@dataclass(frozen=True)
class Workload:
    """A case with its arrays; of one tensor, ``tensors`` and ``as_one`` are the same."""

    case: Case
    tensors: Tensors
    as_one: Tensors
    scratch: Array

    def fill_gradients(self, value: float) -> None:
        for gradient in (*self.tensors.gradients, *self.as_one.gradients):
            gradient.fill(value)

    def one_tensor(self) -> Workload:
        """The same case on one tensor of the same size."""
        return replace(self, tensors=self.as_one)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a dtype name; bf16 needs ml_dtypes.

    Examples
    --------
    >>> numpy_dtype("f32")
    dtype('float32')
    """
    if name == "bf16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype({"f16": "float16", "f32": "float32", "f64": "float64"}[name])


def workloads(cases: Iterable[Case]) -> Iterator[Workload]:
    """The cases with their arrays, which live until the next dtype or place."""
    for (dtype, size, model), group in groupby(cases, lambda c: (c.dtype, c.size, c.model)):
        shapes = list(MODELS[model].values()) if model else [(size,)]
        tensors, as_one, scratch = _arrays(numpy_dtype(dtype), shapes)
        for case in group:
            yield Workload(case, tensors, as_one, scratch)
        del tensors, as_one, scratch  # before the next ones are made


def _arrays(
    dtype: np.dtype[Any], shapes: Sequence[tuple[int, ...]]
) -> tuple[Tensors, Tensors, Array]:
    starts, end = [], 0
    for shape in shapes:
        starts.append(end)
        end += _whole_lines(prod(shape), dtype.itemsize)
    size = sum(prod(shape) for shape in shapes)
    if len(shapes) == 1:
        end = size
    rng = np.random.default_rng(20260101)
    drawn = rng.standard_normal(end, dtype=np.float32)
    drawn *= np.float32(0.05)
    weights, gradient, scratch = (_aligned(length, dtype) for length in (end, end, size))
    weights[:] = drawn
    # touches the pages, which would else be left to the first variant that writes them
    gradient.fill(0)
    scratch.fill(0)
    as_one = Tensors([weights[:size]], [gradient[:size]])
    if len(shapes) == 1:
        return as_one, as_one, scratch

    def split(buffer: Array) -> list[Array]:
        return [
            buffer[start : start + prod(shape)].reshape(shape)
            for start, shape in zip(starts, shapes, strict=True)
        ]

    return Tensors(split(weights), split(gradient)), as_one, scratch


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """A new array that starts at a multiple of ALIGNMENT bytes."""
    buffer = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size * dtype.itemsize].view(dtype)


def _whole_lines(elements: int, itemsize: int) -> int:
    """Elements up to the next multiple of ALIGNMENT bytes."""
    per_line = ALIGNMENT // itemsize
    return -(-elements // per_line) * per_line
