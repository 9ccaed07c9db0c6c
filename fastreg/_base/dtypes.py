"""Element types: their names, and conversions that NumPy does not have.

Contract
--------
- Short names (f16 bf16 f32 f64 bool i8 ... u64) are those of the core; users read long ones.
- bfloat16, which NumPy does not have, is handled as its bits in uint16: widening is exact, rounding
  is to nearest even, and NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Row(NamedTuple):
    """One element type."""

    name: str
    spoken: str
    stored: np.dtype[Any]
    """The NumPy type of its elements, or of their bits where NumPy has none."""
    kind: int
    """DLPack's: 0 integer, 1 unsigned, 2 floating, 4 bfloat, 6 boolean."""


def _rows() -> Iterator[Row]:
    for name, spoken, stored, kind in (
        ("f16", "float16", np.float16, 2),
        ("bf16", "bfloat16", np.uint16, 4),
        ("f32", "float32", np.float32, 2),
        ("f64", "float64", np.float64, 2),
        ("bool", "bool", np.bool_, 6),
    ):
        yield Row(name, spoken, np.dtype(stored), kind)
    for kind, letter in enumerate("iu"):
        for size in (1, 2, 4, 8):
            dtype = np.dtype(f"{letter}{size}")
            yield Row(f"{letter}{8 * size}", str(dtype), dtype, kind)


TABLE = tuple(_rows())
"""In the order of the core's, csrc/dtype.h; a test compares the two."""

BY_NUMBER = tuple(row.name for row in TABLE)
NUMBERS = {name: number for number, name in enumerate(BY_NUMBER)}
ROWS = {row.name: row for row in TABLE}

NAMES: dict[Any, str] = {row.stored: row.name for row in TABLE if row.spoken == str(row.stored)}
"""Short names by NumPy's types."""

AS_BITS = {row.spoken: row for row in TABLE if row.spoken != str(row.stored)}
"""By their long names what NumPy has no type for."""

SHORT = {row.spoken: row.name for row in TABLE}
"""Short names by the long ones."""

FLOATS = {row.name: row for row in TABLE if row.kind in (2, 4)}
"""Element types that have a gradient."""

DLPACK = {(row.kind, 8 * row.stored.itemsize): row.name for row in TABLE}
"""Short names by DLPack's kinds and bits."""

_DLPACK_KINDS = ("int", "uint", "float", "opaque", "bfloat", "complex", "bool")
_DLPACK_FORMATS = (
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn"),
    "float4_e2m1fn",
)
"""The kinds after those, whose names have their bits in them."""


def spoken(name: str) -> str:
    """Return the long name of an element type, as users write it: "f16" is float16."""
    return ROWS[name].spoken


def spoken_of_dlpack(code: int, bits: int, lanes: int) -> str:
    """Return the long name of an element type of DLPack's, of those too that have no penalty."""
    if (code, bits) in DLPACK:
        name = spoken(DLPACK[code, bits])
    elif code < len(_DLPACK_KINDS):
        name = f"{_DLPACK_KINDS[code]}{bits}"
    elif code < len(_DLPACK_KINDS) + len(_DLPACK_FORMATS):
        name = _DLPACK_FORMATS[code - len(_DLPACK_KINDS)]
    else:
        name = f"{bits} bits of DLPack's kind {code}"
    return name if lanes == 1 else f"{name} in vectors of {lanes}"


def stored(name: str) -> np.dtype[Any]:
    """Return the NumPy type of an element as it is stored: bfloat16 as its bits."""
    return ROWS[name].stored


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
