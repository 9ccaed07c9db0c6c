"""Numba: one pass, parallel, fastmath; small tensors without threads. It has no half precision."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.workloads import Workload

#: Below this many elements a parallel region costs more than it gains.
SERIAL_BELOW = 32_768


class Numba(Peer):
    """A loop over each tensor, sums in the tensor's own type."""

    name = "numba"
    modules = ("numba",)
    summary = "Numba, parallel and fastmath (f32, f64)"
    compiles_slowly = True
    spins = True

    @contextmanager
    def session(self, threads: int) -> Iterator[int]:
        numba: Any = importlib.import_module("numba")
        before = numba.get_num_threads()
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        try:
            yield numba.get_num_threads()
        finally:
            numba.set_num_threads(before)

    def make(self, workload: Workload) -> Prepared | None:
        if workload.case.is_half:
            return None
        numba: Any = importlib.import_module("numba")
        prange = numba.prange
        tensors = workload.tensors
        kind = tensors.weights[0].dtype.type
        outputs = OUTPUTS[workload.case.outputs]
        has_l1, has_l2 = (strength > 0 for strength in workload.case.strengths)
        has_value, has_gradient, adds = outputs.has_value, bool(outputs.mask & 6), outputs.adds
        l1, l2 = (kind(strength) for strength in workload.case.strengths)
        minus_l1, two_l2, zero = -l1, 2 * l2, kind(0)

        def penalty(w: Any, g: Any) -> Any:
            magnitudes = zero
            squares = zero
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
