"""Arrays of any layout on a device, and integers and bool, whose penalty alone is asked for.

``test_sanitized`` is what runs under compute-sanitizer: each kind of kernel once, and small.
"""

from __future__ import annotations

import numpy as np
import pytest
from inputs import OUTPUTS, RULES, evaluate, numbers, same_bits, same_value
from makers import GRADIENTS, LAYOUTS, Maker

INTEGERS = ("i1", "i2", "i4", "i8", "u1", "?")


def views(dtype: str, rows: int = 67) -> dict[str, np.ndarray]:
    """Return arrays whose elements are not all one behind the other in C order."""
    base = numbers((rows, 31, 6), dtype)
    return {
        "every other": base[::2],
        "part of a row": base[:, 3:20],
        "transposed": base.transpose(2, 0, 1)[:, ::2],
        "reversed": base[::-1, :, ::-1],
        "one column": base[:, :, 2],
    }


@pytest.mark.needs(GRADIENTS, LAYOUTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
def test_layouts(maker: Maker, dtype: str, outputs: str) -> None:
    for name, w in views(dtype).items():
        if min(w.strides) < 0 and not maker.has_negative_strides:
            continue
        g = np.random.default_rng(7).permutation(w.reshape(-1)).reshape(w.shape)
        weight, gradient = maker.viewed(w), maker.make(g)
        expected = evaluate(outputs, RULES["L1L2"], w, g)
        found = evaluate(outputs, RULES["L1L2"], weight, gradient)
        assert same_bits(maker.host(gradient), g), name
        if expected is not None:
            assert same_value(found, expected), name


@pytest.mark.needs(LAYOUTS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers(maker: Maker, kind: str) -> None:
    drawn = np.random.default_rng(3).integers(0, 100, (301, 41))
    w = drawn.astype(kind) if kind == "?" or kind.startswith("u") else (drawn - 50).astype(kind)
    for array in (w, w[::2, 5:]):
        for rule in RULES.values():
            assert same_value(rule(maker.viewed(array)), rule(array))


@pytest.mark.needs(GRADIENTS, LAYOUTS)
@pytest.mark.parametrize("outputs", ["V", "VGA"])
def test_sanitized(maker: Maker, dtype: str, outputs: str) -> None:
    w, g = numbers(4097 + 33, dtype), numbers(4097 + 33, dtype, 1)
    weight, gradient = maker.make(w, offset=1), maker.make(g)
    expected = evaluate(outputs, RULES["L1L2"], w, g)
    assert same_value(evaluate(outputs, RULES["L1L2"], weight, gradient), expected)
    assert same_bits(maker.host(gradient), g)
    strided = numbers((140, 37), dtype)[::2]
    weight, target = maker.viewed(strided), maker.make(strided.copy())
    expected_target = strided.copy()
    expected = evaluate(outputs, RULES["L1L2"], strided, expected_target)
    assert same_value(evaluate(outputs, RULES["L1L2"], weight, target), expected)
    assert same_bits(maker.host(target), expected_target)
