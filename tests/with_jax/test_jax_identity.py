"""Which arrays are one: eager and traced calls agree on names, values and gradients."""

from importlib.util import find_spec

import interpreter
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastreg
import fastreg.jax
from fastreg.regularizers import L1, L1L2, OrthogonalRegularizer


class Variable:
    """A mutable container of an array, as those of flax nnx are."""

    def __init__(self, value):
        self.value = value

    def __jax_array__(self):
        return self.value


def everything(penalties, tensors):
    value = penalties.value(tensors=tensors)
    again, gradients = penalties.value_and_grad(tensors=tensors)
    assert float(again) == float(value) if not isinstance(value, jax.core.Tracer) else True
    return value, gradients


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_one_array_under_two_names_is_two_parameters(engine, names):
    w = jnp.asarray([1.0, -2.0, 0.0, 4.0])
    tensors = dict.fromkeys(names, w)
    penalties = fastreg.attach(tensors, L1(0.5))
    eager = everything(penalties, tensors)
    ways = {
        "each an argument": jax.jit(lambda tensors: everything(penalties, tensors))(tensors),
        "one argument": jax.jit(lambda w: everything(penalties, dict.fromkeys(names, w)))(w),
    }
    for value, gradients in (eager, *ways.values()):
        assert float(value) == 3.5 * len(names)
        assert list(gradients) == list(names)
    # The attached ones as well, and a gradient by JAX.
    assert penalties.value() == 3.5 * len(names)
    by_jax = jax.grad(lambda tensors: penalties.value(tensors=tensors))(tensors)
    assert list(by_jax) == list(names)
    assert all(report.tied_to is None for report in penalties.report().values())


def test_equal_arrays_may_have_rules_that_differ(engine):
    w = jnp.ones(4)
    assert fastreg.attach({"a": w, "b": w}, {"a": L1(0.5), "b": L1(1.0)}).value() == 6.0


def test_numpy_arrays_beside_are_tied_as_before(engine):
    w, v = jnp.ones(4), np.ones(4)
    penalties = fastreg.attach({"a": w, "b": v, "c": w, "d": v}, L1(0.5))
    assert penalties.value() == 6.0
    assert list(penalties.gradient()) == ["a", "b", "c"]


def test_a_variable_under_two_names_is_one_parameter(engine):
    w = jnp.ones(4)
    shared, other = Variable(w), Variable(w)
    penalties = fastreg.attach({"a": shared, "b": shared, "c": other}, L1(0.5))

    def traced(w):
        shared, other = Variable(w), Variable(w)
        return penalties.value_and_grad(tensors={"a": shared, "b": shared, "c": other})

    for value, gradients in (penalties.value_and_grad(), jax.jit(traced)(w)):
        assert float(value) == 4.0
        assert list(gradients) == ["a", "c"]
    assert penalties.report()["b"].tied_to == "a"


@pytest.mark.parametrize("regularizer", [L1L2(0.3, 0.7), OrthogonalRegularizer(0.5)], ids=repr)
def test_what_has_jax_array_is_an_array_of_jax(engine, regularizer):
    w = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), "float32")
    for call in (
        lambda w: regularizer(w),
        lambda w: regularizer.gradient(w),
        lambda w: regularizer.value_and_grad(w),
    ):
        plain = jax.tree_util.tree_leaves(call(w))
        for found in (call(Variable(w)), jax.jit(lambda w, call=call: call(Variable(w)))(w)):
            for one, other in zip(jax.tree_util.tree_leaves(found), plain, strict=True):
                assert isinstance(one, jax.Array)
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)
    gradient = jax.grad(lambda w: regularizer(Variable(w)))(w)
    np.testing.assert_allclose(gradient, regularizer.gradient(w), rtol=1e-5, atol=1e-6)
    with pytest.raises(BufferError, match="grad is a JAX array, which is immutable"):
        regularizer.accumulate(Variable(w), Variable(jnp.zeros_like(w)))


def test_parameters_of_flax(engine):
    nnx = pytest.importorskip("flax.nnx")
    model, regularizer = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), L1L2(0.3, 0.7)
    kernel = model.kernel[...]

    def penalty(model):
        return regularizer(model.kernel)

    expected = float(regularizer(kernel))
    assert float(penalty(model)) == float(nnx.jit(penalty)(model)) == expected
    gradient = nnx.grad(penalty)(model)["kernel"][...]
    assert np.asarray(gradient).tobytes() == np.asarray(regularizer.gradient(kernel)).tobytes()
    attached = nnx.jit(lambda model: fastreg.attach({"k": model.kernel}, regularizer).value())
    assert float(attached(model)) == expected


@pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")
def test_symbolic_tensors_of_keras_hold_no_array():
    code = """
        import keras
        import jax
        import fastreg
        from fastreg.regularizers import L1

        print(type(L1(0.5)(keras.KerasTensor((3,)))).__name__)
        variable = keras.Variable([1.0, -2.0])
        print(float(fastreg.attach({"a": variable, "b": variable}, L1(0.5)).value()))
    """
    assert interpreter.runs(code, KERAS_BACKEND="jax") == "KerasTensor\n1.5\n"


# ------------------------------------------------------------------ factors that are traced


def test_factors_and_strengths_alone_are_traced(engine):
    tensors = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([4.0])}
    penalties = fastreg.attach(tensors, L1L2(0.5, 0.25))
    expected, slopes = penalties.value_and_grad()
    assert float(jax.jit(lambda scale: penalties.value(scale=scale))(2.0)) == 2 * expected
    for gradients in (
        jax.jit(lambda scale: penalties.gradient(scale=scale))(2.0),
        jax.jit(lambda scale: penalties.value_and_grad(grad_scale=scale)[1])(2.0),
    ):
        for name, slope in slopes.items():
            assert gradients[name].tolist() == (2 * slope).tolist()

    def by_rule(regularizer):
        return fastreg.attach(tensors, regularizer).value()

    assert float(jax.jit(by_rule)(L1L2(0.5, 0.25))) == expected


def test_traced_factors_of_other_arrays_are_refused_by_name(engine):
    penalties = fastreg.attach({"a": np.ones(3)}, "l2")
    for call in (
        lambda scale: penalties.value(scale=scale),
        lambda scale: penalties.gradient(scale=scale),
        lambda scale: penalties.value_and_grad(grad_scale=scale),
    ):
        with pytest.raises(TypeError, match=r"tensors\['a'\] is a numpy.ndarray, but JAX traces"):
            jax.jit(call)(2.0)
    with pytest.raises(TypeError, match=r"scale must be .*takes arrays of JAX, jax.numpy.asarray"):
        jax.jit(lambda scale: L1(0.5)(np.ones(3), scale=scale))(2.0)
    with pytest.raises(TypeError, match="scale must be a finite number, not str '2'"):
        penalties.value(scale="2")


def test_gradients_of_the_orthogonal_regularizer_are_traced(engine):
    regularizer = OrthogonalRegularizer(0.5)
    w = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), "float32")
    value, slope = regularizer.value_and_grad(np.asarray(w), scale=2.0, grad_scale=4.0)

    def both(w, scale, grad_scale):
        return regularizer.value_and_grad(w, scale=scale, grad_scale=grad_scale)

    for found in (
        jax.jit(both)(w, 2.0, 4.0),
        jax.jit(lambda w: both(w, 2.0, 4.0))(w),
        jax.jit(lambda scale: both(w, scale, 4.0))(2.0),
    ):
        assert float(found[0]) == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(found[1], slope, rtol=1e-5, atol=1e-6)
    gradient = jax.jit(lambda w: regularizer.gradient(w))(w)
    np.testing.assert_allclose(gradient, slope / 8, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="w has dtype int32, for which there is no gradient"):
        jax.jit(regularizer.gradient)(jnp.ones((2, 2), "int32"))


# ------------------------------------------------------------------------ names with brackets


def test_names_that_keystr_gives_are_rules_for_themselves():
    params = {"a": {"kernel": jnp.ones(3), "bias": jnp.ones(2)}, "b": [jnp.ones(1)]}
    tensors = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert "['a']['kernel']" in tensors
    penalties = fastreg.attach(tensors, {"['a']['kernel']": L1(0.5), "*[[]0]": L1(1.0)})
    assert penalties.value() == 2.5
    tree = {"w[0]": jnp.ones(3), "w[1]": jnp.ones(3), "w0": jnp.ones(3)}
    assert float(fastreg.jax.attach(tree, {"w[0]": L1(0.5)}).value(tree)) == 1.5
