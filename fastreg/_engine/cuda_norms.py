"""Sums of norms and scaling of tensors on a device: what ``backend`` has for the host.

Contract
--------
- Sums are copied to the host, and waited for; a clip stays on the device.
- Like the core's functions these return NotImplemented where tensors are not plainly right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .._arrays import cuda, cuda_results
from .._arrays.host_memory import Array
from .._arrays.libraries import owner
from .._base.core import core
from .._base.penalty import PROXIMAL, VALUE
from . import recording
from .cuda import Operands, tensor


class _Queued(NamedTuple):
    """What has been queued: what it returns, the handle of a capture or 0, and its memory."""

    result: Any
    handle: int = 0
    memory: Any = None


class Plain:
    """Tensors of torch that the core describes by itself."""

    def norm_sums(self, tensors: Sequence[Any], exponent: int, written: bool) -> Any:
        """Return what ``backend.norm_sums`` does."""
        return self._run(
            tensors, written, lambda described: _Queued(core().cuda_norm_sums(described, exponent))
        )

    def scale_tensors(self, tensors: Sequence[Any], factor: float, checked: bool) -> Any:
        """Do what ``backend.scale_tensors`` does."""
        return self._run(
            tensors, True, lambda described: _Queued(None, core().cuda_scale(described, factor))
        )

    def clip_tensors(self, tensors: Sequence[Any], first: Any, max_norm: float) -> Any:
        """Clip tensors by their norm, and return it, 0-d in the kind of `first`; nothing waits."""

        def clip(described: Any) -> _Queued:
            library, array = owner(first)
            norm = library.cuda_total(array, described.device, described.stream, "f64")
            handle = core().cuda_clip(described, max_norm, norm.address)
            return _Queued(norm.finish(bool(handle)), handle, norm)

        return self._run(tensors, True, clip)

    def _run(self, tensors: Sequence[Any], written: bool, queue: Callable[[Any], _Queued]) -> Any:
        outputs, gradients = (PROXIMAL, tensors) if written else (VALUE, None)
        rule = ((1.0, 0.0),), (0,) * len(tensors), 1.0, 1.0
        described = core().describe_tensors(outputs, tensors, gradients, *rule)
        if described is NotImplemented:
            return described
        return _kept(described, tensors, [], queue(described))


class Described(Plain):
    """Tensors that have been described here: pairs of a shadow and the name of its dtype."""

    def __init__(self, labelled: Sequence[tuple[str, Any]]) -> None:
        self._operands = Operands(labelled)
        self._arrays = [array for _, array in labelled]

    def view(self, array: Any, label: str, written: bool) -> tuple[Array, str]:
        """Return the pair of an array."""
        return self._operands.view(array, label, written)

    def _run(self, tensors: Sequence[Any], written: bool, queue: Callable[[Any], _Queued]) -> Any:
        rows = [tensor(view, None, dtype, 0) for view, dtype in tensors]
        operands, arrays = self._operands, self._arrays
        return operands.run(
            rows, lambda described: _kept(described, arrays, operands.capsules, queue(described))
        )


def has_device_arrays(arrays: Sequence[Any]) -> bool:
    """Return whether one of the arrays is on a CUDA device."""
    return any(map(cuda.is_on_cuda, arrays))


def _kept(described: Any, arrays: Sequence[Any], capsules: Sequence[Any], queued: _Queued) -> Any:
    """Keep what the device still needs, and return the result."""
    if queued.handle:
        call = recording.CapturedCall(
            queued.handle, 0, described.device, lambda: (), 1.0, 1.0, [], None,
            [arrays, None, capsules, queued.memory],
        )  # fmt: skip
        recording.captured(call)
        recording.claim(None)
    elif capsules:
        cuda_results.hold(core().StreamMark(described.device, described.stream), capsules)
    return queued.result
