"""Environment variables, read and checked; the package sets none."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import _checks


def choice(name: str, choices: Sequence[str]) -> str | None:
    """Read an environment variable which takes one of `choices`; unset or empty gives None."""
    value = os.environ.get(name)
    return _checks.choice(value, f"the environment variable {name}", choices) if value else None


def positive_integer(name: str) -> int | None:
    """Read an environment variable which takes a positive integer; unset or empty gives None."""
    value = os.environ.get(name)
    if not value:
        return None
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise ValueError(
            f"the environment variable {name} must be a positive integer, not {value!r}"
        )
    return int(value)


def runs_the_command() -> bool:
    """Tell whether it is for ``python -m fastreg`` that the package is being imported."""
    # While Python looks for the module to run, and imports its package, its path stands as "-m".
    return sys.argv[:1] == ["-m"] and "fastreg" in sys.orig_argv
