"""Numbers for the tests on devices, what the host gives for them, and comparison by bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastreg._base.penalty import ADD, GRADIENT, VALUE, VALUE_AND_ADD, VALUE_AND_GRADIENT
from fastreg._engine import calls
from fastreg.regularizers import L1, L1L2, L2

RULES = {"L1": L1(0.01), "L2": L2(0.3), "L1L2": L1L2(0.01, 0.3)}

OUTPUTS = {
    "V": VALUE,
    "G": GRADIENT,
    "VG": VALUE_AND_GRADIENT,
    "GA": GRADIENT | ADD,
    "VGA": VALUE_AND_ADD,
}

#: Where something ends: an array, a row of 32 lanes, a chunk of 4,096; and a multiple of nothing.
SIZES = (0, 1, 31, 32, 33, 4095, 4096, 4097, 100_003)


def numpy_dtype(dtype: str) -> np.dtype:
    if dtype == "bf16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[dtype])


def numbers(shape: Any, dtype: str, seed: int = 0) -> np.ndarray:
    """Normal numbers, and now and then a zero of either sign."""
    generator = np.random.default_rng(seed)
    drawn = generator.standard_normal(shape)
    drawn[generator.random(shape) < 0.03] = 0.0
    drawn[generator.random(shape) < 0.03] = -0.0
    return np.asarray(drawn.astype(numpy_dtype(dtype)))


def tiled(size: int, dtype: str, seed: int = 0) -> np.ndarray:
    """As many numbers as asked for in little time; their period is a multiple of nothing."""
    return np.resize(numbers(1_000_003, dtype, seed), size)


def patterns(dtype: str) -> np.ndarray:
    """All 65,536 numbers of a half type; of others their ends, and bits at random.

    Subnormals, both zeros, infinities and NaN of any payload are among them.
    """
    item = numpy_dtype(dtype).itemsize
    if item == 2:
        bits = np.arange(2**16, dtype=np.uint16)
    else:
        unsigned = np.dtype(f"u{item}")
        drawn = np.random.default_rng(5).integers(0, 2 ** (8 * item), 100_000, unsigned)
        mantissa = 23 if item == 4 else 52
        exponents = np.arange(2 ** (8 * item - 1 - mantissa), dtype=unsigned) << mantissa
        smallest = np.arange(100, dtype=unsigned)
        positive = np.concatenate([exponents, exponents - 1, exponents + 1, smallest])
        sign = unsigned.type(1 << (8 * item - 1))
        bits = np.concatenate([drawn, positive & ~sign, positive | sign])
    return bits.view(numpy_dtype(dtype))


def finite(array: np.ndarray) -> np.ndarray:
    return array[np.isfinite(array)]


def evaluate(
    outputs: str, rule: Any, w: Any, g: Any, scale: float = 1.0, grad_scale: float = 1.0
) -> Any:
    """Do one cell to arrays of any kind; give the penalty where the cell has one."""
    factors = {"scale": scale, "grad_scale": grad_scale}
    if outputs == "V":
        return rule(w, scale=scale)
    if outputs == "G":
        assert rule.gradient(w, g, **factors) is g
        return None
    if outputs == "VG":
        value, gradient = rule.value_and_grad(w, g, **factors)
        assert gradient is g
        return value
    if outputs == "VGA":
        return rule.accumulate(w, g, **factors)
    # No public function adds a gradient and keeps the penalty to itself.
    calls.evaluate_one(OUTPUTS["GA"], w, g, rule._l1, rule._l2, scale, grad_scale)
    return None


def same_value(found: Any, expected: float) -> bool:
    """Return whether a penalty has the bits of the host's; in float32 those of its rounding."""
    if "float32" in str(getattr(found, "dtype", "")):
        with np.errstate(over="ignore"):
            expected = float(np.float32(expected))
    number = float(found)
    return number.hex() == expected.hex() or (number != number and expected != expected)


def same_bits(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether arrays have the same bits; sign and payload of a NaN are left open."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    equal = _bits(found) == _bits(expected)
    return bool(equal.all() or (equal | (np.isnan(found) & np.isnan(expected))).all())


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}").reshape(array.shape)
