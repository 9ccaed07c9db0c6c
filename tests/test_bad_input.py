"""Each refusal: its type, the argument's name, the remedy; and nothing is written."""

import decimal
import math
import re

import numpy as np
import pytest

import fastreg
from fastreg._base import memory as _memory
from fastreg._base.penalty import call_of_one
from fastreg._engine import backend as _backend
from fastreg._engine import calls, checks
from fastreg.layers import Dense, Sequential
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer


class Series:
    """Stands for pandas', by the module it says it is from."""


Series.__module__ = "pandas.core.series"


class Sparse:
    """Stands for a matrix of scipy.sparse."""


Sparse.__module__ = "scipy.sparse._csr"


class Convertible:
    def __array__(self, dtype=None, copy=None):
        raise AssertionError("this may copy, so it must not be called")


class Unknown:
    """Nothing of an array."""


# What is no array: the object, and what the message says would do.
KINDS = [
    (None, "None; pass an array"),
    ([1.0, 2.0], "a list; pass numpy.asarray"),
    ((1.0,), "a tuple; pass numpy.asarray"),
    (1, "int 1; pass numpy.asarray"),
    (0.5, "float 0.5; pass numpy.asarray"),
    (1j, "complex 1j; pass numpy.asarray"),
    (True, "bool True; pass numpy.asarray"),
    ("w", "str 'w'; pass an array of numbers"),
    (b"abcd", "bytes b'abcd'; pass an array of numbers"),
    (bytearray(4), "a bytearray; pass an array of numbers"),
    ({"w": 1}, "a dict; pass one array, or use fastreg.attach"),
    ({1.0}, "a set; pass a NumPy array"),
    (Series(), "a pandas.core.series.Series; pass "),
    (Sparse(), "a scipy.sparse._csr.Sparse; pass "),
    (Convertible(), "which may copy"),
    (Unknown(), "pass a NumPy array or another array in host memory"),
    (decimal.Decimal(1), "a decimal.Decimal; pass a NumPy array"),
]

# Arrays whose elements have no penalty.
DTYPES = [
    (np.array([1, "a"], object), "object.*pass an array of numbers"),
    (np.array(["a"]), "<U1.*pass an array of numbers"),
    (np.array([b"a"]), "S1.*pass an array of numbers"),
    (np.zeros(2, [("a", "f4"), ("b", "i4")]), "'a'.*pass an array of numbers"),
    (np.zeros(2, "V4"), "V4.*astype"),
    (np.zeros(2, "M8[s]"), "datetime64.*pass an array of numbers"),
    (np.zeros(2, "m8[s]"), "timedelta64.*pass an array of numbers"),
    (np.zeros(2, np.complex64), "complex64.*numpy.abs"),
    (np.zeros(2, np.complex128), "complex128.*numpy.abs"),
    (np.zeros(2, np.dtype("f4").newbyteorder()), "byte order.*newbyteorder"),
    (np.zeros(2, np.dtype("i8").newbyteorder()), "byte order.*newbyteorder"),
]
if np.dtype(np.longdouble) != np.dtype(np.float64):
    DTYPES.append((np.zeros(2, np.longdouble), "float128.*astype|longdouble.*astype"))

REGULARIZERS = [L1(0.5), L1L2(0.5, 0.25), OrthogonalRegularizer()]


@pytest.mark.parametrize(("x", "words"), KINDS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_what_is_no_array(backend, regularizer, x, words):
    grad = np.ones((2, 2))
    for call in (
        lambda: regularizer(x),
        lambda: regularizer.gradient(x),
        lambda: regularizer.value_and_grad(x),
        lambda: regularizer.accumulate(x, grad),
    ):
        with pytest.raises(TypeError, match=f"^w must be an array, not .*{re.escape(words)}"):
            call()
    if x is not None:
        with pytest.raises(TypeError, match=f"^grad must be an array, not .*{re.escape(words)}"):
            regularizer.accumulate(grad, x)
        with pytest.raises(TypeError, match=f"^out must be an array, not .*{re.escape(words)}"):
            regularizer.gradient(grad, x)
    assert (grad == 1).all()


@pytest.mark.parametrize(("x", "words"), DTYPES, ids=lambda x: str(getattr(x, "dtype", "")))
def test_dtypes(backend, x, words):
    with pytest.raises(TypeError, match=f"^w has dtype .*(?:{words})"):
        L1(0.5)(x)
    with pytest.raises(TypeError, match=f"^w has dtype .*(?:{words})"):
        L1(0.5).gradient(x)
    with pytest.raises(TypeError, match=f"^grad has dtype .*(?:{words})"):
        L1(0.5).accumulate(np.zeros(2), x)


@pytest.mark.parametrize("dtype", ["i1", "i4", "u8", "?"])
def test_integers_have_no_gradient(backend, dtype):
    w = np.ones(3, dtype)
    words = r"^w has dtype .*no gradient for integer or bool.*astype\(numpy.float32\)"
    for target in (np.ones(3), w.copy()):
        with pytest.raises(TypeError, match=words):
            L1(0.5).accumulate(w, target)
        assert (target == 1).all()
    with pytest.raises(TypeError, match=words):
        L1(0.5).gradient(w)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: np.ones((3, 2)), ValueError, r"has shape \(3, 2\), but w has \(2, 3\)"),
        (lambda: np.ones(6), ValueError, r"has shape \(6,\), but w has \(2, 3\)"),
        (lambda: np.ones((2, 3), np.float32), TypeError, "has dtype float32, but w has float64"),
        (lambda: np.ones((2, 3), np.int64), TypeError, "has dtype int64, but w has float64"),
        (lambda: np.broadcast_to(1.0, (2, 3)), BufferError, "is a read-only array; pass a writ"),
    ],
)
def test_gradients_that_do_not_fit(backend, regularizer, make, error, words):
    w, target = np.ones((2, 3)), make()
    for name, call in (
        ("grad", lambda: regularizer.accumulate(w, target)),
        ("out", lambda: regularizer.gradient(w, target)),
        ("out", lambda: regularizer.value_and_grad(w, target)),
    ):
        with pytest.raises(error, match=f"^{name} {words}"):
            call()
    assert (target == 1).all()


OVERLAPS = [
    lambda m: (m[:9], m[1:]),
    lambda m: (m[1:], m[:9]),
    lambda m: (m, m[::-1]),
    lambda m: (m[:9].reshape(3, 3), m[:9].reshape(3, 3).T),
    lambda m: (m[0:6:2], m[2:8:2]),
    lambda m: (m[:5], np.lib.stride_tricks.as_strided(m, (5,), (4,))),
]


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("regularizer", [L1(0.5), L2(0.5)])
def test_overlaps(backend, regularizer, overlap):
    memory = np.ones(10)
    w, target = overlap(memory)
    for name, call in (("grad", regularizer.accumulate), ("out", regularizer.gradient)):
        with pytest.raises(ValueError, match=f"^{name} overlaps .*pass a copy"):
            call(w, target)
    assert (memory == 1).all()


def test_overlaps_of_the_same_array(backend):
    one, other = np.ones(3), np.ones(3)
    penalties = fastreg.attach({"a": one, "b": other}, L1(0.5))
    shared = np.zeros(3)
    same = "in memory, being the same array; pass an array of its own"
    with pytest.raises(ValueError, match=rf"^grads\['b'\] overlaps grads\['a'\] {same}"):
        penalties.accumulate({"a": shared, "b": shared})
    with pytest.raises(ValueError, match=rf"^grads\['b'\] overlaps tensors\['a'\] {same}"):
        penalties.accumulate({"a": np.zeros(3), "b": one})
    assert (one == 1).all()
    assert (shared == 0).all()


@pytest.mark.parametrize("strides", [(0, 8), (8, 0), (8, 8), (4, 8), (16, 16)])
def test_gradients_that_overlap_themselves(backend, strides):
    memory = np.ones(100)
    grad = np.lib.stride_tricks.as_strided(memory, (3, 4), strides)
    with pytest.raises(ValueError, match=r"^grad overlaps itself .strides .*pass a copy"):
        L1(0.5).accumulate(np.ones((3, 4)), grad)
    assert (memory == 1).all()


SCALES = [
    ("1", TypeError),
    (None, TypeError),
    ([1.0], TypeError),
    (1j, TypeError),
    (np.ones(1), TypeError),
    (np.array(1.0), TypeError),
    (np.nan, ValueError),
    (np.inf, ValueError),
    (-np.inf, ValueError),
    (np.float32("nan"), ValueError),
    (10**400, ValueError),
]


@pytest.mark.parametrize(("scale", "error"), SCALES)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=repr)
def test_scales(backend, regularizer, scale, error):
    w, grad = np.ones((2, 2)), np.ones((2, 2))
    with pytest.raises(error, match=r"^scale must be a finite number, not"):
        regularizer(w, scale=scale)
    for name in ("scale", "grad_scale"):
        for call in (
            lambda name=name: regularizer.accumulate(w, grad, **{name: scale}),
            lambda name=name: regularizer.gradient(w, grad, **{name: scale}),
            lambda name=name: regularizer.value_and_grad(w, **{name: scale}),
        ):
            with pytest.raises(error, match=f"^{name} must be a finite number, not"):
                call()
    assert (grad == 1).all()


@pytest.mark.parametrize("scale", [2, True, np.float32(2), np.int8(2), np.float64(2), -1])
def test_numbers_are_welcome_as_scales(backend, scale):
    w, grad = np.ones(2), np.zeros(2)
    assert L1(0.5)(w, scale=scale) == float(scale)
    assert L1(0.5).accumulate(w, grad, scale=scale, grad_scale=scale) == float(scale)
    assert (grad == 0.5 * float(scale) ** 2).all()


def test_of_two_wrong_factors_the_first_is_named(backend):
    w = np.ones(2)
    with pytest.raises(ValueError, match=r"^scale must be"):
        L1(0.5).accumulate(w, np.ones(2), scale=np.inf, grad_scale=np.nan)
    with pytest.raises(ValueError, match=r"^scale must be"):
        fastreg.attach([w], "l1").accumulate([np.ones(2)], scale=np.inf, grad_scale=np.nan)


def test_coefficients_beyond_the_range(backend):
    grad = np.zeros(2, np.float32)
    ones = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"^l1 \* scale must be finite"):
        L1(1e300)(ones, scale=1e300)
    with pytest.raises(ValueError, match=r"^l2 \* scale must be finite"):
        L2(1e300)(ones, scale=1e300)
    assert L1(1e300)(ones) == 2e300
    for regularizer, words in ((L1(1e39), "l1"), (L2(2e38), r"2 \* l2")):
        with pytest.raises(ValueError, match=f"^{words} .*must be finite in float32"):
            regularizer.accumulate(ones, grad)
        with pytest.raises(ValueError, match=f"^{words} .*must be finite in float32"):
            regularizer.gradient(ones.astype(np.float16))
        assert regularizer.accumulate(np.ones(2), np.zeros(2)) > 0.0
    with pytest.raises(ValueError, match="must be finite in float64"):
        L1(1e300).accumulate(np.ones(2), np.zeros(2), grad_scale=1e300)
    with pytest.raises(ValueError, match="must be finite in float64"):
        L2(1.7e308).gradient(np.ones(2))
    assert not grad.any()


def test_the_largest_coefficients_are_taken(backend):
    largest = float(np.finfo(np.float32).max)
    assert L1(largest).gradient(np.ones(1, np.float32))[0] == np.float32(largest)
    # Rounds down to the largest float32 rather than up to infinity.
    assert L1(largest * (1 + 1e-9)).gradient(np.ones(1, np.float32))[0] == np.float32(largest)


def test_refusals_of_many_tensors_change_none(backend):
    weights = tuple(np.ones(3) for _ in range(50))
    gradients = [np.zeros(3) for _ in range(50)]
    names = tuple(f"layer{place}" for place in range(50))
    gradients[49] = np.zeros(4)
    with pytest.raises(ValueError, match=r"^grads\['layer49'\] has shape"):
        calls.evaluate_many(
            7, names, weights, tuple(gradients), ((0.5, 0.5),), (0,) * 50, 1.0, 1.0, False
        )
    assert not any(gradient.any() for gradient in gradients)


def test_legal_calls_pass_the_check():
    w = np.ones(10)
    call = call_of_one(7, w[::2], w[1::2], 0.5, 0.0, 1.0, np.float32(2))
    _, targets = checks.checked_views(call)
    assert np.shares_memory(targets[0], w)


def test_interleaved_arrays_too_hard_to_judge_are_refused():
    memory = np.zeros(200_000, np.uint8)
    shape, first, second = (20,) * 5, (3001, 1709, 997, 401, 173), (2999, 1721, 991, 409, 179)
    one, other = (
        np.lib.stride_tricks.as_strided(memory[start:].view(np.float16)[:1], shape, strides)
        for start, strides in ((0, first), (1000, second))
    )
    # Whatever NumPy finds within its bound, the answer is a refusal or a legal call, in time.
    assert _memory.share_memory(one, other) in (True, False)


def test_threads(backend):
    before = fastreg.get_num_threads()
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=r"^n must be a positive integer, not int"):
            fastreg.set_num_threads(wrong)
    for wrong in (1.0, "2", None, True):
        with pytest.raises(TypeError, match=r"^n must be a positive integer, not"):
            fastreg.set_num_threads(wrong)
    assert fastreg.get_num_threads() == before
    fastreg.set_num_threads(np.int64(1))
    assert fastreg.get_num_threads() == 1
    fastreg.set_num_threads(before)


def test_instruction_sets(backend):
    before = fastreg.get_instruction_set()
    assert before == backend
    for wrong in ("avx3", ""):
        with pytest.raises(ValueError, match=rf"^name must be one of .*{before}.*, not {wrong!r}"):
            fastreg.set_instruction_set(wrong)
    with pytest.raises(TypeError, match=r"^name must be one of"):
        fastreg.set_instruction_set(2)
    assert fastreg.get_instruction_set() == before


def test_backends():
    with pytest.raises(ValueError, match="'numpy', 'native'"):
        _backend.select("cuda")


def test_a_missing_gradient_is_the_same_error_everywhere(backend):
    with pytest.raises(ValueError, match=r"grad is missing \(None\), but w has a penalty"):
        L1(0.1).accumulate(np.ones(2), None)


@pytest.mark.parametrize("count", [1025, 10**30])
def test_too_many_threads(count):
    with pytest.raises(ValueError, match="n must be a positive integer up to 1024"):
        fastreg.set_num_threads(count)


def test_a_negative_scale_of_an_empty_array(backend):
    assert math.copysign(1.0, L1(0.1)(np.zeros(0), scale=-3.0)) == -1.0


def test_a_layer_is_no_array():
    for layer in (Dense(2, input_dim=2), Sequential([Dense(2, input_dim=2)])):
        for call in (L2(0.1), lambda one: fastreg.attach(one, "l2")):
            with pytest.raises(TypeError, match=r"layer\.kernel .*kernel_regularizer=L1L2"):
                call(layer)
