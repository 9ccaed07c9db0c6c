"""fastreg itself, and the floors it is held against."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

import fastreg
from fastreg._info import native_core
from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.row import FLOOR, OWN
from fastreg.bench.workloads import Array, Workload
from fastreg.regularizers import L1L2


def entry_points(*names: str) -> ModuleType:
    """Return the first of the modules below the public methods that this build has.

    `bench compare` measures older builds with this benchmark.
    """
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            pass
    return import_module("fastreg._backend")


backend: Any = entry_points("fastreg._engine.backend")
calls: Any = entry_points("fastreg._engine.calls", "fastreg._engine.backend")


def entries_for(w: Array) -> Any:
    """Return the entry points for an array; the core alone takes NumPy's."""
    return backend if type(w) is np.ndarray else calls


class Fastreg(Peer):
    """The public methods, with preallocated outputs.

    Where no public method takes outputs (gradients of many tensors) or leaves the value out (add),
    the entry point below them is measured.
    """

    name = OWN
    summary = "this package"
    value_tolerance = 1e-12  # its sums are in float64

    def make(self, workload: Workload) -> Prepared:
        tensors = workload.tensors
        call = self._many(workload) if len(tensors.weights) > 1 else self._one(workload)
        return Prepared(call, lambda: tensors.gradients, _first_of_pair)

    @staticmethod
    def _one(workload: Workload) -> Any:
        (w,), (g,) = workload.tensors.weights, workload.tensors.gradients
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
                return partial(entries_for(w).evaluate_one, mask, w, g, l1, l2, 1.0, 1.0)

    @staticmethod
    def _many(workload: Workload) -> Any:
        weights = {str(n): w for n, w in enumerate(workload.tensors.weights)}
        gradients = dict(zip(weights, workload.tensors.gradients, strict=True))
        strengths = workload.case.strengths
        match workload.case.outputs:
            case "value":
                return fastreg.attach(weights, L1L2(*strengths)).value
            case "value+add":
                return partial(fastreg.attach(weights, L1L2(*strengths)).accumulate, gradients)
            case outputs:
                return partial(
                    entries_for(workload.tensors.weights[0]).evaluate_many,
                    OUTPUTS[outputs].mask,
                    tuple(weights),
                    tuple(weights.values()),
                    tuple(gradients.values()),
                    (strengths,),
                    (0,) * len(weights),
                    1.0,
                    1.0,
                    False,
                )


class Floor(Peer):
    """Bare loops over the same bytes, on the core's own threads; NumPy's where there is no core.

    The addition is in float32 or float64; half precision adds its bytes as float32, so that the
    floor is memory and not conversion.
    """

    name = FLOOR
    summary = "a bare loop over the same bytes"

    def make(self, workload: Workload) -> Prepared:
        loops: Any = native_core() if backend.name == "native" else _NumpyLoops
        kind = workload.case.floor
        (weights,) = workload.as_one.weights
        source, destination = (
            _plain(array, kind == "add") for array in (weights, workload.scratch)
        )
        match kind:
            case "read":
                call = partial(loops.floor_read, source)
            case "copy":
                call = partial(loops.floor_copy, destination, source)
            case _:
                call = partial(loops.floor_add, destination, source)
        return Prepared(call, lambda: (workload.scratch,))


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
    """Return the bytes as a dtype which every loop takes: no bf16, and no half when adding."""
    if array.itemsize != 2:
        return array
    if adds:
        return array[: array.size // 2 * 2].view(np.float32)
    return array.view(np.uint16)


def _first_of_pair(result: Any) -> float:
    """Return the value, also where the gradients come with it."""
    return float(result[0] if isinstance(result, tuple) else result)
