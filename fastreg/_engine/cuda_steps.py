"""Steps of optimizers for tensors on a device: what ``backend`` has for the host.

Contract
--------
- What the host has to know is waited for: the sums that are measured.  A step itself is queued,
  and so are its penalty, zeros and norm.
- Where the device alone decides whether a step is taken, it counts the steps as well.
- A step that is captured into a CUDA graph is of that kind: a replay takes the next step, with the
  counts, and the numbers that lie on the device, of its moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arrays import cuda, cuda_results
from .._arrays.device_array import DeviceArray
from .._arrays.host_memory import Array
from .._arrays.libraries import owner
from .._base import dtypes
from .._base.core import core, why_off
from . import recording
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


def is_capturing(arrays: Sequence[Any]) -> bool:
    """Return whether the stream on which arrays are used is being captured into a CUDA graph."""
    stream = next((one for one in map(cuda.named_stream, arrays) if one is not None), None)
    return stream is not None and not why_off() and core().cuda_is_capturing(stream)


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

    def read(self, tensor: Any) -> tuple[list[int], int]:
        """Copy the counts to the host, and wait for them: of the tensors, and of the optimizer.

        They are those of the moment on the stream of one of the tensors, where that names one: it
        may have got replays.
        """
        memory, named = self._memory, cuda.named_stream(tensor)
        stream = self._stream if named is None else named
        if stream != self._stream:
            memory.make_wait(stream)
        copied = core().cuda_copy(memory.device, stream, memory.address, _NUMBER * self._size)
        *taken, steps = np.frombuffer(copied, np.int64).tolist()
        return taken, steps


class NumbersThere(NamedTuple):
    """Numbers on the device that a row of settings is made of, each a float32 or a float64."""

    lr: Any = None
    """None for that of the settings, as are the strengths."""
    initial_lr: float = 1.0
    """What decoupled strengths divide it by."""
    strength: Any = None
    """What the strengths of the settings are multiplied with."""
    lr_label: str = "lr"
    strength_label: str = "strength"

    @property
    def labelled(self) -> list[tuple[str, Any]]:
        """The numbers that there are, with their labels."""
        pairs = [(self.lr_label, self.lr), (self.strength_label, self.strength)]
        return [(label, x) for label, x in pairs if x is not None]


class Decided(NamedTuple):
    """What the device decides of a step."""

    counts: Counts | None = None
    places: Sequence[int] = ()
    """For each tensor of the step, its place among the counts."""
    found_inf: Any = None
    """A float32 number on the device: not 0 skips the step."""
    loss_scale: Any = None
    """Likewise; None for the number that the step has."""
    there: Sequence[NumbersThere] = ()
    """For each row of settings what the device has of it; or nothing for all."""
    is_captured: bool = False
    """Whether the step goes into a CUDA graph."""
    settings: Callable[[], tuple[Any, Any]] | None = None
    """Then: what ``CapturedCall`` has of that name."""

    @property
    def labelled(self) -> list[tuple[str, Any]]:
        """The arrays that the device reads, with their labels."""
        pairs = [("found_inf", self.found_inf), ("loss_scale", self.loss_scale)]
        found = {label: x for label, x in pairs if x is not None}
        for row in self.there:
            found.update(row.labelled)
        return [*found.items()]

    @property
    def is_any(self) -> bool:
        """Return whether there is anything."""
        return self.counts is not None or bool(self.labelled)


class Results(NamedTuple):
    """What a step that has been queued comes to, on the device."""

    penalty: Any
    zeros: Any
    norm: Any
    skipped: Any


class Tensors:
    """The tensors of a step."""

    def __init__(self, labelled: Sequence[tuple[str, Any]], is_captured: bool = False) -> None:
        self._labelled = labelled
        self._operands = Operands(labelled, is_captured)
        self._is_captured = False

    def view(self, x: Any, label: str, writable: bool) -> tuple[Array, str]:
        """Describe an array: a shadow of it, and the name of its dtype."""
        return self._operands.view(x, label, writable)

    def _run(self, body: Any) -> Any:
        operands = self._operands

        def run(described: Any) -> Any:
            found = body((described.device, described.stream))
            if operands.capsules and not self._is_captured:
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

    def taken(
        self,
        arguments: tuple[Any, ...],
        is_ruled: bool,
        first: Any,
        decided: Decided,
        decision: Any,
    ) -> Any:
        """Queue a step whose arguments are those of ``backend.take_step``, but for the last.

        `decision` is None where the host knows all, else what :meth:`decision` has made.  Returns
        the results, in the kind of `first`.
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
            handle = core().cuda_take_step(place, *arguments, known, addresses)
            if handle is NotImplemented:
                return handle
            written = penalty, zeros, norm, skipped
            self._is_captured = bool(handle)
            if handle:
                self._keep(handle, place[0], first, decided, written)
            return Results(
                *(None if one is None else one.finish(self._is_captured) for one in written)
            )

        found = self._run(run)
        if decided.counts is not None and not self._is_captured:
            decided.counts.used(self._operands.stream)
        return found

    def _keep(
        self, handle: int, device: int, first: Any, decided: Decided, written: tuple[Any, ...]
    ) -> None:
        """Keep what a captured step needs for its replays."""
        needed = [self._operands.capsules, written, decided.counts]
        call = recording.CapturedCall(
            handle, 0, device, lambda: (), 1.0, 1.0, [], first,
            [self._labelled, None, *needed], decided.settings,
        )  # fmt: skip
        recording.captured(call)
        recording.claim(None)

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

    def _number(self, x: Any, label: str, taken: tuple[str, ...] = ("f32",)) -> tuple[int, bool]:
        """Return the address of a number, and whether it is a float64."""
        if x is None:
            return 0, False
        view, dtype = self.view(x, label, False)
        require_number(view, dtype, label, taken)
        address: int = view.__array_interface__["data"][0]
        return address, dtype == "f64"

    def _row(self, one: NumbersThere) -> tuple[Any, ...]:
        lr = self._number(one.lr, one.lr_label, NUMBERS)
        return *lr, one.initial_lr, *self._number(one.strength, one.strength_label, NUMBERS)

    def decision(self, one: Decided, max_norm: float | None, skips_nonfinite: bool) -> Any:
        """Return what `taken` takes for a step that the device decides."""
        counts = one.counts
        loss_scale, _ = self._number(one.loss_scale, "loss_scale")
        found_inf, _ = self._number(one.found_inf, "found_inf")
        rows = [*map(self._row, one.there)]

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
                rows,
            )
            return known, norm, skipped

        return decision


NUMBERS = ("f32", "f64")
"""What a learning rate on the device, or a factor of strengths, may be."""


def require_number(view: Array, dtype: str, label: str, taken: tuple[str, ...] = NUMBERS) -> None:
    """Raise TypeError for an array on the device that is not one number of such a dtype."""
    if dtype not in taken or view.size != 1:
        wanted = " or ".join(map(dtypes.spoken, taken))
        raise TypeError(
            f"{label} on a device must be one {wanted} number, not {dtypes.spoken(dtype)} of "
            f"shape {view.shape}"
        )


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
