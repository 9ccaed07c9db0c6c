"""Runs torch_cases.py: in processes of their own, since the core looks for torch only once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_arrays import LIBRARY


@pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")
@pytest.mark.parametrize("table", ["1", "0"])
def test_torch_with_and_without_an_exchange_table(table: str) -> None:
    cases = Path(__file__).with_name("torch_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FAKE_TORCH_TABLE": table},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout
