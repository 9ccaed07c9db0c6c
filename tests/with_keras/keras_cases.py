"""What fastreg.keras has to show on one backend of Keras, KERAS_BACKEND: run as a script.

A process has one backend, so test_keras_adapter.py runs this once for each, and every function
``case_...`` is one of its tests. Standard output ends in a line of JSON: the traceback of each
case, null where it has passed.
"""

import copy
import functools
import json
import os
import pickle
import re
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Keras' import says is not about this package
    import keras

import proximal_cases

import fastreg
import fastreg.keras
from fastreg import regularizers
from fastreg.regularizers.elementwise import is_fused

backend = keras.backend.backend()
if backend == "jax":
    import jax
else:
    import torch

    compile_with_torch = torch.compile
    # Inductor's C++ would take a minute, and is none of ours.
    torch.compile = functools.partial(compile_with_torch, backend="aot_eager")
theirs = keras.regularizers
rng = np.random.default_rng(20261123)
X = rng.standard_normal((16, 5)).astype(np.float32)
Y = rng.standard_normal((16, 3)).astype(np.float32)
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "adam": lambda: keras.optimizers.Adam(0.001),
    "accumulating": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "clipping": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1),
    "scaling": lambda: keras.optimizers.SGD(0.1, loss_scale_factor=1024.0),
    "scaling as it likes": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
}


class Functional(fastreg.keras.FusedPenalties, keras.Model):
    pass


class Sequential(fastreg.keras.FusedPenalties, keras.Sequential):
    pass


@keras.saving.register_keras_serializable("fastreg_tests")
def absolute(w):
    return 0.03 * keras.ops.sum(keras.ops.absolute(w))


def layers(module):
    """Two layers whose regularizers are of this module, with the same weights for each."""
    kernel = dict(l1=0.01, l2=0.02)
    return [
        keras.layers.Dense(
            4,
            "tanh",
            kernel_initializer=keras.initializers.GlorotUniform(seed=1),
            kernel_regularizer=module.L1L2(**kernel),
            bias_regularizer=module.L2(0.05),
            activity_regularizer=module.L1(0.03),
        ),
        keras.layers.Dense(
            3,
            kernel_initializer=keras.initializers.GlorotUniform(seed=2),
            kernel_regularizer=module.L1(0.04),
            bias_regularizer=absolute,
            bias_initializer="ones",
        ),
    ]


def sequential(module=theirs, kind=keras.Sequential, **compiled):
    model = kind([keras.Input((5,)), *layers(module)])
    compiled = {"optimizer": "sgd", "loss": "mse", **compiled}
    if isinstance(compiled["optimizer"], str):
        compiled["optimizer"] = OPTIMIZERS[compiled["optimizer"]]()
    model.compile(**compiled)
    return model


def functional(module=theirs, kind=keras.Model, **compiled):
    x = keras.Input((5,))
    first, second = layers(module)
    model = kind(x, second(first(x)))
    compiled = {"optimizer": "sgd", "loss": "mse", **compiled}
    if isinstance(compiled["optimizer"], str):
        compiled["optimizer"] = OPTIMIZERS[compiled["optimizer"]]()
    model.compile(**compiled)
    return model


def numbers(losses):
    return [float(keras.ops.convert_to_numpy(loss)) for loss in losses]


def fitted(model, epochs=20, validated=False, **options):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0, **options}
    if validated:
        options["validation_data"] = X, Y
    return model.fit(X, Y, epochs=epochs, **options).history


@functools.cache
def trained_by_keras(optimizer, options):
    """Weights and logs of the model with Keras' own regularizers, which every variant must have."""
    model = sequential(optimizer=OPTIMIZERS[optimizer]())
    return fitted(model, **dict(options)), model.get_weights()


def same(model, optimizer="sgd", other=None, **options):
    """Train a model, and hold its weights and logs against those of Keras, or of another model."""
    if other is None:
        log, weights = trained_by_keras(optimizer, tuple(options.items()))
    else:
        log = fitted(other, **options)
        weights = other.get_weights()
    history = fitted(model, **options)
    for one, two in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    for name, numbers_of_epochs in log.items():
        np.testing.assert_allclose(history[name], numbers_of_epochs, rtol=1e-5)
    return history


def raises(kind, words, function, *arguments):
    with pytest.raises(kind, match=re.escape(words)):
        function(*arguments)


# --------------------------------------------------------------------------- training


def case_fit_with_regularizers_of_fastreg():
    same(sequential(regularizers), validated=True)
    same(sequential(fastreg.keras, optimizer="adam"), "adam")


def case_fit_with_fused_penalties():
    log = same(fastreg.keras.fuse(sequential(regularizers)), validated=True)
    assert log["loss"][-1] < log["loss"][0]
    same(fastreg.keras.fuse(sequential(fastreg.keras, optimizer="adam")), "adam")


def case_fit_with_the_mixin():
    same(functional(fastreg.keras, Functional), validated=True)
    same(sequential(fastreg.keras, Sequential, optimizer="adam"), "adam")


def case_regularizers_of_keras_are_fused():
    class Own(theirs.L1L2):
        def __call__(self, w):
            return keras.ops.sum(w)

    model = fastreg.keras.fuse(functional())
    calls = []
    original = theirs.L1L2.__call__
    theirs.L1L2.__call__ = lambda self, w: calls.append(w) or original(self, w)
    try:
        assert len(model.losses) == 4
    finally:
        theirs.L1L2.__call__ = original
    assert calls == []
    kernel = model.trainable_weights[0]
    kernel.regularizer = Own(0.5)
    expected = np.sum(keras.ops.convert_to_numpy(kernel))
    np.testing.assert_allclose(numbers(model.losses)[0], expected, rtol=1e-5)
    same(fastreg.keras.fuse(functional()), validated=True)


def case_gradient_accumulation_and_clipping():
    for name in ("accumulating", "clipping"):
        model = functional(fastreg.keras, optimizer=OPTIMIZERS[name]())
        same(fastreg.keras.fuse(model), name, epochs=4, batch_size=8)


def case_loss_scaling():
    for name in ("scaling", "scaling as it likes"):
        model = functional(fastreg.keras, optimizer=OPTIMIZERS[name]())
        same(fastreg.keras.fuse(model), name, epochs=4)


def case_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        one, other = functional(fastreg.keras), functional()
        assert type(one.optimizer) is keras.optimizers.LossScaleOptimizer
        one = fitted(fastreg.keras.fuse(one), epochs=3)
        np.testing.assert_allclose(one["loss"], fitted(other, epochs=3)["loss"], rtol=2e-3)
        # Keras' own is inf here: it adds in float16.
        layer = keras.layers.Dense(
            1024, kernel_initializer="ones", activity_regularizer=fastreg.keras.L2(0.5)
        )
        layer(np.full((128, 64), 0.25, np.float32))
        assert numbers(layer.losses) == [0.5 * 1024 * 16.0**2]
    finally:
        keras.config.set_dtype_policy(before)


def case_half_precision_weights():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = fastreg.keras.fuse(functional(fastreg.keras))
        log = fitted(model, epochs=5)["loss"]
        assert log[-1] < log[0]
        weights = [keras.ops.cast(v, "float32") for v in model.trainable_weights]
        kernel = keras.ops.convert_to_numpy(weights[0])
        expected = regularizers.L1L2(0.01, 0.02)(kernel)
        np.testing.assert_allclose(numbers(model.losses)[-4], expected, rtol=1e-6)
    finally:
        keras.config.set_dtype_policy(before)


def case_a_weight_that_the_outputs_do_not_use():
    class Unused(keras.layers.Layer):
        def build(self, shape):
            self.extra = self.add_weight(
                (3,), initializer="ones", regularizer=fastreg.keras.L2(0.5), name="extra"
            )

        def call(self, x):
            return x

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3), Unused()])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    fastreg.keras.fuse(model)
    fitted(model, epochs=1)
    np.testing.assert_allclose(model.layers[-1].extra, np.full(3, 0.9), rtol=1e-6)


def case_a_training_step_of_ones_own():
    class Plain(keras.Model):
        if backend == "torch":

            def train_step(self, data):
                x, y = data[:2]
                self.zero_grad()
                loss = self.compute_loss(x, y, self(x, training=True))
                (loss * 0.5).backward()
                weights = self.trainable_weights
                self.optimizer.apply([0.5 * weight.value.grad for weight in weights], weights)
                return {"loss": loss}

        else:

            def train_step(self, state, data):
                x, y = data[:2]
                return super().train_step(state, (x, 2.0 * y))

    class Fused(fastreg.keras.FusedPenalties, Plain):
        pass

    def pairs(model):
        model.compile("sgd", "mse")
        for _ in range(4):
            model.train_on_batch(X, Y)
        return model.get_weights()

    weights = []
    for kind in (Plain, Fused, Plain):
        x = keras.Input((5,))
        first, second = layers(fastreg.keras)
        model = kind(x, second(first(x)))
        weights.append(pairs(fastreg.keras.fuse(model) if weights else model))
    for one, *others in zip(*weights, strict=True):
        for other in others:
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def case_a_loss_of_ones_own():
    class Halved(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            penalties = list(self.losses)
            assert len(penalties) >= 4, penalties  # never their sum alone
            return keras.ops.mean(keras.ops.abs(y - y_pred)) + 0.5 * sum(penalties)

    class Fused(fastreg.keras.FusedPenalties, Halved):
        pass

    class FusedFirst(Halved, fastreg.keras.FusedPenalties):
        pass

    one = functional(kind=Halved)
    fitted(one, epochs=3)
    for kind in (Fused, FusedFirst):
        model = functional(kind=kind)
        fitted(fastreg.keras.fuse(model), epochs=3)
        for mine, other in zip(model.get_weights(), one.get_weights(), strict=True):
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)


def case_several_steps_at_once():
    if backend == "torch":
        return  # refused by Keras there
    model = sequential(fastreg.keras, steps_per_execution=2)
    other = sequential(steps_per_execution=2)
    same(fastreg.keras.fuse(model), other=other, epochs=3, batch_size=4)


def case_steps_that_are_compiled_elsewhere():
    """With torch.compile, and eagerly on JAX: what is not the default."""
    options = {"run_eagerly": True} if backend == "jax" else {"jit_compile": True}
    same(fastreg.keras.fuse(functional(fastreg.keras, **options)), epochs=2)


def case_an_error_in_a_step_leaves_no_trace():
    model = fastreg.keras.fuse(functional(run_eagerly=True))
    before = numbers(model.losses)
    raises(Exception, "", model.train_on_batch, X[:, :3], Y)
    assert "apply" not in vars(model.optimizer)
    assert numbers(model.losses) == before
    assert fitted(model, epochs=2)["loss"]


# --------------------------------------------------------------------------- strengths


class Schedule(keras.callbacks.Callback):
    """Strengths of the first layer, by epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        kernel, activity = rules_of_first_layer(self.model)
        kernel.l1, kernel.l2 = 0.1 * epoch, 0.0 if epoch == 1 else 0.02
        activity.l1 = 0.03 * epoch


def rules_of_first_layer(model):
    layer = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    return layer.kernel_regularizer, layer.activity_regularizer


def case_strengths_set_between_epochs():
    expected = functional(fastreg.keras)
    schedule = Schedule()
    schedule.set_model(expected)
    losses = []
    for epoch in range(3):  # each on a model that is compiled for it
        schedule.on_epoch_begin(epoch)
        expected.compile(OPTIMIZERS["sgd"](), "mse")
        losses += fitted(expected, epochs=1, batch_size=8)["loss"]
    models = {"fuse": fastreg.keras.fuse(functional(regularizers))}
    if backend == "torch":
        models["mixin"] = functional(fastreg.keras, Functional)
        models["one by one"] = functional(fastreg.keras)
    for name, model in models.items():
        log = fitted(model, epochs=3, batch_size=8, callbacks=[Schedule()])
        np.testing.assert_allclose(log["loss"], losses, rtol=1e-5, err_msg=name)
        for one, other in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6, err_msg=name)
        loss = model.evaluate(X, Y, verbose=0)
        for rule in rules_of_first_layer(model):
            rule.l1 = 0.0
        assert model.evaluate(X, Y, verbose=0) < loss - 0.01, name


def case_strengths_of_weights_alone():
    """On JAX no other change makes Keras compile the step again: they must be its arguments."""
    model = fastreg.keras.fuse(functional(fastreg.keras))
    fitted(model, epochs=1)
    rule, _ = rules_of_first_layer(model)
    kernel = keras.ops.convert_to_numpy(model.trainable_weights[0])
    before, loss = rule(kernel), model.evaluate(X, Y, verbose=0)
    rule.l1, rule.l2 = 0.5, 0.0
    added = model.evaluate(X, Y, verbose=0) - loss
    expected = numbers([rule(kernel)])[0] - numbers([before])[0]
    np.testing.assert_allclose(added, expected, rtol=1e-5)
    other = functional(fastreg.keras)
    rules_of_first_layer(other)[0].l1, rules_of_first_layer(other)[0].l2 = 0.5, 0.0
    other.set_weights(model.get_weights())
    same(model, other=other, epochs=1)


def case_weight_strengths_compile_nothing_again():
    if backend != "jax":
        return
    model = fastreg.keras.fuse(functional(fastreg.keras))
    model.train_on_batch(X, Y)
    kernel, activity = rules_of_first_layer(model)
    compiled = []
    with jax.log_compiles():
        import logging

        class Handler(logging.Handler):
            def emit(self, record):
                text = record.getMessage()
                if text.startswith("Compiling") and "step_with_strengths" in text:
                    compiled.append(text)

        logger = logging.getLogger("jax")
        handler = Handler()
        logger.addHandler(handler)
        propagate, logger.propagate = logger.propagate, False
        try:
            kernel.l1, kernel.l2 = 0.5, 0.0
            model.train_on_batch(X, Y)
            assert compiled == []
            activity.l1 = 0.25  # read inside the layer's call
            model.train_on_batch(X, Y)
            assert len(compiled) == 1
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagate


def case_a_variable_as_strength_of_keras():
    strength = keras.Variable(0.5, trainable=False)
    rule = theirs.L1(0.1)
    rule.l1 = strength  # Keras takes it; the core could only read it once
    layer = keras.layers.Dense(3, kernel_regularizer=rule, kernel_initializer="ones")
    model = fastreg.keras.fuse(keras.Sequential([keras.Input((5,)), layer]))
    assert numbers(model.losses) == [7.5]
    strength.assign(1.0)
    assert numbers(model.losses) == [15.0]


# --------------------------------------------------------------------------- losses


def everything():
    """A model with a shared layer, a nested one, a frozen one, and add_loss."""

    class Adding(keras.layers.Layer):
        def call(self, x):
            self.add_loss(0.1 * keras.ops.mean(x))
            return x

    x = keras.Input((5,))
    shared = keras.layers.Dense(
        5, kernel_regularizer="l2", bias_regularizer=absolute, activity_regularizer="l1"
    )
    inner = keras.Sequential(
        [
            keras.layers.Dense(5, kernel_regularizer=fastreg.keras.L1L2(0.1, 0.2)),
            keras.layers.Dense(
                5, kernel_regularizer=theirs.OrthogonalRegularizer(0.1), name="orthogonal"
            ),
        ]
    )
    frozen = keras.layers.Dense(
        5, kernel_regularizer=regularizers.L1(0.1), activity_regularizer="l2"
    )
    frozen.trainable = False
    low_rank = keras.layers.Dense(5, kernel_regularizer=regularizers.L2(0.1))
    out = Adding()(frozen(inner(shared(shared(x)))))
    out = keras.layers.Conv1D(2, 2, kernel_regularizer="l1")(low_rank(out)[:, :, None])
    model = keras.Model(x, out)
    low_rank.enable_lora(2)
    return model


def case_losses_are_those_of_keras():
    keras.utils.set_random_seed(5)
    model = everything()
    model(X)
    expected = numbers(model.losses)
    # shared kernel and bias, 2 inside, the two of LoRA, Conv1D; 2 x shared, frozen, add_loss
    assert len(expected) == 7 + 4
    assert fastreg.keras.fuse(model) is model
    model(X)
    np.testing.assert_allclose(numbers(model.losses), expected, rtol=1e-6)
    model.layers[1].trainable = False
    assert len(model.losses) == len(expected) - 2
    model.layers[1].trainable = True
    model.layers[1].kernel.regularizer = None
    model(X)
    np.testing.assert_allclose(sum(numbers(model.losses)), sum(expected), rtol=1)
    assert len(model.losses) == len(expected) - 1


def case_losses_follow_the_weights():
    model = fastreg.keras.fuse(functional(fastreg.keras))
    assert len(model.losses) == 4
    kernel = model.trainable_weights[0]
    kernel.assign(np.ones(kernel.shape, np.float32))
    np.testing.assert_allclose(numbers(model.losses)[0], 20 * (0.01 + 0.02), rtol=1e-6)
    kernel.regularizer = theirs.L2(0.5)
    assert numbers(model.losses)[0] == 10.0


def case_evaluate_and_predict():
    for model in (functional(regularizers), fastreg.keras.fuse(functional(regularizers))):
        loss = model.evaluate(X, Y, verbose=0)
        outputs = model.predict(X, verbose=0)
        model(X)
        penalties = sum(numbers(model.losses))
        np.testing.assert_allclose(loss, np.square(outputs - Y).mean() + penalties, rtol=1e-5)
        np.testing.assert_allclose(model.test_on_batch(X, Y), loss, rtol=1e-6)


def case_a_model_without_penalties():
    def plain():
        model = keras.Sequential(
            [keras.Input((5,)), keras.layers.Dense(3, kernel_initializer="ones")]
        )
        model.compile("sgd", "mse")
        return model

    assert fastreg.keras.fuse(plain()).losses == []
    same(fastreg.keras.fuse(plain()), other=plain(), epochs=2)


def case_fuse_takes_models_once_and_nothing_else():
    model = functional()
    fitted(model, epochs=1)
    assert fastreg.keras.fuse(fastreg.keras.fuse(model)) is model
    fitted(model, epochs=1)
    raises(TypeError, "model must be a keras.Model", fastreg.keras.fuse, keras.layers.Dense(3))
    raises(TypeError, "model must be a keras.Model", fastreg.keras.fuse, functional)
    place = keras.Layer._get_regularization_losses
    del keras.Layer._get_regularization_losses
    try:
        raises(RuntimeError, keras.__version__, fastreg.keras.fuse, functional())
    finally:
        keras.Layer._get_regularization_losses = place


# --------------------------------------------------------------------------- saved forms


def case_saved_models_load():
    with tempfile.TemporaryDirectory() as folder:
        for module in (regularizers, fastreg.keras):
            model = fastreg.keras.fuse(functional(module))
            fitted(model, epochs=1)
            path = Path(folder) / "model.keras"
            model.save(path)
            weights = Path(folder) / "model.weights.h5"
            model.save_weights(weights)
            from_json = keras.models.model_from_json(model.to_json())
            from_json.load_weights(weights)
            clone = keras.models.clone_model(model)
            clone.set_weights(model.get_weights())
            pickled = pickle.loads(pickle.dumps(model))
            for loaded in (keras.saving.load_model(path), from_json, clone, pickled):
                np.testing.assert_allclose(
                    numbers(loaded.losses), numbers(model.losses)[-4:], rtol=1e-6
                )
                rules = [v.regularizer for v in loaded.trainable_weights]
                kinds = [fastreg.keras.L1L2, fastreg.keras.L2, fastreg.keras.L1]
                assert [type(rule) for rule in rules[:3]] == kinds
                activity = loaded.layers[1].activity_regularizer
                assert type(activity) is fastreg.keras.L1
                assert activity.l1 == 0.03
            loaded = keras.saving.load_model(path)
            same(fastreg.keras.fuse(loaded), other=model, epochs=2)


def without_fastreg(function):
    """Call a function as where fastreg.keras was never imported: nothing is registered."""
    registered = keras.saving.get_custom_objects()
    kept = dict(registered)
    for name in kept:
        if name.startswith("fastreg>"):
            del registered[name]
    try:
        return function()
    finally:
        registered.update(kept)


def case_saved_models_load_without_fastreg():
    with tempfile.TemporaryDirectory() as folder:
        for module in (regularizers, fastreg.keras):
            model = functional(module)
            for variable in model.trainable_weights:
                if variable.regularizer is absolute:
                    variable.regularizer = None
            model.layers[-1].bias_regularizer = None
            path = Path(folder) / "model.keras"
            model.save(path)
            loaded = without_fastreg(lambda: keras.saving.load_model(path))  # noqa: B023
            kinds = [type(v.regularizer) for v in loaded.trainable_weights]
            assert kinds == [theirs.L1L2, theirs.L2, theirs.L1, type(None)]
            assert type(loaded.layers[1].activity_regularizer) is theirs.L1
            np.testing.assert_allclose(numbers(loaded.losses), numbers(model.losses), rtol=1e-6)


def case_saved_forms():
    for make in (
        lambda module: module.L1(0.25),
        lambda module: module.L2(0.25),
        lambda module: module.L1L2(0.25, 0.5),
        lambda module: module.OrthogonalRegularizer(0.25, "columns"),
    ):
        other = make(theirs)
        for one in (make(regularizers), make(fastreg.keras)):
            saved = theirs.serialize(one)
            name = type(one).__name__
            assert saved["class_name"] == name == type(other).__name__
            assert saved["config"] == other.get_config()
            assert saved["registered_name"] == f"fastreg>{name}"
            assert theirs.get(saved) == make(fastreg.keras)
            assert theirs.deserialize(saved) == make(fastreg.keras)
            assert keras.saving.deserialize_keras_object(saved) == make(fastreg.keras)
            assert regularizers.get(saved) == make(regularizers)
            assert regularizers.deserialize(saved) == make(regularizers)
            assert type(without_fastreg(lambda: theirs.get(saved))) is type(other)  # noqa: B023
            assert theirs.get(one) is one
        assert regularizers.serialize(make(fastreg.keras)) == saved
        # what Keras saved stays Keras' own
        assert type(theirs.get(theirs.serialize(other))) is type(other)
    assert theirs.get(fastreg.keras.L1) == fastreg.keras.L1()


# --------------------------------------------------------------------------- classes and calls


def case_classes():
    for name in ("L1", "L2", "L1L2", "OrthogonalRegularizer"):
        mine = getattr(fastreg.keras, name)
        assert issubclass(mine, getattr(theirs, name))
        assert issubclass(mine, getattr(regularizers, name))
        assert mine.__module__ == "fastreg.keras"
        one = mine()
        assert one.get_config() == getattr(regularizers, name)().get_config()
        for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert again == one
            assert type(again) is mine
        assert one != getattr(regularizers, name)()
    for alias in ("l1", "l2", "l1_l2", "orthogonal_regularizer"):
        mine = getattr(fastreg.keras, alias)
        assert getattr(theirs, alias).__name__ == mine.__name__
    rule = fastreg.keras.L1(0.5)
    rule.l1 = np.float32(0.25)
    assert repr(rule) == "L1(l1=0.25)"
    raises(ValueError, "l1 must be a finite number >= 0", setattr, rule, "l1", -1.0)
    raises(TypeError, "l1 must be a finite number >= 0", fastreg.keras.L1L2, "0.1")


def case_penalties_take_the_classes():
    w, g = np.array([[1.0, -2.0], [3.0, 4.0]]), np.zeros((2, 2))
    rule = fastreg.keras.L1L2(0.5, 0.25)
    penalties = fastreg.attach({"w": w}, rule)
    assert penalties.accumulate({"w": g}) == regularizers.L1L2(0.5, 0.25)(w) == 12.5
    assert (g == rule.gradient(w)).all()
    assert is_fused(rule)
    orthogonal = fastreg.keras.OrthogonalRegularizer(0.5)
    h = np.zeros((2, 2))
    value = fastreg.attach({"w": w}, orthogonal).accumulate({"w": h})
    np.testing.assert_allclose(value, regularizers.OrthogonalRegularizer(0.5)(w), rtol=1e-6)
    assert (h == regularizers.OrthogonalRegularizer(0.5).gradient(w)).all()


def case_calls():
    w = np.array([[1.0, -2.0], [3.0, -4.0]], np.float32)
    variable, tensor = keras.Variable(w), keras.ops.convert_to_tensor(w)
    for make, expected in (
        (lambda module: module.L1(0.5), 5.0),
        (lambda module: module.L2(0.5), 15.0),
        (lambda module: module.L1L2(0.5, 0.25), 12.5),
        (lambda module: module.OrthogonalRegularizer(0.5), 0.5 * 11 / 125**0.5),
    ):
        for module in (regularizers, fastreg.keras):
            for x in (variable, tensor):
                value = make(module)(x)
                assert keras.ops.is_tensor(value)
                assert tuple(value.shape) == ()
                assert keras.backend.standardize_dtype(value.dtype) == "float32"
                np.testing.assert_allclose(numbers([value]), [expected], rtol=1e-6)
        assert keras.ops.is_tensor(make(fastreg.keras)(w))
    rule = fastreg.keras.L1L2(0.1, 0.0)
    half = keras.ops.cast(np.full(1_000_000, 0.5, np.float32), "float16")
    np.testing.assert_allclose(numbers([rule(half)]), [50000.0], rtol=1e-6)
    brain = keras.ops.cast(np.ones(1_000_000, np.float32), "bfloat16")
    np.testing.assert_allclose(numbers([rule(brain)]), [100000.0], rtol=1e-6)
    np.testing.assert_allclose(numbers([rule(keras.ops.array([1, -2, 3]))]), [0.6], rtol=1e-6)
    assert np.isnan(numbers([rule(keras.ops.array([np.nan, 1.0]))])).all()


def case_symbolic_calls():
    x = keras.Input((2, 2), batch_size=1)
    for rule in (
        regularizers.L1(0.5),
        fastreg.keras.L2(0.5),
        regularizers.L1L2(0.5, 0.25),
        fastreg.keras.OrthogonalRegularizer(0.5),
    ):
        matrix = x[0]
        penalty = rule(matrix)
        assert isinstance(penalty, keras.KerasTensor)
        assert penalty.shape == ()
        assert penalty.dtype == "float32"
        model = keras.Model(x, penalty)
        w = np.array([[[1.0, -2.0], [3.0, -4.0]]], np.float32)
        found = numbers([model(w)])
        np.testing.assert_allclose(found, numbers([rule(keras.ops.array(w[0]))]), rtol=1e-6)
        again = keras.Model.from_config(model.get_config())
        assert numbers([again(w)]) == found
    raises(ValueError, "2 axes", regularizers.OrthogonalRegularizer(), x)


def case_factors_of_symbolic_calls():
    x = keras.Input((3,))
    for regularizer in (fastreg.keras.L1(0.5), fastreg.keras.OrthogonalRegularizer(0.5)):
        for wrong in ("2", None, float("nan"), np.array(0.5)):
            with pytest.raises((TypeError, ValueError), match=r"^scale must be a finite number"):
                regularizer(x, scale=wrong)
        model = keras.Model(x, regularizer(x, scale=np.float32(0.5)))
        saved = json.loads(model.to_json())["config"]["layers"][-1]["config"]
        assert type(saved["scale"]) is float


def case_models_whose_call_has_penalties_are_built_symbolically():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3, activity_regularizer=regularizers.L1L2(0.1, 0.1))
            self.rule = regularizers.L2(0.5)

        def call(self, x):
            y = self.dense(x)
            self.add_loss(self.rule(y))
            return y

    model = Own()
    assert keras.Sequential([keras.Input((5,)), Own()]).output_shape == (None, 3)
    model.compile("sgd", "mse")
    log = fitted(model, epochs=3)["loss"]
    assert log[-1] < log[0]
    model(X)
    assert len(model.losses) == 2
    assert len(fastreg.keras.fuse(model).losses) == 2


def case_the_orthogonal_formula_runs_on_the_operations_of_keras():
    from fastreg.keras import expression

    rng = np.random.default_rng(0)
    for dtype in ("float64", "float32", "float16"):
        for shape in ((4, 3), (1, 3), (0, 3), (3, 0)):
            w = rng.standard_normal(shape).astype(dtype)
            w[2:3] = 0
            for mode in ("rows", "columns"):
                rule = regularizers.OrthogonalRegularizer(0.5, mode)
                found = expression.orthogonal(keras.ops.convert_to_tensor(w), 0.5, mode)
                np.testing.assert_allclose(float(found), rule(w), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"w must have 2 axes .*, not shape \(3,\)"):
        expression.orthogonal(keras.ops.ones(3), 0.5, "rows")


def case_a_layer_is_no_array():
    layer = keras.layers.Dense(2)
    layer.build((None, 3))
    with pytest.raises(TypeError, match=r"layer\.kernel .*kernel_regularizer=fastreg\.keras"):
        regularizers.L2(0.1)(layer)


# --------------------------------------------------------------------------- run


def main(chosen):
    results = {}
    for name, case in [*globals().items(), *vars(proximal_cases).items()]:
        if not name.startswith("case_") or (chosen and name not in chosen):
            continue
        started = time.process_time()
        keras.utils.set_random_seed(1)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras', and torch.compile's
                warnings.filterwarnings("error", module="fastreg")
                case()
            results[name] = None
        except Exception:
            results[name] = traceback.format_exc()
        if chosen or os.environ.get("FASTREG_CASE_TIMES"):
            print(f"{name}: {time.process_time() - started:.2f} s", file=sys.stderr)
        keras.backend.clear_session()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
