"""Values and sums against the plain-Python oracle, bit by bit."""

import math
import random

import canonical
import numpy as np
import pytest

from fastreg._engine import backend as _backend
from fastreg.regularizers import L1, L1L2, L2


@pytest.mark.parametrize("size", canonical.SIZES)
@pytest.mark.parametrize("terms", canonical.TERMS)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_value_has_the_bits_of_the_contract(backend, dtype, terms, size):
    elements = canonical.numbers(size, dtype, seed=size + 1)
    value = L1L2(*terms)(canonical.array(elements, dtype), scale=0.37)
    assert canonical.value_bits(value) == canonical.value_bits(
        canonical.penalty(elements, *terms, scale=0.37)
    )


@pytest.mark.parametrize("size", [33 * 4096, 200_003])
def test_sizes_of_several_slabs(backend, size):
    elements = canonical.numbers(size, "f32")
    w = canonical.array(elements, "f32")
    assert L1L2(0.3, 0.7)(w) == canonical.penalty(elements, 0.3, 0.7)


def test_three_levels_of_the_tree(backend):
    w = np.ones(4096 * 4096 + 5, bool)
    assert L1(1.0)(w) == float(w.size)


def test_two_levels_against_fsum(backend):
    w = np.random.default_rng(3).standard_normal(1_000_003)
    exact = math.fsum(np.abs(w))
    assert abs(L1(1.0)(w) - exact) <= 1e-13 * exact


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 100, 4097, 10_000])
def test_canonical_sum_of_any_signs(backend, size):
    generator = random.Random(size)
    values = [generator.uniform(-1, 1) * 2.0 ** generator.randint(-40, 40) for _ in range(size)]
    assert canonical.value_bits(_backend.canonical_sum(values)) == canonical.value_bits(
        canonical.canonical_sum(values)
    )


@pytest.mark.parametrize(
    "values",
    [[-0.0], [-0.0, -0.0], [math.inf], [math.inf, -math.inf], [math.nan, 1.0], [1e308, 1e308]],
)
def test_canonical_sum_of_special_values(backend, values):
    assert canonical.value_bits(_backend.canonical_sum(values)) == canonical.value_bits(
        canonical.canonical_sum(values)
    )


def test_many_tensors_have_the_bits_of_one(backend):
    pieces = [canonical.numbers(size, "f32", seed=size) for size in (5, 0, 4097, 33)] * 9
    weights = tuple(canonical.array(piece, "f32") for piece in pieces)
    names = tuple(map(str, range(len(weights))))
    which = tuple(place % 2 for place in range(len(weights)))
    strengths = ((0.3, 0.7), (0.0, 0.1))
    each = _backend.evaluate_many(1, names, weights, None, strengths, which, 1.0, 1.0, True)
    assert each == [canonical.penalty(p, *strengths[i]) for p, i in zip(pieces, which, strict=True)]
    total = _backend.evaluate_many(1, names, weights, None, strengths, which, 1.0, 1.0, False)
    assert total == canonical.canonical_sum(each)


def test_no_tensors(backend):
    assert _backend.evaluate_many(1, (), (), None, (), (), 1.0, 1.0, False) == 0.0
    assert _backend.evaluate_many(7, (), (), (), (), (), 1.0, 1.0, True) == []


@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 40, 4099])
def test_special_values_are_seen(backend, dtype, special, place):
    elements = canonical.numbers(4100, dtype)
    elements[place] = special
    w = canonical.array(elements, dtype)
    for regularizer in (L1(0.3), L2(0.7), L1L2(0.3, 0.7)):
        value = regularizer(w)
        assert math.isnan(value) if math.isnan(special) else value == math.inf
        assert regularizer(w, scale=0.0) == 0.0
    assert L1L2(0.0, 0.0)(w) == 0.0
    assert L1(0.0)(w) == 0.0


def test_a_term_of_strength_zero_is_absent(backend):
    w = np.array([1e200, -1e200])
    assert L1L2(0.5, 0.0)(w) == 1e200
    assert L2(1.0)(w) == math.inf


def test_strength_is_absent_when_its_product_underflows(backend):
    w = np.array([math.nan])
    assert L1(1e-320)(w, scale=1e-10) == 0.0
    assert math.isnan(L1(1e-320)(w))


@pytest.mark.parametrize("scale", [-1.0, -0.37, 3.0])
def test_negative_scale(backend, scale):
    elements = canonical.numbers(100, "f32")
    value = L1L2(0.3, 0.7)(canonical.array(elements, "f32"), scale=scale)
    assert value == canonical.penalty(elements, 0.3, 0.7, scale)


@pytest.mark.parametrize(
    ("dtype", "elements"),
    [
        ("bool", [True, False, True, True]),
        ("i1", [-128, 127, 3]),
        ("i2", [-32768, 32767, 0]),
        ("i4", [-(2**31), 2**31 - 1]),
        ("i8", [-(2**63), 2**63 - 1, 2**53 + 1, 1]),
        ("u1", [255, 0, 7]),
        ("u2", [65535]),
        ("u4", [2**32 - 1, 5]),
        ("u8", [2**64 - 1, 2**53 + 1, 2**63 + 1025]),
    ],
)
def test_integers_and_bool_have_the_right_value(backend, dtype, elements):
    w = np.array(elements, dtype)
    converted = [float(x) for x in elements]
    assert L1L2(0.3, 0.7)(w) == canonical.penalty(converted, 0.3, 0.7)
    assert L1(1.0)(w[::-1]) == canonical.penalty(converted[::-1], 1.0, 0.0)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_half_precision_neither_overflows_nor_stalls(backend, dtype):
    w = np.full(1_000_000, 0.5, canonical.NUMPY[dtype])
    assert L1(0.1)(w) == pytest.approx(50_000, rel=1e-15)
    assert L2(0.1)(w) == pytest.approx(25_000, rel=1e-15)
    assert L2(0.1)(np.full(1, 300, canonical.NUMPY[dtype])) == pytest.approx(9000, rel=1e-15)
