"""Steps of optimizers for tensors on a device: what ``backend`` has for the host.

Contract
--------
- What the host has to know is waited for: the sums that are measured.  A step itself is queued,
  and so are its penalty, zeros and norm.
- Where the device alone decides whether a step is taken, it counts the steps as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arrays import cuda, cuda_results
from .._arrays.device_array import DeviceArray
from .._arrays.host_memory import Array
from .._arrays.libraries import owner
from .._base import dtypes
from .._base.core import core
from .cuda import Operands, tensor

_NUMBER = 8
"""The bytes of a float64 and of an int64."""

Place = tuple[int, int]
"""A device and one of its streams."""


def is_there(arrays: Sequence[Any]) -> bool:
    """Return whether the first of many arrays is on a CUDA device."""
    return bool(arrays) and type(arrays[0]) is not tuple and cuda.is_on_cuda(arrays[0])


def place_of(x: Any) -> Place:
    """Return the device of an array, and the stream on which it is used."""
    operands = Operands([("x", x)])
    operands.view(x, "x", False)
    return operands.device or 0, operands.stream


class Counts:
    """How many steps each tensor took, and the optimizer, in device memory."""

    def __init__(self, place: Place, taken: Sequence[int], steps: int) -> None:
        device, stream = place
        self._size = len(taken) + 1
        self._memory = core().DeviceMemory(device, stream, _NUMBER * self._size)
        numbers = np.array([*taken, steps], np.int64)
        core().cuda_copy_from_host(device, stream, self._memory.address, numbers)
        self._stream = stream

    def addresses(self, places: Sequence[int]) -> list[int]:
        """Return where the counts of some tensors lie."""
        return [self._memory.address + _NUMBER * place for place in places]

    @property
    def steps(self) -> int:
        """Where the count of the optimizer lies."""
        address: int = self._memory.address + _NUMBER * (self._size - 1)
        return address

    def used(self, stream: int) -> None:
        """Note the stream that has counted last."""
        self._stream = stream
        self._memory.mark_written()

    def read(self) -> tuple[list[int], int]:
        """Copy the counts to the host, and wait for them: of the tensors, and of the optimizer."""
        memory = self._memory
        copied = core().cuda_copy(memory.device, self._stream, memory.address, _NUMBER * self._size)
        *taken, steps = np.frombuffer(copied, np.int64).tolist()
        return taken, steps


class Decided(NamedTuple):
    """What the device decides of a step."""

    counts: Counts | None = None
    places: Sequence[int] = ()
    """For each tensor of the step, its place among the counts."""
    found_inf: Any = None
    """A float32 number on the device: not 0 skips the step."""
    loss_scale: Any = None
    """Likewise; None for the number that the step has."""

    @property
    def is_any(self) -> bool:
        """Return whether there is anything."""
        return not (self.counts is None and self.found_inf is None and self.loss_scale is None)


class Results(NamedTuple):
    """What a step that has been queued comes to, on the device."""

    penalty: Any
    zeros: Any
    norm: Any
    skipped: Any


class There:
    """The tensors of a step."""

    def __init__(self, labelled: Sequence[tuple[str, Any]]) -> None:
        self._operands = Operands(labelled)

    def view(self, x: Any, label: str, writable: bool) -> tuple[Array, str]:
        """Describe an array: a shadow of it, and the name of its dtype."""
        return self._operands.view(x, label, writable)

    def _run(self, body: Any) -> Any:
        operands = self._operands

        def run(described: Any) -> Any:
            found = body((described.device, described.stream))
            if operands.capsules:
                mark = core().StreamMark(described.device, described.stream)
                cuda_results.hold(mark, operands.capsules)
            return found

        return operands.run([], run)

    def sums(self, views: Sequence[tuple[Array, str]]) -> Any:
        """Return the sums that norms are made of, and wait for them."""
        rows = [tensor(view, None, dtype, 0) for view, dtype in views]
        return self._operands.run(rows, lambda described: core().cuda_norm_sums(described, 0))

    def measured(self, *arguments: Any) -> Any:
        """Do what ``backend.measure_step`` does, and wait for it."""
        return self._run(lambda place: core().cuda_measure_step(place, *arguments))

    def taken(self, arguments: tuple[Any, ...], is_ruled: bool, first: Any, decision: Any) -> Any:
        """Queue a step whose arguments are those of ``backend.take_step``, but for the last.

        `decision` is None where the host knows all, else what `decided` has made.  Returns the
        results, in the kind of `first`.
        """
        library, array = owner(first)

        def run(place: Place) -> Any:
            def made(dtype: str) -> Any:
                return library.cuda_total(array, *place, dtype)

            penalty, zeros = (made("f64"), made("i64")) if is_ruled else (None, None)
            norm = skipped = known = None
            if decision is not None:
                known, norm, skipped = decision(made)
            addresses = [0, 0, *(0 if one is None else one.address for one in (penalty, zeros))]
            found = core().cuda_take_step(place, *arguments, known, addresses)
            if found is NotImplemented:
                return found
            return Results(
                *(None if one is None else one.finish(False) for one in (penalty, zeros)),
                *(None if one is None else one.finish(False) for one in (norm, skipped)),
            )

        return self._run(run)

    def each(self, arguments: tuple[Any, ...], count: int) -> Any:
        """Take a step, and wait for the penalty and the zeros of each tensor that counts."""

        def run(place: Place) -> Any:
            size = _NUMBER * max(count, 1)
            penalties, zeros = (core().DeviceMemory(*place, size) for _ in range(2))
            addresses = [penalties.address, zeros.address, 0, 0]
            found = core().cuda_take_step(place, *arguments, None, addresses)
            if found is NotImplemented:
                return found
            return tuple(
                np.frombuffer(core().cuda_copy(*place, memory.address, _NUMBER * count), dtype)
                for memory, dtype in ((penalties, np.float64), (zeros, np.int64))
            )

        return self._run(run)

    def _number(self, x: Any, label: str) -> int:
        """Return the address of a float32 number."""
        if x is None:
            return 0
        view, dtype = self.view(x, label, False)
        if dtype != "f32" or view.size != 1:
            raise TypeError(
                f"{label} on a device must be one float32 number, not {dtypes.spoken(dtype)} of "
                f"shape {view.shape}"
            )
        address: int = view.__array_interface__["data"][0]
        return address

    def decided(self, one: Decided, max_norm: float | None, skips_nonfinite: bool) -> Any:
        """Return what `taken` takes for a step that the device decides."""
        counts = one.counts
        loss_scale = self._number(one.loss_scale, "loss_scale")
        found_inf = self._number(one.found_inf, "found_inf")

        def decision(made: Any) -> Any:
            measures = max_norm is not None or skips_nonfinite
            norm = made("f64") if measures else None
            skipped = None if counts is None else made("i64")
            known = (
                loss_scale,
                found_inf,
                [] if counts is None else counts.addresses(one.places),
                0 if counts is None else counts.steps,
                0 if skipped is None else skipped.address,
                measures,
                skips_nonfinite,
                float("inf") if max_norm is None else max_norm,
                0 if norm is None else norm.address,
            )
            return known, norm, skipped

        return decision

    def counted(self, counts: Counts | None) -> None:
        """Note that the counts have been used on the stream of the step."""
        if counts is not None:
            counts.used(self._operands.stream)


class Arena:
    """Zeros that lie in device memory, cut into arrays."""

    def __init__(self, place: Place, like: Sequence[tuple[Array, str]]) -> None:
        device, stream = place
        sizes = [-(-view.size * dtypes.stored(dtype).itemsize // 256) * 256 for view, dtype in like]
        total = max(sum(sizes), 256)
        self._memory = core().DeviceMemory(device, stream, total)
        core().cuda_clear(device, stream, self._memory.address, total)
        self._memory.mark_written()
        self.arrays = []
        address = self._memory.address
        for (view, dtype), size in zip(like, sizes, strict=True):
            # It keeps the memory rather than this object: no cycle, which C++ would hide.
            part = core().DeviceMemory(device, stream, address, self._memory)
            # Strides alone: no memory of the host is touched.
            strides = np.empty_like(view, dtypes.stored(dtype), subok=False).strides
            self.arrays.append(DeviceArray(part, view.shape, dtype, strides))
            address += size

    def used(self) -> None:
        """Note that work which uses the arrays has been queued."""
        self._memory.mark_written()


def filled(array: DeviceArray, numbers: Array) -> None:
    """Copy numbers of the host into an array, and wait for it."""
    memory = array.memory
    if array.strides is not None and numbers.size:
        order = np.argsort([-abs(step) for step in array.strides], kind="stable")
        laid = np.ascontiguousarray(numbers.transpose(order))
    else:
        laid = np.ascontiguousarray(numbers)
    if numbers.size:
        core().cuda_copy_from_host(memory.device, memory.stream, memory.address, laid.reshape(-1))
