"""Numba: one pass, parallel, fastmath; small tensors without threads. It has no half precision."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, ClassVar

import numpy as np

from fastreg.bench.cases import Outputs
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.workloads import Workload

#: Below this many elements a parallel region costs more than it gains.
SERIAL_BELOW = 32_768


class Numba(Peer):
    """A loop over each tensor, sums in float64, which is what ``total = 0.0`` makes of them."""

    name = "numba"
    modules: ClassVar[tuple[str, ...]] = ("numba",)
    pool = "numba"
    summary = "Numba, parallel and fastmath, sums in float64 (f32, f64)"
    #: The type of the sums; None: that of the tensor.
    sum_type: ClassVar[type[np.floating[Any]] | None] = np.float64
    compiles_slowly = True
    spins = True

    def most_threads(self, pool: Any, threads: int) -> int:
        return min(threads, int(pool.config.NUMBA_NUM_THREADS))

    def make(self, workload: Workload) -> Prepared | None:
        if workload.case.is_half:
            return None
        tensors = workload.tensors
        kind: Any = tensors.weights[0].dtype.type
        sums: Any = self.sum_type or kind
        serial, parallel = compiled(
            workload.case.returns,
            kind,
            sums,
            *(kind(strength) for strength in workload.case.strengths),
        )
        work = [
            (serial if w.size < SERIAL_BELOW else parallel, w.reshape(-1), g.reshape(-1))
            for w, g in zip(tensors.weights, tensors.gradients, strict=True)
        ]

        def call() -> float:
            total = 0.0
            for function, w, g in work:
                total += function(w, g)
            return total

        return Prepared(call, lambda: tensors.gradients)


class NumbaSingle(Numba):
    """The same with sums in float32: faster in the cache, but they drift with the size.

    Only for the cases where it makes a difference: a value of float32.
    """

    name = "numba-f32"
    summary = "the same, sums in float32"
    sum_type: ClassVar[None] = None

    def make(self, workload: Workload) -> Prepared | None:
        case = workload.case
        sums = case.dtype == "f32" and case.returns.has_value
        return super().make(workload) if sums else None


@cache
def compiled(outputs: Outputs, kind: Any, sum_type: Any, l1: Any, l2: Any) -> tuple[Any, Any]:
    """Return the loop over weights and gradients without threads and with; all sizes share it."""
    numba: Any = importlib.import_module("numba")
    prange = numba.prange
    has_l1, has_l2 = l1 > 0, l2 > 0
    has_value, has_gradient, adds = outputs.has_value, bool(outputs.mask & 6), outputs.adds
    minus_l1, two_l2, zero, none = -l1, 2 * l2, kind(0), sum_type(0)

    def penalty(w: Any, g: Any) -> Any:
        magnitudes = none
        squares = none
        for i in prange(w.size):
            x = w[i]
            if has_value:
                if has_l1:
                    magnitudes += abs(x)
                if has_l2:
                    squares += x * x
            if has_gradient:
                slope = zero
                if has_l1:
                    slope = l1 if x > 0 else (minus_l1 if x < 0 else zero)
                if has_l2:
                    slope += two_l2 * x
                g[i] = g[i] + slope if adds else slope
        return l1 * magnitudes + l2 * squares

    serial = numba.njit(fastmath=True)(penalty)
    parallel = numba.njit(fastmath=True, parallel=True)(penalty)
    return serial, parallel
