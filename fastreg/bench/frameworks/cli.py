"""The run of ``python -m fastreg bench frameworks``: table, notes, files.

Contract: as that of ``bench.cli``. A framework whose process fails is noted, and the status is 1.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path

from fastreg.bench.cli import note, show, show_table, write_files
from fastreg.bench.frameworks import record
from fastreg.bench.frameworks.base import Row
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.table import blanks, comparisons, table
from fastreg.bench.frameworks.worker import rows_of
from fastreg.bench.record import Circumstances


def run(choices: argparse.Namespace) -> int:
    """Measure what the options ask for, and show it; the exit status."""
    rows: list[Row] = []
    status = 0
    measured = []
    for name in choices.frameworks or FRAMEWORKS:
        if missing := FRAMEWORKS[name].missing():
            note(f"{name} is left out: not installed: {', '.join(missing)}")
            continue
        measured.append(name)
        try:
            for row in rows_of(name, choices.sizes, choices.repeats):
                note(f"{row.framework}: {row.what}: done")
                rows.append(row)
        except RuntimeError as error:
            note(f"{name} is left out: {error}")
            status = 1
        except KeyboardInterrupt:
            note("interrupted: this is what was measured until then")
            status = 130
            break
    modules = dict.fromkeys(module for name in measured for module in FRAMEWORKS[name].modules)
    command = shlex.join(["python", "-m", "fastreg", *choices.arguments])
    circumstances = Circumstances.here(command, choices.repeats, {}, list(modules))
    if not rows:
        note("nothing was measured")
        return status or 1
    writers: dict[str, Callable[[Path], object]] = {
        "json": lambda path: record.write_json(path, circumstances, rows),
        "csv": lambda path: record.write_csv(path, rows),
    }
    written = write_files(choices, writers)
    show_table(lambda detail: table(circumstances, rows, detail))
    if notes := [*comparisons(rows), *blanks(rows)]:
        show("\n".join(notes))
    return status if written else status or 1
