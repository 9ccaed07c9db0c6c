"""Whether XLA calls the compiled core: ``fastreg.jax.handler.reason`` says why it does not.

None if it does, or nothing was computed yet.
"""

from __future__ import annotations

from .._autodiff.jax import ffi as _ffi


def __getattr__(name: str) -> str | None:
    if name == "reason":  # of this moment
        return _ffi.reason
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
