"""Fixtures of the tests with JAX: who computes the value, and whether JAX has float64."""

import pytest

from fastreg._engine import backend

collect_ignore_glob = ["*conftest.py"]


def _engines():
    before = backend.name
    backend.select("native")
    try:
        backend.instruction_sets()
        return ["native", "numpy"]
    except RuntimeError:  # no compiled core in this installation
        return ["numpy"]
    finally:
        backend.select(before)


@pytest.fixture(params=_engines())
def engine(request):
    """Who computes values in programs: "native" for the compiled core, "numpy" for XLA."""
    before = backend.name
    backend.select(request.param)
    yield request.param
    backend.select(before)


@pytest.fixture
def core():
    """The compiled core in use."""
    if "native" not in _engines():
        pytest.skip("no compiled core in this installation")
    before = backend.name
    backend.select("native")
    yield
    backend.select(before)


@pytest.fixture
def double():
    """JAX with float64."""
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)
