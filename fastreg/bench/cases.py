"""What is measured: cells of the product dtype x terms x outputs, at a size.

Contract: a case declares the bytes which a perfect implementation moves between the processor and
memory, and the floor it is held against: a bare loop that moves the same bytes.

=========================  ============================================  =====
outputs                    declared bytes                                floor
=========================  ============================================  =====
value                      weights read                                  read
gradient, value+gradient   weights read, gradient written                copy
add, value+add             weights and gradient read, gradient written   add
=========================  ============================================  =====
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Strengths of the two terms wherever they are present. Large, because half precision would make
#: subnormal gradients of usual strengths, and those have a speed of their own on some processors.
L1_STRENGTH = 1e-3
L2_STRENGTH = 1e-2

#: dtype name -> bytes per element.
DTYPES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}

#: terms -> (l1, l2).
TERMS = {
    "L1": (L1_STRENGTH, 0.0),
    "L2": (0.0, L2_STRENGTH),
    "L1L2": (L1_STRENGTH, L2_STRENGTH),
}


@dataclass(frozen=True)
class Outputs:
    """A set of outputs: its floor, its streams of memory, and the bit mask of the core."""

    floor: str
    streams: int
    mask: int

    @property
    def has_value(self) -> bool:
        return bool(self.mask & 1)

    @property
    def adds(self) -> bool:
        return bool(self.mask & 4)


OUTPUTS = {
    "value": Outputs("read", 1, 1),
    "gradient": Outputs("copy", 2, 2),
    "value+gradient": Outputs("copy", 2, 3),
    "add": Outputs("add", 3, 6),
    "value+add": Outputs("add", 3, 7),
}


@dataclass(frozen=True)
class Case:
    """One cell at one size.

    Examples
    --------
    >>> case = Case("f32", "L1L2", "value+add", 1000)
    >>> case.bytes, case.floor
    (12000, 'add')
    """

    dtype: str
    terms: str
    outputs: str
    size: int

    @property
    def bytes(self) -> int:
        """Bytes moved at least: elements x bytes per element x streams."""
        return self.size * DTYPES[self.dtype] * OUTPUTS[self.outputs].streams

    @property
    def floor(self) -> str:
        return OUTPUTS[self.outputs].floor

    @property
    def strengths(self) -> tuple[float, float]:
        return TERMS[self.terms]

    @property
    def is_half(self) -> bool:
        return DTYPES[self.dtype] == 2

    def __str__(self) -> str:
        return f"{self.dtype} {self.terms} {self.outputs} at {self.size:,}"


@dataclass(frozen=True)
class Workload:
    """A case with its arrays: weights and gradient for all peers, scratch for the floor.

    The floor has a destination of its own, because its sums of raw bytes would leave NaN and
    infinity in a gradient of half precision.
    """

    case: Case
    weights: Array
    gradient: Array
    scratch: Array


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


def arrays(dtype: str, size: int) -> tuple[Array, Array, Array]:
    """Weights drawn from N(0, 0.05), the same ones each time, and two arrays of zeros."""
    rng = np.random.default_rng(20260101)
    weights = rng.standard_normal(size, dtype=np.float32)
    weights *= np.float32(0.05)
    target = numpy_dtype(dtype)
    # full() touches the pages; zeros() would leave that to the first variant which writes them
    return weights.astype(target), np.full(size, 0, target), np.full(size, 0, target)


def workloads(
    sizes: Sequence[int], dtypes: Sequence[str], terms: Sequence[str], outputs: Sequence[str]
) -> Iterator[Workload]:
    """Every case asked for; those of one dtype and size follow each other and share arrays."""
    for size, dtype in product(sizes, dtypes):
        shared = arrays(dtype, size)
        for term, output in product(terms, outputs):
            yield Workload(Case(dtype, term, output, size), *shared)
