"""Penalties of many tensors: rules, ties, gradients, callables, reports."""

import collections
import copy
import gc
import pickle
import types

import canonical
import ml_dtypes
import numpy as np
import pytest

import fastreg
from fastreg import attach
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer, Regularizer


def model(dtype="f32"):
    """Make weights and gradients of two layers, by name."""
    sizes = {"a/kernel": 33, "a/bias": 3, "b/kernel": 4099, "b/bias": 1}
    tensors = {
        name: canonical.array(canonical.numbers(size, dtype, size), dtype)
        for name, size in sizes.items()
    }
    grads = {
        name: canonical.array(canonical.numbers(size, dtype, size + 1), dtype)
        for name, size in sizes.items()
    }
    return tensors, grads


class Quadratic:
    """A callable with a gradient, which is not a regularizer of fastreg."""

    def __call__(self, w):
        return float((w.astype(np.float64) ** 2).sum())

    def gradient(self, w):
        return 2.0 * w.astype(np.float64)


def largest(w):
    return np.abs(w).max()


# ---------------------------------------------------------------------------- results


@pytest.mark.parametrize("dtype", canonical.DTYPES)
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_bits_of_the_whole(backend, dtype, scale):
    tensors, grads = model(dtype)
    rules = {"*kernel": L1L2(0.3, 0.7), "*": L1(0.1)}
    strengths = {"kernel": (0.3, 0.7), "bias": (0.1, 0.0)}
    expected = canonical.canonical_sum(
        canonical.penalty(canonical.floats(w), *strengths[name[2:]], scale)
        for name, w in tensors.items()
    )
    penalties = attach(tensors, rules)
    assert penalties.value(scale=scale) == expected
    total, new = penalties.value_and_grad(scale=scale, grad_scale=2.0)
    assert total == expected
    assert list(new) == list(tensors)
    again = penalties.gradient(scale=scale, grad_scale=2.0)
    old = {name: canonical.floats(grad) for name, grad in grads.items()}
    assert penalties.accumulate(grads, scale=scale, grad_scale=2.0) == expected
    for name, w in tensors.items():
        slope = canonical.gradient(canonical.floats(w), dtype, *strengths[name[2:]], scale, 2.0)
        assert (canonical.bits(new[name]) == canonical.bits(canonical.array(slope, dtype))).all()
        assert (canonical.bits(again[name]) == canonical.bits(new[name])).all()
        added = canonical.gradient(
            canonical.floats(w), dtype, *strengths[name[2:]], scale, 2.0, old[name]
        )
        right = canonical.array(added, dtype)
        assert (canonical.bits(grads[name]) == canonical.bits(right)).all()


def test_tensors_without_penalty_take_no_place_and_are_not_touched(backend):
    tensors, grads = model()
    before = {name: grad.copy() for name, grad in grads.items()}
    penalties = attach(tensors, {"*kernel": L2(0.5)})
    expected = canonical.canonical_sum(
        canonical.penalty(canonical.floats(tensors[name]), 0.0, 0.5)
        for name in ("a/kernel", "b/kernel")
    )
    assert penalties.accumulate(grads) == expected
    assert penalties.value() == expected
    assert list(penalties.gradient()) == ["a/kernel", "b/kernel"]
    for name in ("a/bias", "b/bias"):
        assert (grads[name] == before[name]).all()
    assert attach(tensors, None).accumulate(grads) == 0.0
    assert attach({}, "l2").value() == 0.0


def test_gradients_of_unpenalised_tensors_may_be_anything(backend):
    tensors, grads = model()
    grads["a/bias"] = None
    grads["b/bias"] = "not an array"
    assert attach(tensors, {"*kernel": L2(0.5)}).accumulate(grads) > 0.0


def test_order_of_gradients_does_not_count(backend):
    tensors, grads = model()
    turned = {name: grads[name].copy() for name in reversed(grads)}
    del turned["a/bias"]
    penalties = attach(tensors, {"*kernel": L2(0.5)})
    penalties.accumulate(grads)
    penalties.accumulate(turned)
    for name, grad in turned.items():
        assert (grad == grads[name]).all()


@pytest.mark.parametrize("kind", [list, tuple, lambda x: collections.UserList(x)])
def test_sequences(backend, kind):
    tensors, grads = model()
    expected = attach(tensors, "l2").accumulate({k: g.copy() for k, g in grads.items()})
    penalties = attach(kind(tensors.values()), "l2")
    assert penalties.accumulate(kind(grads.values())) == expected
    assert list(penalties.gradient()) == ["0", "1", "2", "3"]
    one = attach(kind(tensors.values()), {"2": L2(0.5)})
    assert one.value() == L2(0.5)(tensors["b/kernel"])
    assert one.accumulate({"2": grads["b/kernel"]}) == one.value()


@pytest.mark.parametrize("kind", [collections.OrderedDict, collections.UserDict])
def test_mappings(backend, kind):
    tensors, grads = model()
    assert attach(kind(tensors), "l2").accumulate(kind(grads)) == attach(tensors, "l2").value()


def test_torch_containers(backend):
    torch = pytest.importorskip("torch")
    names = torch.nn.ParameterDict({"a": torch.ones(2), "b": torch.ones(3)})
    numbers = torch.nn.ParameterList([torch.ones(2), torch.ones(3)])
    for container in (names, numbers, torch.nn.Linear(1, 1).state_dict()):
        with torch.no_grad():
            attach(container, L2(0.5)).value()
    grads = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert attach(names, L2(0.5)).accumulate(grads) == 2.5
    assert grads["b"].tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="can be read only once"):
        attach(torch.nn.Linear(1, 1).parameters(), "l2")


def test_arrays_are_read_at_every_call(backend):
    tensors = {"a": np.ones(2)}
    penalties = attach(tensors, L1(1.0))
    assert penalties.value() == 2.0
    tensors["a"] = np.full(3, 2.0)
    assert penalties.value() == 6.0
    tensors["b"] = np.ones(1)
    assert penalties.value() == 7.0
    assert penalties.accumulate({"a": np.zeros(3), "b": np.zeros(1)}) == 7.0
    del tensors["a"]
    assert penalties.value() == 1.0


def test_other_tensors_for_one_call(backend):
    penalties = attach({"a": np.ones(2)}, L1(1.0))
    other = {"a": np.ones(5)}
    assert penalties.value(tensors=other) == 5.0
    assert penalties.gradient(tensors=other)["a"].shape == (5,)
    assert penalties.value_and_grad(tensors=other)[0] == 5.0
    assert penalties.accumulate({"a": np.zeros(5)}, tensors=other) == 5.0
    assert penalties.report(tensors=other).total == 5.0
    assert penalties.value(tensors={"c": np.ones(3), "d": np.ones(3)}) == 6.0
    assert penalties.value() == 2.0


def test_strengths_are_read_at_every_call(backend):
    regularizer = L1(1.0)
    tensors = {"a": np.ones(2), "b": np.ones(3)}
    penalties = attach(tensors, {"a": regularizer, "b": L2(1.0)})
    assert penalties.value() == 5.0
    regularizer.l1 = 0.5
    assert penalties.value() == 4.0
    penalties.rules["b"].l2 = 0.0
    assert penalties.value() == 1.0


def test_the_weight_as_its_own_gradient(backend):
    tensors = {"a": np.ones(2), "b": np.ones(3)}
    assert attach(tensors, L2(0.5)).accumulate(tensors) == 2.5
    assert tensors["b"].tolist() == [2.0] * 3


# ------------------------------------------------------------------------------ rules


def test_the_first_rule_that_matches_wins(backend):
    tensors = {"a/kernel": np.ones(1), "b/kernel": np.ones(1), "c": np.ones(1)}
    penalties = attach(tensors, {"a*": L1(1.0), "*kernel": L1(2.0), "c": None})
    assert penalties.value() == 3.0
    assert [row.rule for row in penalties.report().values()] == [L1(1.0), L1(2.0), None]
    assert repr(penalties) == "<Penalties on 2 of 3 tensors: 'a/kernel', 'b/kernel'>"


def test_globs_mind_the_case():
    with pytest.raises(ValueError, match="matches no tensor"):
        attach({"Kernel": np.ones(1)}, {"kernel": "l1"})


@pytest.mark.parametrize(
    "rules", ["l1", L1, L1(0.01), {"class_name": "L1", "config": {"l1": 0.01}}, {"*": "l1"}]
)
def test_what_stands_for_a_regularizer(backend, rules):
    assert attach([np.ones(2)], rules).value() == 0.02


BRACKETS = "['a']['kernel']"


@pytest.mark.parametrize("name", [BRACKETS, "layers[0].w", "[", "w[!0]", "a[0-9]", "w?", "w[*]"])
def test_a_name_as_a_rule_is_for_that_name_alone(name):
    matched_as_glob = {
        "ak": np.ones(1),
        "layers0.w": np.ones(1),
        "w1": np.ones(1),
        "a7": np.ones(1),
    }
    tensors = {**matched_as_glob, name: np.full(1, 2.0)}
    assert attach(tensors, {name: L1(1.0)}).value() == 2.0
    assert attach(tensors, {name: None, "*": L1(1.0)}).value() == 4.0
    with pytest.raises(ValueError, match=r"never wins.*by '\*' before it"):
        attach(tensors, {"*": L1(1.0), name: None})


def test_rules_with_brackets():
    tensors = {BRACKETS: np.ones(1), "['b']['bias']": np.ones(2), "w0": np.ones(4)}
    assert attach(tensors, {"w[01]": L1(1.0)}).value() == 4.0
    assert attach(tensors, {"*[[]'bias']": L1(1.0)}).value() == 2.0
    with pytest.raises(ValueError, match=r"brackets are a choice.*write \"\*\[\[\]'kernel'\]\""):
        attach(tensors, {"*['kernel']": L1(1.0)})
    with pytest.raises(ValueError, match="did you mean"):
        attach(tensors, {"['a']['kernle']": L1(1.0)})
    assert attach({"*": np.ones(1), "b": np.ones(2)}, L1(1.0)).value() == 3.0


def test_rules_that_never_win():
    tensors = {"dense/kernel": np.ones(1), "dense/bias": np.ones(1)}
    with pytest.raises(ValueError, match=r"rules\['\*kernels'\] matches no tensor .did you mean"):
        attach(tensors, {"*kernels": "l1"})
    with pytest.raises(ValueError, match="'dense/kernel', 'dense/bias'"):
        attach(tensors, {"*": "l1", "conv": None})
    with pytest.raises(ValueError, match=r"rules\['\*bias'\] never wins.*by '\*' before it"):
        attach(tensors, {"*": "l1", "*bias": None})
    with pytest.raises(ValueError, match="tensors is empty"):
        attach({}, {"*": "l1"})
    penalties = attach(tensors, {"*kernel": "l1"})
    with pytest.raises(ValueError, match="matches no tensor"):
        penalties.value(tensors={"bias": np.ones(1)})


@pytest.mark.parametrize(
    ("rules", "error", "words"),
    [
        ({"*": "l3"}, ValueError, r"rules\['\*'\]: identifier must name"),
        ({"*": 0.01}, TypeError, r"rules\['\*'\]: identifier must stand"),
        ({1: "l1"}, TypeError, "rules must have globs"),
        (0.01, TypeError, "^rules: identifier must stand for a regularizer"),
    ],
)
def test_rules_that_are_refused(rules, error, words):
    with pytest.raises(error, match=words):
        attach([np.ones(1)], rules)


@pytest.mark.parametrize("tensors", [np.ones(3), None, 3, "ab", {np.float32}, iter([]), L1()])
def test_tensors_that_are_refused(tensors):
    with pytest.raises(TypeError, match="tensors must be a mapping or sequence of arrays"):
        attach(tensors, "l1")
    penalties = attach([np.ones(1)], "l1")
    if tensors is not None:
        with pytest.raises(TypeError, match="tensors must be a mapping or sequence"):
            penalties.value(tensors=tensors)
    with pytest.raises(TypeError, match="grads must be a mapping or sequence"):
        penalties.accumulate(tensors)


def test_names_must_be_strings():
    with pytest.raises(TypeError, match="names"):
        attach({1: np.ones(1)}, "l1")
    with pytest.raises(TypeError, match="names"):
        attach([np.ones(1)], "l1").accumulate({0: np.zeros(1)})


# ------------------------------------------------------------------------------- ties


def tied_views():
    w = np.arange(6.0).reshape(2, 3)
    return [w, w.T, w[::-1], w.reshape(-1), w[None], w[:]]


@pytest.mark.parametrize("view", range(6))
def test_tied_tensors_count_once(backend, view):
    first, second = tied_views()[0], None
    second = [first, first.T, first[::-1], first.reshape(-1), first[None], first[:]][view]
    tensors = {"in": first, "middle": np.ones(1), "out": second}
    penalties = attach(tensors, L1(1.0))
    assert penalties.value() == 16.0
    assert list(penalties.gradient()) == ["in", "middle"]
    grads = {name: np.zeros_like(w) for name, w in tensors.items()}
    assert penalties.accumulate(grads) == 16.0
    assert not grads["out"].any()
    assert grads["in"].tolist() == [[0, 1, 1], [1, 1, 1]]
    del grads["out"]
    assert penalties.accumulate(grads) == 16.0
    report = penalties.report()
    assert report["out"].tied_to == "in"
    assert report["out"].penalty == 0.0
    assert "tied to in" in str(report)


@pytest.mark.parametrize(
    "cut", [lambda w: w[:2], lambda w: w[::2], lambda w: w.view(np.int64), lambda w: w[:0]]
)
def test_other_elements_at_the_same_address_are_no_tie(backend, cut):
    w = np.ones(5)
    expected = L1(1.0)(w) + L1(1.0)(cut(w))
    assert attach({"a": w, "b": cut(w)}, L1(1.0)).value() == expected


def test_ties_that_come_and_go(backend):
    tensors = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
    penalties = attach(tensors, L1(1.0))
    assert penalties.value() == 6.0
    tensors["c"] = tensors["a"]
    assert penalties.value() == 4.0
    assert penalties.value() == 4.0
    tensors["b"] = tensors["a"]
    assert penalties.value() == 2.0
    tensors["a"] = np.ones(2)
    assert penalties.value() == 4.0
    tensors["b"] = tensors["c"].copy()
    assert penalties.value() == 6.0


def test_rules_of_tied_tensors_must_agree(backend):
    w = np.ones(2)
    tensors = {"a": w, "b": w.T}
    with pytest.raises(ValueError, match=r"tensors\['a'\] and tensors\['b'\] are tied.*different"):
        attach(tensors, {"a": L1(1.0), "b": L1(2.0)})
    with pytest.raises(ValueError, match="are tied"):
        attach(tensors, {"a": L1(1.0), "b": None})
    assert attach(tensors, {"a": L1(1.0), "b": L1(1.0)}).value() == 2.0
    assert attach(tensors, {"b": L1(1.0)}).value() == 2.0
    separate = {"a": w, "b": w.copy()}
    penalties = attach(separate, {"a": L1(1.0), "b": L1(2.0)})
    separate["b"] = w
    with pytest.raises(ValueError, match="are tied"):
        penalties.value()


def test_tied_torch_tensors(backend):
    torch = pytest.importorskip("torch")
    w = torch.nn.Parameter(torch.ones(2, 3))
    tensors = {"a": w, "b": w, "c": w.T, "d": w.detach().numpy()}
    with torch.no_grad():
        assert attach(tensors, L1(1.0)).value() == 6.0


# -------------------------------------------------------------------------- gradients


def test_gradients_that_do_not_fit(backend):
    tensors, grads = model()
    before = {name: grad.copy() for name, grad in grads.items()}
    penalties = attach(tensors, {"*kernel": L2(0.5)})

    def refused(error, words, **changes):
        given = {**grads, **changes}
        with pytest.raises(error, match=words):
            penalties.accumulate({k: g for k, g in given.items() if g is not Ellipsis})
        assert all((grads[name] == before[name]).all() for name in grads)

    kernel = grads["b/kernel"]
    refused(ValueError, r"grads\['a/kernl'\].*did you mean 'a/kernel'", **{"a/kernl": kernel})
    refused(ValueError, r"grads\['b/kernel'\] is missing", **{"b/kernel": ...})
    refused(ValueError, r"grads\['b/kernel'\] is missing", **{"b/kernel": None})
    refused(ValueError, r"grads\['b/kernel'\] has shape", **{"b/kernel": kernel[1:]})
    refused(TypeError, r"grads\['b/kernel'\] has dtype", **{"b/kernel": kernel.astype("f8")})
    frozen = kernel.copy()
    frozen.flags.writeable = False
    refused(BufferError, r"grads\['b/kernel'\] is a read-only", **{"b/kernel": frozen})
    refused(
        ValueError,
        r"grads\['b/kernel'\] overlaps tensors\['b/kernel'\]",
        **{"b/kernel": tensors["b/kernel"][::-1]},
    )
    shared = np.zeros(4099 + 16, np.float32)
    refused(
        ValueError,
        r"grads\['[ab]/kernel'\] overlaps grads\['[ab]/kernel'\]",
        **{"a/kernel": shared[:33], "b/kernel": shared[16:]},
    )
    other = attach({"a": tensors["b/kernel"], "b": kernel}, L2(0.5))
    with pytest.raises(ValueError, match=r"overlaps tensors\['b'\]"):
        other.accumulate({"a": kernel, "b": frozen.copy()})


def test_missing_gradients_in_a_sequence(backend):
    penalties = attach([np.ones(1), np.ones(1)], L2(0.5))
    with pytest.raises(ValueError, match=r"grads\['1'\] is missing"):
        penalties.accumulate([np.zeros(1)])
    with pytest.raises(ValueError, match=r"grads\['2'\] is the gradient of no tensor"):
        penalties.accumulate([np.zeros(1)] * 3)


def test_wrong_tensors_are_named(backend):
    tensors = {"a": np.ones(1), "b": [1.0]}
    with pytest.raises(TypeError, match=r"tensors\['b'\] must be an array, not a list"):
        attach(tensors, "l2")
    tensors["b"] = np.ones(1)
    penalties = attach(tensors, "l2")
    tensors["b"] = {"kernel": np.ones(1)}
    grads = {"a": np.zeros(1), "b": np.zeros(1)}
    for call in (penalties.value, penalties.gradient, lambda: penalties.accumulate(grads)):
        with pytest.raises(TypeError, match=r"tensors\['b'\] must be an array, not a dict"):
            call()
    assert not grads["a"].any()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("scale", "1", TypeError),
        ("scale", np.nan, ValueError),
        ("grad_scale", np.inf, ValueError),
        ("grad_scale", None, TypeError),
    ],
)
@pytest.mark.parametrize("rule", [L2(0.5), Quadratic()])
def test_scales_that_are_refused(backend, rule, name, value, error):
    grads = [np.zeros(1)]
    with pytest.raises(error, match=f"^{name} must be a finite number"):
        attach([np.ones(1)], rule).accumulate(grads, **{name: value})
    assert grads[0] == 0.0
    if name == "scale":
        with pytest.raises(error, match=r"^scale must be a finite number"):
            attach([np.ones(1)], rule).value(scale=value)


# -------------------------------------------------------------------------- callables


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_callables_beside_regularizers(backend, dtype):
    tensors, grads = model(dtype)
    before = {name: grad.copy() for name, grad in grads.items()}
    penalties = attach(tensors, {"a/*": L1(0.25), "b/kernel": Quadratic(), "b/bias": L2(1.0)})
    parts = [L1(0.25)(tensors[name]) for name in ("a/kernel", "a/bias")]
    parts += [Quadratic()(tensors["b/kernel"]), L2(1.0)(tensors["b/bias"])]
    expected = canonical.canonical_sum([0.5 * part for part in parts])
    assert penalties.value(scale=0.5) == expected
    assert penalties.accumulate(grads, scale=0.5, grad_scale=4.0) == expected
    total, new = penalties.value_and_grad(scale=0.5, grad_scale=4.0)
    assert total == expected
    w = tensors["b/kernel"].astype(np.float64)
    right = before["b/kernel"].astype(np.float64) + 4.0 * w
    if dtype == "bf16":
        right = right.astype(np.float32)
    assert (grads["b/kernel"] == right.astype(canonical.NUMPY[dtype])).all()
    assert (new["b/kernel"] == (4.0 * w).astype(canonical.NUMPY[dtype])).all()
    slope = L1(0.25).gradient(tensors["a/kernel"], scale=0.5, grad_scale=4.0)
    assert (new["a/kernel"] == slope).all()


def test_values_of_callables(backend):
    tensors = {"a": np.array([1.0, -3.0]), "b": np.ones(2)}
    penalties = attach(tensors, {"a": largest, "b": L1(1.0)})
    assert penalties.value() == 5.0
    assert penalties.report()["a"].penalty == 3.0
    grads = {"a": np.zeros(2), "b": np.zeros(2)}
    for call in (
        lambda: penalties.accumulate(grads),
        penalties.gradient,
        penalties.value_and_grad,
    ):
        with pytest.raises(TypeError, match=r"rule of tensors\['a'\], largest, offers no gradient"):
            call()
    assert not grads["b"].any()


@pytest.mark.parametrize(
    ("result", "value"),
    [
        (2, 2.0),
        (np.float32(2), 2.0),
        (np.array(2.0), 2.0),
        (np.array([2.0], np.float16), 2.0),
        (ml_dtypes.bfloat16(2), 2.0),
        (True, 1.0),
    ],
)
def test_numbers_that_callables_give(backend, result, value):
    assert attach([np.ones(1)], lambda w: result).value() == value


@pytest.mark.parametrize("result", [None, "2", [2.0], np.ones(2), np.ones(0), 1j])
def test_other_results_of_callables(backend, result):
    with pytest.raises(TypeError, match=r"the rule of tensors\['0'\] gives must be one number"):
        attach([np.ones(1)], lambda w: result).value()


def test_numbers_of_callables_that_no_float_holds(backend):
    with pytest.raises(
        ValueError, match=r"rule of tensors\['0'\] gives must fit a float, not be int"
    ):
        attach([np.ones(1)], lambda w: 10**400).value()


def test_callables_of_torch(backend):
    torch = pytest.importorskip("torch")
    w = torch.ones(3, requires_grad=True)
    penalties = attach([w], lambda x: x.square().sum())
    with torch.no_grad():
        assert penalties.value() == 3.0
    assert penalties.report().total == 3.0


def test_a_callable_that_fails_leaves_everything(backend):
    class Failing(Quadratic):
        def gradient(self, w):
            raise ArithmeticError("on purpose")

    class Misshapen(Quadratic):
        def gradient(self, w):
            return np.ones(7)

    tensors = {"a": np.ones(2), "b": np.ones(2)}
    grads = {"a": np.zeros(2), "b": np.zeros(2)}
    for rule, error in ((Failing(), ArithmeticError), (Misshapen(), ValueError)):
        penalties = attach(tensors, {"a": L1(1.0), "b": rule})
        with pytest.raises(error):
            penalties.accumulate(grads)
        assert not grads["a"].any()
    penalties = attach(tensors, {"a": L1(1.0), "b": Quadratic()})
    grads["b"].flags.writeable = False
    with pytest.raises(BufferError):
        penalties.accumulate(grads)
    assert not grads["a"].any()


def test_regularizers_that_the_core_does_not_know(backend):
    class Doubled(L1):
        """A subclass with its own value must not be taken for its base class."""

        def __call__(self, w, *, scale=1.0):
            return 2.0 * super().__call__(w, scale=scale)

        def gradient(self, w, out=None, *, scale=1.0, grad_scale=1.0):
            return 2.0 * super().gradient(w, out, scale=scale, grad_scale=grad_scale)

    class Named(L1):
        """A subclass that changes nothing runs in the core."""

    grads = [np.zeros(2)]
    assert attach([np.ones(2)], Doubled(1.0)).accumulate(grads) == 4.0
    assert grads[0].tolist() == [2.0, 2.0]
    assert attach([np.ones(2)], Named(1.0)).value() == 2.0
    assert attach([np.ones(2)], Regularizer()).value() == 0.0
    matrix = np.array([[1.0, 0.0], [3.0, 4.0]])
    grads = [np.zeros((2, 2))]
    regularizer = OrthogonalRegularizer(1.0)
    assert attach([matrix], regularizer).accumulate(grads, scale=0.5) == 0.5 * regularizer(matrix)
    np.testing.assert_allclose(grads[0], 0.5 * regularizer.gradient(matrix), rtol=1e-15)


def test_callables_take_what_fastreg_cannot_read(backend):
    tensors = {"a": ["words"], "b": np.ones(2)}
    penalties = attach(tensors, {"a": len, "b": L1(1.0)})
    assert penalties.value() == 3.0


# ----------------------------------------------------------------------------- reports


def test_report():
    tensors = {
        "kernel": np.array([[0.0, -0.0], [1.0, np.nan]]),
        "half": np.array([0.0, -0.0, 1.0, 2.0, 3.0], ml_dtypes.bfloat16),
        "whole": np.array([0, 1], np.int8),
        "empty": np.ones((0, 3)),
        "bias": np.ones(3),
    }
    penalties = attach(tensors, {"bias": None, "half": "l1", "*": L2(0.5)})
    report = penalties.report(scale=0.5)
    assert list(report) == list(tensors)
    assert [row.zeros for row in report.values()] == [0.5, 0.4, 0.5, 0.0, 0.0]
    assert report["half"] == (0.03, 0.4, L1(0.01), None)
    assert report["bias"].rule is None
    assert np.isnan(report.total)
    lines = str(report).splitlines()
    assert lines[0] == "tensor  penalty  zeros  rule"
    assert lines[2] == "half       0.03  40.0%  L1(l1=0.01)"
    assert lines[-1] == "total       nan"


def test_report_of_a_strided_half_precision_tensor():
    w = np.zeros((300, 300), ml_dtypes.bfloat16)
    w[::3] = 1
    assert attach([w[:, ::2].T], "l2").report()["0"].zeros == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------- memory


def test_nothing_is_kept(backend):
    """A call keeps no array alive beyond the attached ones."""
    tensors = {"a": np.ones(10)}
    penalties = attach(tensors, L2(0.5))

    class Array(np.ndarray):
        """Unlike ndarray itself it can be found by the garbage collector."""

    grads = {"a": np.zeros(10).view(Array)}
    other = {"a": np.ones(10).view(Array)}
    penalties.accumulate(grads, tensors=other)
    penalties.gradient(tensors=other)
    del grads, other
    gc.collect()
    assert not [found for found in gc.get_objects() if type(found) is Array]


def test_public_names():
    assert isinstance(attach([], "l2"), fastreg.Penalties)
    assert set(fastreg.__all__) == {
        "Penalties",
        "Sequential",
        "__version__",
        "attach",
        "backend",
        "clip_by_global_norm",
        "cuda",
        "get_instruction_set",
        "get_num_threads",
        "layers",
        "models",
        "norms",
        "optimizers",
        "regularizers",
        "set_instruction_set",
        "set_num_threads",
    }


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_penalties_survive_pickle_and_deepcopy(count):
    tensors = {f"w{index}": np.full(2, index + 1.0) for index in range(count)}
    penalties = fastreg.attach(tensors, "l2")
    value = penalties.value()
    for twin in (pickle.loads(pickle.dumps(penalties)), copy.deepcopy(penalties)):
        assert twin.value() == value


def test_a_subclass_with_a_penalty_of_its_own_does_not_use_the_gradient_it_inherited():
    class Doubled(L1):
        def __call__(self, w, *, scale=1.0):
            return 2.0 * super().__call__(w, scale=scale)

    tensors, grads = {"w": np.ones(3)}, {"w": np.zeros(3)}
    penalties = attach(tensors, Doubled(0.5))
    assert penalties.value() == 3.0
    with pytest.raises(TypeError, match=r"tensors\['w'\].*offers no gradient"):
        penalties.accumulate(grads)
    assert not grads["w"].any()


def test_a_tensor_tied_later_to_one_with_another_rule_is_refused():
    w = np.ones(3)
    tensors = {"a": w, "b": w.copy()}
    penalties = attach(tensors, {"a": L2(1.0), "b": None})
    assert penalties.value() == 3.0
    tensors["b"] = tensors["a"]
    with pytest.raises(ValueError, match="tied"):
        penalties.value()


def test_tied_tensors_whose_rules_come_to_differ_are_refused():
    w = np.ones(3)
    first, second = L2(1.0), L2(1.0)
    penalties = attach({"a": w, "b": w.T}, {"a": first, "b": second})
    assert penalties.value() == 3.0
    second.l2 = 2.0
    with pytest.raises(ValueError, match="different rules"):
        penalties.value()


def test_arrays_that_a_mapping_makes_anew_are_not_written(tmp_path):
    """What is written to them would be lost, without a sign."""
    np.savez(tmp_path / "w.npz", w=np.ones(3, np.float32))
    with np.load(tmp_path / "w.npz") as made:
        penalties = fastreg.attach(made, L1(0.5))
        assert penalties.value() == 1.5  # to read is fine
        for write, argument in (
            (lambda: penalties.prox(1.0), "tensors"),
            (lambda: penalties.accumulate(made), "grads"),
            (lambda: fastreg.clip_by_global_norm(made, 0.1), "tensors"),
        ):
            with pytest.raises(TypeError, match=rf"{argument}\['w'\] is another array at every"):
                write()
    kept = types.MappingProxyType({"w": np.ones(3, np.float32)})
    assert fastreg.attach(kept, L1(0.5)).prox(1.0).penalty == 0.75
