"""fastreg.keras on each backend of Keras: the cases of two scripts, and what needs no Keras.

Both backends run at once, each in a process of its own, and every case is a test here.
"""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from interpreter import ROOT, runs

SCRIPT = Path(__file__).with_name("keras_cases.py")
SOURCES = (SCRIPT, SCRIPT.with_name("proximal_cases.py"))
CASES = [
    name
    for path in SOURCES
    for name in re.findall(r"^def (case_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
]
BACKENDS = ("torch", "jax")


@pytest.fixture(scope="module")
def results():
    """By backend, the traceback of each case, None where it has passed."""
    if find_spec("keras") is None:
        pytest.skip("Keras is not installed")
    processes = {
        backend: subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            env=os.environ
            | {
                "KERAS_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
                "OMP_NUM_THREADS": "1",  # two processes, arrays this small
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for backend in BACKENDS
        if find_spec(backend) is not None
    }
    found = {}
    for backend, process in processes.items():
        output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        found[backend] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_case(results, backend, name):
    if backend not in results:
        pytest.skip(f"{backend} is not installed")
    failure = results[backend][name]
    assert failure is None, failure


def test_without_keras_the_extra_is_named():
    # A finder in front of all others: as if Keras, or what it needs, were not installed.
    output = runs("""
        import sys
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "keras":
                    raise ModuleNotFoundError("No module named 'keras'")
        sys.meta_path.insert(0, Finder())
        import fastreg
        for load in (lambda: fastreg.keras, lambda: __import__("fastreg.keras")):
            try:
                load()
            except ImportError as error:
                print(error)
    """)
    first, second = output.splitlines()
    assert first == second
    assert "fastreg-kernels[keras]" in first
    assert "No module named 'keras'" in first
    assert "KERAS_BACKEND" in first


def test_keras_2_is_refused():
    output = runs("""
        import sys, types
        sys.modules["keras"] = types.SimpleNamespace(__version__="2.15.0")
        import fastreg
        try:
            fastreg.keras
        except ImportError as error:
            print(error)
    """)
    assert "needs Keras 3, not 2.15.0" in output


def test_saved_forms_are_read_without_keras():
    output = runs("""
        import sys
        from fastreg import regularizers
        saved = {
            "module": "fastreg.keras",
            "class_name": "L1L2",
            "config": {"l1": 0.5, "l2": 0.25},
            "registered_name": "fastreg>L1L2",
        }
        print(regularizers.get(saved), "keras" in sys.modules)
    """)
    assert output == "L1L2(l1=0.5, l2=0.25) False\n"
