"""Fixtures: every test that takes `backend` runs on the fallback and on each native kernel.

`left_out.py` says what is collected where a framework is missing.
"""

import pytest
from interpreter import SANITIZED
from left_out import LeftOut

from fastreg._engine import backend as _backend

# Several directories have a conftest.py; as modules with doctests they would be one. Debian's
# Python has a sitecustomize too, and ours is for builds alone.
collect_ignore_glob = ["*conftest.py", "*sitecustomize.py"]


def pytest_configure(config):
    config.pluginmanager.register(LeftOut())


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
