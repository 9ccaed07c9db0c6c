"""What calls that were captured into a CUDA graph need until its last replay.

Contract
--------
- A recording that is open on the thread keeps the memory and arrays of captured calls until it is
  closed.  Without one, capsules and the memory of results are kept until the process ends, and
  keeping weights and gradients is up to the caller.
- Strengths are read from the regularizers again at :meth:`Recording.update`; ``claim`` says which
  regularizers they are, right after the call that was captured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .._arrays import cuda
from .._base import arguments, dtypes, errors
from .._base.core import DEFAULT_STREAM, core, stream_number
from .._base.penalty import PROX, Strengths
from . import checks


@dataclass
class CapturedCall:
    """One call in a graph."""

    handle: int
    outputs: int
    """0 for a clip, which reads no strengths, and for a step of an optimizer."""
    device: int
    strengths: Callable[[], Strengths]
    scale: float
    grad_scale: float
    """Of a proximal step the step."""
    coefficient_types: Sequence[tuple[int, int]]
    """The index into the strengths and the dtype's number of each gradient."""
    weight: Any
    """An array of the call: its current stream is where strengths are sent."""
    kept: list[Any]
    """Weights and gradients, then what the backend or another library would give back."""
    settings: Callable[[], tuple[Any, Any]] | None = None
    """Of a step of an optimizer: its settings now, and for each tensor the index of its own."""


unclaimed: list[tuple[int, CapturedCall]] = []
"""Calls that a recording has just got, by thread, and whose regularizers are not known yet."""

_open = threading.local()
_kept_for_good: list[Any] = []  # what was captured without a recording
_not_closed: list[list[CapturedCall]] = []  # a graph may outlive the recording of its calls


def captured(call: CapturedCall) -> None:
    """Keep a call that was captured on this thread."""
    recording: Recording | None = getattr(_open, "recording", None)
    if recording is None:
        _kept_for_good.append(call.kept[2:])
        return
    if not recording._calls:
        _not_closed.append(recording._calls)
    recording._calls.append(call)
    unclaimed.append((threading.get_ident(), call))


def claim(strengths: Callable[[], Strengths] | None) -> None:
    """Set the callable from which ``update()`` reads strengths, for calls just captured.

    These are the calls captured on this thread; None keeps the captured strengths.
    """
    thread = threading.get_ident()
    for entry in [entry for entry in unclaimed if entry[0] == thread]:
        if strengths is not None:
            entry[1].strengths = strengths
        unclaimed.remove(entry)


class Recording:
    """The calls that were captured into a CUDA graph; made by :func:`fastreg.cuda.recording`."""

    def __init__(self) -> None:
        self._calls: list[CapturedCall] = []
        self._state = "new"

    def __enter__(self) -> Recording:
        if self._state != "new":
            raise RuntimeError(f"the recording is {self._state}; make a new one for each capture")
        if getattr(_open, "recording", None) is not None:
            raise RuntimeError("another recording is open on this thread; leave it first")
        _open.recording = self
        self._state = "open"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _open.recording = None
        self._state = "ready"
        claim(None)

    def __len__(self) -> int:
        """Return the number of calls that were captured."""
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<a recording of {len(self)} calls, {self._state}>"

    def update(
        self,
        *,
        scale: float | None = None,
        grad_scale: float | None = None,
        step: float | None = None,
        stream: Any = None,
    ) -> None:
        """Read the strengths again, for the replays that are queued on the stream after this.

        Steps of optimizers read their learning rate and all other numbers again, but for `max_norm`
        and `loss_scale`; the factors are not for them.

        Parameters
        ----------
        scale, grad_scale : float, optional
            Factors for all calls of penalties; None for those that each was captured with.
        step : float, optional
            That of all proximal steps of penalties, which know no `grad_scale`; None likewise.
        stream : int or stream object, optional
            Where the graph will be replayed; None for the current stream of each call's first
            array, which is torch's or CuPy's current stream.

        Raises
        ------
        RuntimeError
            When the recording is open or closed, or when nothing was captured in it, or no proximal
            step where `step` is given; and when an optimizer has other tensors, or other arrays in
            the place of its numbers, than were captured.
        TypeError, ValueError
            For a scale that is no finite number, a strength that is not finite with it, and on a
            stream that is being captured.
        """
        if self._state == "closed":
            raise RuntimeError("the recording is closed; make a new one, and capture again")
        if self._state != "ready":
            raise RuntimeError("update() comes after the with block, before a replay")
        if not self._calls:
            raise RuntimeError(
                "nothing was captured: no call inside `with recording` was on a stream that was "
                "being captured"
            )
        wanted_scale = None if scale is None else arguments.multiplier(scale, "scale")
        wanted_grad = None if grad_scale is None else arguments.multiplier(grad_scale, "grad_scale")
        wanted_step = None if step is None else arguments.strength(step, "step")
        wanted_stream = None if stream is None else _number_of(stream)
        if wanted_step is not None and not any(call.outputs & PROX for call in self._calls):
            raise RuntimeError("step was given, but no proximal step was captured; leave it out")
        orders: list[tuple[Any, ...]] = []
        for call in self._calls:
            if call.settings is not None:
                on = _current_stream(call) if wanted_stream is None else wanted_stream
                orders.append((core().cuda_set_settings, call.handle, *call.settings(), on))
            if call.outputs == 0:
                continue
            factor = call.scale if wanted_scale is None else wanted_scale
            wanted = wanted_step if call.outputs & PROX else wanted_grad
            other = call.grad_scale if wanted is None else wanted
            strengths = call.strengths()
            _check(call, strengths, factor, other)
            on = _current_stream(call) if wanted_stream is None else wanted_stream
            send = core().cuda_set_strengths
            orders.append((send, call.handle, call.outputs, strengths, factor, other, on))
        for send, *order in orders:
            send(*order)

    def close(self) -> None:
        """Return what the captured calls need, and wait for the device.

        The graph must not be replayed after this.  A recording that is never closed keeps its
        memory and its arrays until the process ends.
        """
        if self._state == "open":
            raise RuntimeError("close() comes after the last replay, not inside the with block")
        self._state = "closed"
        _not_closed[:] = [calls for calls in _not_closed if calls is not self._calls]
        while self._calls:
            core().cuda_forget(self._calls.pop().handle)


def _check(call: CapturedCall, strengths: Strengths, scale: float, other: float) -> None:
    """Refuse numbers that the call would have refused; `other` is the grad_scale or the step."""
    which = [rule for rule, _ in call.coefficient_types]
    names = [dtypes.BY_NUMBER[number] for _, number in call.coefficient_types]
    if call.outputs & PROX:
        scale = arguments.strength(scale, "scale")
        checks.check_thresholds(strengths, which, names, scale, other)
    else:
        checks.check_coefficients(strengths, which, names, scale, other, bool(names))


def _current_stream(call: CapturedCall) -> int:
    stream = cuda.named_stream(call.weight)
    return DEFAULT_STREAM if stream is None else stream


def _number_of(stream: Any) -> int:
    """Read a stream: a number, or an object of torch, CuPy or another CUDA library."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream_number(stream)
    if hasattr(stream, "__cuda_stream__"):
        return stream_number(int(stream.__cuda_stream__()[1]))
    for attribute in ("cuda_stream", "ptr"):  # torch's, CuPy's
        if hasattr(stream, attribute):
            return stream_number(int(getattr(stream, attribute)))
    raise TypeError(
        f"stream must be a CUDA stream, not {errors.described(stream)}; pass its number, or an "
        "object of torch or CuPy"
    )
