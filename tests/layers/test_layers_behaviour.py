"""What one layer promises: losses, gradients, frozen layers, dtypes, regularizers of one's own."""

import copy
import pickle
import sys

import numpy as np
import pytest

from fastreg import backend as K  # noqa: N812, as Keras users import it
from fastreg import regularizers
from fastreg.layers import Conv1D, Conv2D, Dense, Flatten

X = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
DY = np.random.default_rng(1).standard_normal((6, 3), dtype=np.float32)
L1 = regularizers.L1(0.25)
L2 = regularizers.L2(0.5)
BOTH = regularizers.L1L2(0.125, 0.25)


def dense(**arguments):
    return Dense(3, **arguments)


def made_equal(*layers):
    for layer in layers:
        layer.build(X.shape)
        rng = np.random.default_rng(2)
        layer.set_weights([rng.standard_normal(weight.shape) for weight in layer.weights])
    return layers


# ------------------------------------------------------------------------------------- losses


def test_losses_are_listed_as_in_keras():
    layer = dense(kernel_regularizer=L1, bias_regularizer=L2, activity_regularizer=BOTH)
    assert layer.losses == []  # before build
    layer.build((None, 4))
    assert layer.losses == [L1(layer.kernel), 0.0]  # weight terms from build on
    layer.bias[:] = 1
    y = layer(X)
    assert layer.losses == [BOTH(y, scale=1 / 6), L1(layer.kernel), 1.5]
    layer.kernel[:] = 0  # weight terms are those of now, the activity term is that of the call
    assert layer.losses == [BOTH(y, scale=1 / 6), 0.0, 1.5]
    y = layer(X[:2])
    assert layer.losses[0] == BOTH(y, scale=1 / 2)


def test_absent_terms_are_absent():
    layer = dense(bias_regularizer=L1, use_bias=False)
    layer(X)
    assert layer.losses == []
    assert layer.bias is None
    assert len(layer.weights) == 1


def test_activity_over_the_older_rule():
    one, other = made_equal(
        dense(activity_regularizer=L1, activity_reduction="sum"), dense(activity_regularizer=L1)
    )
    y = one(X)
    other(X)
    assert one.losses == [L1(y)]
    slopes = one.backward(DY) - other.backward(DY)
    expected = 0.25 * (1 - 1 / 6) * np.sign(y) @ one.kernel.T
    np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-6)


def test_the_activity_of_a_convolution_is_divided_by_the_batch_only():
    layer = Conv1D(2, 1, activity_regularizer=L1)
    y = layer(np.ones((5, 7, 3)))
    assert layer.losses == [L1(y, scale=1 / 5)]


def test_an_odd_zero_of_the_same_padding_is_at_the_end():
    arguments = {"padding": "same", "kernel_initializer": "ones"}
    x = np.arange(1, 5).reshape(1, 4, 1)
    assert Conv1D(1, 2, **arguments)(x).ravel().tolist() == [3, 5, 7, 4]
    assert Conv1D(1, 3, strides=2, **arguments)(x).ravel().tolist() == [6, 7]
    assert Conv1D(1, 2, dilation_rate=3, **arguments)(x).ravel().tolist() == [3, 5, 2, 3]


@pytest.mark.parametrize("rule", [L1, lambda y: K.mean(K.square(y))])
def test_an_empty_batch_has_no_activity(rule):
    layer = dense(activity_regularizer=rule, kernel_regularizer=L1)
    y = layer(X[:0])
    assert y.shape == (0, 3)
    assert layer.losses == [0.0, L1(layer.kernel)]
    assert layer.backward(y).shape == (0, 4)
    np.testing.assert_array_equal(layer.gradients[0], L1.gradient(layer.kernel))
    conv = Conv2D(2, 3, padding="same", activity_regularizer=rule)
    y = conv(np.ones((0, 4, 4, 1)))
    assert conv.backward(y).shape == (0, 4, 4, 1)
    assert conv.losses == [0.0]


def test_strengths_may_change_and_rules_may_come_later():
    rule = regularizers.L1(0.0)
    layer = dense(kernel_regularizer=rule)
    layer(X)
    assert layer.losses == [0.0]
    rule.l1 = 0.5
    assert layer.losses == [rule(layer.kernel)]
    layer.kernel_regularizer = "l2"  # which Keras ignores after the build
    assert layer.losses == [regularizers.L2()(layer.kernel)]
    layer.kernel_regularizer = None
    assert layer.losses == []


def test_a_call_without_training_keeps_the_term_and_nothing_else():
    layer = dense(activity_regularizer=L1, activation="tanh")
    y = layer(X, training=False)
    assert layer.losses == [L1(y, scale=1 / 6)]
    with pytest.raises(RuntimeError, match="training=False"):
        layer.backward(DY)


# ---------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_penalties_join_by_fused_accumulation(dtype):
    """The bits are those of ``accumulate`` on the gradient of the data loss."""
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    bare, regularized = made_equal(
        dense(dtype=dtype), dense(dtype=dtype, kernel_regularizer=BOTH, bias_regularizer=L1)
    )
    bare(X)
    regularized(X)
    dx = bare.backward(DY)
    np.testing.assert_array_equal(regularized.backward(DY), dx)
    kernel, bias = bare.gradients
    penalty = BOTH.accumulate(bare.kernel, kernel) + L1.accumulate(bare.bias, bias)
    for one, other in zip(regularized.gradients, (kernel, bias), strict=True):
        assert one.dtype == regularized.kernel.dtype
        np.testing.assert_array_equal(one, other)
    assert regularized.penalty == penalty == sum(regularized.losses)
    assert dx.dtype == regularized.kernel.dtype


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_computes_in_single(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    layer = dense(dtype=dtype, activity_regularizer=L1, activation="relu")
    layer.build((None, 4096))
    layer.kernel[...] = 1
    # in half precision a sum of ones stalls at 2048 or 256
    y = layer(np.ones((2, 4096)))
    assert y.dtype == layer.kernel.dtype
    assert y.astype(np.float32).tolist() == [[4096.0] * 3] * 2
    assert layer.losses == [0.25 * 4096 * 3]
    layer.kernel[...] = -1
    layer(np.ones((2, 4096)))
    layer.backward(np.ones((2, 3)))
    assert layer.penalty == 0.0
    assert not layer.gradients[0].astype(np.float32).any()


def test_half_precision_overflows_to_infinity_without_a_word():
    layer = dense(dtype="float16", kernel_initializer="ones")
    assert np.isinf(layer(np.full((1, 4), 6e4))).all()


def test_loss_scaling_multiplies_the_gradients_of_penalties_too():
    rules = {"kernel_regularizer": BOTH, "activity_regularizer": L1, "bias_regularizer": L2}
    one, other = made_equal(dense(**rules), dense(**rules))
    one(X)
    other(X)
    dx = one.backward(DY)
    scaled = other.backward(DY * 1024, grad_scale=1024)
    assert one.penalty == other.penalty
    np.testing.assert_array_equal(scaled, dx * 1024)
    for plain, large in zip(one.gradients, other.gradients, strict=True):
        np.testing.assert_array_equal(large, plain * 1024)


def test_frozen_layers():
    layer = dense(kernel_regularizer=L1, bias_regularizer=L1, activity_regularizer=L1)
    layer.trainable = False
    y = layer(X)
    assert layer.losses == [L1(y, scale=1 / 6)]
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == len(layer.weights) == 2
    dx = layer.backward(DY)
    assert layer.gradients == []
    layer.trainable = True
    with pytest.raises(RuntimeError, match="was frozen in the last backward"):
        layer.gradients  # noqa: B018
    layer(X)
    np.testing.assert_array_equal(layer.backward(DY), dx)
    assert len(layer.gradients) == 2


def test_without_the_gradient_by_the_input():
    for layer, x in ((dense(), X), (Conv1D(3, 2), X[None]), (Flatten(), X)):
        y = layer(x)
        assert layer.backward(y) is not None
        expected = [gradient.copy() for gradient in layer.gradients]
        layer(x)
        assert layer.backward(y, input_gradient=False) is None
        for one, other in zip(layer.gradients, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_results_belong_to_the_caller():
    one, other = made_equal(
        dense(activation="tanh", activity_regularizer=L1),
        dense(activation="tanh", activity_regularizer=L1),
    )
    y = one(X)
    other(X)
    y[...] = np.nan
    dy = DY.copy()
    dx = one.backward(dy)
    np.testing.assert_array_equal(dy, DY)
    np.testing.assert_array_equal(dx, other.backward(DY))
    assert one.losses == other.losses
    flat = Flatten()
    x = X.copy()
    flat(x, training=False)[...] = 0
    flat(x)[...] = 0
    np.testing.assert_array_equal(x, X)
    flat.backward(dy := X.copy())[...] = 0
    np.testing.assert_array_equal(dy, X)


def test_any_layout_and_kind_of_input():
    layer = dense()
    expected = layer(X)
    torch = pytest.importorskip("torch")
    for x in (np.asfortranarray(X), X[::-1][::-1], torch.from_numpy(X), memoryview(X)):
        np.testing.assert_allclose(layer(x), expected, rtol=1e-6)
    np.testing.assert_array_equal(layer((X * 8).astype(np.int8)), layer((X * 8).astype(np.int8)))
    bits = torch.from_numpy(X).bfloat16()
    np.testing.assert_array_equal(layer(bits), layer(bits.float().numpy()))


def test_in_place_updates_and_replaced_weights():
    layer = dense()
    layer.build((None, 4))
    kernel = layer.kernel
    layer.kernel -= 1  # gets, changes in place, and sets what it got
    assert layer.kernel is kernel
    expected = kernel * 2
    layer.kernel = np.broadcast_to(np.float32(3), kernel.shape)  # need not be writable
    layer.kernel = expected
    assert layer.weights[0] is layer.kernel is kernel  # attached mappings stay in step
    np.testing.assert_array_equal(kernel, expected)
    expected[...] = 0
    assert kernel.any()
    expected = kernel[::-1].copy()
    layer.kernel = kernel[::-1]  # of the same memory
    np.testing.assert_array_equal(kernel, expected)
    bias = layer.bias
    layer.bias = np.full(3, 5, np.float32)
    assert layer.bias is bias
    assert (bias == 5).all()


def test_weights_go_in_and_out_as_copies():
    layer = dense()
    layer.build((None, 4))
    weights = layer.get_weights()
    weights[0][...] = 7
    assert not (layer.kernel == 7).any()
    kernel = layer.kernel
    layer.set_weights(weights)
    assert (kernel == 7).all()
    assert layer.kernel is kernel
    assert layer.count_params() == 15


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(duplicate):
    layer = Conv1D(2, 3, kernel_regularizer=L1, activation="relu")
    x = X[None]
    y = layer(x)
    other = duplicate(layer)
    np.testing.assert_array_equal(other.backward(y), layer.backward(y))
    assert other.losses == layer.losses
    assert other.get_config() == layer.get_config()


# ----------------------------------------------------------------- regularizers of one's own


def ridge(w):
    return 0.5 * K.sum(K.square(w))


class WithGradient(regularizers.Regularizer):
    def __call__(self, w):
        return 0.5 * float((w.astype(np.float64) ** 2).sum())

    def gradient(self, w):
        return w


class Louder(regularizers.L1):
    """Redefines the penalty alone: the gradient it inherits is not that of its penalty."""

    def __call__(self, w, *, scale=1.0):
        return 0.5 * K.sum(w * w)


@pytest.mark.parametrize("rule", [ridge, WithGradient(), Louder(0.1)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_regularizers_of_ones_own_train(rule, dtype):
    """All of them are L2(0.5) in other words."""
    if not isinstance(rule, WithGradient):
        pytest.importorskip("autograd")
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    arguments = {"kernel": L2, "activity": L2}
    known, own = made_equal(
        dense(dtype=dtype, **{f"{part}_regularizer": L2 for part in arguments}),
        dense(dtype=dtype, **{f"{part}_regularizer": rule for part in arguments}),
    )
    known(X)
    own(X)
    assert own.losses == pytest.approx(known.losses, 1e-6)
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 1e-5)
    for one, other in zip(
        (own.backward(DY), *own.gradients), (known.backward(DY), *known.gradients), strict=True
    ):
        np.testing.assert_allclose(
            one.astype(np.float64), other.astype(np.float64), rtol=tolerance, atol=tolerance
        )
    assert own.penalty == pytest.approx(known.penalty, 1e-6)


def test_orthogonal_kernels():
    rule = regularizers.OrthogonalRegularizer(0.5)
    bare, layer = made_equal(dense(), dense(kernel_regularizer=rule))
    bare(X)
    layer(X)
    bare.backward(DY)
    layer.backward(DY)
    assert layer.losses == [rule(layer.kernel)]
    gradient = bare.gradients[0]
    rule.accumulate(bare.kernel, gradient)
    np.testing.assert_array_equal(layer.gradients[0], gradient)


def test_without_autograd_backward_says_what_is_missing(monkeypatch):
    layer = dense(kernel_regularizer=lambda w: 0.5 * K.sum(w * w))
    layer(X)
    value = layer.losses  # the value needs no autograd
    monkeypatch.setitem(sys.modules, "autograd", None)
    with pytest.raises(TypeError, match=r"gradient\(w\).*pip install autograd"):
        layer.backward(DY)
    monkeypatch.undo()
    pytest.importorskip("autograd")
    assert layer.backward(DY) is not None  # nothing had changed
    assert layer.losses == value


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda w: 3.0, "could not follow back"),
        (lambda w: float(np.asarray(getattr(w, "_value", w)).sum()), "could not follow back"),
        (lambda w: K.abs(w), "must be one number|must give one number"),
        (lambda w: float((w**2).sum()), r"cannot record \(float.*fastreg.backend.*gradient\(w\)"),
        (lambda w: (w**2).sum().item(), r"cannot record \(.*fastreg.backend"),
    ],
)
def test_a_lost_gradient_is_an_error_and_not_a_zero(rule, message):
    pytest.importorskip("autograd")
    layer = dense(kernel_regularizer=rule, name="layer")
    layer(X)
    with pytest.raises(TypeError, match=f"layer.kernel.*({message})"):
        layer.backward(DY)


def test_a_rule_that_fails_on_plain_arrays_too_keeps_its_own_error():
    pytest.importorskip("autograd")
    layer = dense(kernel_regularizer=lambda w: 1 / 0)
    layer(X)
    with pytest.raises(ZeroDivisionError):
        layer.backward(DY)


def test_a_gradient_of_the_wrong_shape():
    class Wrong(WithGradient):
        def gradient(self, w):
            return w[0]

    layer = dense(kernel_regularizer=Wrong(), name="layer")
    layer(X)
    with pytest.raises(ValueError, match=r"layer.kernel gives has shape \(3,\).*\(4, 3\)"):
        layer.backward(DY)


def test_regularizers_of_keras_become_those_of_fastreg(keras):
    layer = dense(kernel_regularizer=keras.regularizers.L2(0.5))
    assert layer.kernel_regularizer == L2
    layer(X)
    layer.backward(DY)


# ------------------------------------------------------------------------------ initial weights


def test_automatic_names_count():
    first, second = Dense(1), Dense(1)
    stem, _, number = second.name.rpartition("_")
    assert stem == "dense"
    assert first.name in ("dense", f"dense_{int(number) - 1}")
    assert Conv2D(1, 1).name.startswith("conv2d")


def test_initializers_of_ones_own():
    layer = dense(kernel_initializer=lambda shape, dtype: np.full(shape, 2, dtype))
    layer.build((None, 4))
    assert (layer.kernel == 2).all()
    with pytest.raises(ValueError, match=r"kernel_initializer gives has shape \(2,\)"):
        dense(kernel_initializer=lambda shape, dtype: np.ones(2)).build((None, 4))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize("factor", [1e-30, 1.0, 90.0])
def test_an_underflow_is_no_error(activation, factor):
    layer = dense(activation=activation)
    layer.build((None, 4))
    one = X * np.float32(factor)
    expected = layer(one), layer.backward(DY * np.float32(1e-20))
    with np.errstate(all="raise"):
        y = layer(one)
        dx = layer.backward(DY * np.float32(1e-20))
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(dx, expected[1])
