"""Results on a CUDA device: memory for a penalty, and objects that kernels still need.

Contract
--------
- torch and CuPy make the memory themselves, in the order of their current stream.
- JAX arrays cannot be written.  What JAX gets is a view, handed over by DLPack when the work that
  writes it has been queued; the memory is a new buffer from JAX, since only
  JAX knows when its own streams have finished reading a freed one.
- For all other kinds a penalty is a ``DeviceValue``, and a new gradient cannot be made.
- A penalty is float64, as it is computed; JAX makes float32 of it unless it was told of float64.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple


class Total(NamedTuple):
    """Where a penalty is to be written, and how the caller gets it when that has been queued."""

    address: int
    memory: Any
    """Keeps the memory alive."""
    finish: Callable[[bool], Any]
    """``finish(captured)`` returns the 0-d result after the kernel is launched.

    `captured` is whether that was into a CUDA graph.
    """


# Pairs of a mark on a stream and the objects that kernels queued before it read or write.
held: deque[tuple[Any, Any]] = deque()
_held_lock = threading.Lock()


def hold(mark: Any, what: Any) -> None:
    """Keep an object until a mark has passed; release those whose mark has passed."""
    with _held_lock:
        held.append((mark, what))
        done = []
        while held and held[0][0].has_passed():
            done.append(held.popleft())
    # It is dropped here: that may run code of other libraries.
