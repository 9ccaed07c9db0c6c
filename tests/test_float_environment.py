"""The caller's floating point environment changes no bit, in the core and in the fallback.

Strengths are multiplied, judged and rounded, sums are taken and totals added: all as if the thread
rounded to nearest and kept subnormal numbers.  The environment is as it was afterwards.
"""

from __future__ import annotations

import numpy as np
import pytest
from float_environments import NAMES, environment, is_set

import fastreg
from fastreg._base import float_environment, penalty
from fastreg._engine import backend as _backend
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

BACKENDS = ["numpy", "native"]


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request):
    before = _backend.name
    if request.param == "native":
        pytest.importorskip("fastreg._core", exc_type=ImportError)
    _backend.select(request.param)
    yield request.param
    _backend.select(before)


STRENGTHS = [0.1, 0.3, 1e-5, 3e-308, 7e-300, 1.0 / 3.0]
SCALES = [3.0, 0.01, 1.0 / 7.0, -0.7, 1e-9]


W = np.linspace(-1.0, 1.0, 503) * 3e-4
ELEMENTS = {dtype: W[230:265].astype(dtype) for dtype in (np.float64, np.float32, np.float16)}


def results():
    """Return bytes of every kind of result, so that nothing is compared in the environment."""
    found = []
    for l1 in STRENGTHS:
        for l2 in (0.0, *STRENGTHS[:4]):
            for scale in SCALES:
                for dtype in ELEMENTS:
                    elements = ELEMENTS[dtype]
                    rule = L1L2(l1, l2)
                    value, gradient = rule.value_and_grad(elements, scale=scale, grad_scale=1.1)
                    found += [np.float64(value).tobytes(), gradient.tobytes()]
    tensors = {str(i): W[i : i + 70] for i in range(9)}
    rules = {"0": L1(0.1), "1": L2(0.7), "*": L1L2(0.3, 3e-308)}
    penalties = fastreg.attach(tensors, rules)
    found.append(np.float64(penalties.value(scale=0.3)).tobytes())
    total, gradients = penalties.value_and_grad(scale=0.3, grad_scale=0.7)
    found.append(np.float64(total).tobytes())
    found += [gradients[name].tobytes() for name in tensors]
    found.append(np.float64(_backend.canonical_sum([0.1] * 40)).tobytes())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_the_default_environment(name):
    expected = results()
    with environment(name):
        found = results()
        still = is_set(name)
    assert still
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_product_that_is_subnormal(name):
    w = np.ones(3)
    with environment(name):
        penalty = L1(3e-308)(w[:1], scale=0.01)
        gradient = L2(3e-308).gradient(w, scale=0.01)
    assert penalty == 3e-308 * 0.01 > 0.0
    assert gradient.tolist() == [2.0 * (3e-308 * 0.01)] * 3


@pytest.mark.parametrize("name", NAMES)
def test_strengths_are_judged_as_rounded_to_nearest(name):
    """Just above the largest float32, but nearer to it than to infinity."""
    largest = float(np.finfo(np.float32).max)
    with environment(name):
        gradient = L1(largest * (1 + 2.0**-26)).gradient(np.ones(2, np.float32))
    assert gradient.tolist() == [largest] * 2
    with environment(name), pytest.raises(ValueError, match="must be finite in float32"):
        L1(largest * (1 + 2.0**-24)).gradient(np.ones(2, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_numpy_numbers_as_strengths(name):
    subnormal = np.float32(1e-42)
    expected = float(subnormal)
    with environment(name):
        rule = L1(subnormal)
    assert rule.l1 == expected > 0.0


@pytest.mark.parametrize("name", NAMES)
def test_products_in_python(name):
    triples = [(a, b, c) for a in STRENGTHS for b in SCALES for c in (1.1, 2.0**16, 1e-5)]
    expected = [a * b * c for a, b, c in triples]
    with environment(name):
        found = [float_environment.product(*triple) for triple in triples]
        rounded = [penalty.rounded(number, "f32") for number in expected]
    assert found == expected
    assert rounded == [penalty.rounded(number, "f32") for number in expected]


class Constant:
    """A callable that offers a gradient."""

    def __call__(self, w):
        return 0.1

    def gradient(self, w):
        return CONSTANT


CONSTANT = np.full((3, 3), 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_callables_and_orthogonal_rules(name):
    """What Python multiplies by a scale, of whatever kind the rule is."""
    w = np.eye(3) + 0.25
    orthogonal = OrthogonalRegularizer(0.1)
    penalties = fastreg.attach({"a": w, "b": 2.0 * w}, {"a": Constant(), "b": L1(0.1)})

    def found():
        total, gradients = penalties.value_and_grad(scale=3.0, grad_scale=1.1)
        values = [penalties.value(scale=3.0), total, orthogonal(w, scale=3.0)]
        arrays = [gradients["a"], gradients["b"], orthogonal.gradient(w, scale=0.3)]
        return [
            *(np.float64(value).tobytes() for value in values),
            *map(np.ndarray.tobytes, arrays),
        ]

    expected = found()
    with environment(name):
        changed = found()
    assert changed == expected


def test_an_environment_is_told_from_the_default():
    assert float_environment.is_default()
    for name in NAMES:
        with environment(name):
            seen = float_environment.is_default()
            with float_environment.Default():
                inside = float_environment.is_default()
            after = float_environment.is_default()
        assert (seen, inside, after) == (False, True, False), name
