"""The numerics contract (docs/numerics.md) in plain Python: loops over floats, no NumPy arithmetic.

It is the oracle of the tests and shares no code with the package.  Elements are Python floats;
dtypes are named f16 bf16 f32 f64.  Every float32 operation is done in float64 and rounded: for one
addition or multiplication of float32 numbers that gives the same bits as float32 arithmetic.

Every backend is asked for the same, so what these loops have given is kept.
"""

from __future__ import annotations

import itertools
import math
import struct
from array import array as packed
from functools import cache

import ml_dtypes
import numpy as np

DTYPES = ("f16", "bf16", "f32", "f64")
NUMPY = {
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
TERMS = ((0.3, 0.0), (0.0, 0.7), (0.3, 0.7))
SIZES = (0, 1, 2, 31, 32, 33, 4095, 4096, 4097)


# ------------------------------------------------------------------------- rounding


def round_f32(x):
    try:
        return struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def round_f16(x):
    try:
        return struct.unpack("<e", struct.pack("<e", x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


def round_bf16(x):
    """Round a float32 number to bfloat16, to nearest even."""
    if x != x:
        return x
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    kept, dropped = bits >> 16, bits & 0xFFFF
    if dropped > 0x8000 or (dropped == 0x8000 and kept & 1):
        kept += 1
    return struct.unpack("<f", struct.pack("<I", kept << 16))[0]


def rounded(x, dtype):
    """Round to the compute type, then to the dtype of the gradient."""
    if dtype == "f64":
        return x
    x = round_f32(x)
    return {"f16": round_f16, "bf16": round_bf16, "f32": lambda same: same}[dtype](x)


# ---------------------------------------------------------------------------- sums


def canonical_sum(terms):
    terms = list(terms)
    if not terms:
        return 0.0
    while True:
        sums = []
        for start in range(0, len(terms), 4096):
            chunk = terms[start : start + 4096]
            lanes = [0.0] * 32
            for place, term in enumerate(chunk):
                lanes[place % 32] += term
            width = 16
            while width:
                for lane in range(width):
                    lanes[lane] += lanes[lane + width]
                width //= 2
            sums.append(lanes[0])
        if len(sums) == 1:
            return sums[0]
        terms = sums


def penalty(elements, l1, l2, scale=1.0):
    return _penalty(packed("d", elements).tobytes(), l1, l2, scale)


@cache
def _penalty(elements, l1, l2, scale):
    # By their bytes, of which equal ones are the same: 0.0 and -0.0 are equal, NaN is not.
    elements = packed("d", elements)
    l1, l2 = l1 * scale, l2 * scale
    value = 0.0
    if l1 != 0.0:
        value = l1 * canonical_sum(abs(x) for x in elements)
    if l2 != 0.0:
        squares = l2 * canonical_sum(x * x for x in elements)
        value = value + squares if l1 != 0.0 else squares
    return value


# ------------------------------------------------------------------------ gradients


def sign(x):
    if x != x:
        return x
    return 1.0 if x > 0 else -1.0 if x < 0 else 0.0


def gradient(elements, dtype, l1, l2, scale=1.0, grad_scale=1.0, old=None):
    """Return the new gradient, or the sum with `old`, as floats of the dtype."""
    old = None if old is None else packed("d", old).tobytes()
    strengths = (l1, l2, scale, grad_scale)
    return list(_gradient(packed("d", elements).tobytes(), dtype, *strengths, old))


@cache
def _gradient(elements, dtype, l1, l2, scale, grad_scale, old):
    elements = packed("d", elements)
    old = None if old is None else packed("d", old)
    compute = (lambda x: x) if dtype == "f64" else round_f32
    has_l1, has_l2 = l1 * scale != 0.0, l2 * scale != 0.0
    factor1 = compute((l1 * scale) * grad_scale)
    factor2 = compute(2.0 * ((l2 * scale) * grad_scale))
    if not (has_l1 or has_l2):
        return packed("d", [0.0] * len(elements)) if old is None else old
    result = []
    for place, x in enumerate(elements):
        if has_l1 and has_l2:
            slope = compute(compute(factor1 * sign(x)) + compute(factor2 * x))
        elif has_l1:
            slope = compute(factor1 * sign(x))
        else:
            slope = compute(factor2 * x)
        if old is not None:
            slope = compute(slope + old[place])
        result.append(rounded(slope, dtype))
    return packed("d", result)


# -------------------------------------------------------------------- proximal steps


def prox(elements, dtype, l1, l2, step, scale=1.0):
    """Return the proximal step as floats of the dtype.

    A float64 quotient of float32 numbers, rounded to float32, is their correctly rounded quotient:
    float64 has more than twice the digits.
    """
    return list(_prox(packed("d", elements).tobytes(), dtype, l1, l2, step, scale))


@cache
def _prox(elements, dtype, l1, l2, step, scale):
    compute = (lambda x: x) if dtype == "f64" else round_f32
    has_l1, has_l2 = l1 * scale != 0.0, l2 * scale != 0.0
    t1 = compute(step * (l1 * scale))
    t2 = compute(1.0 + step * (2.0 * (l2 * scale)))
    result = packed("d")
    for u in packed("d", elements):
        if has_l1:
            left = compute(abs(u) - t1)
            gone = left if left != left else 0.0
            u = math.copysign(left, u) if left > 0 else gone
        if has_l2:
            u = compute(u / t2)
        result.append(rounded(u, dtype))
    return result


# ------------------------------------------------------------------------ norms


def norms(tensors):
    """Return l1, l2, maximum, zeros and nonfinite of lists of elements together."""
    everything = [x for elements in tensors for x in elements]
    magnitudes = [abs(x) for x in everything]
    maximum = math.nan if any(x != x for x in magnitudes) else max(magnitudes, default=0.0)
    exponent = norm_exponent(maximum)
    squares = [_sum_of_squares(elements, exponent) for elements in tensors]
    l1 = [canonical_sum(abs(x) for x in elements) for elements in tensors]
    return (
        canonical_sum(l1),
        shifted(math.sqrt(canonical_sum(squares)), -exponent),
        maximum,
        sum(x == 0 for x in everything),
        sum(not math.isfinite(x) for x in everything),
    )


def norm_exponent(maximum):
    """Return the power of 2 that elements are scaled by before they are squared."""
    if maximum != maximum or math.isinf(maximum) or maximum == 0.0:
        return 0
    exponent = math.frexp(maximum)[1] - 1
    return 0 if -400 <= exponent <= 400 else -exponent


def shifted(x, exponent):
    try:
        return math.ldexp(x, exponent)
    except OverflowError:
        return math.copysign(math.inf, x)


def _sum_of_squares(elements, exponent):
    scaled = [shifted(x, exponent) for x in elements]
    return canonical_sum(x * x for x in scaled)


def clip_factor(norm, most):
    """Return the factor of a clip of what has these norms, which float64 holds."""
    exponent = min(norm_exponent(norm[2]), 0)
    numbers = [shifted(x, exponent) for x in (most, norm[1], 1e-6)]
    factor = numbers[0] / (numbers[1] + numbers[2])
    return factor if factor != factor else min(1.0, factor)


def clipped(elements, dtype, factor):
    if dtype == "f64":
        return [x * factor for x in elements]
    factor = round_f32(factor)
    return [rounded(round_f32(x * factor), dtype) for x in elements]


# ---------------------------------------------------------------------------- arrays


def array(elements, dtype):
    """Make a NumPy array; the elements must be exact in the dtype."""
    return np.array(list(elements), np.float64).astype(NUMPY[dtype])


def floats(values):
    """Return the elements of an array in C order as Python floats, exactly."""
    return [float(x) for x in np.asarray(values).reshape(-1)]


def bits(values):
    """Return the bits of a float array as integers, every NaN the same."""
    values = np.asarray(values)
    integers = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}").copy()
    missing = np.array([x != x for x in floats(values)], bool).reshape(values.shape)
    integers[missing.reshape(integers.shape)] = 0xFFFF
    return integers


def value_bits(value):
    """Return a penalty as a string that shows every bit; every NaN the same."""
    assert type(value) is float
    return "nan" if value != value else value.hex()


def numbers(count, dtype, seed=1):
    """Return `count` floats of the dtype: both signs, many magnitudes, zeros, subnormals.

    A plain linear congruential generator, so that golden vectors do not hang on a library.
    """
    return list(_numbers(count, dtype, seed))


@cache
def _numbers(count, dtype, seed):
    state = seed * 2862933555777941757 + 3037000493
    result = []
    smallest = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149, "f64": 2.0**-1074}[dtype]
    for place in itertools.count():
        if place == count:
            return packed("d", result)
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        fraction = (state >> 11) / 2.0**53
        x = (2.0 * fraction - 1.0) * 2.0 ** ((state >> 5) % 12 - 8)
        kind = (state >> 40) % 64
        if kind == 0:
            x = 0.0
        elif kind == 1:
            x = -0.0
        elif kind == 2:
            x = smallest * ((state >> 20) % 7)
        result.append(rounded(x, dtype))
