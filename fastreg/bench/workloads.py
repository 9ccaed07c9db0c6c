"""The arrays that a case is measured on.

Contract: weights are drawn from N(0, 0.05), the same ones each time. Cases of one dtype, place and
memory share their arrays. The memory is one of

- ``aligned``: NumPy's, started at a cache line: where NumPy puts an array is chance, and worth a
  factor of two to a loop that reads from the cache. The tensors of a model lie in one buffer, in
  order, each at a line; that buffer serves as the one tensor of the same size as well, so that the
  two are measured on the same memory;
- ``numpy``: as NumPy's allocator gives it, 16 bytes behind a line where it is large, in large pages
  from 4 MiB on where the system has them;
- ``small-pages``: the same in pages of the usual size, as with NUMPY_MADVISE_HUGEPAGE=0;
- ``torch``: as torch's allocator gives it.

In all but the first the tensors of a model are allocated one by one, as training loops do. The
floor has a destination of its own, because its sums of raw bytes would leave NaN and infinity in a
gradient of half precision.
"""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from math import fsum, prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastreg.bench.cases import DTYPES, Case
from fastreg.bench.shapes import MODELS, Shapes

Array: TypeAlias = NDArray[Any]

#: The bytes of a cache line; what PyTorch and JAX align to.
ALIGNMENT = 64
#: The bytes that the libc keeps before a large block, at the start of its first page.
LIBC_HEADER = 16
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

    def sample(self, array: Array, limit: int) -> Array:
        """Return up to ``limit`` elements at an odd stride, which meets every lane, as float64."""
        flat = array.reshape(-1)
        return self.as_float64(flat[:: len(flat) // limit | 1])

    def as_float64(self, array: Array) -> Array:
        """Return a copy in NumPy's float64."""
        return array.astype(np.float64)


@dataclass(frozen=True)
class Workload:
    """A case with its arrays; of one tensor, ``tensors`` and ``as_one`` are the same."""

    case: Case
    tensors: Tensors
    as_one: Tensors
    scratch: Array

    def fill_gradients(self, value: float) -> None:
        for gradient in (*self.tensors.gradients, *self.as_one.gradients):
            gradient[...] = value

    def one_tensor(self) -> Workload:
        """Return the same case on one tensor of the same size."""
        return replace(self, tensors=self.as_one)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a dtype name; bf16 needs ml_dtypes.

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


Buffers = Callable[[str, int, int], tuple[Array, Array, Array]]
Allocator = Callable[[int, "np.dtype[Any]"], Array]


def host_buffers(
    dtype: str, length: int, size: int, allocate: Allocator
) -> tuple[Array, Array, Array]:
    """Return weights and gradients of ``length`` elements, and ``size`` to write to."""
    rng = np.random.default_rng(20260101)
    drawn = rng.standard_normal(length, dtype=np.float32)
    drawn *= np.float32(0.05)
    kind = numpy_dtype(dtype)
    weights, gradient, scratch = (allocate(count, kind) for count in (length, length, size))
    weights[:] = drawn
    # touches the pages, which would else be left to the first variant that writes them
    gradient.fill(0)
    scratch.fill(0)
    return weights, gradient, scratch


def workloads(
    cases: Iterable[Case],
    make: Buffers | None = None,
    kind: type[Tensors] = Tensors,
    models: Mapping[str, Shapes] = MODELS,
) -> Iterator[Workload]:
    """Yield the cases with their arrays, which live until the next dtype, place or memory."""
    for (dtype, size, model, memory), group in groupby(
        cases, lambda c: (c.dtype, c.size, c.model, c.memory)
    ):
        shapes = list(models[model].values()) if model else [(size,)]
        starts, end = [], 0
        for shape in shapes:
            starts.append(end)
            end += _whole_lines(prod(shape), DTYPES[dtype]) if model else size
        allocate = ALLOCATORS[memory]
        buffers = make or partial(host_buffers, allocate=allocate)
        weights, gradient, scratch = buffers(dtype, end, size)
        as_one = kind([weights[:size]], [gradient[:size]])
        tensors = as_one
        if len(shapes) > 1:
            tensors = kind(*(_split(buffer, starts, shapes) for buffer in (weights, gradient)))
            if memory != "aligned":
                tensors = kind(
                    *(
                        [_copied(array, allocate) for array in arrays]
                        for arrays in (tensors.weights, tensors.gradients)
                    )
                )
        del weights, gradient
        for case in group:
            yield Workload(case, tensors, as_one, scratch)
        del tensors, as_one, scratch  # before the next ones are made


def _split(buffer: Array, starts: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    return [
        buffer[start : start + prod(shape)].reshape(shape)
        for start, shape in zip(starts, shapes, strict=True)
    ]


def _copied(array: Array, allocate: Allocator) -> Array:
    """Return the same numbers in memory of their own."""
    copy = allocate(array.size, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _aligned(size: int, dtype: np.dtype[Any]) -> Array:
    """Return a new array that starts at a multiple of ALIGNMENT bytes."""
    buffer = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + size * dtype.itemsize].view(dtype)


def _in_small_pages(size: int, dtype: np.dtype[Any]) -> Array:
    """Return a new array where the libc would put it, in a map that asks for no large pages."""
    return np.frombuffer(
        mmap.mmap(-1, LIBC_HEADER + size * dtype.itemsize), dtype, size, LIBC_HEADER
    )


def _of_torch(size: int, dtype: np.dtype[Any]) -> Array:
    """Return a new tensor's memory."""
    torch: Any = importlib.import_module("torch")
    memory: Array = torch.empty(size * dtype.itemsize, dtype=torch.uint8).numpy()
    return memory.view(dtype)


#: By the memory of a case; each takes a number of elements and their dtype.
ALLOCATORS: dict[str, Allocator] = {
    "aligned": _aligned,
    "numpy": np.empty,
    "small-pages": _in_small_pages,
    "torch": _of_torch,
}


def _whole_lines(elements: int, itemsize: int) -> int:
    """Return elements up to the next multiple of ALIGNMENT bytes."""
    per_line = ALIGNMENT // itemsize
    return -(-elements // per_line) * per_line
