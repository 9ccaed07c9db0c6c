"""The floors that fastreg is held against: bare loops over the same bytes.

Contract: the floor of a case is the fastest of them, so that a slow one cannot flatter. The
addition is in float32 or float64; half precision adds its bytes as float32, so that the floor is
memory and not conversion. A new copy is what makes an array as large as the gradient.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any, ClassVar

import numpy as np

from fastreg._info import native_core
from fastreg.bench.peers.base import Call, Peer, Prepared
from fastreg.bench.peers.own import backend
from fastreg.bench.row import FLOOR
from fastreg.bench.workloads import Array, Workload


class Floor(Peer):
    """The core's own loops on its own threads; NumPy's where there is no core."""

    name = FLOOR
    summary = "a bare loop over the same bytes"

    def make(self, workload: Workload) -> Prepared | None:
        kind = workload.case.floor
        (weights,) = workload.as_one.weights
        source, destination = (
            _plain(array, kind == "add") for array in (weights, workload.scratch)
        )
        call = self.calls(source, destination).get(kind)
        return None if call is None else Prepared(call, lambda: (workload.scratch,))

    def calls(self, source: Array, destination: Array) -> dict[str, Call]:
        """Return the loops by the kind of floor."""
        core: Any = native_core()
        if backend.name != "native":
            loops = NumpyFloor().calls(source, destination)
            return {kind: loops[kind] for kind in ("read", "copy", "add")}
        return {
            "read": partial(core.floor_read, source),
            "copy": partial(core.floor_copy, destination, source),
            "add": partial(core.floor_add, destination, source),
        }


class NumpyFloor(Floor):
    """What NumPy does with the same bytes on its one thread."""

    name: ClassVar[str] = f"{FLOOR}-numpy"

    def calls(self, source: Array, destination: Array) -> dict[str, Call]:
        # the quickest reduction that NumPy has: no arithmetic, whole registers
        bits = source.view(f"u{source.itemsize}")
        return {
            "read": partial(np.bitwise_or.reduce, bits),
            "copy": partial(np.copyto, destination, source),
            "add": partial(np.add, destination, source, out=destination),
            "new copy": source.copy,
        }


class NumpySum(NumpyFloor):
    """A new array by NumPy's addition."""

    name: ClassVar[str] = f"{FLOOR}-numpy-add"

    def calls(self, source: Array, destination: Array) -> dict[str, Call]:
        return {"new copy": partial(np.add, source, source)}


class TorchFloor(Floor):
    """What torch does with the same bytes."""

    name: ClassVar[str] = f"{FLOOR}-torch"
    modules: ClassVar[tuple[str, ...]] = ("torch",)
    pool = "torch"
    spins = True

    def calls(self, source: Array, destination: Array) -> dict[str, Call]:
        torch: Any = importlib.import_module("torch")
        # torch takes few operations of unsigned integers
        w, g = (
            torch.from_numpy(array.view(np.int16) if array.itemsize == 2 else array)
            for array in (source, destination)
        )
        numbers = w.view(torch.float32) if source.itemsize == 2 and w.numel() % 2 == 0 else w
        return {
            "read": numbers.amax,
            "copy": partial(g.copy_, w),
            "add": partial(g.add_, w),
            "new copy": w.clone,
        }


#: Those that are always there.
FLOORS = (Floor(), NumpyFloor(), NumpySum())


def _plain(array: Array, adds: bool) -> Array:
    """Return the bytes as a dtype which every loop takes: no bf16, and no half when adding."""
    if array.itemsize != 2:
        return array
    if adds:
        return array[: array.size // 2 * 2].view(np.float32)
    return array.view(np.uint16)
