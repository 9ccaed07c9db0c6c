"""Fixtures: every test that takes `backend` runs on the fallback and on each native kernel.

The doctests of an adapter are collected where its framework is installed.
"""

from importlib.util import find_spec

import pytest
from interpreter import SANITIZED

from fastreg import _backend

# Several directories have a conftest.py; as modules with doctests they would be one.
collect_ignore_glob = ["*conftest.py"]


class _AdaptersHere:
    """Leaves out the packages of adapters whose framework is missing, wherever fastreg lies.

    A plugin, because hooks of this file are not asked about directories beside its own.
    """

    def pytest_ignore_collect(self, collection_path):
        name = collection_path.name
        is_adapter = collection_path.parent.name == "fastreg" and name in ("torch", "jax", "keras")
        return True if is_adapter and find_spec(name) is None else None


def pytest_configure(config):
    config.pluginmanager.register(_AdaptersHere())


def _available():
    before = _backend.name
    _backend.select("native")
    try:
        native = _backend.instruction_sets()
        # Under a sanitizer the C++ tests run all kernels, and these the way to the best of them.
        return native[:1] if SANITIZED else ["numpy", *native]
    except RuntimeError:  # no compiled core in this installation
        return ["numpy"]
    finally:
        _backend.select(before)


@pytest.fixture(params=_available())
def backend(request):
    """The name of the instruction set in use, "numpy" for the fallback."""
    before = _backend.name
    if request.param == "numpy":
        _backend.select("numpy")
        yield request.param
    else:
        _backend.select("native")
        forced = _backend.instruction_set()
        _backend.set_instruction_set(request.param)
        yield request.param
        _backend.set_instruction_set(forced)
    _backend.select(before)
