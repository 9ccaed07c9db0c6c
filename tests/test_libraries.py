"""Whose array: the table of libraries by class, without any framework."""

from __future__ import annotations

import gc
import re
import sys
import types
import weakref
from pathlib import Path

import numpy as np
import pytest

import fastreg
from fastreg._arrays import libraries
from fastreg._arrays.library import Library
from fastreg._arrays.numpy_arrays import NumPy
from fastreg.regularizers import L1

PACKAGE = Path(fastreg.__file__).parent


class Plain:
    """What has the buffer protocol in Python 3.12, or DLPack, or nothing at all."""


def test_subclasses_of_numpy(tmp_path):
    class Own(np.ndarray):
        pass

    memmap = np.memmap(tmp_path / "numbers", np.float32, "w+", shape=3)
    for x in (np.ones(3), memmap, np.ones(3).view(Own), np.ma.ones(3), np.float32(1), np.True_):
        row = libraries.library_of(type(x))
        assert type(row) is NumPy
        assert libraries.TABLE[type(x)] is row
        assert libraries.owner(x) == (row, x)


def test_others_are_looked_for_once():
    for x in (memoryview(b"1"), bytearray(b"1"), Plain()):
        row = libraries.library_of(type(x))
        assert type(row) is Library
        assert libraries.TABLE[type(x)] is row


def test_a_holder_is_looked_for_until_jax_is_there(monkeypatch):
    class Holder:
        def __jax_array__(self):
            return np.full(2, 3.0)

    monkeypatch.setitem(sys.modules, "jax", None)
    assert type(libraries.library_of(Holder)) is Library
    assert Holder not in libraries.TABLE
    with pytest.raises(TypeError, match=r"^w must be an array"):
        L1(0.5)(Holder())
    monkeypatch.setitem(sys.modules, "jax", types.ModuleType("jax"))
    assert libraries.holds_jax_array(Holder())
    assert L1(0.5)(Holder()) == 3.0
    assert Holder in libraries.TABLE


def test_a_library_that_is_imported_later(monkeypatch):
    def view(x):
        return libraries.library_of(type(x)).name

    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    assert view(Plain()) == "other"
    cupy = types.ModuleType("cupy")
    cupy.ndarray = type("ndarray", (), {})
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert view(cupy.ndarray()) == view(type("Own", (cupy.ndarray,), {})()) == "cupy"
    assert view(Plain()) == "other"


@pytest.mark.parametrize(
    "words",
    [
        {"__module__": "torch", "__qualname__": "Tensor"},
        {"__module__": "numpy", "__qualname__": "ndarray"},
        {"__class__": property(lambda self: np.ndarray)},
    ],
)
def test_a_class_that_lies(backend, words):
    liar = type("Tensor", (), words)()
    assert type(libraries.library_of(type(liar))) is Library
    with pytest.raises(TypeError, match=r"^w must be an array"):
        L1(0.5)(liar)
    with pytest.raises(TypeError, match=r"^grad must be an array"):
        L1(0.5).accumulate(np.ones(2), liar)


def test_classes_that_are_made_in_a_loop(backend, monkeypatch):
    monkeypatch.setattr(libraries, "MANY", len(libraries.TABLE) + 2)
    made = []
    for _ in range(5):
        kind = type("Own", (np.ndarray,), {})
        assert L1(0.5)(np.ones(4).view(kind)) == 2.0
        made.append(weakref.ref(kind))
        del kind
    gc.collect()
    assert len(libraries.TABLE) == libraries.MANY
    assert [kind() is not None for kind in made] == [True, True, False, False, False]
    for kind in made[:2]:
        del libraries.TABLE[kind()]


def test_modules_of_frameworks_are_looked_up_in_one_place():
    places = {
        str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8").count("sys.modules")
        for path in PACKAGE.rglob("*.py")
        if path.parts[len(PACKAGE.parts)] != "bench"
    }
    assert {place: count for place, count in places.items() if count} == {
        "_arrays/library.py": 1,
        # Plain tensors are known at once, before the table is asked.
        "_autodiff/dispatch.py": 3,
        # Not whose array it is, but what else runs.
        "_autodiff/torch/engines.py": 2,
        "_info.py": 2,
        "backend.py": 1,
        "regularizers/saved_forms.py": 1,
        "torch/in_backward.py": 2,
    }


def test_libraries_are_told_by_class_and_not_by_name():
    for path in (PACKAGE / "_arrays").glob("*arrays.py"):
        assert not re.search(r"__name__ [!=]=", path.read_text(encoding="utf-8")), path
