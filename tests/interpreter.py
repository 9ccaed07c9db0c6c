"""Fresh interpreters for tests that need their own environment, their own threads or to fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

SANITIZED = any(name in os.environ.get("LD_PRELOAD", "") for name in ("asan", "tsan"))
"""Whether these tests run under a sanitizer: it needs memory of its own, and time."""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code with these settings of ours and no others; every warning is an error."""
    settings = {name: text for name, text in os.environ.items() if not name.startswith("FASTREG_")}
    # Where the package is not installed it is found as these tests found it.
    settings["PYTHONPATH"] = os.pathsep.join([*filter(None, sys.path), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=settings | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def runs(code: str, **environment: str) -> str:
    """Run code that must succeed without a word on standard error; give what it printed."""
    result = python(code, **environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout
