"""Against Keras on torch: outputs, losses and all gradients over the product of arguments.

Four layers x strides, dilation, padding, odd sizes x activations x with and without bias x
placements of L1, L2 and L1L2 on kernel, bias and activity: for each geometry and activation the
quarter of the placements in which each two of the three regularizers meet in all ways; the
activations of a geometry share out the whole, and so do the geometries of an activation.
"""

from itertools import product

import numpy as np
import pytest

from fastreg import layers, regularizers

torch = pytest.importorskip("torch")

ACTIVATIONS = ("linear", "relu", "tanh", "sigmoid", "softmax")
# Powers of two, because Keras holds the strength of L1 in float32.
RULES = (None, ("L1", {"l1": 0.25}), ("L2", {"l2": 0.5}), ("L1L2", {"l1": 0.125, "l2": 0.25}))

# name, input shape, arguments
GEOMETRIES = [
    ("Dense", (3, 4), {"units": 5}),
    ("Dense", (2, 3, 4), {"units": 2}),
]
GEOMETRIES += [
    (f"Conv{rank}D", (2, *(7, 6, 5)[:rank], 2), {"filters": 3, "kernel_size": kernel, **rest})
    for rank, kernels in (
        (1, [(2,), (3,)]),
        (2, [(3, 2), (2, 5)]),
        (3, [(2, 3, 1)]),
    )
    for kernel in kernels
    for padding in ("valid", "same")
    for rest in (
        {"padding": padding},
        {"padding": padding, "strides": (2, 3, 2)[:rank]},
        {"padding": padding, "dilation_rate": (2, 1, 3)[:rank]},
    )
]


def described(geometry):
    name, shape, arguments = geometry
    return f"{name}-{shape}-" + "-".join(f"{key}={value}" for key, value in arguments.items())


def placements(use_bias, turn):
    """Return rules for kernel, bias and activity; any four turns in a row give all of them."""
    count = len(RULES)
    for kernel, activity in product(range(count), repeat=2):
        bias = RULES[(kernel + activity + turn) % count] if use_bias else None
        yield RULES[kernel], bias, RULES[activity]


def pair(rule):
    return None if rule is None else getattr(regularizers, rule[0])(**rule[1])


def their(keras, rule):
    return None if rule is None else getattr(keras.regularizers, rule[0])(**rule[1])


def close(ours, theirs, what, scale=1.0):
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=3e-6 * scale, err_msg=what)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=described)
def test_the_same_as_keras(keras, geometry):
    name, shape, arguments = geometry
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    for use_bias, (place, activation) in product((True, False), enumerate(ACTIVATIONS)):
        theirs = getattr(keras.layers, name)(activation=activation, use_bias=use_bias, **arguments)
        theirs.build(shape)
        weights = [rng.standard_normal(tuple(v.shape), np.float32) for v in theirs.weights]
        theirs.set_weights(weights)
        ours = getattr(layers, name)(activation=activation, use_bias=use_bias, **arguments)
        ours.build(shape)
        ours.set_weights(weights)
        dy = rng.standard_normal(theirs.compute_output_shape(shape), dtype=np.float32)
        dy_torch = torch.from_numpy(dy)

        turn = GEOMETRIES.index(geometry) + place
        for kernel, bias, activity in placements(use_bias, turn):
            what = f"{activation}, bias={use_bias}, rules {kernel}, {bias}, {activity}"
            # set after the build: in Keras the variable has the rule then
            theirs.kernel.regularizer = their(keras, kernel)
            if use_bias:
                theirs.bias.regularizer = their(keras, bias)
            theirs.activity_regularizer = their(keras, activity)
            ours.kernel_regularizer = pair(kernel)
            ours.bias_regularizer = pair(bias)
            ours.activity_regularizer = pair(activity)

            x_torch = torch.from_numpy(x).requires_grad_()
            output = theirs(x_torch)
            losses = theirs.losses
            parameters = [v.value for v in theirs.trainable_variables]
            total = (output * dy_torch).sum() + sum(losses)
            dx, *gradients = torch.autograd.grad(total, [x_torch, *parameters])

            y = ours(x)
            close(y, output.detach().numpy(), what)
            assert len(ours.losses) == len(losses), what
            close(ours.losses, [float(loss.detach()) for loss in losses], what, 10)
            close(ours.backward(dy), dx.numpy(), what, 5)
            assert len(ours.gradients) == len(gradients)
            for mine, gradient in zip(ours.gradients, gradients, strict=True):
                close(mine, gradient.numpy(), what, 10)
            assert ours.penalty == pytest.approx(sum(ours.losses))
