"""NumPy's row: arrays of all subclasses, and scalars."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import host_memory
from .host_memory import HostView
from .library import Library


class NumPy(Library):
    """Arrays or scalars of NumPy."""

    port = ""

    def needs_port(self, x: Any, records: bool) -> bool:
        return False

    def host_view(self, x: Any, name: str, writable: bool) -> HostView:
        return host_memory.of_numpy(x, name, writable)

    def is_on_cuda(self, x: Any) -> bool:
        return False

    def empty_like(self, x: Any, view: HostView) -> Any:
        return np.empty_like(x)


def library_of(numpy: Any, kind: type) -> Library | None:
    """Return the row of a class of NumPy, or None for another class."""
    return NumPy() if issubclass(kind, (np.ndarray, np.generic)) else None
