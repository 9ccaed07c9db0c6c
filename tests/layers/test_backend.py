"""``fastreg.backend``: the functions are NumPy's, and autograd can follow each of them."""

import pickle

import numpy as np
import pytest

from fastreg import backend as K  # noqa: N812, as Keras users import it

W = np.array([[0.5, 1.5, -0.75], [2.25, -1.25, 0.3]])

FUNCTIONS = {
    "abs": lambda w: K.sum(K.abs(w)),
    "square": lambda w: K.sum(K.square(w)),
    "sqrt": lambda w: K.sum(K.sqrt(K.square(w) + K.epsilon())),
    "exp": lambda w: K.sum(K.exp(w)),
    "log": lambda w: K.sum(K.log(K.abs(w))),
    "sin": lambda w: K.sum(K.sin(w)),
    "cos": lambda w: K.sum(K.cos(w)),
    "tanh": lambda w: K.sum(K.tanh(w)),
    "sign": lambda w: K.sum(K.sign(w) * w),
    "pow": lambda w: K.sum(K.pow(w, 3)),
    "maximum": lambda w: K.sum(K.maximum(w, 0.1)),
    "minimum": lambda w: K.sum(K.minimum(w, 0.1)),
    "clip": lambda w: K.sum(K.clip(w, -1.0, 1.0)),
    "cast": lambda w: K.sum(K.cast(w, "float64")),
    "sum": lambda w: K.sum(K.square(K.sum(w, axis=1, keepdims=True))),
    "mean": lambda w: K.mean(K.square(K.mean(w, axis=[0]))),
    "max": lambda w: K.sum(K.max(w, axis=1)),
    "min": lambda w: K.min(w),
    "prod": lambda w: K.prod(w),
    "var": lambda w: K.var(w),
    "std": lambda w: K.sum(K.std(w, axis=0)),
    "dot": lambda w: K.sum(K.square(K.dot(w, K.transpose(w)))),
    "matmul": lambda w: K.sum(K.square(K.matmul(K.transpose(w), w) - K.eye(3))),
    "transpose": lambda w: K.sum(K.transpose(w)[0]),
    "permute_dimensions": lambda w: K.sum(K.permute_dimensions(w, [1, 0])[2]),
    "reshape": lambda w: K.sum(K.reshape(w, [3, 2])[0]),
    "flatten": lambda w: K.sum(K.flatten(w)[:2]),
    "expand_dims": lambda w: K.sum(K.expand_dims(w) * w[..., None]),
    "squeeze": lambda w: K.sum(K.squeeze(w[:1], 0)),
    "concatenate": lambda w: K.sum(K.square(K.concatenate([w, w], axis=0))),
    "stack": lambda w: K.sum(K.square(K.stack([w, 2 * w]))),
    "ones_like": lambda w: K.sum(w * K.ones_like(w)),
    "zeros_like": lambda w: K.sum(w + K.zeros_like(w)),
    "shape": lambda w: K.sum(w) / K.shape(w)[0],
    "int_shape": lambda w: K.sum(w) / K.int_shape(w)[1],
    "ndim": lambda w: K.sum(w) * K.ndim(w),
    "eye": lambda w: K.sum(K.dot(w, K.eye(3, "float64"))),
}


def test_every_function_is_here():
    assert set(FUNCTIONS) | {"epsilon", "floatx"} == set(K.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    autograd = pytest.importorskip("autograd")
    function = FUNCTIONS[name]
    value, gradient = autograd.value_and_grad(function)(W)
    assert value == function(W)
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(W.shape)
    step = 1e-6
    slope = (function(W + step * direction) - function(W - step * direction)) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_single_precision_stays():
    w = W.astype(np.float32)
    for name in ("abs", "sqrt", "maximum", "clip", "mean", "var", "matmul"):
        assert np.asarray(FUNCTIONS[name](w)).dtype == np.float32, name
    assert K.eye((2, 3)).shape == (2, 3)
    assert K.floatx() == "float32"


@pytest.mark.parametrize("name", K.__all__)
def test_functions_are_called_what_they_are_imported_as(name):
    function = getattr(K, name)
    assert function.__name__ == function.__qualname__ == {"int_shape": "shape"}.get(name, name)
    assert pickle.loads(pickle.dumps(function)) is function
    assert f">>> {function.__name__}(" in function.__doc__
