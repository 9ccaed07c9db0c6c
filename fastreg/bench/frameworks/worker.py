"""The process of one framework: ``python -m fastreg.bench.frameworks.worker NAME SIZES REPEATS``.

Contract: each row is a line of JSON on standard output, as a record has it, as soon as it is there;
what anything else prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module

from fastreg.bench.frameworks.base import measure
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.sizes import SIZES
from fastreg.bench.record import row_as_json, row_from_json
from fastreg.bench.row import Row


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
            yield row_from_json(json.loads(line))
    if process.returncode != 0:
        raise RuntimeError(f"its process ended with status {process.returncode}")


def main(name: str, sizes: str, repeats: str) -> None:
    """Measure, and print the rows."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = import_module(f"fastreg.bench.frameworks.{FRAMEWORKS[name].rows}")
    for setting in module.settings(SIZES[sizes]):
        answers.write(json.dumps(row_as_json(measure(setting, int(repeats)))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
