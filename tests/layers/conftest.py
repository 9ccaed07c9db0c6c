"""Keras on torch, for the tests that hold these layers against it."""

import os
import warnings

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")


@pytest.fixture(scope="session")
def keras():
    torch = pytest.importorskip("torch")
    # Arrays this small gain nothing from threads, which on a busy machine wait for each other.
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Keras' import says is not about this package
        return pytest.importorskip("keras")
