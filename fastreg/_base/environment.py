"""Environment variables, read and checked; the package sets none."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from . import arguments


def choice(name: str, choices: Sequence[str]) -> str | None:
    """Return an environment variable that is one of `choices`; None if unset or empty."""
    value = os.environ.get(name)
    return arguments.choice(value, f"the environment variable {name}", choices) if value else None


def thread_count(name: str) -> int | None:
    """Return an environment variable that is a number of threads; None if unset or empty."""
    value = os.environ.get(name)
    if not value:
        return None
    digits = value.lstrip("0") if value.isascii() and value.isdigit() else ""
    if not digits or len(digits) > 9 or int(digits) > arguments.MOST_THREADS:
        raise ValueError(
            f"the environment variable {name} must be a positive integer up to "
            f"{arguments.MOST_THREADS}, not {value!r}"
        )
    return int(digits)


def runs_the_command() -> bool:
    """Return whether the package is being imported for ``python -m fastreg``."""
    # While Python looks for the module to run, and imports its package, its path stands as "-m".
    return sys.argv[:1] == ["-m"] and "fastreg" in sys.orig_argv
