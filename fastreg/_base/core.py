"""The compiled core, and why no call can run on CUDA."""

from __future__ import annotations

from functools import cache
from typing import Any

DEFAULT_STREAM = 1
"""The legacy default stream, as DLPack and the CUDA array interface number it."""

is_off = False
"""Whether the backend in use is NumPy; ``_engine.backend`` sets it."""


@cache
def core() -> Any:
    """Return the compiled core."""
    from .. import _core

    return _core


@cache
def core_or_none() -> Any:
    """Return the compiled core, or None where there is none."""
    try:
        return core()
    except ImportError:
        return None


@cache
def _state() -> str:
    """Return why there is no device; the library is opened here, once."""
    compiled = core_or_none()
    if compiled is None:
        return "not built: there is no compiled core"
    available, reason, _ = compiled.cuda_state()
    return "" if available else str(reason)


def why_off() -> str:
    """Return why no call can run on CUDA; an empty string where it can."""
    if is_off:
        return "the NumPy backend is in use, which has none"
    return _state()


def stream_number(stream: int) -> int:
    """Return the number of a stream; torch and others call the default stream 0."""
    return stream or DEFAULT_STREAM
