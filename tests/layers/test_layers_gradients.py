"""Gradients against finite differences in float64: every layer, every activation, any shape."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreg import layers, regularizers
from fastreg.layers import convolution
from fastreg.layers.activations import Activation

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "softmax", "softplus")
STEP = 1e-7  # small, because relu and L1 have kinks


class Softplus:
    """An activation of one's own, whose derivative needs z."""

    def forward(self, z):
        return np.logaddexp(z, 0)

    def derivative(self, z, y, dy):
        return dy / (1 + np.exp(-z))


def activation(name):
    return Softplus() if name == "softplus" else name


@dataclass
class Case:
    layer: layers.Layer
    shape: tuple
    seed: int


@st.composite
def dense(draw):
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    return draw(arguments(layers.Dense, tuple(shape), units=draw(st.integers(1, 4))))


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    extents = draw(st.lists(st.integers(1, 6), min_size=rank, max_size=rank))
    padding = draw(st.sampled_from(["valid", "same"]))
    strided = draw(st.booleans())
    steps = [draw(st.integers(1, 3)) for _ in range(rank)]
    dilation = [1] * rank if strided else steps
    kernel = []
    for extent, apart in zip(extents, dilation, strict=True):
        most = 3 if padding == "same" else min(3, (extent - 1) // apart + 1)
        kernel.append(draw(st.integers(1, most)))
    shape = (draw(st.integers(1, 3)), *extents, draw(st.integers(1, 3)))
    return draw(
        arguments(
            getattr(layers, f"Conv{rank}D"),
            shape,
            filters=draw(st.integers(1, 3)),
            kernel_size=kernel,
            strides=steps if strided else 1,
            dilation_rate=dilation,
            padding=padding,
        )
    )


@st.composite
def arguments(draw, kind, shape, **own):
    rule = st.sampled_from(
        [None, regularizers.L1(0.3), regularizers.L2(0.2), regularizers.L1L2(0.1, 0.4)]
    )
    layer = kind(
        activation=activation(draw(st.sampled_from(ACTIVATIONS))),
        use_bias=draw(st.booleans()),
        bias_initializer="random_normal",
        kernel_regularizer=draw(rule),
        bias_regularizer=draw(rule),
        activity_regularizer=draw(rule),
        activity_reduction=draw(st.sampled_from(["mean", "sum"])),
        dtype="float64",
        **own,
    )
    layer.build(shape)
    return Case(layer, shape, draw(st.integers(0, 2**32 - 1)))


def check(case):
    layer = case.layer
    rng = np.random.default_rng(case.seed)
    for weight in layer.weights:
        weight[...] = rng.standard_normal(weight.shape)
    x = rng.standard_normal(case.shape)
    dy = rng.standard_normal(layer.compute_output_shape(case.shape))

    def loss(moved):
        return float((layer(moved, training=False) * dy).sum()) + sum(layer.losses)

    y = layer(x)
    assert y.shape == dy.shape
    assert y.dtype == np.float64
    dx = layer.backward(dy)
    expected = sum(layer.losses)
    assert layer.penalty == pytest.approx(expected)
    gradients = [gradient.copy() for gradient in layer.gradients]

    def slope(change):
        change(STEP)
        above = loss(x)
        change(-2 * STEP)
        below = loss(x)
        change(STEP)
        return (above - below) / (2 * STEP)

    for array, gradient in zip([x, *layer.weights], [dx, *gradients], strict=True):
        assert gradient.shape == array.shape
        direction = rng.standard_normal(array.shape)

        def change(step, array=array, direction=direction):
            array += step * direction

        assert slope(change) == pytest.approx(float((gradient * direction).sum()), 1e-5, 1e-5)


@given(dense())
@settings(derandomize=True, deadline=None, max_examples=150)
def test_dense(case):
    check(case)


@given(convolutions(), st.sampled_from([1, 1000, 1 << 22]))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_convolutions(case, block_bytes):
    before = convolution.BLOCK_BYTES
    convolution.BLOCK_BYTES = block_bytes  # one line of positions at a time, a few, all
    try:
        check(case)
    finally:
        convolution.BLOCK_BYTES = before


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(
    ("kind", "shape", "own"),
    [
        (layers.Dense, (3, 4), {"units": 5}),
        (layers.Conv1D, (2, 7, 3), {"filters": 2, "kernel_size": 3}),
        (layers.Conv2D, (2, 5, 6, 2), {"filters": 3, "kernel_size": 2, "strides": (2, 1)}),
        (layers.Conv3D, (2, 4, 3, 5, 2), {"filters": 2, "kernel_size": 2, "padding": "same"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_layer_with_every_activation(kind, shape, own, name):
    layer = kind(
        activation=activation(name),
        kernel_regularizer="l1_l2",
        bias_regularizer="l2",
        activity_regularizer="l1",
        dtype="float64",
        **own,
    )
    layer.build(shape)
    check(Case(layer, shape, 0))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_alone_at_large_arguments(name):
    found: Activation = layers.activations.get(activation(name))
    z = np.array([[-800.0, -30.0, -1.0, 0.5, 30.0, 800.0]])
    y = found.forward(z.copy())
    assert np.isfinite(y).all()
    assert y.shape == z.shape
    with np.errstate(over="ignore"):  # that of the test's own softplus
        assert np.isfinite(found.derivative(z, y, np.ones_like(z))).all()


def test_blocks_give_the_same_as_one_matrix(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 9, 8, 3))
    results = []
    for block_bytes in (1, 5000, 1 << 22):
        monkeypatch.setattr(convolution, "BLOCK_BYTES", block_bytes)
        layer = layers.Conv2D(
            4,
            (3, 2),
            dilation_rate=(2, 1),
            dtype="float64",
            kernel_initializer=layers.initializers.GlorotUniform(seed=0),
        )
        y = layer(x)
        results.append((y, layer.backward(y), *layer.gradients))
    for others in results[1:]:
        for one, other in zip(results[0], others, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)
