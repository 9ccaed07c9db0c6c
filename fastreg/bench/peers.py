"""Who takes part in a benchmark: fastreg itself, the floors, and NumPy as one writes it by hand.

Contract: a peer has a name, says whether it can run here, and makes for a workload a callable
without arguments, or None where it has nothing to measure. The callable does the whole work of the
case into the workload's gradient, and returns the value where the case has one. Preparation that a
training loop does once (choosing a function, wrapping strengths) belongs into ``make``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np

from fastreg import _backend
from fastreg._info import native_core
from fastreg.bench.cases import OUTPUTS, Array, Workload
from fastreg.regularizers import L1L2

Call = Callable[[], object]


class Peer(Protocol):
    """One variant of a measurement."""

    @property
    def name(self) -> str:
        """The name in options, tables and JSON."""

    def available(self) -> bool:
        """Whether what the peer needs is installed."""

    def make(self, workload: Workload) -> Call | None:
        """The call to time, or None where the peer does not do this case."""


class Fastreg:
    """The public methods, with preallocated outputs.

    ``add`` without the value has no public method (the value costs nothing beside it); it is
    measured at the entry point below them.
    """

    name = "fastreg"

    def available(self) -> bool:
        return True

    def make(self, workload: Workload) -> Call:
        w, g = workload.weights, workload.gradient
        l1, l2 = workload.case.strengths
        regularizer = L1L2(l1, l2)
        match workload.case.outputs:
            case "value":
                return partial(regularizer, w)
            case "gradient":
                return partial(regularizer.gradient, w, g)
            case "value+gradient":
                return partial(regularizer.value_and_grad, w, g)
            case "value+add":
                return partial(regularizer.accumulate, w, g)
            case outputs:
                mask = OUTPUTS[outputs].mask
                return partial(_backend.evaluate_one, mask, w, g, l1, l2, 1.0, 1.0)


class Floor:
    """Bare loops over the same bytes, on the core's own threads; NumPy's where there is no core.

    The addition is in float32 or float64; half precision adds its bytes as float32, so that the
    floor is memory and not conversion.
    """

    name = "floor"

    def available(self) -> bool:
        return True

    def make(self, workload: Workload) -> Call:
        loops: Any = native_core() if _backend.name == "native" else _NumpyLoops
        kind = workload.case.floor
        source, destination = (
            _plain(array, kind == "add") for array in (workload.weights, workload.scratch)
        )
        match kind:
            case "read":
                return partial(loops.floor_read, source)
            case "copy":
                return partial(loops.floor_copy, destination, source)
            case _:
                return partial(loops.floor_add, destination, source)


class _NumpyLoops:
    """The floors of the fallback, under the names which the core gives them."""

    @staticmethod
    def floor_read(source: Array) -> object:
        # the quickest reduction that NumPy has: no arithmetic, whole registers
        result: object = np.bitwise_or.reduce(source.view(f"u{source.itemsize}"))
        return result

    @staticmethod
    def floor_copy(destination: Array, source: Array) -> None:
        np.copyto(destination, source)

    @staticmethod
    def floor_add(destination: Array, source: Array) -> None:
        np.add(destination, source, out=destination)


def _plain(array: Array, adds: bool) -> Array:
    """The array's bytes under a dtype which every loop takes: no bf16, and no half when adding."""
    if array.itemsize != 2:
        return array
    if adds:
        return array[: array.size // 2 * 2].view(np.float32)
    return array.view(np.uint16)


class NumpyByHand:
    """What a careful NumPy user writes: in place where possible, sums by NumPy's pairwise ``sum``.

    Half precision is converted to float32 once and computed there: it overflows and stalls
    otherwise. The temporaries that remain are those that NumPy cannot do without.
    """

    name = "numpy"

    def available(self) -> bool:
        return True

    def make(self, workload: Workload) -> Call | None:
        l1, l2 = workload.case.strengths
        outputs = OUTPUTS[workload.case.outputs]
        w, g = workload.weights, workload.gradient
        half = workload.case.is_half
        sum_of_squares = self.sum_of_squares

        def value(w: Array) -> float:
            total = 0.0
            if l1:
                total += l1 * float(np.abs(w).sum())
            if l2:
                total += l2 * float(sum_of_squares(w))
            return total

        def penalty_gradient(w: Array, out: Array | None) -> Array:
            if not l1:
                return np.multiply(w, 2 * l2, out=out)
            result: Array = np.sign(w, out=out)
            result *= l1
            if l2:
                result += (2 * l2) * w
            return result

        def call() -> float | None:
            wide = w.astype(np.float32) if half else w
            penalty = value(wide) if outputs.has_value else None
            if outputs.adds:
                added = penalty_gradient(wide, None)
                np.add(g, added, out=g, casting="same_kind")
            elif outputs.mask & 2:
                if half:
                    g[...] = penalty_gradient(wide, None)
                else:
                    penalty_gradient(wide, g)
            return penalty

        return call

    @staticmethod
    def sum_of_squares(w: Array) -> Any:
        return np.square(w).sum()


class NumpyDot(NumpyByHand):
    """The same with the squares summed by BLAS: faster, but float32 sums drift with the size.

    Only for the cases where it makes a difference: a value with an L2 term.
    """

    name = "numpy-dot"

    def make(self, workload: Workload) -> Call | None:
        has_value = OUTPUTS[workload.case.outputs].has_value
        return super().make(workload) if has_value and workload.case.strengths[1] else None

    @staticmethod
    def sum_of_squares(w: Array) -> Any:
        return np.vdot(w, w)


#: Whom fastreg can be compared with, by name. A further peer is one class and one entry here.
PEERS: dict[str, Peer] = {peer.name: peer for peer in (NumpyByHand(), NumpyDot())}
