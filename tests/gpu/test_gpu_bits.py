"""Every cell gives on a device what it gives on the host: ``==``, never a tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import (
    OUTPUTS,
    RULES,
    SIZES,
    evaluate,
    finite,
    numbers,
    numpy_dtype,
    patterns,
    same_bits,
    same_value,
    tiled,
)
from makers import ASYNCHRONOUS, BULK, GRADIENTS, OFFSETS, Maker

import fastreg
from fastreg.regularizers import L1L2

FACTORS = {"scale": 0.5, "grad_scale": 3.0}

#: More than 2^31 elements.
HUGE = 2**31 + 4097

#: The first size beyond what 32 bits count in bytes, at four bytes to an element.
BIG = 2**28 + 1


def check(
    maker: Maker,
    outputs: str,
    rule: Any,
    w: np.ndarray,
    g: np.ndarray,
    offsets: tuple[int, int] = (0, 0),
) -> None:
    """Do one cell on the device and on the host, and compare what comes of it."""
    weight, gradient = (
        maker.make(array, offset=offset) for array, offset in zip((w, g), offsets, strict=True)
    )
    found = evaluate(outputs, rule, weight, gradient, **FACTORS)
    expected_gradient = g.copy("K")
    expected = evaluate(outputs, rule, w, expected_gradient, **FACTORS)
    assert same_bits(maker.host(gradient), expected_gradient)
    if expected is not None:
        assert same_value(found, expected)
    assert same_bits(maker.host(weight), w)


@pytest.mark.parametrize("terms", RULES)
def test_values(maker: Maker, dtype: str, terms: str) -> None:
    for size in SIZES:
        w = numbers(size, dtype)
        assert same_value(RULES[terms](maker.make(w), scale=0.5), RULES[terms](w, scale=0.5))


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("terms", RULES)
def test_cells(maker: Maker, dtype: str, terms: str, outputs: str) -> None:
    for size in SIZES:
        check(maker, outputs, RULES[terms], numbers(size, dtype), numbers(size, dtype, 1))


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_cells_without_any_term(maker: Maker, dtype: str, outputs: str) -> None:
    check(maker, outputs, L1L2(0.0, 0.0), numbers(4097, dtype), numbers(4097, dtype, 1))


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("terms", RULES)
def test_every_pattern(maker: Maker, dtype: str, terms: str, outputs: str) -> None:
    w = patterns(dtype)
    g = np.random.default_rng(3).permutation(w)
    with np.errstate(all="ignore"):
        check(maker, outputs, RULES[terms], w, g)
        # The value above is NaN; of what is finite it is a number, or infinite for f64.
        kept = finite(w)
        check(maker, outputs, RULES[terms], kept, np.random.default_rng(4).permutation(kept))


@pytest.mark.needs(GRADIENTS, OFFSETS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_unaligned(maker: Maker, dtype: str, outputs: str) -> None:
    for offsets in ((1, 0), (0, 1), (1, 3), (7, 5), (13, 13)):
        for size in (1, 33, 4097, 20_003):
            w, g = numbers(size, dtype), numbers(size, dtype, 1)
            check(maker, outputs, RULES["L1L2"], w, g, offsets)


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_fortran_order(maker: Maker, dtype: str, outputs: str) -> None:
    w, g = (np.asfortranarray(numbers((7, 11, 301), dtype, seed)) for seed in (0, 1))
    check(maker, outputs, RULES["L1L2"], w, g)


@pytest.mark.needs(GRADIENTS)
def test_the_gradient_is_the_weight(maker: Maker, dtype: str) -> None:
    w = numbers(20_003, dtype)
    x = maker.make(w)
    found = RULES["L1L2"].accumulate(x, x)
    expected = RULES["L1L2"].accumulate(w, w)
    assert same_value(found, expected)
    assert same_bits(maker.host(x), w)


@pytest.mark.needs(ASYNCHRONOUS)
def test_a_value_of_what_is_being_computed(maker: Maker) -> None:
    w = tiled(2**22 + 1, "f32")
    x = maker.computed(w)
    found = RULES["L1L2"](x)
    assert same_value(found, RULES["L1L2"](w))
    assert same_bits(maker.host(x), w)


@pytest.mark.needs(GRADIENTS, BULK)
def test_a_big_tensor(maker: Maker, dtype: str) -> None:
    """On a GPU 2^28 + 1 elements, or what memory allows; on the stand-in what time allows."""
    size = min(BIG, maker.most_bytes() // numpy_dtype(dtype).itemsize) | 1
    check(maker, "VGA", RULES["L1L2"], tiled(size, dtype), tiled(size, dtype, 1))


@pytest.mark.needs(GRADIENTS, BULK)
def test_more_elements_than_32_bits_count(maker: Maker) -> None:
    """2^31 + 4,097 elements of float16, or what memory allows; on the stand-in a few."""
    size = min(HUGE, maker.most_bytes() // 2) | 1
    # Whole numbers: any order of the sums gives the same, so that no host has to take that long.
    period = np.arange(-1000, 1001, dtype=np.float16)
    w = np.resize(period, size)
    weight, gradient = maker.make(w), maker.make(np.zeros(size, np.float16))
    rule = L1L2(0.5, 0.25)
    turns, rest = divmod(size, period.size)
    numbers_of_period = period.astype(np.float64)
    absolute = turns * np.abs(numbers_of_period).sum() + np.abs(numbers_of_period[:rest]).sum()
    squares = turns * np.square(numbers_of_period).sum() + np.square(numbers_of_period[:rest]).sum()
    expected = 0.5 * absolute + 0.25 * squares
    assert same_value(rule(weight), expected)
    assert same_value(rule.accumulate(weight, gradient), expected)
    found = maker.host(gradient)
    of_period = rule.gradient(period)
    assert same_bits(
        found[-4097:], np.resize(np.roll(of_period, -((size - 4097) % period.size)), 4097)
    )
    assert same_bits(found[: period.size], of_period)


# ---- many tensors in one call


def shapes(count: int) -> list[tuple[int, ...]]:
    """Empty ones, scalars, vectors and matrices, around the ends of rows and chunks."""
    generator = np.random.default_rng(count)
    usual: list[tuple[int, ...]] = [(0,), (), (1,), (33,), (7, 31), (4095,), (64, 64), (4097,)]
    return [
        usual[place] if place < len(usual) else (int(generator.integers(1, 300)),)
        for place in range(count)
    ]


def lists(count: int, dtypes: tuple[str, ...]) -> tuple[dict[str, np.ndarray], ...]:
    """Weights and gradients by name, of all dtypes in turn."""
    return tuple(
        {
            f"layer{place}/{'kernel' if place % 3 else 'bias'}": np.asarray(
                numbers(shape, dtypes[place % len(dtypes)], seed + place)
            )
            for place, shape in enumerate(shapes(count))
        }
        for seed in (0, 10_000)
    )


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("count", [1, 7, 3000])
def test_lists(maker: Maker, count: int) -> None:
    weights, gradients = lists(count, maker.dtypes)
    rules = {"*bias": RULES["L1"], "*kernel": RULES["L1L2"]} if count > 1 else RULES["L1L2"]
    on_device = {name: maker.make(w) for name, w in weights.items()}
    device_gradients = {name: maker.make(g) for name, g in gradients.items()}
    there, here = fastreg.attach(on_device, rules), fastreg.attach(weights, rules)
    assert same_value(there.value(scale=0.5), here.value(scale=0.5))
    found = there.accumulate(device_gradients, **FACTORS)
    assert same_value(found, here.accumulate(gradients, **FACTORS))
    for name, g in gradients.items():
        assert same_bits(maker.host(device_gradients[name]), g), name


@pytest.mark.needs(GRADIENTS)
def test_strengths_that_change_between_queued_calls(maker: Maker) -> None:
    w, g = numbers(10_007, "f32"), numbers(10_007, "f32", 1)
    weight, gradient = maker.make(w), maker.make(g)
    rule, found = L1L2(0.0, 0.0), []
    for step in range(50):
        rule.l1, rule.l2 = step / 1000, 1 / (1 + step)
        found.append(rule.accumulate(weight, gradient))
    for step, value in enumerate(found):
        rule.l1, rule.l2 = step / 1000, 1 / (1 + step)
        assert same_value(value, rule.accumulate(w, g))
    assert same_bits(maker.host(gradient), g)
