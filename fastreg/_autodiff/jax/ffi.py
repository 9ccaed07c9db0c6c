"""The compiled core as a function that XLA calls: registration, and the call itself.

Contract
--------
- The host's handler is registered when ``fastreg.jax`` is imported, for programs that were
  exported; that of CUDA at the first call, for it starts JAX's backends.  If
  registration fails, :data:`reason` says why and the caller uses ``jax.numpy``.
- ``csrc/jax/request.h`` says what operands, attributes and results mean.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..._base.core import core
from ..._engine import backend

TARGET = "fastreg_penalties"

reason: str | None = None
"""Why the core is not registered with XLA; None if it is, or before :func:`platforms` is called."""


def platforms() -> tuple[str, ...]:
    """Return the platforms of JAX whose programs can call the core now: "cpu", also "cuda"."""
    if backend.name != "native":
        return ()
    return _registered()


@functools.cache
def _registered() -> tuple[str, ...]:
    if not register("cpu"):
        return ()
    if not core().cuda_state()[0] or jax.default_backend() != "gpu":
        return ("cpu",)
    return ("cpu", "cuda") if register("CUDA") else ()


@functools.cache
def register(platform: str) -> bool:
    """Register the core's function for "cpu" or "CUDA" with XLA; return False if it failed."""
    global reason
    try:
        jax.ffi.register_ffi_target(TARGET, core().xla_handler(platform), platform=platform)
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        # The core is missing or older than this file, or XLA refuses the interface's version.
        reason = f"{type(error).__name__}: {error}"
        return False
    return True


def call(
    platform: str,
    weights: Sequence[Any],
    operands: Sequence[Any],
    which: Sequence[int],
    constants: Sequence[float],
    dtype: Any,
) -> tuple[Any, Any]:
    """Return each tensor's value and their canonical sum, of `dtype`, from one call of the core."""
    attributes: dict[str, Any] = {"which": np.asarray(which, np.int64)}
    if platform == "cuda":
        attributes["constants"] = np.asarray(constants, np.float64)
    as_bits = platform == "cuda" and dtype != np.float64
    kind = np.uint32 if as_bits else dtype
    shapes = ((len(weights), 2), (2,)) if as_bits else ((len(weights),), ())
    results = tuple(jax.ShapeDtypeStruct(shape, kind) for shape in shapes)
    called = jax.ffi.ffi_call(TARGET, results, vmap_method="expand_dims")
    made = called(*alike((*weights, *operands)), **attributes)
    values, total = alike((*made, *weights, *operands))[:2]
    return (to_float32(values), to_float32(total)) if as_bits else (values, total)


def alike(arrays: Sequence[Any]) -> tuple[Any, ...]:
    """Let all arrays vary over the axes of a ``shard_map`` that any of them varies over."""
    axes: frozenset[Any] = frozenset().union(*map(_varying_axes, arrays))
    return tuple(_varied(x, axes) for x in arrays)


def _varying_axes(x: Any) -> frozenset[Any]:
    """Return the axes that an array varies over, as far as JAX says."""
    aval = getattr(x, "aval", None)
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(getattr(kind, "varying", None) or getattr(aval, "vma", None) or ())


def _varied(x: Any, axes: frozenset[Any]) -> Any:
    """Let an array vary over these axes; a foreign call says of its results that they do not."""
    missing = tuple(axes - _varying_axes(x))
    if not missing:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, missing, to="varying")
    return jax.lax.pvary(x, missing)  # JAX 0.6 to 0.8


def to_float32(bits: Any) -> Any:
    """Round float64, given as the bits of its two halves (low, high), to the nearest float32.

    For programs without float64.  What is subnormal as float32 becomes a zero.
    """
    low, high = bits[..., 0], bits[..., 1]
    u32 = np.uint32
    exponent = (high >> u32(20)) & u32(0x7FF)
    kept = ((high & u32(0xFFFFF)) << u32(3)) | (low >> u32(29))
    rest = low & u32(0x1FFFFFFF)
    half = u32(0x10000000)
    up = (rest > half) | ((rest == half) & (kept & u32(1) == u32(1)))
    # A carry out of the fraction goes to the exponent, where it belongs.
    finite = ((exponent - u32(1023 - 127)) << u32(23)) + kept + up.astype(np.uint32)
    missing = (exponent == u32(0x7FF)) & ((kept | rest) != u32(0))
    infinity = u32(0x7F800000)
    magnitude = jax.numpy.where(exponent < u32(1023 - 126), u32(0), finite)
    magnitude = jax.numpy.where(exponent > u32(1023 + 127), infinity, magnitude)
    magnitude = jax.numpy.where(missing, u32(0x7FC00000), magnitude)
    return jax.lax.bitcast_convert_type(magnitude | (high & u32(0x80000000)), np.float32)
