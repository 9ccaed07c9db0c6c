"""What regularizers are: names, strengths, saved forms, comparison; Keras' faults not copied."""

import copy
import fractions
import functools
import math
import pickle
import sys
from decimal import Decimal

import ml_dtypes
import numpy as np
import pytest

from fastreg import regularizers
from fastreg.regularizers import (
    L1,
    L1L2,
    L2,
    OrthogonalRegularizer,
    Regularizer,
    deserialize,
    get,
    serialize,
)

ALL = [L1(0.25), L2(0.5), L1L2(0.25, 0.5), OrthogonalRegularizer(0.25, "columns")]


class Largest(Regularizer):
    """A custom regularizer, as users write it for Keras."""

    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, w):
        return self.factor * float(np.abs(w).max())

    def get_config(self):
        return {"factor": self.factor}


def ridge(w):
    return float((w**2).sum())


# ------------------------------------------------------------------ names and defaults


def test_aliases_are_the_classes():
    assert regularizers.l1 is L1
    assert regularizers.l2 is L2
    assert regularizers.l1_l2 is L1L2
    assert regularizers.orthogonal_regularizer is OrthogonalRegularizer
    assert not hasattr(regularizers, "l1l2")
    for name in regularizers.__all__:
        assert hasattr(regularizers, name)


def test_defaults():
    assert L1().get_config() == {"l1": 0.01}
    assert L2().get_config() == {"l2": 0.01}
    assert L1L2().get_config() == {"l1": 0.0, "l2": 0.0}
    assert L1L2(0.1).get_config() == {"l1": 0.1, "l2": 0.0}
    assert OrthogonalRegularizer().get_config() == {"factor": 0.01, "mode": "rows"}
    assert L1(None) == L1()
    assert L2(None) == L2()
    assert L1L2(None, None) == L1L2()
    with pytest.raises(TypeError):
        OrthogonalRegularizer(None)


def test_unknown_keywords_are_refused():
    with pytest.raises(TypeError):
        L1(l=0.1)
    with pytest.raises(TypeError):
        L2(l1=0.1)
    with pytest.raises(AttributeError):
        L1().l2 = 0.1
    with pytest.raises(AttributeError):
        L1().L1 = 0.1


# --------------------------------------------------------------------------- strengths


@pytest.mark.parametrize("make", [L1, L2, L1L2, OrthogonalRegularizer])
@pytest.mark.parametrize(
    "value",
    [
        0,
        0.0,
        -0.0,
        1,
        1e-320,
        1e300,
        True,
        np.float16(0.5),
        np.float32(0.1),
        np.float64(0.1),
        np.int64(3),
        np.uint8(3),
        np.bool_(True),
        ml_dtypes.bfloat16(0.5),
        np.array(0.25),
        np.array(3, np.int8),
        np.array(0.5, ml_dtypes.bfloat16),
    ],
)
def test_strengths_that_are_taken(make, value):
    strength = next(iter(make(value).get_config().values()))
    assert type(strength) is float
    assert strength == float(value)


VALUES = [-1, -1e-30, math.nan, math.inf, -math.inf, 1e400, np.float32(-1), np.array(-1.0), 10**400]
KINDS = [
    "0.1",
    b"1",
    [0.1],
    1j,
    Decimal("0.1"),
    fractions.Fraction(1, 3),
    np.array([0.1]),
    np.array("0.1"),
    np.array(1j),
    np.array(None),
    np.complex64(1),
    object(),
    {},
]


@pytest.mark.parametrize(
    ("value", "error"), [(v, ValueError) for v in VALUES] + [(v, TypeError) for v in KINDS]
)
@pytest.mark.parametrize(
    ("make", "name"),
    [(L1, "l1"), (L2, "l2"), (L1L2, "l1"), (L1L2, "l2"), (OrthogonalRegularizer, "factor")],
)
def test_strengths_that_are_refused(make, name, value, error):
    with pytest.raises(error, match=f"^{name} must be a finite number >= 0, not"):
        make(**{name: value})
    regularizer = make()
    before = regularizer.get_config()
    with pytest.raises(error, match=f"^{name} must be a finite number >= 0, not"):
        setattr(regularizer, name, value)
    assert regularizer.get_config() == before


def test_a_strength_that_is_set_takes_effect():
    w = np.array([1.0, -2.0])
    regularizer = L1(1.0)
    assert regularizer(w) == 3.0
    regularizer.l1 = np.float32(0.5)
    assert type(regularizer.l1) is float
    assert regularizer(w) == 1.5
    with pytest.raises(TypeError):
        regularizer.l1 = None


def test_a_strength_that_cannot_be_deleted_is_named():
    with pytest.raises(AttributeError, match="'l1'"):
        del L1().l1


def test_mode_is_checked():
    with pytest.raises(ValueError, match="mode must be one of 'rows', 'columns', not 'row'"):
        OrthogonalRegularizer(mode="row")
    with pytest.raises(TypeError, match="mode"):
        OrthogonalRegularizer().mode = 1


# --------------------------------------------------------------------- objects of Python


def test_repr_can_be_read():
    assert repr(L1L2(1e-5, 0.5)) == "L1L2(l1=1e-05, l2=0.5)"
    for regularizer in ALL:
        assert eval(repr(regularizer)) == regularizer


def test_comparison_is_by_class_and_configuration():
    assert L1(0.5) == L1(0.5)
    assert L1(0.5) != L1(0.25)
    assert L1(0.5) != L1L2(0.5, 0.0)
    assert L1(0.5) != 0.5
    assert (L1() == "l1") is False


def test_no_hash_since_strengths_change():
    for regularizer in ALL:
        with pytest.raises(TypeError, match="unhashable"):
            hash(regularizer)


@pytest.mark.parametrize("regularizer", ALL, ids=repr)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(regularizer, protocol):
    assert pickle.loads(pickle.dumps(regularizer, protocol)) == regularizer


@pytest.mark.parametrize("regularizer", ALL, ids=repr)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_are_equal_and_apart(regularizer, duplicate):
    other = duplicate(regularizer)
    assert other == regularizer
    name = next(iter(regularizer.get_config()))
    setattr(other, name, 0.125)
    assert other != regularizer


def test_base_class():
    assert Regularizer()(np.ones(3)) == 0.0
    with pytest.raises(NotImplementedError):
        Regularizer().get_config()
    assert isinstance(L1(), Regularizer)
    assert Largest.from_config({"factor": 2.0}).factor == 2.0


# --------------------------------------------------------------- get, serialize, deserialize


def test_get_of_names():
    assert get(None) is None
    for name in ("l1", "L1"):
        assert get(name) == L1(0.01)
        assert deserialize(name) == L1(0.01)
    for name in ("l2", "L2"):
        assert get(name) == L2(0.01)
    for name in ("l1l2", "L1L2"):
        assert get(name) == L1L2(0.0, 0.0)
    assert get("l1_l2") == L1L2(0.01, 0.01)
    for name in ("orthogonal_regularizer", "OrthogonalRegularizer"):
        assert get(name) == OrthogonalRegularizer()
    for name in ("regularizer", "Regularizer"):
        assert type(get(name)) is Regularizer


def test_get_of_callables():
    partial = functools.partial(ridge)
    regularizer = L1()
    for found in (regularizer, ridge, partial, abs):
        assert get(found) is found
    assert get(L1) == L1()
    assert isinstance(get(Largest), Largest)


@pytest.mark.parametrize("function", [get, deserialize])
@pytest.mark.parametrize("name", ["", "typo", "L1_L2", "l3", "none"])
def test_unknown_names(function, name):
    with pytest.raises(ValueError, match=f"not {name!r}.*the names are"):
        function(name)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match="did you mean 'orthogonal_regularizer'"):
        get("ortogonal_regularizer")


@pytest.mark.parametrize("value", [0.01, 5, [0.1], b"l1", np.ones(2), int, object()])
def test_get_of_other_kinds(value):
    with pytest.raises(TypeError, match="identifier must stand for a regularizer"):
        get(value)
    if not isinstance(value, type):
        with pytest.raises(TypeError, match="config must be"):
            deserialize(value)


@pytest.mark.parametrize("regularizer", ALL, ids=repr)
def test_saved_form(regularizer):
    saved = serialize(regularizer)
    assert saved == {
        "module": "keras.regularizers",
        "class_name": type(regularizer).__name__,
        "config": regularizer.get_config(),
        "registered_name": None,
    }
    assert deserialize(saved) == regularizer
    assert get(saved) == regularizer
    assert type(regularizer).from_config(regularizer.get_config()) == regularizer


@pytest.mark.parametrize(
    ("config", "result"),
    [
        ({"class_name": "L1", "config": {"l1": 0.5}}, L1(0.5)),
        ({"class_name": "l1"}, L1()),
        ({"class_name": "l2", "config": None}, L2()),
        ({"class_name": "l1l2", "config": {"l2": 0.5}}, L1L2(0.0, 0.5)),
        (
            {"module": "keras.regularizers", "class_name": "L2", "config": {"l2": 0.5}},
            L2(0.5),
        ),
        # What Keras 3.14 and older saved for L1(0.1).
        ({"class_name": "L1", "config": {"l1": 0.10000000149011612}}, L1(0.10000000149011612)),
    ],
)
def test_other_saved_forms(config, result):
    assert deserialize(config) == result
    assert get(config) == result


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({}, ValueError),
        ({"name": "L1L2Regularizer", "l1": 0.1}, ValueError),
        ({"class_name": "L9", "config": {}}, ValueError),
        ({"class_name": "l1_l2", "config": {}}, ValueError),
        ({"class_name": 5, "config": {}}, ValueError),
        ({"class_name": "L1", "config": {"l": 0.1}}, TypeError),
        ({"class_name": "L1", "config": "l1"}, TypeError),
        ({"class_name": "L1", "config": {"l1": math.inf}}, ValueError),
        ({"class_name": "L1", "config": {}, "registered_name": "package>L1"}, ValueError),
        ({"class_name": "function", "config": "ridge"}, ValueError),
        ({"class_name": "function", "config": None}, ValueError),
        ({"class_name": "__lambda__", "config": {"value": "..."}}, ValueError),
    ],
)
def test_saved_forms_that_are_refused(config, error):
    with pytest.raises(error):
        deserialize(config)
    with pytest.raises(error):
        get(config)


def test_custom_classes_and_functions():
    saved = serialize(Largest(2.0))
    assert saved == {
        "module": __name__,
        "class_name": "Largest",
        "config": {"factor": 2.0},
        "registered_name": "Largest",
    }
    assert deserialize(saved, {"Largest": Largest}).factor == 2.0
    with pytest.raises(ValueError, match="custom_objects"):
        deserialize(saved)
    assert serialize(ridge) == {
        "module": "builtins",
        "class_name": "function",
        "config": "ridge",
        "registered_name": "function",
    }
    assert deserialize(serialize(ridge), {"ridge": ridge}) is ridge
    assert deserialize("ridge", {"ridge": ridge}) is ridge
    with pytest.raises(ValueError, match="ridge"):
        get(serialize(ridge))


def test_custom_objects_win_over_names_of_this_module():
    assert isinstance(deserialize({"class_name": "L1", "config": {}}, {"L1": Largest}), Largest)


def test_serialize_of_others():
    assert serialize(None) is None
    assert serialize("l1") == "l1"
    with pytest.raises(NotImplementedError):
        serialize(Regularizer())
    for value in (L1, lambda w: 0.0, functools.partial(ridge), 5, object()):
        with pytest.raises(TypeError, match="regularizer must"):
            serialize(value)


def test_no_framework_was_needed_for_this():
    """serialize and deserialize look at Keras only where it is loaded."""
    keras = sys.modules.pop("keras", None)
    try:
        assert deserialize(serialize(L1(0.5))) == L1(0.5)
        assert serialize(ridge)["config"] == "ridge"
    finally:
        if keras is not None:
            sys.modules["keras"] = keras


# ----------------------------------------------------------------------------- calls


@pytest.mark.parametrize("regularizer", [L1(0.3), L2(0.7), L1L2(0.3, 0.7)], ids=repr)
def test_the_four_ways_agree(backend, regularizer):
    w = np.array([[1.5, -2.0, 0.0], [-0.0, 3.25, -4.0]])
    value = regularizer(w, scale=0.5)
    expected = regularizer.gradient(w, scale=0.5, grad_scale=8.0)
    again, new = regularizer.value_and_grad(w, scale=0.5, grad_scale=8.0)
    assert again == value
    assert (new == expected).all()
    out = np.empty_like(w)
    assert regularizer.gradient(w, out, scale=0.5, grad_scale=8.0) is out
    assert (out == expected).all()
    assert regularizer.value_and_grad(w, out=out)[1] is out
    grad = np.ones_like(w)
    assert regularizer.accumulate(w, grad, scale=0.5, grad_scale=8.0) == value
    assert (grad == 1.0 + expected).all()


def test_a_value_is_a_float(backend):
    for regularizer in ALL:
        assert type(regularizer(np.ones((2, 3), np.float16))) is float
        assert type(regularizer.accumulate(np.ones((2, 3)), np.ones((2, 3)))) is float


# ------------------------------------------------------------------- OrthogonalRegularizer


def test_orthogonal_value_by_hand():
    w = np.array([[1.0, 2.0], [3.0, 5.0], [-1.0, 0.5]])
    units = w / np.linalg.norm(w, axis=1, keepdims=True)
    pairs = [abs(units[i] @ units[j]) for i in range(3) for j in range(i)]
    assert OrthogonalRegularizer(0.5)(w) == pytest.approx(0.5 * np.mean(pairs), rel=1e-14)
    assert OrthogonalRegularizer(0.5, "columns")(w.T) == OrthogonalRegularizer(0.5)(w)
    assert OrthogonalRegularizer(0.5)(w, scale=0.5) == 0.5 * OrthogonalRegularizer(0.5)(w)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_gradient_against_differences(mode):
    w = np.random.default_rng(1).standard_normal((4, 5))
    regularizer = OrthogonalRegularizer(0.7, mode)
    slope = regularizer.gradient(w)
    step = 1e-6
    for index in np.ndindex(w.shape):
        up, down = w.copy(), w.copy()
        up[index] += step
        down[index] -= step
        difference = (regularizer(up) - regularizer(down)) / (2 * step)
        assert slope[index] == pytest.approx(difference, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal_in_place(dtype, mode):
    def rounded(numbers):
        # ml_dtypes rounds float64 to bfloat16 by way of float32 as well.
        return numbers.astype(dtype)

    w = np.random.default_rng(2).standard_normal((3, 4)).astype(dtype)
    regularizer = OrthogonalRegularizer(1.0, mode)
    exact = regularizer.gradient(w.astype(np.float64), scale=0.5, grad_scale=4.0)
    slope = regularizer.gradient(w, scale=0.5, grad_scale=4.0)
    assert slope.dtype == w.dtype
    assert (slope == rounded(exact)).all()
    grad = np.ones_like(w)
    value = regularizer.accumulate(w, grad, scale=0.5, grad_scale=4.0)
    assert value == regularizer(w, scale=0.5)
    assert (grad == rounded(1.0 + exact)).all()
    copied = w.copy()
    regularizer.gradient(copied, copied, scale=0.5, grad_scale=4.0)
    assert (copied == slope).all()


def test_orthogonal_at_the_edges():
    regularizer = OrthogonalRegularizer(1.0)
    assert regularizer(np.ones((1, 3))) == 0.0
    assert regularizer(np.ones((0, 3))) == 0.0
    assert regularizer(np.ones((3, 0))) == 0.0
    assert regularizer(np.array([[3, 4], [4, 3]], np.int8)) == pytest.approx(0.96)
    w = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert regularizer(w) == pytest.approx(math.sqrt(0.5) / 3)
    assert regularizer.gradient(w)[0].tolist() == [0.0, 0.0]
    assert math.isnan(regularizer(np.array([[math.nan, 1.0], [1.0, 0.0]])))
    assert OrthogonalRegularizer(0.0)(np.array([[math.nan, 1.0], [1.0, 0.0]])) == 0.0
    for size in (1e200, 1e-200):
        assert regularizer(size * np.array([[1.0, 0.0], [1.0, 1.0]])) == pytest.approx(
            math.sqrt(0.5)
        )


def test_orthogonal_refusals():
    regularizer = OrthogonalRegularizer()
    for shape in ((3,), (2, 2, 2), ()):
        with pytest.raises(ValueError, match="w must have 2 axes"):
            regularizer(np.ones(shape))
    with pytest.raises(TypeError, match="no gradient for integer"):
        regularizer.gradient(np.ones((2, 2), int))
    with pytest.raises(ValueError, match="grad has shape"):
        regularizer.accumulate(np.ones((2, 2)), np.ones((2, 3)))
    with pytest.raises(TypeError, match="scale must be"):
        regularizer(np.ones((2, 2)), scale="1")


def test_integers_that_python_does_not_print():
    with pytest.raises(ValueError, match="a very large int"):
        L1(-(10**5000))
