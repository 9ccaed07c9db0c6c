"""The process of one framework: ``python -m fastreg.bench.frameworks.worker NAME SIZES REPEATS``.

Contract: each row is a line of JSON on standard output, as soon as it is there; what anything else
prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module

from fastreg.bench.frameworks.base import Row, measure
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.sizes import SIZES


def rows_of(name: str, sizes: str, repeats: int) -> Iterator[Row]:
    """Measure a framework in a process of its own; its rows as they come.

    Raises
    ------
    RuntimeError
        The process has failed; what it said is on standard error.
    """
    command = [sys.executable, "-m", __name__, name, sizes, str(repeats)]
    environment = {**os.environ, **FRAMEWORKS[name].environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield Row(**json.loads(line))
    if process.returncode != 0:
        raise RuntimeError(f"its process ended with status {process.returncode}")


def main(name: str, sizes: str, repeats: str) -> None:
    """Measure, and print the rows."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = import_module(f"fastreg.bench.frameworks.{FRAMEWORKS[name].rows}")
    for setting in module.settings(SIZES[sizes]):
        answers.write(json.dumps(asdict(measure(setting, int(repeats)))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
