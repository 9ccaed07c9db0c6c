"""NumPy, as a careful user writes it: in place, with buffers made beforehand.

Half precision is converted to float32 once and computed there: it overflows and stalls otherwise.
Ufuncs run on one thread, whatever the others do; BLAS has threads.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.workloads import Array, Workload


class Numpy(Peer):
    """Sums by NumPy's pairwise ``sum``."""

    name = "numpy"
    modules: ClassVar[tuple[str, ...]] = ("numpy",)
    summary = "NumPy with out= and buffers"

    def make(self, workload: Workload) -> Prepared | None:
        l1, l2 = workload.case.strengths
        outputs = OUTPUTS[workload.case.outputs]
        half = workload.case.is_half
        tensors = workload.tensors
        largest = max(w.size for w in tensors.weights)
        wide_type = np.float32 if half else tensors.weights[0].dtype
        spaces = [np.zeros(largest, wide_type) for _ in range(3 if half else 2)]
        work = [
            (w, g, *(space[: w.size].reshape(w.shape) for space in spaces))
            for w, g in zip(tensors.weights, tensors.gradients, strict=True)
        ]
        sum_of_squares = self.sum_of_squares

        def gradient(w: Array, out: Array, buffer: Array) -> None:
            if not l1:
                np.multiply(w, 2 * l2, out=out)
                return
            np.sign(w, out=out)
            np.multiply(out, l1, out=out)
            if l2:
                np.multiply(w, 2 * l2, out=buffer)
                np.add(out, buffer, out=out)

        def call() -> float:
            total = 0.0
            for w, g, buffer, spare, *wide in work:
                if half:
                    np.copyto(wide[0], w)
                    w = wide[0]
                if outputs.has_value:
                    if l1:
                        total += l1 * float(np.abs(w, out=buffer).sum())
                    if l2:
                        total += l2 * float(sum_of_squares(w, buffer))
                if outputs.adds:
                    gradient(w, buffer, spare)
                    np.add(g, buffer, out=g, casting="same_kind")
                elif outputs.mask & 2:
                    if half:
                        gradient(w, buffer, spare)
                        np.copyto(g, buffer, casting="same_kind")
                    else:
                        gradient(w, g, buffer)
            return total

        return Prepared(call, lambda: tensors.gradients)

    @staticmethod
    def sum_of_squares(w: Array, buffer: Array) -> Any:
        return np.multiply(w, w, out=buffer).sum()


class NumpyDot(Numpy):
    """The same with the squares summed by BLAS: faster, but float32 sums drift with the size.

    Only for the cases where it makes a difference: a value with an L2 term.
    """

    name = "numpy-dot"
    summary = "the same, squares summed by BLAS"

    @contextmanager
    def session(self, threads: int) -> Iterator[int]:
        if find_spec("threadpoolctl") is None:
            yield 0  # BLAS decides
            return
        threadpoolctl: Any = importlib.import_module("threadpoolctl")
        with threadpoolctl.threadpool_limits(threads, "blas"):
            yield threads

    def make(self, workload: Workload) -> Prepared | None:
        has_value = OUTPUTS[workload.case.outputs].has_value
        return super().make(workload) if has_value and workload.case.strengths[1] else None

    @staticmethod
    def sum_of_squares(w: Array, buffer: Array) -> Any:
        return np.vdot(w, w)
