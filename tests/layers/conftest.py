"""Keras on torch, for the tests that hold these layers against it."""

import os
import warnings

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.fixture(scope="session")
def keras():
    pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Keras' import says is not about this package
        return pytest.importorskip("keras")
