"""Models: the tutorial of Keras, its order of losses, training in step with it, and refusals."""

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastreg
from fastreg import layers, regularizers
from fastreg.layers import Conv2D, Dense, Flatten, Input, Sequential

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 8, 8, 1), dtype=np.float32)

TUTORIAL = """
    from {package} import regularizers
    from {package}.layers import Dense
    from {package}.models import Sequential

    model = Sequential()
    model.add(Dense(64, input_dim=64,
                    kernel_regularizer=regularizers.l2(0.01),
                    activity_regularizer=regularizers.l1(0.01)))
    """

OWN_FUNCTION = """
    from {package} import backend as K

    def l1_reg(weight_matrix):
        return 0.01 * K.sum(K.abs(weight_matrix))

    model.add(Dense(64, input_dim=64,
                    kernel_regularizer=l1_reg))
    """


def run(text, package):
    names = {}
    exec(textwrap.dedent(text).format(package=package), names)
    return names


def test_the_tutorial_runs_as_it_stands(keras):
    pytest.importorskip("autograd")
    torch = pytest.importorskip("torch")
    ours = run(TUTORIAL + OWN_FUNCTION, "fastreg")["model"]
    # Keras 3 has no K.sum any more: its own form is keras.ops
    with pytest.warns(UserWarning, match="input_dim"):
        theirs = run(TUTORIAL + OWN_FUNCTION.replace("backend as K", "ops as K"), "keras")["model"]
    ours.set_weights([v.value.detach().numpy() for v in theirs.weights])
    x = RNG.standard_normal((7, 64), dtype=np.float32)
    total = theirs(torch.from_numpy(x)).sum() + sum(theirs.losses)
    gradients = torch.autograd.grad(total, [v.value for v in theirs.trainable_variables])
    y = ours(x)
    assert len(ours.losses) == 3
    assert ours.losses == pytest.approx([float(one.detach()) for one in theirs.losses], 1e-5)
    ours.backward(np.ones_like(y))
    for one, other in zip(ours.gradients.values(), gradients, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


def model_of(module, rules):
    # literal strengths that float32 holds
    arguments = {
        "kernel_regularizer": rules.L1L2(0.125, 0.25),
        "activity_regularizer": rules.L1(0.03125),
        "bias_regularizer": rules.L2(0.5),
    }
    return module.Sequential(
        [
            module.Input((8, 8, 1)),
            module.layers.Conv2D(3, 3, padding="same", activation="relu", **arguments),
            module.layers.Conv2D(4, 3, strides=2, activation="tanh", **arguments),
            module.layers.Flatten(),
            module.layers.Dense(6, activation="sigmoid", **arguments),
            module.layers.Dense(3, activation="softmax", kernel_regularizer=rules.L2(0.25)),
        ]
    )


def test_training_in_step_with_keras(keras):
    """Twenty steps of gradient descent: the same losses in the same order, the same weights."""
    torch = pytest.importorskip("torch")

    class Ours:
        layers, Sequential, Input = layers, Sequential, staticmethod(Input)

    ours, theirs = model_of(Ours, regularizers), model_of(keras, keras.regularizers)
    ours.set_weights([v.value.detach().numpy() for v in theirs.weights])
    target = RNG.random((5, 3), dtype=np.float32)
    for _ in range(20):
        y = ours(X)
        dx = ours.backward((y - target) * (2 / y.size))
        x = torch.from_numpy(X).requires_grad_()
        output = theirs(x)
        losses = theirs.losses
        total = (output - torch.from_numpy(target)).square().mean() + sum(losses)
        parameters = [v.value for v in theirs.trainable_variables]
        their_dx, *gradients = torch.autograd.grad(total, [x, *parameters])

        assert len(ours.losses) == len(losses) == 3 + 3 + 3 + 1
        np.testing.assert_allclose(
            ours.losses, [float(loss.detach()) for loss in losses], rtol=1e-4, atol=1e-6
        )
        assert ours.penalty == pytest.approx(sum(ours.losses))
        np.testing.assert_allclose(dx, their_dx.numpy(), rtol=1e-3, atol=1e-5)
        with torch.no_grad():
            for name, (w, parameter, gradient) in zip(
                ours.trainable_weights,
                zip(ours.trainable_weights.values(), parameters, gradients, strict=True),
                strict=True,
            ):
                np.testing.assert_allclose(
                    ours.gradients[name], gradient.numpy(), rtol=1e-3, atol=2e-5, err_msg=name
                )
                w -= 0.05 * ours.gradients[name]
                parameter -= 0.05 * gradient
    for one, other in zip(ours.get_weights(), theirs.weights, strict=True):
        np.testing.assert_allclose(one, other.value.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_configurations_of_models_load_both_ways(keras):
    theirs = model_of(keras, keras.regularizers)
    ours = Sequential.from_config(theirs.get_config())
    assert ours.built
    assert [tuple(v.shape) for v in theirs.weights] == [w.shape for w in ours.weights.values()]
    assert [f"{v.path}" for v in theirs.weights] == [
        f"{theirs.name}/{name}" for name in ours.weights
    ]
    again = keras.Sequential.from_config(ours.get_config())
    assert [v.path for v in again.weights] == [v.path for v in theirs.weights]
    assert Sequential.from_config(again.get_config()).get_config() == ours.get_config()


def test_functional_models_are_no_stacks(keras):
    inputs = keras.Input((4,))
    twice = keras.layers.Dense(4)
    graph = keras.Model(inputs, twice(twice(inputs)))
    config = graph.get_config()
    with pytest.raises(ValueError, match="functional model"):
        Sequential.from_config(config)
    with pytest.raises(ValueError, match="'inbound_nodes'"):
        Sequential.from_config({"name": "m", "layers": config["layers"]})
    stack = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    with pytest.raises(ValueError, match=r"keras\.Sequential"):
        Sequential.from_config(stack.get_config())
    again = Sequential.from_config(keras.Sequential(stack.layers).get_config())
    assert again.count_params() == 10


def small(**arguments):
    return Sequential(
        [
            Conv2D(2, 3, activation="relu", kernel_regularizer="l1", name="conv"),
            Flatten(name="flat"),
            Dense(3, activity_regularizer="l2", name="out"),
        ],
        **arguments,
    )


def test_names_weights_and_gradients():
    model = small()
    assert model.weights == {}
    assert not model.built
    y = model(X)
    names = ["conv/kernel", "conv/bias", "out/kernel", "out/bias"]
    assert list(model.weights) == names
    assert model.weights["conv/kernel"] is model.layers[0].kernel
    assert model.count_params() == 9 * 2 + 2 + 72 * 3 + 3
    model.backward(y)
    assert list(model.gradients) == names
    model.layers[0].trainable = False
    model(X)
    model.backward(y)
    assert list(model.gradients) == list(model.trainable_weights) == names[2:]
    assert list(model.non_trainable_weights) == names[:2]
    assert len(model.losses) == 1
    model.trainable = False
    assert not model.trainable
    assert model.trainable_weights == {}


def test_a_model_is_what_its_layers_do_one_by_one():
    model = small()
    y = model(X)
    dy = RNG.standard_normal(y.shape, dtype=np.float32)
    dx = model.backward(dy)
    gradients = {name: gradient.copy() for name, gradient in model.gradients.items()}
    penalty = model.penalty
    h = X
    for layer in model.layers:
        h = layer(h)
    np.testing.assert_array_equal(h, y)
    slope = dy
    for layer in reversed(model.layers):
        slope = layer.backward(slope)
    np.testing.assert_array_equal(slope, dx)
    assert sum(layer.penalty for layer in model.layers) == penalty
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(model.gradients[name], gradient)


def test_attach_takes_the_weights():
    model = small()
    model(X)
    penalties = fastreg.attach(model.weights, {"*/kernel": "l2"})
    assert penalties.value() > 0
    for layer in (model.layers[0], model.layers[2]):
        layer.kernel = np.zeros_like(layer.kernel)
    assert penalties.value() == 0
    model.set_weights([np.ones_like(weight) for weight in model.get_weights()])
    assert penalties.value() > 0


def test_results_belong_to_the_caller():
    for model in (small(), Sequential([Dense(4, "tanh"), Flatten()])):
        y = model(X)
        dy = np.ones_like(y)
        expected = model.backward(dy)
        np.testing.assert_array_equal(model(X), y)
        model(X)[...] = np.nan
        np.testing.assert_array_equal(model.backward(dy), expected)


def test_ways_to_say_the_input():
    for model in (
        Sequential([Input((4,)), Dense(2)]),
        Sequential([Dense(2, input_dim=4)]),
        Sequential([Dense(2, input_shape=(4,))]),
        Sequential([Input(shape=(4,), batch_size=3, name="x"), Dense(2)]),
    ):
        assert model.built
        assert model.count_params() == 10
        model.add(Dense(1))
        assert model.built
    model = Sequential()
    model.add(Dense(2))
    model.build((None, 4))
    assert model.count_params() == 10
    assert model.compute_output_shape((7, 4)) == (7, 2)


def test_summary(capsys):
    model = small(name="m")
    model.summary()
    assert "conv (Conv2D)   ?  " in capsys.readouterr().out
    model(X)
    model.layers[2].trainable = False
    model.layers[2].kernel_regularizer = "l1"  # not shown: a frozen layer has no such term
    lines = []
    model.summary(print_fn=lines.append)
    assert lines[0].splitlines() == [
        "Model: m",
        "layer           output           weights  penalties",
        "conv (Conv2D)   (None, 6, 6, 2)       20  kernel L1(l1=0.01)",
        "flat (Flatten)  (None, 72)             0",
        "out (Dense)     (None, 3)            219  activity L2(l2=0.01)",
        "total                                239  219 of them frozen",
    ]


# ------------------------------------------------------------------------------------ refusals


def calls_of(model):
    return [layer._call for layer in model.layers], [layer._step for layer in model.layers]


def test_a_refused_call_or_backward_changes_no_layer():
    model = small()
    with pytest.raises(ValueError, match="4 axes"):
        model(X[0])
    assert not any(layer.built for layer in model.layers)
    with pytest.raises(RuntimeError, match="call the model"):
        model.backward(X)
    y = model(X)
    before = calls_of(model)
    with pytest.raises(ValueError, match="larger than its input"):
        model(X[:, :2])
    with pytest.raises(ValueError, match=r"the input of out \(Dense\)|must have 72 channels"):
        model(X[:, :5])  # the first two layers take it
    with pytest.raises(ValueError, match="dy has shape"):
        model.backward(X)
    assert calls_of(model) == before
    model.layers[0].kernel_regularizer = lambda w: 3.0  # fails last
    with pytest.raises(TypeError, match=r"autograd"):
        model.backward(y)
    assert calls_of(model) == before
    model.layers[0].kernel_regularizer = None
    model.backward(y)
    with pytest.raises(RuntimeError, match="call the layer again"):
        model.backward(y)


def test_building_is_all_or_nothing():
    model = Sequential([Dense(2), Conv2D(2, 3)])
    with pytest.raises(ValueError, match="4 axes"):
        model.build((None, 4))
    assert not any(layer.built for layer in model.layers)


@pytest.mark.parametrize(
    "last",
    [
        lambda: Dense(2),  # of a number of channels that is not known
        lambda: Dense(2, kernel_initializer=lambda shape, dtype: np.ones(3)),
    ],
)
def test_a_failure_while_building_takes_it_back(last):
    first, known = Dense(3), Conv2D(2, 3)
    known.build((None, 8, 8, 3))
    model = Sequential([first, known, Flatten(), last()])
    with pytest.raises(ValueError, match=r"how many channels|kernel_initializer gives"):
        model.build((None, None, 8, 4))
    assert [layer.built for layer in model.layers] == [False, True, False, False]
    assert first.weights == []
    assert len(known.weights) == 2
    assert not model.built


def test_adding():
    model = Sequential([Dense(2, input_dim=4, name="one")], name="m")
    for layer, error, message in (
        (Dense(2, name="one"), ValueError, "of the name 'one' already"),
        (model.layers[0], ValueError, "is in m already"),
        (Input((4,)), ValueError, "Input goes first"),
        (Conv2D(2, 3), ValueError, "4 axes"),
        ("relu", TypeError, "layer must be a layer of fastreg"),
    ):
        with pytest.raises(error, match=message):
            model.add(layer)
        assert len(model.layers) == 1
    model(np.ones((1, 4)))
    model.add(Dense(3))
    with pytest.raises(RuntimeError, match="call the model"):
        model.backward(np.ones((1, 3)))


def test_unfreezing_between_backward_and_the_loop_is_an_error_that_says_so():
    model = small()
    y = model(X)
    model.trainable = False
    model.backward(y)
    assert model.gradients == {}
    model.trainable = True
    with pytest.raises(RuntimeError, match="conv was frozen in the last backward"):
        model.gradients  # noqa: B018
    model(X)
    model.backward(y)
    assert list(model.gradients) == list(model.trainable_weights)


def test_a_layer_called_on_its_own_in_between():
    model = small()
    y = model(X)
    model.layers[0](X)
    with pytest.raises(RuntimeError, match="conv was called on its own"):
        model.backward(y)


def test_an_empty_model():
    model = Sequential()
    for call in (lambda: model(X), lambda: model.build((None, 4))):
        with pytest.raises(RuntimeError, match="has no layers"):
            call()
    assert model.losses == []


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([], TypeError, "config must be a dict with the layers"),
        ({"name": "m"}, ValueError, "config must have a list of layers .* not None"),
        (
            {"layers": [{"class_name": "Dense"}]},
            ValueError,
            r"layers\"\]\[0\], Dense, .*\"config\"",
        ),
        (
            {"layers": [{"class_name": "Dense", "config": {"name": "d"}}]},
            ValueError,
            r"layers\"\]\[0\], Dense: config of a Dense must have 'units'",
        ),
        (
            {"layers": [{"class_name": "InputLayer", "config": None}]},
            ValueError,
            "InputLayer, must have a dict",
        ),
        ({"layers": [], "output_layers": []}, ValueError, "'output_layers'.* functional"),
        ({"layers": [{"class_name": "Dropout"}]}, ValueError, "class 'Dropout'; fastreg has"),
        ({"layers": ["Dense"]}, ValueError, "class None"),
    ],
)
def test_configurations_that_do_not_fit(config, error, message):
    with pytest.raises(error, match=message):
        Sequential.from_config(config)


def test_frozen_models_stay_frozen():
    model = small()
    model(X)
    model.trainable = False
    assert not Sequential.from_config(model.get_config()).trainable


# ------------------------------------------------------------------------------------- imports


def test_layers_are_imported_when_asked_for():
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            textwrap.dedent("""
                import sys, fastreg
                assert "Sequential" in dir(fastreg)
                lazy = ("fastreg.layers", "fastreg.backend", "fastreg.models", "autograd")
                assert not any(name in sys.modules for name in lazy)
                assert fastreg.backend.epsilon() == 1e-7
                assert fastreg.layers.Dense(1).name == "dense"
                assert fastreg.Sequential is fastreg.models.Sequential is fastreg.layers.Sequential
                from fastreg.layers import Dense
                from fastreg import layers, Sequential
                assert "autograd" not in sys.modules
                try:
                    fastreg.no_such_name
                except AttributeError as error:
                    print(error)
            """),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'fastreg' has no attribute 'no_such_name'\n"


@pytest.mark.parametrize("name", ["compile", "fit", "evaluate", "predict", "load_weights"])
def test_what_models_of_keras_have_besides(name):
    model = Sequential([Dense(2)], name="m")
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"'Sequential' object has no attribute '{name}': "):
        getattr(model, name)


def test_the_loop_is_where_the_error_says():
    root = Path(fastreg.__file__).parents[1]
    with pytest.raises(AttributeError) as raised:
        Sequential().compile("sgd")
    for file in ("docs/layers.md", "examples/digits_conv.py"):
        assert file in str(raised.value)
        assert not (root / "docs").exists() or "model.backward(" in (root / file).read_text()


def test_other_names_are_as_in_every_class():
    with pytest.raises(AttributeError, match=r"no attribute 'losse'$") as e:
        Sequential().losse  # noqa: B018
    assert (e.value.name, type(e.value.obj)) == ("losse", Sequential)
    model = copy.deepcopy(pickle.loads(pickle.dumps(Sequential([Dense(2, input_dim=2)]))))
    assert model.built
