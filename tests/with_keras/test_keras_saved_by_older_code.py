"""What users of Keras have on disk loads: see ``tests/fixtures/make_fixtures.py``.

Each case has a process of its own: what loads depends on what has been imported, and on nothing
else that another test has left.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from interpreter import ROOT

SCRIPT = Path(__file__).with_name("saved_program.py")
CONFIGS = {
    "L1": {"l1": 0.5},
    "L2": {"l2": 0.25},
    "L1L2": {"l1": 0.5, "l2": 0.25},
    "OrthogonalRegularizer": {"factor": 0.5, "mode": "columns"},
}
RULES = "L1L2", "L1", "L2", "OrthogonalRegularizer", "L2"
pytestmark = pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")


@pytest.fixture(params=["torch", "jax"])
def loaded(request):
    backend = request.param
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")

    def load(what, *modules):
        paths = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
        result = subprocess.run(
            [sys.executable, str(SCRIPT), what, *modules],
            env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return load


def of_module(module, name):
    return [f"{module}.{name}", CONFIGS[name]]


def require_model(model, module):
    weights = [[(i / 16 - 1) for i in range(count)] for count in (6, 3, 6, 2)]
    assert model["weights"] == weights
    assert model["rules"] == [of_module(module, name) for name in RULES]
    *exact, orthogonal, last = model["losses"]
    assert exact == [5.185546875, 3.6162109375, 1.40625]
    assert orthogonal == pytest.approx(0.49998045, rel=1e-6)
    assert last == 0.4697265625


def test_models_and_pickles(loaded):
    found = loaded("model,symbolic,pickles,configurations", "fastreg.keras")
    require_model(found["model"], "fastreg.keras")
    assert found["symbolic"] == [5.5, 0.5]
    saved = found["configurations"]
    assert saved.pop("model") == found["model"]["rules"]
    assert saved.pop("symbolic") == found["symbolic"]
    for name in CONFIGS:
        expected = of_module("fastreg.keras", name)
        assert found["pickles"][name] == [expected] * 4
        for form in ("keras", "fastreg", "keras of fastreg"):
            assert saved.pop(f"{form} {name}") == expected
    assert saved == {}


def test_model_without_fastreg(loaded):
    found = loaded("model")
    require_model(found["model"], "keras.src.regularizers.regularizers")
