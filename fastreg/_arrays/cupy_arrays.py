"""CuPy's row: arrays are read by ``__cuda_array_interface__`` and allocated by CuPy."""

from __future__ import annotations

from typing import Any

from .._base import dtypes
from .cuda_memory import View
from .cuda_results import Total
from .library import Library


class CuPy(Library):
    """Arrays of CuPy."""

    name = "cupy"
    port = ""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy

    def needs_port(self, x: Any, records: bool) -> bool:
        return False

    def cuda_empty_like(self, x: Any, name: str, view: View) -> Any:
        with self._cupy.cuda.Device(view.device or 0):
            return self._cupy.empty_like(x)

    def cuda_total(self, x: Any, device: int, stream: int, dtype: str) -> Total:
        with self._cupy.cuda.Device(device):
            made = self._cupy.empty((), dtypes.spoken(dtype))
        return Total(made.data.ptr, made, lambda _: made)


def library_of(cupy: Any, kind: type) -> Library | None:
    """Return the row of a class of CuPy, or None for another class."""
    return CuPy(cupy) if issubclass(kind, getattr(cupy, "ndarray", ())) else None
