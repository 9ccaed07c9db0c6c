"""Gradients against the plain-Python oracle, bit by bit: dtypes x terms x outputs x specials."""

import math

import canonical
import numpy as np
import pytest

from fastreg._engine import backend as _backend
from fastreg.regularizers import L1, L1L2, L2

SIZES = (0, 1, 31, 32, 33, 4097)
SPECIAL = {
    "f16": [65504.0, -65504.0, 2.0**-14, 2.0**-24, -(2.0**-24), 3 * 2.0**-25 * 2],
    "bf16": [3.3895313892515355e38, -3.3895313892515355e38, 2.0**-126, 2.0**-133, -(2.0**-133)],
    "f32": [3.4028234663852886e38, -3.4028234663852886e38, 2.0**-126, 2.0**-149, -(2.0**-149)],
    "f64": [1.7976931348623157e308, -1.7976931348623157e308, 2.0**-1022, 5e-324, -5e-324],
}


def special_elements(dtype):
    common = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 0.333251953125, -3.0]
    return [canonical.rounded(x, dtype) for x in common + SPECIAL[dtype]]


def check(elements, old, dtype, l1, l2, scale, grad_scale):
    """Run all five combinations of outputs on the same input."""
    w = canonical.array(elements, dtype)
    value = canonical.value_bits(canonical.penalty(elements, l1, l2, scale))
    new = canonical.array(canonical.gradient(elements, dtype, l1, l2, scale, grad_scale), dtype)
    added = canonical.array(
        canonical.gradient(elements, dtype, l1, l2, scale, grad_scale, old), dtype
    )
    for outputs in (1, 2, 3, 6, 7):
        target = None if outputs == 1 else canonical.array(old, dtype)
        result = _backend.evaluate_one(outputs, w, target, l1, l2, scale, grad_scale)
        if outputs & 1:
            assert canonical.value_bits(result) == value
        else:
            assert result is None
        if outputs & 2:
            expected = added if outputs & 4 else new
            assert (canonical.bits(target) == canonical.bits(expected)).all()
    assert (canonical.bits(w) == canonical.bits(canonical.array(elements, dtype))).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("terms", canonical.TERMS)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_every_cell(backend, dtype, terms, size):
    elements = canonical.numbers(size, dtype, seed=2)
    old = canonical.numbers(size, dtype, seed=3)
    check(elements, old, dtype, *terms, 1.0, 1.0)


@pytest.mark.parametrize("scales", [(0.37, 1.0), (1.0, 1024.0), (-0.5, 3.0), (2.0, -1.0)])
@pytest.mark.parametrize("terms", canonical.TERMS)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_scales(backend, dtype, terms, scales):
    elements = canonical.numbers(70, dtype, seed=4)
    old = canonical.numbers(70, dtype, seed=5)
    check(elements, old, dtype, *terms, *scales)


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("terms", [*canonical.TERMS, (0.0, 0.0)])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("shift", range(5))
def test_special_values(backend, dtype, terms, scale, shift):
    special = special_elements(dtype)
    # 40 elements: vector registers and the rest behind them both meet every special value.
    elements = [special[(place + shift) % len(special)] for place in range(40)]
    old = [special[(place * 7 + shift) % len(special)] for place in range(40)]
    check(elements, old, dtype, *terms, scale, 1.0)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_rounding_of_every_half_precision_number(backend, dtype):
    """Each finite bit pattern as weight: ties of the final rounding included."""
    w = np.arange(2**16, dtype=np.uint16).view(canonical.NUMPY[dtype])
    elements = canonical.floats(w)
    for l1, l2 in ((0.3, 0.7), (0.0, 0.55)):
        expected = canonical.array(canonical.gradient(elements, dtype, l1, l2), dtype)
        assert (canonical.bits(L1L2(l1, l2).gradient(w)) == canonical.bits(expected)).all()


def test_zero_has_the_sign_of_the_contract(backend):
    zeros = np.array([0.0, -0.0])
    assert np.signbit(L1(0.5).gradient(zeros)).tolist() == [False, False]
    assert np.signbit(L1(0.5).gradient(zeros, scale=-1.0)).tolist() == [True, True]
    assert np.signbit(L2(0.5).gradient(zeros)).tolist() == [False, True]
    assert np.signbit(L1L2(0.0, 0.0).gradient(zeros)).tolist() == [False, False]


def test_absent_terms_leave_an_accumulated_gradient_untouched(backend):
    payload = np.array([0x7FF8000000000123, 0x8000000000000000], np.uint64)
    grad = payload.view(np.float64).copy()
    assert L1L2(0.0, 0.0).accumulate(np.array([math.nan, 1.0]), grad) == 0.0
    assert (grad.view(np.uint64) == payload).all()


@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("size", [1, 33, 40_000])
def test_gradient_may_be_the_weight(backend, dtype, size):
    elements = canonical.numbers(size, dtype, seed=6)
    expected = canonical.array(canonical.gradient(elements, dtype, 0.3, 0.7, old=elements), dtype)
    w = canonical.array(elements, dtype)
    assert L1L2(0.3, 0.7).accumulate(w, w) == canonical.penalty(elements, 0.3, 0.7)
    assert (canonical.bits(w) == canonical.bits(expected)).all()
    w = canonical.array(elements, dtype)
    assert L1L2(0.3, 0.7).gradient(w, w) is w
    expected = canonical.array(canonical.gradient(elements, dtype, 0.3, 0.7), dtype)
    assert (canonical.bits(w) == canonical.bits(expected)).all()


def test_coefficients_that_round_to_zero_are_still_there(backend):
    w = np.array([1.0, math.nan], np.float32)
    result = L1(1e-60).gradient(w)
    assert result[0] == 0.0
    assert math.isnan(result[1])
