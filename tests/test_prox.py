"""Proximal steps: bits against the plain-Python oracle, and that they minimise what they should."""

import array
import math

import canonical
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_gradient import special_elements

from fastreg._base.penalty import PROXIMAL, VALUE_AND_PROXIMAL
from fastreg._engine import backend as _backend
from fastreg._engine import calls
from fastreg.regularizers import L1, L1L2, L2

TERMS = (*canonical.TERMS, (0.0, 0.0))
STEPS = (0.0, 1e-30, 0.1, 1.0, 3.7, 1e4)


def check(elements, dtype, l1, l2, step, scale=1.0):
    """Take the step into another array and in place, with and without the value."""
    w = canonical.array(elements, dtype)
    wanted = canonical.prox(elements, dtype, l1, l2, step, scale)
    expected = canonical.bits(canonical.array(wanted, dtype))
    value = canonical.value_bits(canonical.penalty(wanted, l1, l2, scale))
    zeros = sum(x == 0 for x in wanted)
    for in_place in (False, True):
        for outputs in (PROXIMAL, VALUE_AND_PROXIMAL):
            source = w.copy()
            target = source if in_place else np.full_like(w, 7)
            found = calls.evaluate_one(outputs, source, target, l1, l2, scale, step)
            assert (canonical.bits(target) == expected).all()
            if outputs == PROXIMAL:
                assert found is None
                continue
            assert canonical.value_bits(found[0]) == value
            assert found[1:] == (zeros, len(elements))
            assert list(map(type, found)) == [float, int, int]
            if not in_place:
                assert (canonical.bits(source) == canonical.bits(w)).all()


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 1055, 4097])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_every_cell(backend, dtype, terms, size):
    check(canonical.numbers(size, dtype, seed=2), dtype, *terms, 0.3)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scale", [1.0, 0.37, 0.0])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_steps_and_scales(backend, dtype, terms, scale, step):
    check(canonical.numbers(70, dtype, seed=4), dtype, *terms, step, scale)


@pytest.mark.parametrize("step", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("shift", range(3))
def test_special_values(backend, dtype, terms, step, shift):
    special = special_elements(dtype)
    # 40 elements: vector registers and the rest behind them both meet every special value.
    check([special[(place + shift) % len(special)] for place in range(40)], dtype, *terms, step)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_rounding_of_every_half_precision_number(backend, dtype):
    w = np.arange(2**16, dtype=np.uint16).view(canonical.NUMPY[dtype])
    elements = canonical.floats(w)
    for l1, l2 in ((0.3, 0.7), (0.0, 0.55), (1e-6, 0.0)):
        expected = canonical.array(canonical.prox(elements, dtype, l1, l2, 0.9), dtype)
        assert (canonical.bits(L1L2(l1, l2).prox(w, 0.9)) == canonical.bits(expected)).all()


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_every_threshold_is_met_exactly(backend, dtype):
    """Just below, at and just above the threshold."""
    for step in (0.1, 1.0, 2.0**-10):
        edge = canonical.array([step * 0.3], dtype)[0]
        (pattern,) = edge.reshape(1).view(f"u{edge.itemsize}").tolist()
        near = np.arange(pattern - 3, pattern + 4, dtype=f"u{edge.itemsize}").view(edge.dtype)
        elements = canonical.floats(near)
        check(elements + [-x for x in elements], dtype, 0.3, 0.0, step)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=40),
    *[st.floats(0.0, 2.0**20)] * 3,
    st.sampled_from(("f32", "f64")),
)
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_numbers(backend, elements, l1, l2, step, dtype):
    check(elements, dtype, l1, l2, step)


# --------------------------------------------------------------------------- what it is


def objective(u, w, l1, l2, step):
    return (u - w) ** 2 / 2 + step * (l1 * np.abs(u) + l2 * u**2)


@pytest.mark.parametrize("terms", TERMS)
def test_it_minimises(backend, terms):
    """No point of a fine grid about it, nor 0, is better; nor of a coarse one far from it."""
    reg = L1L2(*terms)
    w = np.array(canonical.numbers(200, "f64", seed=8))
    for step in (0.05, 1.0, 20.0):
        u = reg.prox(w, step)
        least = objective(u, w, *terms, step)
        near, far = np.linspace(-1e-3, 1e-3, 41), np.linspace(-9, 9, 37)
        for other in (np.zeros_like(w), *(u + move for move in (*near, *far))):
            worse = objective(other, w, *terms, step) - least
            assert worse.min() > -1e-14 * max(1.0, least.max())


def test_zeros_are_positive_but_for_l2_alone(backend):
    w = np.array([0.0, -0.0, 0.1, -0.1, -5e-324])
    assert np.signbit(L1(1.0).prox(w, 1.0)).tolist() == [False] * 5
    assert np.signbit(L1(1.0).prox(w, 0.0)).tolist() == [False, False, False, True, True]
    assert np.signbit(L2(1.0).prox(w, 1.0)).tolist() == [False, True, False, True, True]
    payload = np.array([0x7FF8000000000123, 0x8000000000000000], np.uint64).view(np.float64)
    copy = L1L2(0.0, 0.0).prox(payload, 1.0)
    assert copy is not payload
    assert (copy.view(np.uint64) == payload.view(np.uint64)).all()


def test_a_huge_strength_makes_zeros_of_all_but_infinity_and_nan(backend):
    w = np.array([3.0, -1e300, math.inf, -math.inf, math.nan])
    u = L1(1e307).prox(w, 10.0)
    assert u[:2].tolist() == [0.0, 0.0]
    assert u[2:4].tolist() == [math.inf, -math.inf]
    assert math.isnan(u[4])


def test_a_tiny_step_moves_no_half_precision_number(backend):
    w = np.array([1.0, -0.5], np.float16)
    assert L1L2(1.0, 1.0).prox(w, 1e-6).tolist() == [1.0, -0.5]


# ------------------------------------------------------------------------ the arguments


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_out(backend, scale):
    w = np.array(canonical.numbers(33, "f32", seed=5), np.float32)
    expected = canonical.array(canonical.prox(w, "f32", 0.3, 0.7, 0.2, scale), "f32")
    out = np.empty_like(w)
    reg = L1L2(0.3, 0.7)
    assert reg.prox(w, 0.2, out, scale=scale) is out
    new = reg.prox(w, 0.2, scale=scale)
    assert new is not w
    assert reg.prox(w, 0.2, out=w, scale=scale) is w
    for found in (out, new, w):
        assert (canonical.bits(found) == canonical.bits(expected)).all()


def layouts(base):
    """Return arrays like `base` that lie in memory in different ways."""
    wide = np.zeros((*base.shape[:-1], 2 * base.shape[-1]), base.dtype)
    return (
        np.empty_like(base),
        np.empty_like(base, order="F"),
        wide[..., ::2],
        np.empty_like(base)[:, ::-1],
    )


@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("terms", TERMS)
def test_layouts(backend, dtype, terms):
    """Elements are paired by index, and summed in the order of the weight."""
    base = canonical.array(canonical.numbers(3 * 50 * 40, dtype, seed=9), dtype).reshape(3, 50, 40)
    wanted = canonical.prox(canonical.floats(base), dtype, *terms, 0.2)
    expected = canonical.bits(canonical.array(wanted, dtype).reshape(base.shape))
    zeros = sum(x == 0 for x in wanted)
    call = (*terms, 1.0, 0.2)
    for source in layouts(base):
        source[...] = base
        found = calls.evaluate_one(VALUE_AND_PROXIMAL, source, source, *call)
        assert (canonical.bits(source) == expected).all()
        assert found == (L1L2(*terms)(source), zeros, base.size)
        source[...] = base
        for target in layouts(base):
            assert calls.evaluate_one(VALUE_AND_PROXIMAL, source, target, *call) == found
            assert (canonical.bits(target) == expected).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_threads_and_sizes(backend, dtype, threads):
    """Large enough for several threads, and for several levels of the sum."""
    if backend == "numpy" and threads > 1:
        pytest.skip("the fallback has one thread")
    before = _backend.get_num_threads()
    w = canonical.array(canonical.numbers(300_007, dtype, seed=3), dtype)
    expected = w.copy()
    reference = calls.backend.reference
    wanted = reference.evaluate_one(VALUE_AND_PROXIMAL, expected, expected, 0.3, 0.7, 1.0, 0.1)
    _backend.set_num_threads(threads)
    try:
        assert calls.evaluate_one(VALUE_AND_PROXIMAL, w, w, 0.3, 0.7, 1.0, 0.1) == wanted
    finally:
        _backend.set_num_threads(before)
    assert (canonical.bits(w) == canonical.bits(expected)).all()


@pytest.mark.parametrize("step", [-1e-9, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("argument", ["step", "scale"])
def test_a_step_is_finite_and_not_negative(backend, argument, step):
    w = np.ones(3)
    arguments = {"step": 0.1, argument: step}
    with pytest.raises(ValueError, match=rf"^{argument} must be a finite number >= 0, not"):
        L1(0.5).prox(w, out=w, **arguments)
    assert w.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("step", [0, 1, np.float32(0.5), np.float64(0.25), np.int8(2), True])
def test_a_step_may_be_any_real_number(backend, step):
    w = np.array([3.0, -0.1])
    assert L1(1.0).prox(w, step).tolist() == L1(1.0).prox(w, float(step)).tolist()


@pytest.mark.parametrize("step", ["1", None, 1j, [1.0]])
def test_what_is_no_step(backend, step):
    with pytest.raises(TypeError, match=r"^step must be a finite number >= 0, not"):
        L1(1.0).prox(np.ones(2), step)


@pytest.mark.parametrize(
    ("reg", "step", "message"),
    [
        (L1(1e38), 10.0, r"^step \* l1, of strengths times scale, must be finite in float32"),
        (
            L2(1e38),
            10.0,
            r"^1 \+ step \* 2 \* l2, of strengths times scale, must be finite in float32",
        ),
    ],
)
def test_numbers_that_are_not_finite_in_the_arithmetic(backend, reg, step, message):
    for dtype in (np.float32, np.float16, canonical.NUMPY["bf16"]):
        w = np.ones(3, dtype)
        with pytest.raises(ValueError, match=message):
            reg.prox(w, step, out=w)
        assert w.tolist() == [1, 1, 1]
    assert reg.prox(np.ones(3), step).shape == (3,)
    with pytest.raises(ValueError, match="must be finite in float64"):
        reg.prox(np.ones(3), 1e300)
    with pytest.raises(ValueError, match=r"\* scale must be finite"):
        reg.prox(np.ones(3), 1.0, scale=1e300)


def test_what_has_no_proximal_step(backend):
    with pytest.raises(
        TypeError, match=r"^w has dtype int64: there is no proximal step for integer"
    ):
        L1(0.5).prox(np.arange(3), 1.0)
    with pytest.raises(TypeError, match=r"^w must be an array, not a list"):
        L1(0.5).prox([1.0], 1.0)
    with pytest.raises(
        TypeError, match=r"^out has dtype float64, but w has float32; a proximal step"
    ):
        L1(0.5).prox(np.ones(2, np.float32), 1.0, np.ones(2))
    with pytest.raises(
        ValueError, match=r"^out has shape \(3,\), but w has \(2,\); a proximal step"
    ):
        L1(0.5).prox(np.ones(2), 1.0, np.ones(3))
    w = np.ones(4)
    with pytest.raises(ValueError, match=r"^out overlaps w in memory without being the same array"):
        L1(0.5).prox(w[:3], 1.0, w[1:])
    with pytest.raises(ValueError, match=r"^out overlaps itself"):
        L1(0.5).prox(np.ones((2, 2)), 1.0, np.lib.stride_tricks.as_strided(w, (2, 2), (8, 8)))
    w.setflags(write=False)
    with pytest.raises(BufferError, match=r"^out is a read-only array"):
        L1(0.5).prox(w, 1.0, out=w)
    assert w.tolist() == [1.0] * 4
    assert L1(0.5).prox(w, 1.0).tolist() == [0.5] * 4


def test_buffers(backend):
    w = array.array("f", [1.0, -2.0, 0.25])
    assert L1(0.5).prox(w, 1.0).tolist() == [0.5, -1.5, 0.0]
    assert L1(0.5).prox(w, 1.0, out=w) is w
    assert w.tolist() == [0.5, -1.5, 0.0]


def test_empty_and_zero_dimensional(backend):
    assert L1(0.5).prox(np.zeros((0, 3)), 1.0).shape == (0, 3)
    found = L1(0.5).prox(np.array(2.0), 1.0)
    assert found.shape == ()
    assert float(found) == 1.5
