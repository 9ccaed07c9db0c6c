"""Results on a CUDA device: where a penalty is written, and what must live until then.

Contract
--------
- torch and CuPy make the memory themselves, in the order of their current stream.
- JAX arrays cannot be written.  What JAX gets is a view, handed over by DLPack when the work that
  writes it has been queued; the memory is a buffer of JAX's that nobody else has seen, since JAX
  alone knows when its own streams have read what it dropped.
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
    """What keeps it."""
    finish: Callable[[bool], Any]
    """Is told whether the call was captured."""


# What is read or written by kernels that may not have run yet, and what says when they have.
held: deque[tuple[Any, Any]] = deque()
_held_lock = threading.Lock()


def hold(mark: Any, what: Any) -> None:
    """Keep something until a mark has passed, and drop what was kept and has."""
    with _held_lock:
        held.append((mark, what))
        done = []
        while held and held[0][0].has_passed():
            done.append(held.popleft())
    # It is dropped here: that may run code of other libraries.
