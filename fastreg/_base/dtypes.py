"""Element types: their names, and conversions that NumPy does not have.

Contract
--------
- Short names (f16 bf16 f32 f64 bool i8 ... u64) are those of the core; users read long ones.
- bfloat16, which NumPy does not have, is handled as its bits in uint16: widening is exact, rounding
  is to nearest even, and NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NAMES: dict[Any, str] = {
    np.dtype(np.float16): "f16",
    np.dtype(np.float32): "f32",
    np.dtype(np.float64): "f64",
    np.dtype(np.bool_): "bool",
    np.dtype(np.int8): "i8",
    np.dtype(np.int16): "i16",
    np.dtype(np.int32): "i32",
    np.dtype(np.int64): "i64",
    np.dtype(np.uint8): "u8",
    np.dtype(np.uint16): "u16",
    np.dtype(np.uint32): "u32",
    np.dtype(np.uint64): "u64",
}
#: In the order of the core's enumeration, csrc/dtype.h.
BY_NUMBER = (
    "f16",
    "bf16",
    "f32",
    "f64",
    "bool",
    *(f"{kind}{bits}" for kind in "iu" for bits in (8, 16, 32, 64)),
)
NUMBERS = {name: number for number, name in enumerate(BY_NUMBER)}

_SPOKEN = {name: str(dtype) for dtype, name in NAMES.items()} | {"bf16": "bfloat16"}

SHORT = {spoken: name for name, spoken in _SPOKEN.items()}
"""Short names by the long ones."""

FLOATS = frozenset(("f16", "bf16", "f32", "f64"))
"""Element types that have a gradient."""


def spoken(name: str) -> str:
    """Return the long name of an element type, as users write it: "f16" is float16."""
    return _SPOKEN[name]


def stored(name: str) -> np.dtype[Any]:
    """Return the NumPy type of an element as it is stored: bfloat16 as its bits."""
    return np.dtype(np.uint16 if name == "bf16" else _SPOKEN[name])


def to_float64(view: Array, dtype: str) -> npt.NDArray[np.float64]:
    """Return a view's elements in float64, exact but for integers above 2**53."""
    if dtype == "bf16":
        return from_bfloat16(view).astype(np.float64)
    return view.astype(np.float64)


# A NumPy scalar is promoted to the dtype of the shift count, before NumPy 2 at least.
_HALF = np.uint32(16)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """Return bfloat16 bits (uint16) as float32, exactly."""
    wide = bits.astype(np.uint32)
    wide <<= _HALF
    return wide.view(np.float32)


def to_bfloat16(numbers: npt.NDArray[np.float32]) -> Array:
    """Return float32 rounded to nearest even as bfloat16 bits (uint16); NaN stays quiet NaN."""
    bits = numbers.view(np.uint32)
    # Written into arrays, because operators make numbers of arrays without axes: those warn of what
    # wraps, and cannot be written to.
    result = np.right_shift(bits, _HALF, out=np.empty_like(bits))
    result &= np.uint32(1)
    result += np.uint32(0x7FFF)
    result += bits  # wraps for some NaN, which the next lines replace
    result >>= _HALF
    missing = np.isnan(numbers)
    if missing.any():
        result[missing] = (bits[missing] >> _HALF) | np.uint32(0x40)
    return result.astype(np.uint16)
