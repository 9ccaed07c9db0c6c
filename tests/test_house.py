"""The shape of the package is held, and house.py counts what it says.

What is wanted of the package are the figures in ``AT_MOST`` and ``FLOW_AT_MOST``.
"""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import house
import house_flows
import pytest

AT_MOST = {
    "circles": 0,
    "circles_at_import": 0,
    "unit_circles": 0,
    "imports_up": 0,
    "units": 20,
    "units_without_floor": 0,
    "native_imports": 0,
}

FLOW_AT_MOST = {  # calls, files
    "L1L2.accumulate(w, grad), NumPy": (2, 2),
    "attach(...).accumulate(grads), 2 NumPy arrays": (12, 4),
    "torch Penalties.value()": (19, 7),
    "reg(tensor), autograd forward": (11, 5),
}


@pytest.fixture(scope="module")
def found():
    return house.figures(house.ROOT)


@pytest.mark.parametrize("name", AT_MOST)
def test_package(found, name):
    items = found[name]
    if "circles" in name:
        items = [module for circle in items for module in circle]
    assert len(items) <= AT_MOST[name], items


@pytest.fixture(scope="module")
def flows():
    counts = house_flows.of_checkout(house.ROOT)
    if not any(flow["into _core"] for flow in counts.values()):
        pytest.skip("there is no compiled core for this checkout")
    return counts


@pytest.mark.parametrize("name", FLOW_AT_MOST)
def test_flow(flows, name):
    if name not in flows:  # a flow that has gone is a failure, not a skip
        assert "torch" in name or "tensor" in name
        pytest.importorskip("torch")
    calls, files = FLOW_AT_MOST[name]
    assert flows[name]["into _core"] >= 1
    assert flows[name]["calls"] <= calls
    assert flows[name]["files"] <= files


def test_it_prints(found):
    lines = list(house.text(found))
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"modules                    {found['modules']}"
    one = {"calls": 12, "into _core": 2, "files": 4, "entries": 5, "re-entries": 1, "moves": 8}
    head, row = house_flows.table({"f(x)": one})
    assert head.split() == ["calls", "core", "files", "in", "again", "moves"]
    assert row.split() == ["f(x)", "12", "2", "4", "5", "1", "8"]


def test_it_runs(tmp_path):
    write(tmp_path, {"__init__": "", "_base/__init__": ""})
    (tmp_path / "csrc").mkdir()
    command = [sys.executable, house.__file__, "--at", str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "modules in circles         0\n" in printed
    again = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["modules"] == 2


# ------------------------------------------------------------------------------- a made-up package


def write(root: Path, modules: dict[str, str]) -> Path:
    for name, source in modules.items():
        path = root / "fastreg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


def imports(tmp_path, source, module="penalties/plan"):
    """Return what a module imports, as (target, lazy)."""
    others = dict.fromkeys(
        ("__init__", "_base/__init__", "_base/errors", "torch/__init__", "torch/steps"), ""
    )
    others |= dict.fromkeys(("penalties/__init__", "penalties/steps_jax", "penalties/rules"), "")
    root = write(tmp_path, {**others, module: source})
    found = house.imports_of(house.module_files(root / "fastreg"))
    return [(one.target, one.lazy) for one in found]


@pytest.mark.parametrize(
    ("source", "target", "lazy"),
    [
        ("import fastreg.torch.steps", "fastreg.torch.steps", False),
        ("from fastreg.torch import steps", "fastreg.torch.steps", False),
        ("from ..torch.steps import Handle", "fastreg.torch.steps", False),
        ("from ..torch import steps", "fastreg.torch.steps", False),
        ("from ..torch import attach", "fastreg.torch", False),
        ("from .. import torch", "fastreg.torch", False),
        ("from . import rules", "fastreg.penalties.rules", False),
        ("from .rules import Rules", "fastreg.penalties.rules", False),
        (
            "try:\n  from .rules import Rules\nexcept ImportError: pass",
            "fastreg.penalties.rules",
            0,
        ),
        ("def f():\n  from .rules import Rules", "fastreg.penalties.rules", True),
        ("class C:\n  async def f(self):\n    import fastreg.torch", "fastreg.torch", True),
        ("f = lambda: load('fastreg.torch.steps')", "fastreg.torch.steps", True),
        ("NAME = 'fastreg.torch.steps'", "fastreg.torch.steps", True),
        ("TABLE = {'torch': 'fastreg.torch.steps'}", "fastreg.torch.steps", True),
        ("TABLE = {'torch': 'fastreg.torch.steps:Handle'}", "fastreg.torch.steps", True),
        ("load(f'{__package__}.steps_{backend}')", "fastreg.penalties.steps_jax", True),
        ("load(f'fastreg.torch.s{name}')", "fastreg.torch.steps", True),
        (
            "if TYPE_CHECKING:\n  import numpy\nelse:\n  import fastreg.torch",
            "fastreg.torch",
            False,
        ),
    ],
)
def test_what_is_an_import(tmp_path, source, target, lazy):
    assert imports(tmp_path, source) == [(target, bool(lazy))]


@pytest.mark.parametrize(
    "source",
    [
        "import numpy.torch",
        "from numpy import torch",
        "if TYPE_CHECKING:\n  from ..torch import steps",
        "if typing.TYPE_CHECKING:\n  from ..torch import steps",
        "'''fastreg.torch.steps'''",
        "def f():\n  'fastreg.torch'",
        "class C:\n  x: int\n  'fastreg.torch'",
        "NAME = 'fastreg.torch.other'",
        "raise ValueError('fastreg.torch.steps is not there')",
        "load(f'fastreg.{name}')",
        "from .. import _core",
        "from . import plan",
    ],
)
def test_what_is_no_import(tmp_path, source):
    assert imports(tmp_path, source) == []


def figures_of(tmp_path, **modules):
    (tmp_path / "csrc").mkdir(exist_ok=True)
    made = {name.replace("__of__", "/"): source for name, source in modules.items()}
    return house.figures(write(tmp_path, {"__init__": "", **made}))


def test_lazy_imports_make_circles(tmp_path):
    found = figures_of(
        tmp_path,
        _base__of____init__="",
        _base__of__errors="def f():\n  from ..regularizers import base",
        regularizers__of____init__="",
        regularizers__of__base="from .._base.errors import f\nfrom . import other",
        regularizers__of__other="",
    )
    assert found["circles_at_import"] == []
    assert found["circles"] == [["fastreg._base.errors", "fastreg.regularizers.base"]]
    assert found["circles_by_files"] == found["circles"]
    assert found["unit_circles"] == [["_base", "regularizers"]]
    assert found["imports_up"] == ["fastreg._base.errors:2 -> fastreg.regularizers.base"]
    assert found["arrows_in_circles"] == ["_base -> regularizers", "regularizers -> _base"]
    assert found["floors"] == 1
    assert found["units"] == ["__init__", "_base", "regularizers"]
    assert found["units_without_floor"] == []


def test_a_folder_in_the_way_makes_a_circle(tmp_path):
    found = figures_of(
        tmp_path,
        penalties__of____init__="from ..regularizers import base",
        penalties__of__names="",
        regularizers__of____init__="",
        regularizers__of__base="from ..penalties.names import x",
    )
    assert found["circles_by_files"] == []
    assert found["circles"] == [["fastreg.penalties", "fastreg.regularizers.base"]]
    assert found["imports_up"] == ["fastreg.regularizers.base:1 -> fastreg.penalties.names"]
    assert found["arrows_in_circles"] == ["penalties -> regularizers", "regularizers -> penalties"]


def test_units_of_one_floor_do_not_import_each_other(tmp_path):
    found = figures_of(
        tmp_path, torch__of____init__="", keras__of____init__="import fastreg.torch", new=""
    )
    assert found["imports_up"] == ["fastreg.keras:1 -> fastreg.torch"]
    assert found["units_without_floor"] == ["new"]
    assert (found["arrows_in_circles"], found["floors"]) == ([], 2)


def test_two_circles_that_touch_are_one():
    graph = {"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": {"b"}, "e": {"a", "f"}, "f": set()}
    assert house.circles_of(graph) == [["a", "b", "c", "d"]]
    assert house.heights_of(graph) == {"a": 0, "b": 0, "c": 0, "d": 0, "e": 1, "f": 0}
    apart = {"a": {"b"}, "b": {"a"}, "c": {"a", "d"}, "d": {"c"}}
    assert house.circles_of(apart) == [["a", "b"], ["c", "d"]]
    assert house.heights_of(apart) == {"a": 0, "b": 0, "c": 1, "d": 1}


def test_lines_and_cpp(tmp_path):
    source = '"""Head,\ntwo lines."""\n\n# why\nx = 1  # trap\ny = """a\n\nb"""\n"""Of y."""\n'
    assert house.kinds_of_lines(source) == {"docstring": 3, "blank": 1, "comment": 1, "code": 4}
    core = tmp_path / "csrc" / "python"
    core.mkdir(parents=True)
    (core / "a.cpp").write_text(
        'py::module_::import("fastreg._checks");  // "fastreg._arrays"\n'
        '// import("fastreg._arrays")\n'
        'throw std::logic_error("fastreg._device gave nothing");\n'
        'import("numpy"); say("fastreg needs a core");\n'
    )
    found = figures_of(tmp_path, _base__of____init__=source, bench__of____init__="x = 1\n")
    assert found["native_imports"] == [
        "csrc/python/a.cpp:1 imports fastreg._checks",
        "csrc/python/a.cpp:3 names fastreg._device",
    ]
    assert (found["product_files"], found["product_lines"]) == (2, 9)


def test_calls_are_counted(tmp_path):
    one = """
from . import two
def f(x):
    two.g(x)
    two.g(x)
    return abs(x)
def last(x):
    return x
"""
    two = """
def g(x):
    return h(x)
def h(x):
    from . import one
    return one.last(x)
"""
    write(tmp_path, {"__init__": "", "one": one, "two": two})
    spec = importlib.util.spec_from_file_location("made_up", tmp_path / "fastreg" / "__init__.py")
    package = importlib.util.module_from_spec(spec)
    sys.modules["made_up"] = package
    try:
        module = importlib.import_module("made_up.one")
        module.f(1)
        counts = house_flows.counted(lambda: module.f(1), str(tmp_path / "fastreg"))
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "made_up"]:
            del sys.modules[name]
    # caller > one > two > one > two > one > two > one > two > one > caller
    assert counts == {
        "calls": 1 + 1 + 2 * 3,
        "into _core": 0,
        "files": 3,
        "entries": 2 + 2 * 2,
        "re-entries": 3,
        "moves": 10,
    }
