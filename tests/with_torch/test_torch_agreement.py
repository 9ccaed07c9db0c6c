"""Processes that disagree about their penalties: an error in each, which says what differs."""

import os
from pathlib import Path

import pytest
from worlds import cases, require_good, run

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not hasattr(os, "fork"):
    pytest.skip("torch without torch.distributed, or no fork", allow_module_level=True)

WORKER = Path(__file__).with_name("agreement_worker.py")
CASES = cases(WORKER)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    return run(WORKER, tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("case", CASES)
def test_processes(outcomes, case):
    require_good(outcomes, case, CASES[case])
