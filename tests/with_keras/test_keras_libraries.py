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
from fastreg.regularizers import L1


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
