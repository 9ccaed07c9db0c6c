"""Configurations and weights, both ways between these layers and those of Keras."""

import json

import numpy as np
import pytest

from fastreg import layers, regularizers
from fastreg.layers import activations, initializers

RULES = {
    "kernel_regularizer": "l1_l2",
    "bias_regularizer": {"class_name": "L2", "config": {"l2": 0.5}},
    "activity_regularizer": regularizers.L1(0.25),
}
CASES = [
    ("Dense", {"units": 3}, (2, 5)),
    ("Dense", {"units": 3, "activation": "relu", "use_bias": False, "dtype": "float16"}, (2, 5)),
    ("Dense", {"units": 2, "trainable": False, "name": "named", **RULES}, (2, 5)),
    ("Conv1D", {"filters": 3, "kernel_size": 2, "dilation_rate": 2, **RULES}, (2, 7, 2)),
    ("Conv2D", {"filters": 3, "kernel_size": (2, 3), "strides": 2}, (2, 7, 6, 2)),
    ("Conv2D", {"filters": 1, "kernel_size": 3, "padding": "same", "activation": "softmax"}, None),
    ("Conv3D", {"filters": 3, "kernel_size": 1, "kernel_initializer": "he_normal"}, None),
    ("Flatten", {}, (2, 3, 4)),
]


def ours(name, arguments):
    return getattr(layers, name)(**arguments)


def theirs(keras, name, arguments):
    rules = {
        key: regularizers.serialize(regularizers.get(value))
        for key, value in arguments.items()
        if key.endswith("regularizer")
    }
    return getattr(keras.layers, name)(**{**arguments, **rules})


def plain(config):
    """As JSON has it; without what Keras alone has."""
    config = json.loads(json.dumps(config))
    config.pop("quantization_config", None)
    return config


@pytest.mark.parametrize(("name", "arguments", "shape"), CASES)
def test_configurations_are_those_of_keras(keras, name, arguments, shape):
    arguments = {"name": "layer", **arguments}
    one, other = ours(name, arguments), theirs(keras, name, arguments)
    assert plain(one.get_config()) == plain(other.get_config())


@pytest.mark.parametrize(("name", "arguments", "shape"), CASES)
def test_configurations_load_both_ways(keras, name, arguments, shape):
    kind = getattr(layers, name)
    config = kind(**arguments).get_config()
    assert kind.from_config(config).get_config() == config
    assert kind.from_config(json.loads(json.dumps(config))).get_config() == config
    their_layer = getattr(keras.layers, name).from_config(config)
    assert plain(kind.from_config(their_layer.get_config()).get_config()) == plain(config)


@pytest.mark.parametrize(("name", "arguments", "shape"), [case for case in CASES if case[2]])
def test_weights_carry_over_both_ways(keras, name, arguments, shape):
    torch = pytest.importorskip("torch")
    their_layer = theirs(keras, name, arguments)
    their_layer.build(shape)
    our_layer = getattr(layers, name).from_config(their_layer.get_config())
    our_layer.build(shape)
    weights = [v.value.detach().numpy() for v in their_layer.weights]
    our_layer.set_weights(weights)
    for one, other in zip(our_layer.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.no_grad():
        expected = their_layer(x).numpy()
    tolerance = 1e-2 if our_layer.dtype == "float16" else 1e-5
    np.testing.assert_allclose(our_layer(x), expected, rtol=tolerance, atol=tolerance)

    changed = [weight + 1 for weight in our_layer.get_weights()]
    our_layer.set_weights(changed)
    their_layer.set_weights(our_layer.get_weights())
    for one, other in zip(their_layer.weights, changed, strict=True):
        np.testing.assert_array_equal(one.value.detach().numpy(), other)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kernel_constraint": {"class_name": "MaxNorm"}}, ValueError, "kernel_constraint must be"),
        ({"dtype": {"config": {"name": "mixed_float16"}}}, ValueError, "dtype must be one of"),
        ({"activation": "gelu"}, ValueError, "activation must be one of"),
        ({"lora_rank": 2}, ValueError, "lora_rank must be None"),
        ({"unknown": 1}, TypeError, "no argument 'unknown'"),
        ({"kernel_regularizer": {"class_name": "Own"}}, ValueError, "kernel_regularizer: .*'Own'"),
        ({"kernel_initializer": {"class_name": "Own"}}, ValueError, "kernel_initializer must name"),
        ({"activation": {"class_name": "Own"}}, ValueError, "custom_objects"),
    ],
)
def test_what_fastreg_does_not_have_is_refused(change, error, message):
    config = {**layers.Dense(2).get_config(), **change}
    with pytest.raises(error, match=message):
        layers.Dense.from_config(config)


def test_configurations_must_be_dicts():
    with pytest.raises(TypeError, match="config must be a dict"):
        layers.Dense.from_config([])


def test_the_older_reduction_is_saved_where_it_is_used():
    config = layers.Dense(2, activity_regularizer="l1", activity_reduction="sum").get_config()
    assert config["activity_reduction"] == "sum"
    assert layers.Dense.from_config(config).activity_reduction == "sum"
    assert "activity_reduction" not in layers.Dense(2).get_config()


def rule(w):
    return 0.0


def start(shape, dtype):
    return np.zeros(shape, dtype)


class Leaky:
    def __init__(self, slope):
        self.slope = slope

    def forward(self, z):
        return np.where(z > 0, z, self.slope * z)

    def derivative(self, z, y, dy):
        return np.where(z > 0, dy, self.slope * dy)

    def get_config(self):
        return {"slope": self.slope}


def test_parts_of_ones_own():
    layer = layers.Dense(2, Leaky(0.5), kernel_regularizer=rule, kernel_initializer=start)
    config = json.loads(json.dumps(layer.get_config()))
    own = {"rule": rule, "start": start, "Leaky": Leaky}
    again = layers.Dense.from_config(config, own)
    assert again.kernel_regularizer is rule
    assert again.activation.slope == 0.5
    assert again.get_config() == layer.get_config()


# ------------------------------------------------------------------- activations, initializers


def test_activations_of_keras_stand_for_their_names(keras):
    for name in ("linear", "relu", "tanh", "sigmoid", "softmax"):
        assert activations.get(getattr(keras.activations, name)) is activations.get(name)
    with pytest.raises(ValueError, match="gelu"):
        activations.get(keras.activations.gelu)


NAMES = [
    "zeros", "ones", "constant", "random_uniform", "random_normal", "truncated_normal",
    "variance_scaling", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal",
    "lecun_uniform", "lecun_normal",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_initializers_are_those_of_keras(keras, name):
    one = initializers.get(name, "x")
    # Keras cannot make a Constant by its name
    other = keras.initializers.Constant() if name == "constant" else keras.initializers.get(name)
    assert initializers.serialize(one, "x") == keras.initializers.serialize(other)
    assert initializers.get(other, "x").get_config() == one.get_config()
    torch = pytest.importorskip("torch")
    shape = (3, 3, 20, 200)
    seed = {"seed": 0} if "seed" in one.get_config() else {}
    ours = type(one)(**seed)(shape)
    with torch.no_grad():
        theirs = type(other)(**seed)(shape).numpy()
    assert ours.dtype == np.float32
    assert ours.shape == shape
    spread = max(float(theirs.std()), 1e-3)
    assert float(ours.mean()) == pytest.approx(float(theirs.mean()), abs=0.05 * spread)
    assert float(ours.std()) == pytest.approx(float(theirs.std()), abs=0.05 * spread)
    ours, theirs = (float(np.quantile(abs(one), 0.99)) for one in (ours, theirs))
    assert ours == pytest.approx(theirs, abs=0.1 * spread)


@pytest.mark.parametrize("name", NAMES[3:])
def test_seeds(name):
    kind = type(initializers.get(name, "x"))
    np.testing.assert_array_equal(kind(seed=3)((4, 5)), kind(seed=3)((4, 5)))
    assert (kind(seed=3)((4, 5)) != kind(seed=4)((4, 5))).any()
    assert (kind()((4, 5)) != kind()((4, 5))).any()
    for seed, error in ((-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="seed must be"):
            kind(seed=seed)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"scale": 0.0}, ValueError),
        ({"scale": -1.0}, ValueError),
        ({"mode": "fan"}, ValueError),
        ({"distribution": "cauchy"}, ValueError),
        ({"input_axes": [0]}, ValueError),
    ],
)
def test_variance_scaling_refuses(arguments, error):
    with pytest.raises(error):
        initializers.VarianceScaling(**arguments)
