"""Ordinary large values of every argument of every public function are taken.

A limit that belongs to one argument, a number of threads say, must not come to bind another.  The
walk reads the signatures, so an argument that is new has to be put into one of the tables.
"""

import inspect

import numpy as np
import pytest

import fastreg
from fastreg import backend, layers, regularizers
from fastreg.layers import Conv1D, Conv2D, Conv3D, Dense, Flatten, Input, Sequential, initializers

SIZES = (1025, 2048, 65_536, 1_000_000)
STRENGTHS = (1025.0, 1e6, 1 << 20)
FACTORS = (*STRENGTHS, 2.0**24, -1e6)
SHAPES = ((3072,), (2048, 4096), (1025, 1025, 1025))

#: By the name of the argument, whatever function has it.
VALUES = {
    "units": SIZES,
    "filters": SIZES,
    "kernel_size": SIZES,
    "strides": SIZES,
    "dilation_rate": SIZES,
    "batch_size": SIZES,
    "input_dim": SIZES,
    "input_shape": SHAPES,
    "batch_shape": ((4096, 3072), (None, 2048, 2048, 3)),
    "l1": STRENGTHS,
    "l2": STRENGTHS,
    "factor": STRENGTHS,
    "scale": STRENGTHS,
    "grad_scale": FACTORS,
    "value": FACTORS,
    "minval": (-1e6,),
    "maxval": STRENGTHS,
    "mean": FACTORS,
    "stddev": STRENGTHS,
    "seed": (1025, 20_261_128, 2**63, 2**127),
    "size": (1025, 2000),
    "n": (1024,),  # the one limit: csrc/cpu/pool.h
    "min_value": FACTORS,
    "max_value": FACTORS,
    "a": (1025, 1e6),
    "dim": SIZES,
}

#: Arguments that are no numbers, or numbers of axes; shape, step and max_norm have own tests.
OTHERS = {
    *("activation", "activity_reduction", "activity_regularizer", "axis", "bias_initializer"),
    *("bias_regularizer", "config", "custom_objects", "data_format", "distribution", "dtype", "dy"),
    *("grad", "grads", "groups", "identifier", "input_axes", "input_gradient", "keepdims"),
    *("kernel_initializer", "kernel_regularizer", "layer", "layers", "max_norm", "mode", "name"),
    *("on_nonfinite", "out", "step"),
    *("output_axes", "others", "padding", "path", "pattern", "print_fn", "regularizer", "rules"),
    *("self", "shape", "tensors", "trainable", "training", "use_bias", "w", "weights", "x", "y"),
}

W = np.ones((4, 3), np.float32)


def called():
    """A layer and a model that can go back."""
    layer, model = Dense(2, kernel_regularizer="l1"), Sequential([Dense(2)])
    layer(W)
    model(W)
    return layer, model


#: What each function needs besides the argument that is tried.
BASE = {
    "Dense": {"units": 2},
    "Conv1D": {"filters": 2, "kernel_size": 3},
    "Conv2D": {"filters": 2, "kernel_size": 3},
    "Conv3D": {"filters": 2, "kernel_size": 3},
    "Input": {"shape": (3,)},
    "InputLayer": {"shape": (3,)},
    "clip": {"x": W, "min_value": -1e7, "max_value": 1e7},
    "pow": {"x": W},
}
RULES = (
    regularizers.L1,
    regularizers.L2,
    regularizers.L1L2,
    regularizers.OrthogonalRegularizer,
)


def classes_and_functions():
    """List (name, what to call) for all that takes arguments."""
    for module in (fastreg, regularizers, backend, layers):
        for name in module.__all__:
            member = getattr(module, name)
            if callable(member):
                yield name, member
    for kind in vars(initializers).values():
        is_initializer = isinstance(kind, type) and issubclass(kind, initializers.Initializer)
        if is_initializer and not kind.__name__.startswith("_"):
            yield kind.__name__, kind


def methods_of(kind):
    """List (name, function) of the public methods of a class."""
    return [
        (name, member)
        for name, member in inspect.getmembers(kind, callable)
        if name == "__call__" or not name.startswith("_")
    ]


def arguments(function):
    return [name for name in inspect.signature(function).parameters]


def test_every_argument_is_in_one_of_the_tables():
    walked = {argument for _, member in classes_and_functions() for argument in arguments(member)}
    for kind in (*RULES, regularizers.Regularizer, fastreg.Penalties, Sequential, layers.Layer):
        walked |= {argument for _, method in methods_of(kind) for argument in arguments(method)}
    assert sorted(walked - VALUES.keys() - OTHERS) == []
    assert sorted(VALUES.keys() & OTHERS) == []
    assert len(walked) > 60


def tried(cases):
    return [
        pytest.param(member, argument, value, id=f"{name}-{argument}={value}")
        for name, member in cases
        for argument in arguments(member)
        for value in VALUES.get(argument, ())
    ]


@pytest.mark.parametrize(
    ("member", "argument", "value"),
    tried((name, member) for name, member in classes_and_functions() if name != "set_num_threads"),
)
def test_functions_and_classes(member, argument, value):
    needed = {} if argument == "batch_shape" else BASE.get(member.__name__, {})
    made = member(**{**needed, argument: value})
    if inspect.isclass(member):
        kept = getattr(made, argument, value)
        rank = len(kept) if isinstance(kept, tuple) and not isinstance(value, tuple) else 0
        assert kept == ((value,) * rank if rank else value)


def test_threads():
    before = fastreg.get_num_threads()
    fastreg.set_num_threads(1024)
    fastreg.set_num_threads(before)
    for thread_limit in (1025, 10**30):
        with pytest.raises(ValueError, match="n must be a positive integer up to 1024"):
            fastreg.set_num_threads(thread_limit)


@pytest.mark.parametrize("value", FACTORS)
@pytest.mark.parametrize("argument", ["scale", "grad_scale"])
def test_factors_of_every_method(argument, value):
    rule = regularizers.L1L2(0.5, 0.25)
    owners = [
        (rule, {"w": W, "grad": np.zeros_like(W)}),
        (regularizers.OrthogonalRegularizer(), {"w": W, "grad": np.zeros_like(W)}),
        (fastreg.attach({"w": W.copy()}, rule), {"grads": {"w": np.zeros_like(W)}}),
        *((owner, {"dy": np.ones((4, 2))}) for owner in called()),
    ]
    count = 0
    for owner, given in owners:
        for _, method in methods_of(type(owner)):
            if argument in arguments(method):
                needed = {key: x for key, x in given.items() if key in arguments(method)}
                if "step" in arguments(method):
                    needed["step"] = 0.5
                if "step" in needed and value < 0:
                    with pytest.raises(ValueError, match=f"^{argument} must be"):
                        method(owner, **needed, **{argument: value})
                else:
                    method(owner, **needed, **{argument: value})
                count += 1
    assert count == {"scale": 15, "grad_scale": 11}[argument]
    assert rule(W, scale=value) == value * rule(W) or argument == "grad_scale"


@pytest.mark.parametrize("value", [value for value in FACTORS if value > 0])
def test_steps_and_bounds(value):
    rule = regularizers.L1L2(0.5, 0.25)
    assert (rule.prox(W, value) == 0).all()
    assert fastreg.attach({"w": W.copy()}, rule).prox(value).zeros == W.size
    gradients = {"w": W.copy()}
    assert fastreg.clip_by_global_norm(gradients, value) == fastreg.norms(gradients).total.l2
    assert (gradients["w"] == W).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    assert Input(shape).batch_shape == (None, *shape)
    assert Flatten().compute_output_shape((None, *shape)) == (None, int(np.prod(shape)))
    assert Dense(2048).compute_output_shape((65_536, *shape)) == (65_536, *shape[:-1], 2048)
    assert backend.reshape(np.zeros(shape[0]), (1, shape[0])).shape == (1, shape[0])


def test_large_layers_work():
    model = Sequential([Dense(2048, input_dim=3072, kernel_regularizer="l2"), Dense(1025)])
    x = np.ones((1030, 3072), np.float32)
    assert model(x).shape == (1030, 1025)
    assert model.backward(np.ones((1030, 1025))).shape == x.shape
    assert model.count_params() == 2048 * 3073 + 1025 * 2049


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (Conv1D(2, 1500), (1, 3000, 1), (1, 1501, 2)),
        (Conv1D(2, 3, strides=1500), (1, 3003, 1), (1, 3, 2)),
        (Conv1D(2, 3, dilation_rate=1500), (1, 3003, 1), (1, 3, 2)),
        (Conv1D(1025, 2, padding="same"), (2, 5, 3), (2, 5, 1025)),
        (Conv2D(2, (1, 1200), strides=(1, 1100)), (1, 1, 2300, 1), (1, 1, 2, 2)),
        (Conv3D(1, (1, 1, 1025)), (1, 1, 1, 1026, 1), (1, 1, 1, 2, 1)),
    ],
)
def test_large_convolutions_work(layer, shape, expected):
    y = layer(np.ones(shape, np.float32))
    assert y.shape == layer.compute_output_shape(shape) == expected
    assert layer.backward(np.ones_like(y)).shape == shape


@pytest.mark.parametrize("size", [0, -3, 2**63, 10**5000], ids=["0", "-3", "2**63", "digits"])
def test_sizes_that_no_array_has(size):
    for make in (lambda: Dense(size), lambda: Conv1D(2, size), lambda: Dense(2, input_dim=size)):
        with pytest.raises(ValueError, match="must be a positive integer"):
            make()
    if size:
        with pytest.raises(ValueError, match="extent"):
            Input((size,))
