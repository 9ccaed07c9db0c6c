"""Layouts: any order, stride and alignment gives the bits of the contract, without copies.

The order of summation is worked out here element by element, from addresses and indices.
"""

import itertools

import canonical
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastreg.regularizers import L1, L1L2, L2

REGULARIZER = L1L2(0.3, 0.7)


def indices_in_order(array):
    """Return all indices in the order of summation."""
    indices = list(itertools.product(*map(range, array.shape)))
    if array.size == 0:
        return indices
    axes = [axis for axis in range(array.ndim) if array.shape[axis] != 1]
    axes.sort(key=lambda axis: array.strides[axis])
    inside = array.itemsize
    for axis in axes:
        if array.strides[axis] != inside:
            return indices
        inside *= array.shape[axis]
    return sorted(
        indices, key=lambda index: sum(i * s for i, s in zip(index, array.strides, strict=True))
    )


def check(w, dtype, gradients):
    """Compare value, new gradient and accumulated gradient with the oracle."""
    order = indices_in_order(w)
    penalty = canonical.penalty([float(w[index]) for index in order], 0.3, 0.7)
    assert REGULARIZER(w) == penalty

    expected = canonical.array(canonical.gradient(canonical.floats(w), dtype, 0.3, 0.7), dtype)
    new = REGULARIZER.gradient(w)
    assert new.shape == w.shape
    assert new.dtype == w.dtype
    assert (canonical.bits(new).reshape(-1) == canonical.bits(expected)).all()

    for grad in gradients:
        old = canonical.floats(grad)
        added = canonical.gradient(canonical.floats(w), dtype, 0.3, 0.7, old=old)
        assert REGULARIZER.accumulate(w, grad) == penalty
        expected = canonical.bits(canonical.array(added, dtype))
        assert (canonical.bits(grad).reshape(-1) == expected).all()


@st.composite
def views(draw, shape, dtype, may_repeat):
    """Draw a view of `shape`: permuted, with steps of either sign, unaligned, perhaps repeating."""
    axes = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in shape]
    repeat = [may_repeat and draw(st.integers(0, 9)) == 0 for _ in shape]
    whole = [1 if repeat[axis] else max(shape[axis] * abs(steps[axis]), 0) for axis in axes]
    offset = draw(st.sampled_from([0, 0, 0, 1]))
    item = canonical.NUMPY[dtype].itemsize
    count = int(np.prod(whole, dtype=int))
    memory = np.zeros(count * item + offset, np.uint8)
    base = memory[offset:].view(canonical.NUMPY[dtype]).reshape(whole)
    seed = draw(st.integers(0, 1000))
    base[...] = canonical.array(canonical.numbers(count, dtype, seed), dtype).reshape(whole)
    view = base.transpose(np.argsort(axes)) if axes else base
    slices = tuple(
        slice(None) if repeat[axis] else slice(None, None, steps[axis])
        for axis in range(len(shape))
    )
    return np.broadcast_to(view[slices], shape)


@st.composite
def problems(draw):
    dtype = draw(st.sampled_from(canonical.DTYPES))
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 33]), max_size=4)))
    if np.prod(shape, dtype=int) > 5000:
        shape = shape[:2]
    w = draw(views(shape, dtype, True))
    grad = draw(views(shape, dtype, False))
    grad.flags.writeable = True
    return w, dtype, grad


@given(problems())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_drawn_layouts(backend, problem):
    w, dtype, grad = problem
    check(w, dtype, [grad, np.array(grad, order="F"), np.array(grad, order="C")])


BIG = (3, 70, 50)  # larger than two chunks


def big(dtype):
    count = int(np.prod(BIG))
    return canonical.array(canonical.numbers(count, dtype, 9), dtype).reshape(BIG)


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_dense_arrays_of_several_chunks_are_summed_in_memory_order(backend, axes, dtype):
    w = big(dtype).transpose(axes)
    assert REGULARIZER(w) == REGULARIZER(big(dtype))
    check(w, dtype, [np.array(w, order="C"), np.array(w, order="F")])


@pytest.mark.parametrize(
    "cut",
    [
        np.s_[:, ::2],
        np.s_[::-1],
        np.s_[:, :, ::-1],
        np.s_[..., 1:],
        np.s_[:, 3],
        np.s_[:, :, 7:8],
        np.s_[1:1],
        np.s_[2, 5, 7, ...],
        np.s_[None, :, None, ::3],
    ],
)
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_cut_arrays(backend, cut, dtype):
    w = big(dtype)[cut]
    grad = np.array(big(dtype)[:, ::-1])[cut]
    check(w, dtype, [grad])


def test_c_order_and_memory_order_differ_where_the_contract_says_so(backend):
    """The two orders have different bits for this array, so that the tests above mean something."""
    w = big("f64").transpose(2, 0, 1)
    gaps = np.zeros((*BIG[:2], BIG[2] + 1))[..., :-1]
    gaps[...] = big("f64")
    assert L1(1.0)(w) == canonical.penalty(canonical.floats(big("f64")), 1.0, 0.0)
    assert L1(1.0)(gaps.transpose(2, 0, 1)) == canonical.penalty(canonical.floats(w), 1.0, 0.0)
    assert L1(1.0)(w) != L1(1.0)(gaps.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_zero_strides_are_read(backend, dtype):
    row = canonical.array(canonical.numbers(700, dtype), dtype)
    w = np.broadcast_to(row, (9, 700))
    check(w, dtype, [np.array(w)])
    check(w.T, dtype, [np.array(w)[::-1].T])


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_unaligned(backend, dtype):
    item = canonical.NUMPY[dtype].itemsize
    w = np.zeros(5000 * item + 1, np.uint8)[1:].view(canonical.NUMPY[dtype])
    w[...] = canonical.array(canonical.numbers(5000, dtype), dtype)
    grad = np.zeros(5000 * item + 1, np.uint8)[1:].view(canonical.NUMPY[dtype])
    check(w, dtype, [grad, np.array(w)])


def test_a_gradient_in_a_record_array(backend):
    """A field of a structured array: strided and unaligned at once."""
    records = np.zeros(100, [("tag", "u1"), ("g", "f8")])
    w = canonical.array(canonical.numbers(100, "f64"), "f64")
    check(w, "f64", [records["g"]])


@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (0,), (3, 0), (0, 3, 2)])
def test_scalars_and_empty_arrays(backend, shape, dtype):
    count = int(np.prod(shape))
    w = canonical.array(canonical.numbers(count, dtype, 5), dtype).reshape(shape)
    check(w, dtype, [np.array(w)])
    assert type(REGULARIZER(w)) is float


def test_interleaved_arrays_do_not_overlap(backend):
    memory = np.ones(20)
    w, grad = memory[::2], memory[1::2]
    assert L2(0.5).accumulate(w, grad) == 5.0
    assert grad.tolist() == [2.0] * 10
    assert w.tolist() == [1.0] * 10


def test_strides_of_interleaved_axes_may_be_written(backend):
    """Addresses 0 3 2 5 4 7: no element twice, though the axes are not nested."""
    grad = np.lib.stride_tricks.as_strided(np.zeros(8), (3, 2), (16, 24))
    assert L2(0.5).accumulate(np.ones((3, 2)), grad) == 3.0
    assert grad.tolist() == [[1.0, 1.0]] * 3


def test_a_new_gradient_has_the_layout_of_the_weight(backend):
    w = big("f32").transpose(1, 2, 0)
    assert REGULARIZER.gradient(w).strides == w.strides
    assert REGULARIZER.gradient(w[:, ::2]).flags.writeable
