"""Whose array: variables and symbolic tensors of Keras in the table of libraries."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Keras' import says is not about this package
    keras = pytest.importorskip("keras")

from fastreg._arrays import libraries
from fastreg._arrays.keras_arrays import Symbolic, Variables
from fastreg.keras import expression
from fastreg.regularizers import L1, L1L2


class Own(keras.Variable):
    pass


@pytest.mark.parametrize("kind", [keras.Variable, Own])
def test_a_variable_holds_an_array(kind):
    variable = kind(np.full(3, 2.0, np.float32))
    assert type(libraries.library_of(type(variable))) is Variables
    row, array = libraries.owner(variable)
    assert array is variable.value
    assert row is libraries.library_of(type(array))
    assert L1(0.5)(variable).item() == 3.0


def test_a_symbolic_tensor():
    symbolic = keras.Input((3,))
    assert type(libraries.library_of(type(symbolic))) is Symbolic
    assert libraries.owner(symbolic)[1] is symbolic
    assert not libraries.holds_jax_array(symbolic)


def test_proximal_steps():
    """Of a variable, in place too; of a symbolic tensor; and by keras.ops as other backends do."""
    variable = keras.Variable(np.array([1.0, -2.0, 0.25], np.float32))
    stepped = L1(0.5).prox(variable, 1.0)
    assert [float(x) for x in stepped] == [0.5, -1.5, 0.0]
    reg = L1L2(0.5, 0.5)
    (by_ops,) = expression.proximal((variable.value,), ((0.5, 0.5),), (0,), 1.0, 1.0)
    assert [float(x) for x in keras.ops.stop_gradient(by_ops)] == [0.25, -0.75, 0.0]
    assert reg.prox(keras.Input((3,)), 1.0).shape == (None, 3)
    if keras.backend.backend() == "torch":
        import torch

        with torch.no_grad():
            assert reg.prox(variable, 1.0, out=variable) is variable
        assert variable.value.tolist() == [0.25, -0.75, 0.0]
