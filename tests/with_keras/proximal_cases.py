"""What ``fastreg.keras.Proximal`` and the count of zeros have to show; see keras_cases.py."""

import contextlib
import copy
import io
import pickle
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest

import fastreg.keras
from fastreg.keras import L1, L1L2, L2, Proximal, ZerosLogger, zeros
from fastreg.regularizers import OrthogonalRegularizer

backend = keras.backend.backend()
if backend == "jax":
    import jax

rng = np.random.default_rng(20261128)
X = rng.standard_normal((32, 6)).astype(np.float32)
Y = (X[:, :2] @ rng.standard_normal((2, 3))).astype(np.float32)
decay = keras.optimizers.schedules.ExponentialDecay
OPTIMIZERS = {
    "sgd": lambda **o: keras.optimizers.SGD(0.05, **o),
    "momentum": lambda **o: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, **o),
    "adam": lambda **o: keras.optimizers.Adam(0.05, clipnorm=0.1, **o),
    "adamw": lambda **o: keras.optimizers.AdamW(0.05, weight_decay=0.1, **o),
    "nadam": lambda **o: keras.optimizers.Nadam(0.05, global_clipnorm=0.1, **o),
    "lion": lambda **o: keras.optimizers.Lion(0.05, **o),
    "lamb": lambda **o: keras.optimizers.Lamb(0.05, **o),
    "schedule": lambda **o: keras.optimizers.SGD(decay(0.1, 2, 0.5), **o),
    "function": lambda **o: keras.optimizers.SGD(lambda: 0.05, **o),
    "scaled": lambda **o: keras.optimizers.SGD(0.05, loss_scale_factor=64.0, **o),
}
RULES = {"a": L1(0.7), "b": L1L2(0.3, 0.5)}


def variables(dtype="float32"):
    made = np.random.default_rng(1)
    return [
        keras.Variable(made.standard_normal(shape).astype("float32"), dtype=dtype, name=name)
        for name, shape in (("a", (4, 5)), ("b", (7,)), ("c", ()), ("d", (3,)))
    ]


def gradients(step, dtype="float32"):
    made = np.random.default_rng(100 + step)
    return [
        keras.ops.convert_to_tensor(made.standard_normal(shape).astype("float32"), dtype=dtype)
        for shape in ((4, 5), (7,), (), (3,))
    ]


def values(found):
    return [np.asarray(keras.ops.convert_to_numpy(v)).astype("float64") for v in found]


def same(one, other, tolerance=0.0):
    for a, b in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def stepped(found, rate, rules=RULES):
    """Take the proximal steps by hand."""
    for variable in found:
        if variable.path in rules:
            w = np.asarray(keras.ops.convert_to_numpy(variable), "float32")
            variable.assign(rules[variable.path].prox(w, float(rate)))


def count(found):
    return sum(int((value == 0).sum()) for value in values(found))


def network(*, seed=1, **options):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", name="first", **options),
            keras.layers.Dense(3, name="last", **options),
        ]
    )


def fit(model, epochs=3, **options):
    return model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0, shuffle=False, **options)


def case_proximal_is_the_update_and_then_the_step():
    tolerance = 2e-6 if backend == "jax" else 0.0
    zeros_made = 0
    for name, make in OPTIMIZERS.items():
        inner = make()
        ours, by_hand = variables(), variables()
        optimizer, plain = Proximal(inner, RULES), make()
        for step in range(4):
            rate = np.float32(keras.ops.convert_to_numpy(inner.learning_rate))
            scale = 64.0 if name == "scaled" else 1.0
            grads = [gradient * scale for gradient in gradients(step)]
            optimizer.apply(grads, ours)
            plain.apply(grads, by_hand)
            stepped(by_hand, rate)
            same(ours, by_hand, tolerance)
        zeros_made += count(ours)
        assert int(optimizer.iterations) == 4
    assert zeros_made > len(OPTIMIZERS)


def case_proximal_in_the_dtypes_of_variables():
    for dtype in ("float16", "bfloat16", "float64"):
        if backend == "jax" and dtype == "float64":
            continue
        found = variables(dtype)
        optimizer = Proximal(keras.optimizers.SGD(0.5), {"*": L1(0.9)})
        optimizer.apply([0 * gradient for gradient in gradients(0, dtype)], found)
        assert {keras.backend.standardize_dtype(v.dtype) for v in found} == {dtype}
        for one, before in zip(values(found), values(variables(dtype)), strict=True):
            assert ((one == 0) == (np.abs(before) <= np.float32(0.45))).all()


def case_proximal_without_state():
    make = OPTIMIZERS["momentum"]
    ours, by_hand = variables(), variables()
    optimizer, plain = Proximal(make(), RULES), make()
    optimizer.build(ours)
    apply = jax.jit(optimizer.stateless_apply) if backend == "jax" else optimizer.stateless_apply
    trained = [keras.ops.copy(v.value) for v in ours]
    state = [keras.ops.copy(v.value) for v in optimizer.variables]
    for step in range(3):
        trained, state = apply(state, gradients(step), trained)
        plain.apply(gradients(step), by_hand)
        stepped(by_hand, np.float32(0.05))
    same(trained, by_hand, 2e-6)
    assert len(state) == len(optimizer.variables) == len(plain.variables)


def case_proximal_steps_when_gradients_were_accumulated():
    ours, by_hand = variables(), variables()
    make = OPTIMIZERS["sgd"]
    optimizer = Proximal(make(gradient_accumulation_steps=3), RULES)
    plain = make(gradient_accumulation_steps=3)
    before = values(ours)
    for step in range(6):
        optimizer.apply(gradients(step), ours)
        plain.apply(gradients(step), by_hand)
        if step % 3 == 2:
            stepped(by_hand, np.float32(0.05))
        elif step < 3:
            same(ours, before)
        same(ours, by_hand, 2e-6 if backend == "jax" else 0.0)
    assert count(ours) > 0
    assert int(optimizer.iterations) == 2


def case_proximal_comes_before_averages():
    ours = variables()
    optimizer = Proximal(OPTIMIZERS["sgd"](use_ema=True, ema_momentum=0.5), RULES)
    wanted = None
    for step in range(3):
        optimizer.apply(gradients(step), ours)
        wanted = [
            value if wanted is None else (0.5 * old + 0.5 * value)
            for value, old in zip(values(ours), wanted or ours, strict=True)
        ]
        same(optimizer._model_variables_moving_average, wanted, 1e-6)
    assert optimizer.use_ema
    optimizer.finalize_variable_values(ours)
    same(ours, wanted, 1e-6)


def case_proximal_comes_before_constraints():
    keep = keras.Variable(np.asarray([1.0, -1.0, 0.05], "float32"), name="w")
    keep.constraint = keras.constraints.NonNeg()
    Proximal("sgd", L1(10.0)).apply([keras.ops.zeros(3)], [keep])
    np.testing.assert_allclose(values([keep])[0], [0.9, 0.0, 0.0], rtol=1e-6)


def case_proximal_inside_of_a_loss_scale():
    ours, by_hand = variables(), variables()
    optimizer = keras.optimizers.LossScaleOptimizer(
        Proximal(OPTIMIZERS["sgd"](loss_scale_factor=8.0), RULES), initial_scale=4.0
    )
    assert optimizer.inner_optimizer.loss_scale_factor is None
    assert optimizer.inner_optimizer.inner_optimizer.loss_scale_factor is None
    optimizer.build(ours)
    before = values(ours)
    bad = gradients(0)
    bad[1] = bad[1] * np.inf
    apply_to(optimizer, bad, ours)
    same(ours, before)
    apply_to(optimizer, [2.0 * gradient for gradient in gradients(0)], ours)
    OPTIMIZERS["sgd"]().apply(gradients(0), by_hand)
    stepped(by_hand, np.float32(0.05))
    same(ours, by_hand, 1e-6)
    with Policy("mixed_float16"):
        model = network()
        model.compile(Proximal("sgd", {"*kernel": L1(3.0)}), "mse")
        assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
        log = fit(model, callbacks=[ZerosLogger()]).history["zeros"]
        assert log[-1] > 0
        assert zeros(model).total.size == 72


def apply_to(optimizer, grads, found):
    if backend != "jax":
        optimizer.apply(grads, found)
        return
    # Keras' stateful one leaks what JAX traces.
    state = [v.value for v in optimizer.variables]
    trained, state = optimizer.stateless_apply(state, grads, [v.value for v in found])
    for variable, value in zip([*found, *optimizer.variables], [*trained, *state], strict=True):
        variable.assign(value)


class Policy:
    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *_):
        keras.config.set_dtype_policy(self.before)


def case_proximal_with_policies():
    for policy in ("mixed_bfloat16", "bfloat16"):
        with Policy(policy):
            model = network()
            model.compile(Proximal("sgd", {"*kernel": L1(3.0)}), "mse")
            fit(model)
        total = zeros(model).total
        assert 0 < total.zeros < total.size == 72


def case_proximal_in_fit_is_that_by_hand():
    for options in ({}, {"jit_compile": True}, {"run_eagerly": True}):
        model, other = network(), network()
        model.compile(Proximal(keras.optimizers.Adam(0.05), {"*kernel": L1(0.5)}), "mse", **options)
        other.compile(keras.optimizers.Adam(0.05), "mse")
        rules = {v.path: L1(0.5) for v in other.trainable_variables if v.path.endswith("kernel")}
        fit(model, 2)
        for _ in range(2):
            for start in (0, 16):
                other.train_on_batch(X[start : start + 16], Y[start : start + 16])
                stepped(other.trainable_variables, np.float32(0.05), rules)
        same(model.trainable_variables, other.trainable_variables, 1e-5)
        assert count(model.trainable_variables) == count(other.trainable_variables) > 0


def case_proximal_finds_the_lasso():
    made = np.random.default_rng(0)
    x = made.standard_normal((50, 8)).astype("float32")
    y = (x @ np.asarray([2.0, -1.0, 0, 0, 0, 0.5, 0, 0], "float32"))[:, None]
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(Proximal(keras.optimizers.SGD(0.1), L1(0.2)), "mse")
    for _ in range(200):
        model.train_on_batch(x, y)
    (w,) = values(model.trainable_variables)
    slope = 2 / 50 * x.T @ (x @ w - y)
    assert np.flatnonzero(w).tolist() == [0, 1, 5]
    assert np.abs(slope + 0.2 * np.sign(w))[w != 0].max() < 1e-4
    assert np.abs(slope)[w == 0].max() < 0.2


def case_proximal_beside_fused_penalties():
    kernel = L2(0.01)
    model, other = network(kernel_regularizer=kernel), network(kernel_regularizer=kernel)
    for one in (model, fastreg.keras.fuse(other)):
        one.compile(Proximal("sgd", {"*kernel": L1(2.0)}), "mse")
    logs = [fit(one).history["loss"] for one in (model, other)]
    np.testing.assert_allclose(*logs, rtol=1e-5)
    same(model.trainable_variables, other.trainable_variables, 1e-5)
    assert zeros(model).total.zeros > 0


def case_proximal_is_saved():
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 1.0)
    model = network()
    rules = {"*/last/*": None, "*kernel": L1L2(0.5, 0.1)}
    model.compile(Proximal(keras.optimizers.Adam(0.02), rules, scale=warm_up, name="mine"), "mse")
    fit(model)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.keras")
        model.save(path)
        again = keras.models.load_model(path)
    one, other = model.optimizer, again.optimizer
    assert type(other) is Proximal
    assert other.name == "mine"
    assert other.rules == one.rules
    assert type(other.rules["*kernel"]) is L1L2
    assert list(other.rules) == list(rules)
    assert type(other.scale) is type(warm_up)
    assert type(other.inner_optimizer) is type(one.inner_optimizer)
    same(one.variables, other.variables)
    for each in (model, again):
        fit(each)
    same(model.trainable_variables, again.trainable_variables)
    assert zeros(again).total == zeros(model).total
    assert zeros(again).total.size == 48


def case_proximal_variables_are_saved_once():
    model = network()
    model.compile(Proximal("adam", L1(0.1)), "mse")
    fit(model, 1)
    plain = network()
    plain.compile("adam", "mse")
    fit(plain, 1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        for one in (model, plain):
            path = Path(folder) / "model.weights.h5"
            one.save_weights(path)
            path = Path(folder) / "model.keras"
            one.save(path)
            sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1] + 2500


def case_proximal_forms():
    for rules in ("l1", L2(0.5), keras.regularizers.L1(0.25), {"a": "l2", "*": None}, None):
        optimizer = Proximal("sgd", rules)
        again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert list(map(repr, again.rules.values())) == list(map(repr, optimizer.rules.values()))
        assert list(again.rules) == list(optimizer.rules)
    assert repr(Proximal("sgd", keras.regularizers.L1(0.25)).rules["*"]) == "L1(l1=0.25)"


class Soft:
    """A rule of one's own."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def __call__(self, w):
        return self.strength * keras.ops.sum(keras.ops.absolute(w))

    def prox(self, w, step):
        shrunk = keras.ops.maximum(keras.ops.absolute(w) - self.strength * step, 0.0)
        return keras.ops.sign(w) * shrunk

    def get_config(self):
        return {"strength": self.strength}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def case_proximal_with_rules_of_ones_own():
    found = variables()
    optimizer = Proximal("sgd", {"a": Soft(40.0), "b": L1(40.0)}, scale=1.5)
    optimizer.apply([0 * gradient for gradient in gradients(0)], found)
    first, second, *_ = values(variables())
    wanted = [np.sign(w) * np.maximum(np.abs(w) - 0.6, 0.0) for w in (first, second)]
    same(found[:2], wanted, 1e-6)
    config = optimizer.get_config()
    again = Proximal.from_config(config, custom_objects={"Soft": Soft})
    assert again.rules["a"].strength == 40.0


def case_proximal_strengths_warm_up():
    warm_up = keras.optimizers.schedules.PolynomialDecay(0.0, 3, 1.0)
    found = [keras.Variable(np.full(2, 9.0, "float32"), name="w")]
    optimizer = Proximal(keras.optimizers.SGD(1.0), L1(1.5), scale=warm_up)
    seen = []
    for _ in range(5):
        optimizer.apply([keras.ops.zeros(2)], found)
        seen.append(values(found)[0][0])
    np.testing.assert_allclose(seen, [9.0, 8.5, 7.5, 6.0, 4.5], rtol=1e-6)
    regularizer = optimizer.rules["*"]
    regularizer.l1 = 0.5
    optimizer.apply([keras.ops.zeros(2)], found)
    np.testing.assert_allclose(values(found)[0], 4.0, rtol=1e-6)


def case_proximal_settings_are_those_inside():
    inner = keras.optimizers.Adam(0.5, clipnorm=2.0, weight_decay=0.1)
    optimizer = Proximal(inner, L1(0.1))
    assert (optimizer.clipnorm, optimizer.weight_decay) == (2.0, 0.1)
    optimizer.learning_rate = 0.25
    assert float(inner.learning_rate) == float(optimizer.learning_rate) == 0.25
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    model = network()
    model.compile(optimizer, "mse")
    fit(
        model,
        2,
        callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 / (1 + epoch))],
    )
    assert float(inner.learning_rate) == np.float32(0.005)
    optimizer.set_weights([0 * v.value for v in optimizer.variables])
    assert int(optimizer.iterations) == 0
    trained = model.trainable_variables
    pairs = [(keras.ops.zeros(variable.shape), variable) for variable in trained]
    assert optimizer.apply_gradients(pairs) == 1


def case_proximal_and_swapped_averages():
    model = network()
    model.compile(Proximal(keras.optimizers.SGD(0.05, use_ema=True), {"*kernel": L1(1.0)}), "mse")
    fit(model, callbacks=[keras.callbacks.SwapEMAWeights()], validation_data=(X, Y))


def case_proximal_goes_on_with_an_optimizer_in_use():
    model = network()
    inner = keras.optimizers.Adam(0.05)
    model.compile(inner, "mse")
    fit(model)
    steps = int(inner.iterations)
    model.compile(Proximal(inner, {"*kernel": L1(1.0)}), "mse")
    fit(model)
    assert int(model.optimizer.iterations) == 2 * steps
    assert zeros(model).total.zeros > 0
    optimizer = Proximal("sgd", L1(1.0))
    optimizer.build(variables()[:1])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply(gradients(0), variables())


def case_proximal_of_frozen_and_shared_layers():
    model = network()
    model.layers[0].trainable = False
    model.compile(Proximal("sgd", {"*kernel": L1(5.0)}), "mse")
    before = values(model.layers[0].weights)
    fit(model)
    same(model.layers[0].weights, before)
    assert list(zeros(model)) == [f"{model.name}/last"]
    model.compile(Proximal("sgd", {"*first/kernel": L1(5.0)}), "mse")
    with pytest.raises(ValueError, match=r"rules\['\*first/kernel'\] matches no trainable"):
        fit(model)

    shared = keras.layers.Dense(6, use_bias=False)
    x = keras.Input((6,))
    model = keras.Model(x, shared(shared(x)))
    model.compile(Proximal(keras.optimizers.SGD(0.1), L1(1.0)), "mse")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    before = values([shared.kernel])[0]
    optimizer.apply([keras.ops.zeros((6, 6))])
    same([shared.kernel], [np.sign(before) * np.maximum(np.abs(before) - 0.1, 0)], 1e-6)


def case_proximal_leaves_what_has_no_gradient():
    found = variables()
    before = values(found)
    grads = gradients(0)
    grads[0] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Proximal("sgd", {"a": L1(90.0), "b": L1(90.0)}).apply(grads, found)
    same(found[:1], before[:1])
    assert count(found[1:2]) > 0


def case_proximal_of_two_models():
    models = [network(), network()]
    for model, l1 in zip(models, (0.0, 5.0), strict=True):
        model.compile(Proximal("sgd", {"*kernel": L1(l1)}), "mse")
        fit(model)
    assert [zeros(model).total.zeros > 0 for model in models] == [False, True]


def case_proximal_copies():
    optimizer = Proximal(keras.optimizers.SGD(0.5), L1(0.5))
    again = copy.deepcopy(optimizer)
    for each in (again, optimizer):
        found = [keras.Variable(np.ones(2, "float32"), name="w")]
        each.apply([keras.ops.zeros(2)], found)
        assert values(found)[0].tolist() == [0.75, 0.75]
    model = network()
    model.compile(Proximal("sgd", {"*kernel": L1(5.0)}), "mse")
    fit(model)
    again = pickle.loads(pickle.dumps(model))
    assert again.optimizer.rules == model.optimizer.rules


def case_proximal_counted_twice_is_warned_of():
    model = network(kernel_regularizer=L1L2(0.1, 0.0))
    with pytest.warns(UserWarning, match=r"first/kernel'.*count twice"):
        Proximal("sgd", {"*kernel": L1(0.1)}).build(model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Proximal("sgd", {"*kernel": L2(0.1)}).build(model.trainable_variables)


class Overwhelming(keras.optimizers.SGD):
    """An optimizer that leaves Keras' way of an update."""

    def apply(self, grads, trainable_variables=None):
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            variable.assign(variable - gradient)


def case_proximal_refuses():
    sgd = keras.optimizers.SGD(0.1)
    Proximal(sgd, "l1")
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    for call, kind, message in (
        (lambda: Proximal(0.1, "l1"), TypeError, "^optimizer must be one of Keras or its name"),
        (lambda: Proximal(None, "l1"), TypeError, "^optimizer must be one of Keras"),
        (lambda: Proximal("sgd", 0.1), TypeError, "must stand for a regularizer"),
        (
            lambda: Proximal("sgd", "l1", scale=-1),
            ValueError,
            "^scale must be a finite number >= 0",
        ),
        (lambda: Proximal(Proximal("sgd", "l1"), "l1"), ValueError, "is a Proximal itself"),
        (lambda: Proximal(sgd, "l1"), ValueError, "inside of another Proximal"),
        (lambda: Proximal(scaled, "l1"), ValueError, r"LossScaleOptimizer\(Proximal\("),
        (
            lambda: Proximal("sgd", {"*": OrthogonalRegularizer()}),
            TypeError,
            r"^rules\['\*'\], .*offers no prox",
        ),
        (lambda: Proximal("sgd", lambda w: w.sum()), TypeError, "^rules, <lambda>, offers no prox"),
        (
            lambda: Proximal("sgd", {"x": "l1"}).build(variables()),
            ValueError,
            r"^rules\['x'\] matches no trainable variable",
        ),
        (
            lambda: Proximal("sgd", {"*": "l1", "a": "l2"}).build(variables()),
            ValueError,
            r"^rules\['a'\] never wins",
        ),
        (
            lambda: Proximal(Overwhelming(0.1), "l1").apply(gradients(0), variables()),
            RuntimeError,
            "without calling _backend_update_step",
        ),
        (lambda: Proximal("sgd", "l1").apply(gradients(0)), ValueError, "must already be built"),
    ):
        with pytest.raises(kind, match=message):
            call()
    Proximal("sgd", "l1").apply([])


# ---------------------------------------------------------------------------------- zeros


def case_zeros_are_counted():
    model = network()
    first = model.layers[0]
    kernel = np.ones((6, 8), "float32")
    kernel[:2] = 0.0
    kernel[2] = -0.0
    kernel[3] = 1e-42
    first.kernel.assign(kernel)
    found = zeros(model, "*kernel")
    assert list(found) == [f"{model.name}/first", f"{model.name}/last"]
    assert found[f"{model.name}/first"] in ((24, 48), (32, 48))  # XLA has no subnormals
    assert found[f"{model.name}/last"] == (0, 24)
    assert found.total.size == 72
    assert zeros(model).total == (found.total.zeros + 11, 83)  # with biases, which begin at 0
    assert zeros(model, ["*first/kernel", "*last/bias"]).total.size == 51
    lines = str(found).splitlines()
    assert len(set(map(len, lines))) == 1
    assert lines[0].split() == ["layer", "zeros", "elements", "share"]
    assert lines[-1].split()[0] == "total"
    with pytest.raises(TypeError, match=r"^model must be a keras.Model, not None"):
        zeros(None)
    with pytest.raises(TypeError, match=r"^names must be globs"):
        zeros(model, 3)
    with pytest.raises(ValueError, match=r"^names\['kernel'\] matches no weight"):
        zeros(model, "kernel")


def case_zeros_are_logged():
    model = network()
    model.compile(Proximal("sgd", {"*kernel": L1(2.0)}), "mse")
    logger = ZerosLogger()
    stop = keras.callbacks.EarlyStopping("zeros", mode="min", patience=1)
    log = fit(model, 5, callbacks=[logger, stop])
    assert len(log.history["zeros"]) == len(log.history["loss"]) < 5
    assert log.history["zeros"][-1] == logger.report.total.share == zeros(model).total.share > 0
    with pytest.raises(ValueError, match=r"^names\['nothing'\] matches no weight"):
        fit(model, callbacks=[ZerosLogger("nothing")])
    with pytest.raises(TypeError, match=r"^names must be globs"):
        ZerosLogger(1)


def case_zeros_are_printed():
    model = network()
    model.compile("sgd", "mse")
    for verbose, tables in ((0, 0), (1, 1), (2, 3)):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            fit(model, callbacks=[ZerosLogger(verbose=verbose)])
        assert text.getvalue().count("elements") == tables
