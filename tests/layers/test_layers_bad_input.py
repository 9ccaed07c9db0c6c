"""Bad input: each a clear error, and nothing has changed."""

import numpy as np
import pytest

from fastreg import regularizers
from fastreg.layers import Conv1D, Conv2D, Conv3D, Dense, Flatten, Input, Sequential, initializers

X = np.random.default_rng(0).standard_normal((2, 6, 5, 3), dtype=np.float32)


def state(layer):
    """What a refused call must leave alone."""
    return (
        layer.built,
        [weight.copy() for weight in layer.get_weights()],
        layer._call,
        None if layer._call is None else (layer._call.waiting, layer._call.kept is None),
        layer._step,
        layer.losses,
    )


def unchanged(before, layer):
    after = state(layer)
    for one, other in zip(before[1], after[1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert before[0] == after[0]
    assert before[2] is after[2]
    assert before[3:] == after[3:]


def refused(layer, call, error, message):
    before = state(layer)
    with pytest.raises(error, match=message):
        call()
    unchanged(before, layer)


@pytest.fixture(params=["not built", "called"])
def conv(request):
    layer = Conv2D(2, 3, name="c", activity_regularizer="l1", kernel_regularizer="l2")
    if request.param == "called":
        layer(X)
    return layer


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[0], ValueError, r"c \(Conv2D\) must have 4 axes.*\(6, 5, 3\)"),
        (X[None], ValueError, "must have 4 axes"),
        (X[:, :2], ValueError, r"larger than its input: it reaches over \(3, 3\)"),
        (X[:, :, :0], ValueError, "larger than its input"),
        (X.tolist(), TypeError, "x must be an array, not a list"),
        (X.astype(complex), TypeError, "x has dtype complex128"),
        (X.astype(object), TypeError, "x has dtype object"),
        (None, TypeError, "x must be an array, not None"),
    ],
)
def test_inputs_that_a_convolution_does_not_take(conv, x, error, message):
    refused(conv, lambda: conv(x), error, message)


def test_another_number_of_channels():
    layer = Conv2D(2, 3)
    layer(X)
    refused(layer, lambda: layer(X[..., :2]), ValueError, "must have 3 channels")
    refused(layer, lambda: layer.build((None, 6, 5, 2)), ValueError, "must have 3 channels")
    dense = Dense(2)
    dense(X)
    refused(dense, lambda: dense(X[..., :2]), ValueError, "must have 3 channels")


@pytest.mark.parametrize(
    ("layer", "shape", "error", "message"),
    [
        (Dense(2), (4,), ValueError, "2 axes or more"),
        (Dense(2), (None, None), ValueError, "how many channels"),
        (Dense(2), (None, 0), ValueError, "how many channels"),
        (Dense(2), 4, TypeError, "input_shape must be a tuple"),
        (Dense(2), (None, 4.0), TypeError, "input_shape must be a tuple of integers"),
        (Dense(2), (None, -4), ValueError, "no negative extent"),
        (Conv1D(2, 9), (None, 8, 1), ValueError, "larger than its input"),
        (Conv1D(2, 3, dilation_rate=4), (None, 8, 1), ValueError, "larger than its input"),
        (Conv3D(2, 3), (None, 8, 8, 1), ValueError, "5 axes"),
        (Flatten(), (), ValueError, "a batch axis"),
    ],
)
def test_shapes_to_build_for(layer, shape, error, message):
    refused(layer, lambda: layer.build(shape), error, message)
    assert not layer.built


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Dense(0), ValueError, "units must be a positive integer"),
        (lambda: Dense(2.0), TypeError, "units must be a positive integer"),
        (lambda: Dense(2, "rleu"), ValueError, "activation.*did you mean 'relu'"),
        (lambda: Dense(2, abs), TypeError, r"forward\(z\) and derivative"),
        (lambda: Dense(2, 3), TypeError, "activation must be one of"),
        (lambda: Dense(2, use_bias="yes"), TypeError, "use_bias must be True or False"),
        (lambda: Dense(2, trainable=1), TypeError, "trainable must be True or False"),
        (lambda: Dense(2, units_=3), TypeError, "Dense has no argument 'units_'"),
        (
            lambda: Dense(2, kernal_regularizer="l2"),
            TypeError,
            r"Dense has no argument 'kernal_regularizer' \(did you mean 'kernel_regularizer'\?\)",
        ),
        (lambda: Dense(2, inputdim=3), TypeError, "did you mean 'input_dim'"),
        (lambda: Dense(2, traiable=False), TypeError, "did you mean 'trainable'"),
        (lambda: Conv2D(2, 3, stride=2), TypeError, "did you mean 'strides'"),
        (lambda: Conv1D(2, 3, activty_regularizer="l1"), TypeError, "mean 'activity_regularizer'"),
        (lambda: Flatten(nme="x"), TypeError, "Flatten has no argument 'nme' .did you mean 'name'"),
        (lambda: Input((3,), batchsize=2), TypeError, "Input has no .* mean 'batch_size'"),
        (lambda: Dense(2, zzz=3), TypeError, "has no argument 'zzz'$"),
        (lambda: Dense(2, kernel_constraint="max_norm"), ValueError, "kernel_constraint must be"),
        (lambda: Dense(2, kernel_constraint=np.ones(2)), ValueError, "kernel_constraint must be"),
        (lambda: Dense(2, kernel_regularizer=0.01), TypeError, "^kernel_regularizer: identifier"),
        (lambda: Dense(2, bias_regularizer="l3"), ValueError, "^bias_regularizer: identifier"),
        (lambda: Dense(2, activity_regularizer=[]), TypeError, "^activity_regularizer: "),
        (lambda: Dense(2, activity_reduction="none"), ValueError, "activity_reduction must be"),
        (lambda: Dense(2, kernel_initializer="glorot"), ValueError, "kernel_initializer must name"),
        (lambda: Dense(2, bias_initializer=0), TypeError, "bias_initializer must be a name"),
        (lambda: initializers.RandomUniform(-1e308, 1e308), ValueError, "maxval must be minval or"),
        (lambda: initializers.RandomUniform(1.0, 0.5), ValueError, "maxval must be minval or more"),
        (lambda: Dense(2, dtype="int8"), ValueError, "dtype must be one of"),
        (lambda: Dense(2, dtype="mixed_float16"), ValueError, "computes in float32 already"),
        (lambda: Dense(2, dtype=3), TypeError, "dtype must be a name"),
        (lambda: Dense(2, name="a/b"), ValueError, 'name must not be empty or contain "/"'),
        (lambda: Dense(2, name=3), TypeError, "name must be a string"),
        (lambda: Dense(2, input_dim=4, input_shape=(4,)), ValueError, "pass one of them"),
        (lambda: Conv2D(0, 3), ValueError, "filters must be a positive integer"),
        (lambda: Conv2D(2, 0), ValueError, "kernel_size must be a positive integer"),
        (lambda: Conv2D(2, (3,)), ValueError, "kernel_size must be a positive integer or 2 of"),
        (lambda: Conv2D(2, "3"), TypeError, "kernel_size must be a positive integer or 2 of"),
        (lambda: Conv2D(2, 3, strides=(1, -1)), ValueError, "strides must be"),
        (lambda: Conv2D(2, 3, padding="smae"), ValueError, "padding.*did you mean 'same'"),
        (lambda: Conv1D(2, 3, padding="causal"), ValueError, "padding must be one of"),
        (lambda: Conv2D(2, 3, padding=None), TypeError, "padding must be one of"),
        (lambda: Conv2D(2, 3, strides=2, dilation_rate=2), ValueError, "not both be above 1"),
        (lambda: Conv2D(2, 3, data_format="channels_first"), ValueError, "data_format must be"),
        (lambda: Conv2D(2, 3, groups=2), ValueError, "groups must be 1"),
        (lambda: Input((-1,)), ValueError, "no negative extent"),
        (lambda: Sequential([3]), TypeError, "layer must be a layer of fastreg"),
        (lambda: Sequential([Sequential()]), TypeError, "one by one"),
        (lambda: Sequential(trainable=0), TypeError, "trainable must be True or False"),
    ],
)
def test_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "layer",
    [
        Dense(2, activity_regularizer="l1", kernel_regularizer="l1", name="layer"),
        Conv2D(2, 3, activity_regularizer="l1", name="layer"),
    ],
)
def test_backward_out_of_turn(layer):
    y = np.ones(layer.compute_output_shape(X.shape))
    refused(layer, lambda: layer.backward(y), RuntimeError, "layer.backward.*needs a call before")
    with pytest.raises(RuntimeError, match=r"run backward\(dy\) first"):
        layer.gradients  # noqa: B018
    layer(X)
    layer.backward(y)
    gradients = [gradient.copy() for gradient in layer.gradients]
    refused(layer, lambda: layer.backward(y), RuntimeError, "already.*call the layer again")
    for one, other in zip(layer.gradients, gradients, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("dy", "error", "message"),
    [
        (np.ones((2, 2)), ValueError, r"dy has shape \(2, 2\), but the output of .* had"),
        (np.ones((2, 4, 3, 2), complex), TypeError, "dy has dtype complex"),
        ([1.0], TypeError, "dy must be an array"),
        (None, TypeError, "dy must be an array"),
    ],
)
def test_gradients_that_do_not_fit_can_be_tried_again(dy, error, message):
    layer = Conv2D(2, 3, activity_regularizer="l1")
    y = layer(X)
    assert y.shape == (2, 4, 3, 2)
    refused(layer, lambda: layer.backward(dy), error, message)
    refused(layer, lambda: layer.backward(y, grad_scale=np.inf), ValueError, "grad_scale must be")
    refused(layer, lambda: layer.backward(y, input_gradient=1), TypeError, "input_gradient must")
    assert layer.backward(y).shape == X.shape


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ValueError, "weights has . arrays, but .* has [24]"),
        ([np.ones((3, 2))], ValueError, "weights has [13] arrays"),
        (
            [np.ones((2, 3)), np.ones(2)],
            ValueError,
            r"weights\[[02]\] has shape \(2, 3\), but .*3, 2",
        ),
        ([np.ones((3, 2)), np.ones((2, 1))], ValueError, r"weights\[[13]\] has shape \(2, 1\)"),
        ([np.ones((3, 2)), [0, 0]], TypeError, r"weights\[[13]\] must be an array"),
        ([np.ones((3, 2)), np.ones(2, complex)], TypeError, r"weights\[[13]\] has dtype complex"),
        ({"kernel": 0, "bias": 0}, TypeError, "weights must be a list"),
        (np.ones((2, 3)), TypeError, "weights must be a list"),
    ],
)
def test_weights_that_do_not_fit(weights, error, message):
    layer = Dense(2)
    layer.build((None, 3))
    refused(layer, lambda: layer.set_weights(weights), error, message)
    model = Sequential([Dense(3, input_dim=3), layer])
    first = model.layers[0]
    new = [np.zeros((3, 3)), np.zeros(3), *weights] if isinstance(weights, list) else weights
    before = state(first)
    with pytest.raises(error, match=message):
        model.set_weights(new)
    unchanged(before, first)


def test_replacing_a_weight():
    layer = Dense(2)
    with pytest.raises(RuntimeError, match="has none yet"):
        layer.kernel  # noqa: B018
    layer.build((None, 3))
    for value, error, message in (
        (np.ones((2, 3), np.float32), ValueError, r"kernel must have shape \(3, 2\)"),
        (np.ones((3, 2)), TypeError, "kernel must be a NumPy array of dtype float32"),
        ([1], TypeError, "kernel must be a NumPy array"),
    ):
        refused(layer, lambda value=value: setattr(layer, "kernel", value), error, message)
    layer = Dense(2, use_bias=False)
    layer.build((None, 3))
    refused(layer, lambda: setattr(layer, "bias", np.ones(2)), ValueError, "use_bias=False")


@pytest.mark.parametrize("what", ["count_params", "set_weights"])
def test_what_needs_weights(what):
    layer = Dense(2)
    for owner in (layer, Sequential([layer])):
        with pytest.raises(RuntimeError, match="needs weights"):
            getattr(owner, what)(*([[]] if what == "set_weights" else []))


class Broken:
    """An activation that gives something else, forward or backward."""

    def __init__(self, forward, backward=None):
        self.results = forward, backward

    def forward(self, z):
        return self.results[0](z)

    def derivative(self, z, y, dy):
        return self.results[1](dy)


def test_activations_of_ones_own_that_give_something_else():
    for forward in (lambda z: z[0], lambda z: None):
        layer = Dense(2, Broken(forward))
        layer.build(X.shape)
        refused(layer, lambda layer=layer: layer(X), ValueError, "the activation of .* must give")
    layer = Dense(2, Broken(lambda z: z, lambda dy: dy.sum()))
    y = layer(X)
    refused(layer, lambda: layer.backward(y), ValueError, "the derivative of the activation")


def test_a_regularizer_that_fails_stops_the_backward_before_anything_changes():
    class Fails(regularizers.Regularizer):
        def gradient(self, w):
            raise ZeroDivisionError("on purpose")

    layer = Dense(2, kernel_regularizer="l1", bias_regularizer=Fails(), activity_regularizer="l1")
    y = layer(X)
    dy = y.copy()
    refused(layer, lambda: layer.backward(dy), ZeroDivisionError, "on purpose")
    np.testing.assert_array_equal(dy, y)
    layer.bias_regularizer = None
    layer.backward(dy)


def test_strengths_too_large_for_the_arithmetic():
    layer = Dense(2, kernel_regularizer=regularizers.L1(1e300))
    y = layer(X)
    refused(layer, lambda: layer.backward(y), ValueError, "l1 .* must be finite in float32")


def test_lambdas_are_not_saved():
    for arguments in (
        {"kernel_regularizer": lambda w: 0.0},
        {"kernel_initializer": lambda shape, dtype: np.ones(shape)},
        {"activation": Broken(None)},
    ):
        with pytest.raises(TypeError, match=r"lambda|get_config"):
            Dense(2, **arguments).get_config()
