"""Tests on devices: each body runs for each maker of arrays that can do what it needs.

Contract
--------
- A test that takes `maker` runs once for each maker, and with `dtype` once for each of its dtypes;
  ``needs("streams", ...)`` names abilities, and makers without them get no such test.
- ``--makers NAME`` runs the tests of the makers named (with commas between), and no others.
- Tests on a GPU bear the marker `gpu`, and are skipped where what they need is not there.
  FASTREG_REQUIRE_CUDA=1 makes these skips failures, FASTREG_REQUIRE_CUDA=bare,torch those of the
  makers that it names.  This is the one place that decides it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from makers import Maker, MissingError, makers_here

collect_ignore = ["gpu_triton.py"]  # it imports Triton

REQUIRED = os.environ.get("FASTREG_REQUIRE_CUDA", "")

_made: dict[type[Maker], Maker | MissingError] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--makers", default="", help="only tests of these makers of arrays")


def pytest_configure(config: pytest.Config) -> None:
    line = "needs(*abilities): what a maker of arrays must be able to do (tests/gpu/makers.py)"
    config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "maker" not in metafunc.fixturenames:
        return
    needed = {need for mark in metafunc.definition.iter_markers("needs") for need in mark.args}
    parameters = []
    takes_dtype = "dtype" in metafunc.fixturenames
    for kind in makers_here():
        if not needed <= kind.abilities | {kind.__name__}:
            continue
        marks = (pytest.mark.gpu,) if kind.on_gpu else ()
        for dtype in kind.dtypes if takes_dtype else ("",):
            values = (kind, dtype) if takes_dtype else (kind,)
            name = f"{kind.name}-{dtype}" if takes_dtype else kind.name
            parameters.append(pytest.param(*values, id=name, marks=marks))
    names = ("maker", "dtype") if takes_dtype else ("maker",)
    metafunc.parametrize(names, parameters, indirect=("maker",))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Pytest makes a skipped test of one that no maker of this process can run; it is none.
    items[:] = [item for item in items if "maker" not in _parameters(item) or _kind(item)]
    chosen = config.getoption("--makers")
    if chosen:
        names = chosen.split(",")
        items[:] = [item for item in items if (kind := _kind(item)) and kind.name in names]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _kind(item: pytest.Item) -> type[Maker] | None:
    """Return the maker that a test is for; None where it is for none."""
    kind = _parameters(item).get("maker")
    return kind if isinstance(kind, type) else None


def is_required(kind: type[Maker]) -> bool:
    """Return whether a maker that is missing is a failure."""
    return kind.on_gpu and (REQUIRED == "1" or kind.name in REQUIRED.split(","))


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Here rather than in the fixture: skips of one reason then are one line of pytest's summary.
    kind = _kind(item)
    if kind is None:
        return
    if kind not in _made:
        try:
            _made[kind] = kind()
        except MissingError as missing:
            _made[kind] = missing
    if isinstance(_made[kind], MissingError):
        if is_required(kind):
            pytest.fail(f"FASTREG_REQUIRE_CUDA={REQUIRED}, but {_made[kind]}", pytrace=False)
        pytest.skip(str(_made[kind]))


@pytest.fixture
def maker(request: pytest.FixtureRequest) -> Any:
    return _made[request.param]
