"""Penalties inside programs of JAX: bits, special values, transformations, refusals."""

import concurrent.futures
import math
import textwrap

import interpreter
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastreg
import fastreg.jax
from fastreg import regularizers
from fastreg._autodiff.jax import derivatives, ffi
from fastreg._autodiff.jax import gradient as _gradient
from fastreg.jax import penalty
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

BOTH = L1L2(0.3, 0.7)
TERMS = (L1(0.3), L2(0.7), BOTH)
HALVES_AND_SINGLE = ("float16", "bfloat16", "float32")


def normal(shape, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def bits(x):
    return np.asarray(x).tobytes()


def compiled(regularizer):
    return jax.jit(lambda w: regularizer(w))


# ------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLE)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (33,), (4097,), (3, 50, 70)])
def test_values_have_the_bits_of_the_core(core, dtype, shape):
    w = normal(shape, dtype)
    for regularizer in TERMS:
        inside, outside = compiled(regularizer)(w), regularizer(w)
        assert inside.shape == ()
        assert inside.dtype == jnp.float32
        assert bits(inside) == bits(outside)


def test_values_of_a_large_array_have_the_bits_of_the_core(core):
    w = normal((1_000_003,))
    assert bits(compiled(BOTH)(w)) == bits(BOTH(w))


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint64", "float32"])
def test_values_have_the_bits_of_the_core_with_float64(core, double, dtype):
    w = (100 * jnp.abs(normal((4097,), "float64"))).astype(dtype)
    inside = compiled(BOTH)(w)
    assert inside.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    assert bits(inside) == bits(BOTH(w))


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"])
def test_integers(engine, dtype):
    w = jnp.asarray(np.arange(300) % 120, dtype)
    assert float(compiled(BOTH)(w)) == pytest.approx(float(BOTH(w)), rel=1e-6)
    total = jax.jit(lambda w, i: BOTH(w) + BOTH(i))
    gradient = jax.grad(total)(normal(7), w)  # beside integers, which have no gradient
    assert bits(gradient) == bits(BOTH.gradient(normal(7)))
    with pytest.raises(TypeError, match=f"w has dtype {dtype}, for which there is no gradient"):
        jax.jit(lambda w: BOTH.gradient(w))(w)


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLE)
def test_the_fallback_has_the_values_of_the_core(engine, dtype):
    w = normal((50, 211), dtype)
    for regularizer in TERMS:
        assert float(compiled(regularizer)(w)) == pytest.approx(float(regularizer(w)), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_half_precision_neither_overflows_nor_stalls(engine, dtype):
    w = jnp.full(100_000, 100.0, dtype)
    assert float(compiled(BOTH)(w)) == pytest.approx(0.3 * 1e7 + 0.7 * 1e9, rel=1e-6)


def test_a_transposed_array_is_summed_in_the_order_of_its_indices(core):
    w = normal((300, 70))
    assert bits(jax.jit(lambda w: BOTH(w.T))(w)) == bits(BOTH(jnp.asarray(np.asarray(w).T.copy())))


def test_subnormal_numbers_are_not_flushed(core):
    w = jnp.asarray(np.full(4096, 1e-40, np.float32))
    strong = L1(1e38)
    assert float(compiled(strong)(w)) == float(strong(w)) > 0


@pytest.mark.parametrize("element", [0.0, 1e-40, 1.0])
def test_values_of_any_sign_have_the_bits_of_the_core(core, element):
    w = jnp.full(3, element, "float32")
    for regularizer in (*TERMS, L1(1e-41), L2(1e-42)):
        for scale in (1.0, -1.0, 0.0, -0.0):
            expected = np.float32(regularizer(np.asarray(w), scale=scale))
            value = jax.jit(lambda w, r=regularizer, s=scale: r(w, scale=s))(w)
            assert bits(value) == bits(expected)


def test_several_threads_call_at_once(core):
    arrays = [normal((200_003,), seed=seed) for seed in range(4)]
    function = compiled(BOTH)
    expected = [bits(BOTH(w)) for w in arrays]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: bits(function(arrays[i % 4])), range(40)))
    assert results == expected * 10


# ------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("dtype", HALVES_AND_SINGLE)
@pytest.mark.parametrize("regularizer", TERMS, ids=repr)
def test_gradients_have_the_bits_of_the_core(dtype, regularizer):
    special = [0.0, -0.0, math.inf, -math.inf, 1e-3, -65504.0]
    w = jnp.concatenate([normal((4099,), dtype), jnp.asarray(special, dtype)])
    expected = regularizer.gradient(np.asarray(w))
    gradient = jax.jit(jax.grad(regularizer))(w)
    assert gradient.dtype == w.dtype
    assert bits(gradient) == bits(expected)
    assert bits(jax.jit(lambda w: regularizer.gradient(w))(w)) == bits(expected)


def test_all_ways_to_a_gradient(engine):
    w = normal((1000,))
    value, gradient = jax.jit(jax.value_and_grad(BOTH))(w)
    for other in (jax.value_and_grad(BOTH), jax.jit(lambda w: BOTH.value_and_grad(w))):
        other_value, other_gradient = other(w)
        assert bits(other_gradient) == bits(gradient)
        # A sum of XLA's own may have another order in another program.
        assert float(other_value) == pytest.approx(float(value), 2e-7 if engine == "numpy" else 0)


@pytest.mark.parametrize("regularizer", TERMS, ids=repr)
def test_gradients_have_the_bits_of_the_core_with_float64(double, regularizer):
    w = normal((4099,), "float64")
    assert bits(jax.jit(jax.grad(regularizer))(w)) == bits(regularizer.gradient(np.asarray(w)))


def test_the_gradient_keeps_its_bits_where_it_is_fused(engine):
    # In a larger program, where LLVM would contract c2 * w + ... to a fused multiply-add.
    w, g = normal((4099,)), jnp.zeros(4099)
    fused = jax.jit(lambda w, g: g + jax.grad(BOTH)(w))(w, g)
    assert bits(fused) == bits(BOTH.gradient(np.asarray(w)))


def test_what_comes_from_above_scales_the_gradient(engine):
    w = normal((1000,))
    scaled = jax.jit(jax.grad(lambda w: 1024.0 * BOTH(w)))(w)
    assert bits(scaled) == bits(BOTH.gradient(np.asarray(w), grad_scale=1024.0))
    negative = jax.jit(jax.grad(lambda w: BOTH(w, scale=-0.25)))(w)
    assert bits(negative) == bits(BOTH.gradient(np.asarray(w), scale=-0.25))


def test_scales_of_methods(engine):
    w = normal((1000,))
    gradient = jax.jit(lambda w: BOTH.gradient(w, scale=0.5, grad_scale=8.0))(w)
    assert bits(gradient) == bits(BOTH.gradient(np.asarray(w), scale=0.5, grad_scale=8.0))
    value = jax.jit(lambda w: BOTH(w, scale=0.5))(w)
    assert float(value) == pytest.approx(float(BOTH(w, scale=0.5)), rel=1e-6)


def special(dtype):
    """Return both zeros, subnormal, normal, largest and infinite numbers, and NaN, of a dtype."""
    info = jnp.finfo(dtype)
    tiny, least, most = (float(x) for x in (info.tiny, info.smallest_subnormal, info.max))
    positive = [
        0.0,
        least,
        3 * least,
        tiny - least,
        tiny,
        1.5 * tiny,
        1e-3,
        1.0,
        2.5,
        most,
        math.inf,
    ]
    numbers = np.asarray([*positive, *(-x for x in positive), math.nan], "float64")
    with np.errstate(over="ignore"):
        return numbers.astype(dtype)


def patterns(dtype):
    """Return every number of a type of 16 bits."""
    return np.arange(1 << 16, dtype=np.uint16).view(dtype)


def both_gradients(regularizer, w, scale):
    w = jnp.asarray(w)
    yield jax.jit(lambda w: regularizer.gradient(w, scale=scale))(w)
    yield jax.jit(jax.grad(lambda w: regularizer(w, scale=scale)))(w)


def same_bits(found, expected):
    """Return whether all bits are equal, but for those of NaN."""
    found, missing = np.asarray(found), np.isnan(expected)
    return (
        found.dtype == expected.dtype
        and np.isnan(found[missing]).all()
        and bits(found[~missing]) == bits(expected[~missing])
    )


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("dtype", [*HALVES_AND_SINGLE, "float64"])
@pytest.mark.parametrize("regularizer", [L1(0.3), L1(1e-6), BOTH, L1L2(1e-30, 0.7)], ids=repr)
def test_signs_of_zeros_and_subnormal_weights_are_exact(double, dtype, regularizer, scale):
    weights = special(jnp.dtype(dtype))
    for w in (weights, patterns(weights.dtype)) if weights.dtype.itemsize == 2 else (weights,):
        with np.errstate(all="ignore"):
            expected = regularizer.gradient(w, scale=scale)
        for gradient in both_gradients(regularizer, w, scale):
            assert same_bits(gradient, expected)


@pytest.mark.parametrize("scale", [1.0, -0.5])
@pytest.mark.parametrize("dtype", [*HALVES_AND_SINGLE, "float64"])
def test_products_of_l2_are_exact_or_flushed_where_they_are_subnormal(double, dtype, scale):
    w = special(jnp.dtype(dtype))
    w = patterns(w.dtype) if w.dtype.itemsize == 2 else w
    compute = np.float64 if dtype == "float64" else np.float32
    expected = L2(0.7).gradient(w, scale=scale)
    tiny = np.finfo(compute).tiny
    flushed = (np.abs(w.astype(compute)) < tiny) | (np.abs(expected.astype(compute)) < tiny)
    zeros = np.copysign(np.zeros_like(expected), expected)
    for gradient in both_gradients(L2(0.7), w, scale):
        gradient = np.asarray(gradient)
        assert same_bits(gradient[~flushed], expected[~flushed])
        exact = gradient[flushed] == expected[flushed]
        assert same_bits(gradient[flushed], np.where(exact, expected[flushed], zeros[flushed]))


@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_strengths_that_are_traced_have_the_signs_of_the_core(double, l2):
    w = special(jnp.dtype("float32"))
    for scale in (1.0, -0.5):
        gradient = jax.jit(jax.grad(lambda w, l1, scale: penalty(w, l1=l1, l2=l2, scale=scale)))
        with np.errstate(all="ignore"):
            expected = L1L2(0.3, l2).gradient(w, scale=scale)
        assert same_bits(gradient(jnp.asarray(w), 0.3, scale), expected)


# ------------------------------------------------------------------- NaN and absent terms


def test_nan_goes_through(engine):
    w = normal((100,)).at[3].set(jnp.nan)
    value, gradient = jax.jit(jax.value_and_grad(BOTH))(w)
    assert math.isnan(value)
    assert np.isnan(gradient).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize("from_host", [True, False])
def test_an_absent_term_gives_nothing_even_at_nan_and_infinity(engine, from_host):
    w = jnp.asarray([1.0, -2.0, jnp.nan, jnp.inf])
    zero = 0.0 if from_host else jnp.zeros(())
    value, gradient = jax.jit(jax.value_and_grad(lambda w: penalty(w, l1=zero, l2=zero)))(w)
    assert value == 0.0
    assert gradient.tolist() == [0.0] * 4
    w = jnp.asarray([1.0, -2.0, jnp.inf])
    one = 0.5 if from_host else jnp.full((), 0.5)
    gradient = jax.jit(jax.grad(lambda w: penalty(w, l1=one, l2=zero)))(w)
    assert gradient.tolist() == [0.5, -0.5, 0.5]  # 0 * inf would be NaN


def test_with_one_term_a_negative_zero_stays(engine):
    gradient = jax.jit(jax.grad(L2(0.5)))(jnp.asarray([-0.0, 0.0]))
    assert np.signbit(gradient).tolist() == [True, False]
    for regularizer in (L1(0.5), BOTH):
        gradient = jax.jit(jax.grad(regularizer))(jnp.asarray([-0.0, 0.0]))
        assert np.signbit(gradient).tolist() == [False, False]


# ------------------------------------------------------------------------- transformations


def test_vmap(core):
    w = normal((5, 3, 40))
    expected = np.asarray([[bits(BOTH(each)) for each in row] for row in w])
    mapped = jax.jit(jax.vmap(jax.vmap(BOTH)))(w)
    assert (
        np.asarray([[bits(each) for each in row] for row in mapped]).tolist() == expected.tolist()
    )
    other_axis = jax.vmap(BOTH, in_axes=1)(w)
    assert [bits(x) for x in other_axis] == [bits(BOTH(w[:, i])) for i in range(3)]
    gradients = jax.jit(jax.vmap(jax.grad(BOTH)))(w)
    assert bits(gradients) == bits(BOTH.gradient(np.asarray(w)))


def test_vmap_over_strengths_and_weights(engine):
    w, strengths = normal((4, 30)), jnp.asarray([0.0, 0.5, 2.0])
    table = jax.vmap(lambda w: jax.vmap(lambda l1: penalty(w, l1=l1))(strengths))(w)
    expected = np.outer(np.abs(np.asarray(w)).sum(1), strengths)
    np.testing.assert_allclose(table, expected, rtol=1e-6)
    regularizers = jax.tree_util.tree_map(lambda _: strengths, L1())
    fixed = jax.vmap(lambda regularizer: regularizer(w))(regularizers)
    np.testing.assert_allclose(fixed, expected.sum(0), rtol=1e-6)


def test_second_derivatives(engine):
    w = normal((4,))
    expected = np.diag(np.full(4, 1.4, np.float32))
    np.testing.assert_allclose(jax.hessian(BOTH)(w), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jacrev(jax.jacrev(BOTH))(w), expected, rtol=1e-6)
    mixed = jax.grad(lambda l1: jax.grad(lambda w: penalty(w, l1=l1))(w).sum())(jnp.ones(()))
    assert mixed == jnp.sign(w).sum()


def test_forward_mode_is_refused(engine):
    w = normal((4,))
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(BOTH, (w,), (w,))


def test_control_flow_and_rematerialisation(engine):
    w = normal((3, 40))

    def loss(w):
        return jax.lax.scan(lambda total, row: (total + BOTH(row), None), 0.0, w)[0]

    expected = BOTH.gradient(np.asarray(w))
    assert bits(jax.jit(jax.grad(loss))(w)) == bits(expected)
    assert bits(jax.jit(jax.grad(jax.checkpoint(lambda w: BOTH(w))))(w)) == bits(expected)


# ---------------------------------------------------------------------------- strengths


def test_strengths_have_gradients(engine):
    w = normal((4, 50))
    sums = np.abs(np.asarray(w, np.float64)).sum(), np.square(np.asarray(w, np.float64)).sum()
    slopes = jax.jit(jax.grad(lambda l1, l2: penalty(w, l1=l1, l2=l2), (0, 1)))(0.1, 0.2)
    np.testing.assert_allclose(slopes, sums, rtol=1e-6)
    of_scale = jax.grad(lambda scale: penalty(w, l1=0.1, l2=0.2, scale=scale))(2.0)
    np.testing.assert_allclose(of_scale, 0.1 * sums[0] + 0.2 * sums[1], rtol=1e-6)
    regularizer = jax.grad(lambda regularizer: regularizer(w))(BOTH)
    assert type(regularizer) is L1L2
    np.testing.assert_allclose((regularizer.l1, regularizer.l2), sums, rtol=1e-6)


def test_traced_strengths_give_what_constants_give(engine):
    w = normal((1000,))
    for l1, l2 in ((0.25, 0.5), (0.25, 0.0), (0.0, 0.5)):  # exact in float32
        constant = jax.jit(jax.value_and_grad(L1L2(l1, l2)))(w)
        traced = jax.jit(jax.value_and_grad(lambda w, a, b: penalty(w, l1=a, l2=b)))(w, l1, l2)
        assert bits(constant[0]) == bits(traced[0])
        assert bits(constant[1]) == bits(traced[1])


def test_factors_that_are_traced_alone(engine):
    w = normal((100,))  # closed over: nothing follows it
    value = jax.jit(lambda scale: BOTH(w, scale=scale))(2.0)
    assert float(value) == pytest.approx(2.0 * float(BOTH(w)))
    gradient = jax.jit(
        lambda scale, grad_scale: BOTH.gradient(w, scale=scale, grad_scale=grad_scale)
    )
    np.testing.assert_allclose(gradient(2.0, 4.0), 8.0 * BOTH.gradient(w), rtol=1e-6)
    value, gradient = jax.jit(lambda factor: BOTH.value_and_grad(w, grad_scale=factor))(4.0)
    assert float(value) == pytest.approx(float(BOTH(w)))
    np.testing.assert_allclose(gradient, 4.0 * BOTH.gradient(w), rtol=1e-6)
    regularizer, matrix = OrthogonalRegularizer(0.5), normal((6, 4))
    value = jax.jit(lambda regularizer, scale: regularizer(matrix, scale=scale))(regularizer, 2.0)
    assert float(value) == pytest.approx(2.0 * float(regularizer(matrix)), rel=1e-5)


def test_strengths_of_the_host_are_exact_where_jax_has_no_float64(core):
    w = jnp.full(4096, 3.0)
    strong = L1(1.0 + 2.0**-30)  # 1 in float32
    assert float(compiled(strong)(w * 2**18)) == float(strong(w * 2**18))
    tiny = L1(1e-60)  # 0 in float32
    assert float(compiled(tiny)(jnp.full(3, 1e38))) == float(tiny(jnp.full(3, 1e38))) > 0


def test_schedules_compile_once(engine):
    traces = []

    @jax.jit
    def step(w, regularizer):
        traces.append(None)
        return jax.value_and_grad(lambda w: regularizer(w))(w)

    w, regularizer = normal((100,)), L1L2(0.5, 0.0)
    for l1 in (0.5, 0.25, 0.0):
        regularizer.l1 = l1
        value, gradient = step(w, regularizer)
        assert float(value) == pytest.approx(float(regularizer(w)))
        assert bits(gradient) == bits(regularizer.gradient(np.asarray(w)))
    assert len(traces) == 1


def test_a_strength_that_a_function_closes_over_is_a_constant(engine):
    w, regularizer = jnp.ones(4), L1(0.5)
    function = compiled(regularizer)
    assert function(w) == 2.0
    regularizer.l1 = 1.0
    assert function(w) == 2.0  # as the documentation says
    assert regularizer(w) == 4.0


def test_gradients_without_jit_compile_once_for_all_strengths(engine):
    w, regularizer = normal((100,)), L1(0.5)
    jax.grad(regularizer)(w)
    sizes = [program._cache_size() for program in (derivatives._compiled, _gradient.compiled)]
    for l1 in (0.25, 0.125):
        regularizer.l1 = l1
        jax.grad(regularizer)(w)
    assert [
        program._cache_size() for program in (derivatives._compiled, _gradient.compiled)
    ] == sizes


def test_regularizers_are_pytrees():
    for regularizer in (*TERMS, OrthogonalRegularizer(0.5, "columns")):
        leaves, treedef = jax.tree_util.tree_flatten(regularizer)
        assert all(type(leaf) is float for leaf in leaves)
        again = jax.tree_util.tree_unflatten(treedef, leaves)
        assert again == regularizer
        assert type(again) is type(regularizer)
        assert jax.tree_util.tree_structure(again) == treedef
    doubled = jax.tree_util.tree_map(lambda x: 2 * x, BOTH)
    assert doubled == L1L2(0.6, 1.4)
    carried, _ = jax.lax.scan(
        lambda regularizer, _: (jax.tree_util.tree_map(lambda x: x / 2, regularizer), None),
        BOTH,
        length=2,
    )
    assert float(carried.l1) == pytest.approx(0.075)
    assert float(carried(np.ones(4))) == pytest.approx(float(L1L2(0.075, 0.175)(np.ones(4))))


# -------------------------------------------------------------------------- whole programs


def test_a_value_is_one_call_and_donated_parameters_are_not_copied(core):
    w, g = normal((1000,)), normal((1000,), seed=1)
    kept = np.asarray(w).copy()

    def step(w, g):
        value, _gradient = jax.value_and_grad(BOTH)(w)
        return w - 0.1 * (g + _gradient), value

    program = jax.jit(step, donate_argnums=0)
    text = program.lower(w, g).compile().as_text()
    assert text.count(" custom-call(") == 1
    assert " copy(" not in text
    updated, value = program(w, g)
    assert w.is_deleted()
    assert float(value) == float(np.float32(BOTH(kept)))
    np.testing.assert_allclose(
        updated, kept - 0.1 * (np.asarray(g) + BOTH.gradient(kept)), rtol=1e-5, atol=1e-7
    )


def sgd(w, g, state):
    return w - 0.1 * g, state


def adam(w, g, state):
    count, m, v = state
    count, m, v = count + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    update = m / (1 - 0.9**count) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)
    return w - 0.01 * update, (count, m, v)


@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_weights_after_20_steps_are_those_of_the_plain_expression(engine, optimizer):
    x, y = normal((32, 8)), normal((32,), seed=1)

    def plain(w):
        return 1e-3 * jnp.abs(w).sum() + 1e-2 * jnp.square(w).sum()

    def trained(of_weights):
        @jax.jit
        def step(w, state):
            loss = lambda w: jnp.square(x @ w - y).mean() + of_weights(w)  # noqa: E731
            return optimizer(w, jax.grad(loss)(w), state)

        w = normal((8,), seed=2)
        state = (0, jnp.zeros(8), jnp.zeros(8))
        for _ in range(20):
            w, state = step(w, state)
        return w

    np.testing.assert_allclose(trained(L1L2(1e-3, 1e-2)), trained(plain), rtol=0, atol=1e-6)


def test_attached_tensors_that_are_traced(engine):
    params = {"kernel": normal((40,)), "bias": normal((7,), seed=1)}
    penalties = fastreg.attach(params, {"kernel": BOTH, "bias": "l2"})
    value, gradients = jax.jit(jax.value_and_grad(lambda p: penalties.value(tensors=p)))(params)
    assert float(value) == pytest.approx(float(penalties.value()))
    for name, gradient in penalties.gradient().items():
        assert bits(gradients[name]) == bits(gradient)


@pytest.mark.parametrize("mode", ["rows", "columns"])
def test_orthogonal(engine, mode):
    regularizer = OrthogonalRegularizer(0.5, mode)
    w = normal((6, 4)).at[2].set(0.0)
    value, gradient = jax.jit(jax.value_and_grad(regularizer))(w)
    assert float(value) == pytest.approx(float(regularizer(np.asarray(w))), rel=1e-5)
    np.testing.assert_allclose(gradient, regularizer.gradient(np.asarray(w)), atol=1e-6)
    assert compiled(OrthogonalRegularizer(0.0))(w.at[0].set(jnp.nan)) == 0.0
    assert compiled(regularizer)(w[:1] if mode == "rows" else w[:, :1]) == 0.0
    traced = jax.jit(lambda w, regularizer: regularizer(w))(w, regularizer)
    assert float(traced) == pytest.approx(float(value))
    with pytest.raises(ValueError, match="w must have 2 axes for OrthogonalRegularizer"):
        compiled(regularizer)(w[0])


# ---------------------------------------------------------------------- refusals, fallback


@pytest.mark.parametrize("dtype", ["complex64", "float8_e4m3fn"])
def test_other_dtypes_are_refused(engine, dtype):
    with pytest.raises(TypeError, match=f"w has dtype {dtype}"):
        compiled(BOTH)(jnp.ones(3).astype(dtype))


def test_numbers_that_do_not_fit_are_refused(engine):
    w = jnp.ones(3)
    with pytest.raises(ValueError, match="scale must be a finite number, not float inf"):
        jax.jit(lambda w: BOTH(w, scale=math.inf))(w)
    with pytest.raises(ValueError, match=r"l1 \* scale must be finite"):
        jax.jit(lambda w: L1(1e300)(w, scale=1e300))(w)
    with pytest.raises(ValueError, match=r"l1 must be a finite number >= 0, not float -1\.0"):
        penalty(w, l1=-1.0)
    with pytest.raises(TypeError, match=r"l2 must be one number, not .* of shape \(3,\)"):
        penalty(w, l2=w)
    with pytest.raises(TypeError, match="l1 must be a real number, not of dtype complex64"):
        penalty(w, l1=jnp.ones((), "complex64"))
    with pytest.raises(ValueError, match="the type of the gradient's arithmetic"):
        jax.jit(lambda w: L1(1e39).gradient(w))(w)
    assert float(penalty(w, l1=jnp.asarray(-1.0))) == -3.0  # traced strengths are not checked
    assert math.isnan(penalty(w, l1=jnp.asarray(jnp.nan)))


def test_a_wrong_call_is_an_error_of_xla(core):
    assert ffi.platforms() == ("cpu",)
    w = jnp.ones(3)
    with pytest.raises(Exception, match="fastreg: a rule must have two strengths"):
        jax.block_until_ready(ffi.call("cpu", (w,), (w,), (0,), (), np.dtype(np.float32)))
    with pytest.raises(Exception, match="fastreg: which must hold indices of rules"):
        jax.block_until_ready(ffi.call("cpu", (w,), (w[:2],), (1,), (), np.dtype(np.float32)))


def test_without_the_handler_xla_computes_and_the_reason_is_kept(core, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("another version")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    monkeypatch.setattr(ffi, "reason", None)
    ffi._registered.cache_clear()
    ffi.register.cache_clear()
    try:
        text = compiled(BOTH).lower(jnp.ones(3)).as_text()
        assert "custom_call" not in text
        assert ffi.reason == fastreg.jax.handler.reason == "ValueError: another version"
    finally:
        ffi._registered.cache_clear()
        ffi.register.cache_clear()


def test_a_process_that_loads_a_program_has_the_handler(core):
    code = """
        import jax
        register, names = jax.ffi.register_ffi_target, []
        jax.ffi.register_ffi_target = lambda name, *_, platform: names.append((name, platform))
        import fastreg.jax
        print(names)
    """
    assert interpreter.runs(textwrap.dedent(code)) == "[('fastreg_penalties', 'cpu')]\n"


def test_bits_of_float64_become_float32():
    rng = np.random.default_rng(0)
    numbers = np.concatenate(
        [
            rng.standard_normal(1000) * 10.0 ** rng.uniform(-30, 37, 1000),
            [0.0, -0.0, math.inf, -math.inf, 1.0, 1 + 2.0**-24, 1 + 3 * 2.0**-24, 3.5e38, -1e300],
            [2.0**128 - 2.0**103, 2.0**-126],
        ]
    )
    rounded = jax.jit(ffi.to_float32)(jnp.asarray(numbers.view(np.uint32).reshape(-1, 2)))
    with np.errstate(over="ignore"):
        assert bits(rounded) == bits(numbers.astype(np.float32))
    missing = np.asarray([math.nan]).view(np.uint32).reshape(-1, 2)
    assert np.isnan(ffi.to_float32(jnp.asarray(missing))).all()


def test_regularizers_by_name_work_inside(engine):
    assert float(compiled(regularizers.get("l1_l2"))(jnp.ones(4))) == pytest.approx(0.08)
