"""Proximal steps of JAX's arrays and trees: the core's bits but for subnormals, under jit too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastreg
import fastreg.jax
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

DTYPES = ("float16", "bfloat16", "float32")
REGULARIZERS = (L1(0.3), L2(0.7), L1L2(0.3, 0.7), L1L2(0.0, 0.0))


def numbers(count=1003, seed=0):
    found = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    found[::7] = 0.0
    found[1::7] = -0.0
    found[2::49] = np.inf
    return found


def bits(array):
    array = np.asarray(array)
    return array.view(f"u{array.itemsize}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reg", REGULARIZERS, ids=str)
def test_arrays(backend, reg, dtype):
    w = jnp.asarray(numbers()).astype(dtype)
    wanted = bits(reg.prox(np.asarray(w), 0.37, scale=0.5))
    step = lambda w: reg.prox(w, 0.37, scale=0.5)  # noqa: E731
    inner = lambda w: step(w + 0) * 1  # noqa: E731
    for found in (step(w), jax.jit(step)(w), jax.jit(inner)(w), jax.vmap(step)(w[None])[0]):
        assert isinstance(found, jax.Array)
        assert found.dtype == w.dtype
        same = bits(found) == wanted
        assert (same | (np.asarray(w) == 0)).all()  # w + 0 has no -0
    assert (bits(step(w)) == wanted).all()
    assert (bits(jax.jit(step)(w)) == wanted).all()


@pytest.mark.parametrize("number", [0.37, np.float32(0.37), jnp.float32(0.37)])
@pytest.mark.parametrize("reg", REGULARIZERS, ids=str)
def test_traced_steps_and_strengths(reg, number):
    w = numbers()
    wanted = reg.prox(w, float(number))
    found = jax.jit(lambda w, step, reg: reg.prox(w, step))(w, number, reg)
    finite = np.isfinite(wanted)
    np.testing.assert_allclose(np.asarray(found)[finite], wanted[finite], rtol=1e-6, atol=1e-7)
    assert (np.signbit(found) == np.signbit(wanted)).all()


def test_errors():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match=r"^step must be a finite number >= 0"):
        jax.jit(lambda w: L1(0.5).prox(w, -1.0))(w)
    with pytest.raises(TypeError, match=r"^w has dtype int32"):
        jax.jit(lambda w: L1(0.5).prox(w, 1.0))(jnp.arange(3))
    with pytest.raises(TypeError, match=r"^step must be a finite number >= 0, not .*Tracer"):
        jax.jit(lambda step: L1(0.5).prox(np.ones(3), step, np.ones(3)))(1.0)
    with pytest.raises(BufferError, match=r"^out is a JAX array, which is immutable"):
        L1(0.5).prox(w, 1.0, w)
    with pytest.raises(BufferError, match=r"^tensors\['w'\] is a JAX array, which is immutable"):
        fastreg.attach({"w": w}, "l1").prox(0.1)


def test_it_is_differentiable():
    w = jnp.asarray([2.0, 0.1, -3.0])
    slope = jax.grad(lambda w: L1L2(0.5, 0.5).prox(w, 1.0).sum())(w)
    assert slope.tolist() == [0.5, 0.0, 0.5]


# ---------------------------------------------------------------------------------- trees


def tree():
    return {
        "dense": {"kernel": jnp.asarray(numbers(60, 1)).reshape(3, 20), "bias": jnp.ones(20)},
        "head": [jnp.asarray(numbers(7, 2)), jnp.arange(3)],
    }


RULES = {"*kernel": L1(0.3), "head/0": L1L2(0.3, 0.7)}


@pytest.mark.parametrize("compiled", [False, True])
def test_trees(compiled):
    params = tree()
    penalties = fastreg.jax.attach(params, RULES)
    step = jax.jit(penalties.prox) if compiled else penalties.prox
    found = step(params, 0.25)
    assert jax.tree_util.tree_structure(found) == jax.tree_util.tree_structure(params)
    kernel, first = params["dense"]["kernel"], params["head"][0]
    for one, reg, old in (
        (found["dense"]["kernel"], L1(0.3), kernel),
        (found["head"][0], L1L2(0.3, 0.7), first),
        (found["dense"]["bias"], None, params["dense"]["bias"]),
        (found["head"][1], None, params["head"][1]),
    ):
        wanted = old if reg is None else reg.prox(np.asarray(old), 0.25)
        # A compiled function's step is JAX's: its numbers have JAX's default float.
        if compiled and reg is not None:
            finite = np.isfinite(wanted)
            np.testing.assert_allclose(
                np.asarray(one)[finite], wanted[finite], rtol=1e-6, atol=1e-7
            )
            assert ((np.asarray(one) == 0) == (wanted == 0)).all()
        else:
            assert (bits(one) == bits(wanted)).all()
        assert one.dtype == old.dtype
    assert int((found["dense"]["kernel"] == 0).sum()) > 0


def test_schedules_compile_once():
    params = {"w": jnp.asarray(numbers())}
    traces = []

    @jax.jit
    def step(params, penalties, number):
        traces.append(1)
        return penalties.prox(params, number)

    for l1 in (0.1, 0.3):
        found = step(params, fastreg.jax.attach(params, L1(l1)), 0.5)["w"]
        assert int((found == 0).sum()) == int((L1(l1).prox(params["w"], 0.5) == 0).sum())
    assert len(traces) == 1


class Soft:
    def __call__(self, w):
        return jnp.abs(w).sum()

    def prox(self, w, step):
        return jnp.sign(w) * jnp.maximum(jnp.abs(w) - step, 0.0)


def test_functions_with_and_without_a_prox():
    params = {"a": jnp.asarray([3.0, 0.1]), "b": jnp.asarray([2.0, -0.1])}
    found = jax.jit(fastreg.jax.attach(params, {"a": Soft(), "b": L1(1.0)}).prox)(params, 0.5)
    assert found["a"].tolist() == [2.5, 0.0]
    assert found["b"].tolist() == [1.5, 0.0]
    for rule in (OrthogonalRegularizer(), lambda w: w.sum()):
        with pytest.raises(TypeError, match=r"^the rule of tensors\['a'\], .*offers no prox"):
            fastreg.jax.attach(params, {"a": rule}).prox(params, 0.5)
