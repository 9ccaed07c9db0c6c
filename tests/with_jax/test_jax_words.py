"""A module where an array belongs: the error says what would do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastreg
import fastreg.jax
from fastreg.regularizers import L1L2, L2, OrthogonalRegularizer


def equinox_module():
    equinox = pytest.importorskip("equinox")
    return equinox.nn.Linear(2, 3, key=jax.random.key(0))


def nnx_module():
    nnx = pytest.importorskip("flax.nnx")
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def linen_module():
    return pytest.importorskip("flax.linen").Dense(3)


@pytest.mark.parametrize("make", [equinox_module, nnx_module, linen_module])
def test_modules(make):
    module = make()
    for call in (L2(0.1), L2(0.1).gradient, lambda one: fastreg.attach(one, "l2")):
        with pytest.raises(TypeError, match=r"an array of it, layer\.\w+ .*fastreg\.jax\.attach\("):
            call(module)


def calls_with_a_scale(w):
    """Return calls that take a factor, by the factor's name."""
    regularizer, rows = L1L2(0.1, 0.3), OrthogonalRegularizer(0.1)
    tree = fastreg.jax.attach([w], lambda one: jnp.abs(one).sum())
    names = fastreg.attach([w], lambda one: jnp.abs(one).sum())
    return {
        "scale": [
            lambda w, factor: regularizer(w, scale=factor),
            lambda w, factor: regularizer.gradient(w, scale=factor),
            lambda w, factor: regularizer.value_and_grad(w, scale=factor)[1],
            lambda w, factor: rows(w, scale=factor),
            lambda w, factor: rows.gradient(w, scale=factor),
            lambda w, factor: tree.value([w], scale=factor),
            lambda w, factor: tree.value_and_grad([w], scale=factor)[1],
            lambda w, factor: names.value(tensors=[w], scale=factor),
            lambda w, factor: fastreg.attach([w], regularizer).gradient(scale=factor),
        ],
        "grad_scale": [
            lambda w, factor: regularizer.gradient(w, grad_scale=factor),
            lambda w, factor: rows.gradient(w, grad_scale=factor),
            lambda w, factor: tree.gradient([w], grad_scale=factor),
            lambda w, factor: fastreg.attach([w], regularizer).gradient(grad_scale=factor),
        ],
    }


WRONG = ["2", None, [1.0], 1j, np.ones(2), math.nan, math.inf, 10**400, jnp.ones(2)]


@pytest.mark.parametrize("factor", WRONG, ids=lambda factor: str(factor)[:8])
@pytest.mark.parametrize("name", ["scale", "grad_scale"])
def test_factors_of_traced_arrays(name, factor):
    w = jnp.asarray([[1.0, -2.0], [3.0, 4.0]])
    for call in calls_with_a_scale(w)[name]:
        with pytest.raises((TypeError, ValueError), match=rf"^{name} must be (a fin|one num)"):
            jax.jit(lambda w, call=call: call(w, factor))(w)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_numpy_factor_is_not_the_precision_of_the_product(kind):
    w = jnp.asarray([[1.0, -2.0], [3.0, 4.0]])
    for name, calls in calls_with_a_scale(w).items():
        for call in calls:
            factor = kind(1 / 3)
            found, expected = (
                jax.jit(lambda w, call=call, factor=factor: call(w, factor))(w)
                for factor in (factor, float(factor))
            )
            assert str(found) == str(expected), name


def test_a_callable_in_a_tree_gives_one_number():
    w = jnp.ones(2)
    penalties = fastreg.jax.attach({"w": w}, lambda one: one)
    for call in (penalties.value, jax.jit(penalties.value)):
        with pytest.raises(TypeError, match=r"rule of tensors\['w'\] gives must be one number"):
            call({"w": w})


def test_a_penalty_that_float32_has_not_is_infinite():
    w = jnp.asarray([[1.0, -2.0], [3.0, 4.0]])
    for regularizer in (L2(1e300), OrthogonalRegularizer(1e300)):
        assert regularizer(w) == jax.jit(lambda w, reg=regularizer: reg(w))(w) == math.inf


def test_a_complex_array_is_no_matter_of_astype():
    with pytest.raises(TypeError, match=r"complex64.*pass jax\.numpy\.abs\(w\) or its real parts"):
        jax.jit(lambda w: L2(0.1)(w))(jnp.ones(2, jnp.complex64))


@pytest.mark.skipif(not hasattr(jax, "new_ref"), reason="this JAX has no references")
def test_a_reference_is_no_array():
    for call in (L2(0.1), L2(0.1).gradient):
        with pytest.raises(TypeError, match=r"^w must be an array, not a "):
            jax.jit(lambda w, call=call: call(jax.new_ref(w)))(jnp.ones(2))
