"""Optimizers of sharded modules: norms, skips and errors are the same in every process."""

import os
from pathlib import Path

import pytest
from worlds import cases, require_good, run

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not hasattr(os, "fork"):
    pytest.skip("torch without torch.distributed, or no fork", allow_module_level=True)

WORKER = Path(__file__).with_name("optimizers_worker.py")
CASES = cases(WORKER)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(WORKER, tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("case", CASES)
def test_processes(outcomes, case):
    require_good(outcomes, case, CASES[case])
