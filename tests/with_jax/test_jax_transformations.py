"""Gradient transformations, alone and in chains of optax: under jit, scan, vmap and sharded."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

import fastreg.jax
from fastreg._autodiff.jax.sharding import shard_map
from fastreg.jax import PenaltyState, add_penalty, proximal
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

DTYPES = ("float16", "bfloat16", "float32")
RULES = {"*kernel": L1(0.3), "head/*": L1L2(0.3, 0.7)}


def numbers(shape, seed, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def tree(dtype="float32", seed=0):
    return {
        "dense": {"kernel": numbers((3, 20), seed, dtype), "bias": numbers(20, seed + 1, dtype)},
        "head": [numbers(7, seed + 2, dtype), None],
    }


def applied(params, updates):
    """Return what optax.apply_updates gives."""
    return jax.tree_util.tree_map(lambda p, u: (p + u).astype(p.dtype), params, updates)


def flat(found):
    return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(found)]


def once(transformation, updates, params, count=0, compiled=False):
    update = jax.jit(transformation.update) if compiled else transformation.update
    transformation.init(params)
    found, state = update(updates, PenaltyState(jnp.int32(count)), params)
    assert state.count == count + 1
    return found


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_proximal(dtype, compiled):
    params, updates = tree(dtype), tree(dtype, 10)
    found = once(proximal(RULES, 0.5), updates, params, compiled=compiled)
    assert (np.asarray(found["dense"]["bias"]) == np.asarray(updates["dense"]["bias"])).all()
    new = applied(params, found)
    for rule, of in (
        (RULES["*kernel"], lambda found: found["dense"]["kernel"]),
        (RULES["head/*"], lambda found: found["head"][0]),
    ):
        old, one = of(params), np.asarray(of(new))
        assert of(found).dtype == of(new).dtype == old.dtype
        moved = np.asarray(old, np.float32) + np.asarray(of(updates), np.float32)
        wanted = rule.prox(moved, 0.5)
        assert ((one == 0) == (wanted == 0)).all()
        assert 0 < (one == 0).sum() < one.size
        assert not np.signbit(one[one == 0]).any()
        epsilon = float(jnp.finfo(dtype).eps)
        sizes = np.abs(np.asarray(old, np.float32)) + np.abs(wanted)
        assert (np.abs(one.astype(np.float32) - wanted) <= 2 * epsilon * sizes).all()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_penalty(dtype, compiled):
    params, updates = tree(dtype), tree(dtype, 10)
    found = once(add_penalty(RULES, scale=0.5), updates, params, compiled=compiled)
    assert (np.asarray(found["dense"]["bias"]) == np.asarray(updates["dense"]["bias"])).all()
    for rule, of in (
        (RULES["*kernel"], lambda found: found["dense"]["kernel"]),
        (RULES["head/*"], lambda found: found["head"][0]),
    ):
        wanted = np.asarray(of(updates)).copy()
        rule.accumulate(np.asarray(of(params)), wanted, scale=0.5)
        one = of(found)
        assert one.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(one, np.float32),
            wanted.astype(np.float32),
            rtol=float(jnp.finfo(dtype).eps),
            atol=float(jnp.finfo(dtype).eps),
        )


@pytest.mark.parametrize("of_params", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("of_updates", ["bfloat16", "float16", "float32"])
def test_mixed_dtypes_lose_no_zero(of_params, of_updates):
    # 0.1 is not the same number in two of these.
    params = {"w": jnp.asarray([0.1, -0.3, 5.0], of_params)}
    updates = {"w": jnp.asarray([0.0, 0.0, -1.0], of_updates)}
    new = applied(params, once(proximal(L1(1.0), 1.0), updates, params))["w"]
    assert new.dtype == of_params
    assert new.tolist() == [0.0, 0.0, 3.0]
    added = once(add_penalty(L1(1.0)), updates, params)["w"]
    assert added.dtype == of_updates
    assert added.tolist() == [1.0, -1.0, 0.0]


def test_float64(double):
    params = {"w": jnp.asarray([0.1, -0.3, 5.0]), "b": jnp.float32(0.1)}
    updates = jax.tree_util.tree_map(jnp.zeros_like, params)
    new = applied(params, once(proximal(L1(0.25), 1.0), updates, params))
    assert (new["w"].dtype, new["b"].dtype) == (np.float64, np.float32)
    assert np.abs(np.asarray(new["w"]) - [0.0, -0.05, 4.75]).max() < 1e-15
    assert new["b"] == 0


@pytest.mark.parametrize("compiled", [False, True])
def test_schedules_get_the_count(compiled):
    params = {"w": jnp.asarray([3.0, -3.0])}
    updates = {"w": jnp.zeros(2)}
    halves = lambda count: 0.5 * count  # noqa: E731
    for count in (0, 1, 4):
        found = once(proximal(L1(1.0), halves), updates, params, count, compiled)
        assert found["w"].tolist() == [-0.5 * count, 0.5 * count]
        found = once(proximal(L1(1.0), 0.5, scale=halves), updates, params, count, compiled)
        assert found["w"].tolist() == [-0.25 * count, 0.25 * count]
        found = once(add_penalty(L1(1.0), scale=halves), updates, params, count, compiled)
        assert found["w"].tolist() == [0.5 * count, -0.5 * count]


def test_the_count_stops_at_its_end():
    most = np.iinfo(np.int32).max
    params = {"w": jnp.ones(2)}
    _, state = proximal(L1(1.0), 0.5).update(params, PenaltyState(jnp.int32(most)), params)
    assert state.count == most


def test_strengths_and_rates_as_arguments_compile_once():
    params = {"w": jnp.asarray([3.0, 0.25])}
    traces = []

    @jax.jit
    def step(params, state, rule, rate):
        traces.append(1)
        updates, state = proximal({"w": rule}, rate).update({"w": jnp.zeros(2)}, state, params)
        return applied(params, updates), state

    state = proximal(L1(1.0), 1.0).init(params)
    for l1, rate in ((0.5, 1.0), (0.25, 0.5)):
        new, state = step(params, state, L1(l1), rate)
        assert new["w"].tolist() == [3.0 - l1 * rate, max(0.25 - l1 * rate, 0.0)]
    assert len(traces) == 1


def test_what_is_none_does_not_change():
    params = {"a": jnp.asarray([3.0, 0.1]), "b": jnp.asarray([3.0, 0.1]), "c": None}
    updates = {"a": None, "b": jnp.zeros(2), "c": None}
    for transformation in (proximal(L1(1.0), 0.5), add_penalty(L1(1.0))):
        found = once(transformation, updates, params)
        assert found["a"] is None
        assert found["c"] is None
        assert found["b"].tolist() != [0.0, 0.0]


def test_trees_of_nothing_and_of_one():
    assert once(proximal(L1(1.0), 0.1), {}, {}) == {}
    assert once(add_penalty(L1(1.0)), (), ()) == ()
    w = jnp.float32(0.25)
    assert w + once(proximal(L1(1.0), 1.0), jnp.float32(0.5), w) == 0
    empty = jnp.zeros((0, 3))
    assert once(proximal(L1(1.0), 1.0), empty, empty).shape == (0, 3)


def test_another_tree_than_that_of_init():
    transformation = proximal({"*kernel": L1(1.0)}, 1.0)
    for params in ({"kernel": jnp.float32(0.5)}, {"a": {"kernel": jnp.float32(0.5)}}):
        found = once(transformation, jax.tree_util.tree_map(jnp.zeros_like, params), params)
        assert flat(applied(params, found)) == [0.0]
    with pytest.raises(ValueError, match=r"^rules\['\*kernel'\] matches no tensor"):
        transformation.update({"w": w}, PenaltyState(jnp.int32(0)), {"w": w})


w = jnp.ones(3)
STATE = PenaltyState(jnp.int32(0))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: proximal({"no": "l1"}, 0.1).init({"w": w}), ValueError, r"^rules\['no'\] matches"),
        (lambda: add_penalty({"no": "l1"}).init({"w": w}), ValueError, r"^rules\['no'\] matches"),
        (lambda: proximal("l1", 0.1).update(w, STATE), ValueError, "^params must be .*not None"),
        (lambda: add_penalty("l1").update(w, STATE), ValueError, "^params must be .*not None"),
        (lambda: proximal("l1", -1.0), ValueError, "^learning_rate must be a finite number >= 0"),
        (lambda: proximal("l1", None), TypeError, "^learning_rate must be"),
        (lambda: proximal("l1", np.ones(2)), TypeError, "^learning_rate must be"),
        (lambda: proximal("l1", 0.1, scale=-1.0), ValueError, "^scale must be"),
        (lambda: add_penalty("l1", scale=np.inf), ValueError, "^scale must be"),
        (lambda: proximal(0.1, L1(1.0)), TypeError, "must stand for a regularizer"),
        (
            lambda: proximal("l1", lambda count: -1.0).update(w, STATE, w),
            ValueError,
            "^learning_rate must be a finite number >= 0",
        ),
        (
            lambda: proximal("l1", lambda count: w).update(w, STATE, w),
            TypeError,
            "^learning_rate must be one number",
        ),
        (lambda: proximal(OrthogonalRegularizer(), 0.1).init(w), TypeError, "offers no prox"),
        (lambda: proximal(lambda w: w.sum(), 0.1).init(w), TypeError, "offers no prox"),
        (lambda: proximal("l1", 0.1).update({"a": w}, STATE, {"b": w}), ValueError, "^updates"),
        (
            lambda: proximal("l1", 0.1).update({"a": w[:1]}, STATE, {"a": w}),
            ValueError,
            r"^updates\['a'\] has shape \(1,\)",
        ),
        (
            lambda: proximal("l1", 0.1).update({"a": 1.0}, STATE, {"a": w}),
            TypeError,
            r"^updates\['a'\] must be an array or None, not float 1.0",
        ),
        (
            lambda: proximal("l1", 0.1).update({"a": w}, STATE, {"a": jnp.arange(3)}),
            TypeError,
            r"^params\['a'\] has dtype int32",
        ),
        (
            lambda: add_penalty("l1").update({"a": w}, STATE, {"a": 1.0}),
            TypeError,
            r"^params\['a'\] must be an array",
        ),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_trees_name_the_leaf_without_a_gradient():
    params = {"a": jnp.arange(3)}
    penalties = fastreg.jax.attach(params, "l1")
    for call in (
        penalties.gradient,
        penalties.value_and_grad,
        lambda params: penalties.prox(params, 0.1),
    ):
        with pytest.raises(TypeError, match=r"^params\['a'\] has dtype int32"):
            call(params)


def test_states_can_be_pickled():
    state = proximal(L1(1.0), 0.1).init({"w": w})
    assert pickle.loads(pickle.dumps(state)) == state
    assert repr(type(state)) == "<class 'fastreg.jax.PenaltyState'>"


def test_scan():
    transformation = proximal(L1(1.0), lambda count: 0.1 * (count + 1))
    params = {"w": jnp.asarray([1.0, -1.0, 0.05])}

    def body(carry, _):
        params, state = carry
        updates, state = transformation.update({"w": jnp.zeros(3)}, state, params)
        return (applied(params, updates), state), params["w"]

    (params, state), _ = jax.lax.scan(body, (params, transformation.init(params)), None, 4)
    assert state.count == 4
    assert params["w"].tolist() == [0.0, 0.0, 0.0]


def test_vmap():
    transformation = proximal(L1(1.0), 0.5)
    many = numbers((4, 6), 3)
    zeros = jnp.zeros_like(many)
    alone = jax.vmap(lambda w, u: transformation.update(u, STATE, w)[0])(many, zeros)
    assert (np.asarray(alone) == np.asarray(once(transformation, zeros, many))).all()


def test_sharding_stays():
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    placed = NamedSharding(mesh, Spec("data"))
    params = {"w": jax.device_put(numbers((4, 6), 3), placed)}
    updates = {"w": jax.device_put(numbers((4, 6), 4), placed)}
    for transformation in (proximal(L1(1.0), 0.5), add_penalty(L1L2(0.3, 0.7))):
        wanted = np.asarray(once(transformation, updates, params)["w"])
        for compiled in (False, True):
            found = once(transformation, updates, params, compiled=compiled)["w"]
            assert found.sharding.is_equivalent_to(placed, 2)
            np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-6, atol=1e-7)
        inside = shard_map(
            lambda w, u, update=transformation.update: update(u, STATE, w)[0],
            mesh=mesh,
            in_specs=(Spec("data"), Spec("data")),
            out_specs=Spec("data"),
        )
        found = jax.jit(inside)(params["w"], updates["w"])
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------- optax


@pytest.fixture
def optax():
    return pytest.importorskip("optax")


def zeros_of(params):
    return sum(int((leaf == 0).sum()) for leaf in flat(params))


def test_a_chain_trains_to_the_lasso(optax):
    """Against scikit-learn's formula for the minimum: the subgradient holds at every element."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((50, 8)), "float32")
    y = x @ jnp.asarray([2.0, -1.0, 0, 0, 0, 0.5, 0, 0]) + 0.01 * numbers(50, 5)
    l1 = 0.1
    chain = optax.chain(optax.sgd(0.1), proximal(L1(l1), 0.1))

    def loss(w):
        return jnp.mean((x @ w - y) ** 2) / 2

    @jax.jit
    def step(w, state):
        updates, state = chain.update(jax.grad(loss)(w), state, w)
        return optax.apply_updates(w, updates), state

    w = numbers(8, 6)
    state = chain.init(w)
    for _ in range(400):
        w, state = step(w, state)
    slope = np.asarray(jax.grad(loss)(w))
    found = np.asarray(w)
    assert np.flatnonzero(found).tolist() == [0, 1, 5]
    assert np.abs(slope[found != 0] + l1 * np.sign(found[found != 0])).max() < 1e-5
    assert np.abs(slope[found == 0]).max() < l1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_neighbours(optax, dtype):
    params = tree(dtype)
    nothing = jax.tree_util.tree_map(jnp.zeros_like, params)
    labels = {"dense": {"kernel": "a", "bias": "b"}, "head": ["b", None]}
    mask = {"dense": {"kernel": True, "bias": False}, "head": [False, None]}
    step = proximal({"*kernel": L1(0.6)}, 0.5)
    kernel = np.asarray(params["dense"]["kernel"], np.float32)
    wanted = int((np.abs(kernel) <= 0.3).sum())
    assert wanted > 3
    inject = optax.inject_hyperparams
    transformations = {
        "chain": optax.chain(optax.identity(), step),
        "named_chain": optax.named_chain(("one", optax.identity()), ("two", step)),
        "masked": optax.masked(step, mask),
        "multi_transform": optax.multi_transform({"a": step, "b": optax.sgd(0.1)}, labels),
        "inject_hyperparams": inject(proximal)({"*kernel": L1(0.6)}, learning_rate=0.5),
        "inject_hyperparams, schedule": inject(proximal, static_args="rules")(
            {"*kernel": L1(0.6)}, learning_rate=optax.linear_schedule(0.5, 0.1, 9)
        ),
        "apply_if_finite": optax.apply_if_finite(step, 3),
    }
    for name, transformation in transformations.items():
        state = transformation.init(params)
        for update in (transformation.update, jax.jit(transformation.update)):
            updates, _ = update(nothing, state, params)
            new = optax.apply_updates(params, updates)
            assert zeros_of(new) == wanted, name
            assert (np.asarray(new["head"][0]) == np.asarray(params["head"][0])).all(), name
    flattened = optax.flatten(proximal(L1(0.6), 0.5))
    updates, _ = flattened.update(nothing, flattened.init(params), params)
    assert zeros_of(optax.apply_updates(params, updates)) > wanted


def test_several_steps_are_one(optax):
    params = tree()
    gradients = tree(seed=10)
    inner = optax.chain(add_penalty({"*bias": L2(0.1)}), optax.sgd(0.1), proximal(RULES, 0.1))
    many = optax.MultiSteps(inner, 2)
    state = many.init(params)
    updates, state = jax.jit(many.update)(gradients, state, params)
    assert all((leaf == 0).all() for leaf in flat(updates))
    updates, state = jax.jit(many.update)(gradients, state, params)
    wanted, _ = inner.update(gradients, inner.init(params), params)
    for one, other in zip(flat(updates), flat(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert zeros_of(optax.apply_updates(params, updates)) > 0


def test_a_step_that_is_left_out_leaves_the_penalty_out(optax):
    params = tree()
    transformation = optax.apply_if_finite(
        optax.chain(optax.sgd(0.1), proximal(RULES, 0.1)), max_consecutive_errors=3
    )
    bad = jax.tree_util.tree_map(lambda leaf: leaf * np.nan, params)
    updates, _ = jax.jit(transformation.update)(bad, transformation.init(params), params)
    assert all((leaf == 0).all() for leaf in flat(updates))


def test_the_clip_sees_the_penalty(optax):
    params = {"w": jnp.asarray([3.0, -4.0])}
    nothing = {"w": jnp.zeros(2)}
    chain = optax.chain(add_penalty(L2(0.5)), optax.clip_by_global_norm(1.0))
    updates, _ = chain.update(nothing, chain.init(params), params)
    np.testing.assert_allclose(np.asarray(updates["w"]), [0.6, -0.8], rtol=1e-6)


def test_flax_optimizers(optax):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    chain = optax.chain(optax.adam(0.01), proximal({"*kernel": L1(10.0)}, 0.01))
    optimizer = nnx.Optimizer(model, chain, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        gradients = nnx.grad(lambda model: jnp.mean(model(jnp.ones((2, 8))) ** 2))(model)
        optimizer.update(model, gradients)

    step(model, optimizer)
    assert 0 < int((model.kernel[...] == 0).sum()) < 32


def test_equinox_modules(optax):
    equinox = pytest.importorskip("equinox")
    model = equinox.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    chain = optax.chain(optax.sgd(0.1), proximal({"*weight": L1(1.0)}, 0.1))
    state = chain.init(equinox.filter(model, equinox.is_array))

    @equinox.filter_jit
    def step(model, state):
        slope = equinox.filter_grad(lambda model: jnp.mean(model(jnp.ones(4)) ** 2))(model)
        updates, state = chain.update(slope, state, equinox.filter(model, equinox.is_array))
        return equinox.apply_updates(model, updates), state

    new, state = step(model, state)
    assert int((new.layers[0].weight == 0).sum()) > 0
    assert int((new.layers[0].bias == 0).sum()) == 0
