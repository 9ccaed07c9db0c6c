"""The run of ``python -m fastreg bench``: cases, progress, table, files.

Contract: the table goes to standard output, the progress to standard error, so that the one can be
redirected without the other. The thread count is put back afterwards.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import fastreg
from fastreg.bench import cases, options, record, step
from fastreg.bench.peers import PEERS
from fastreg.bench.run import Row, measure
from fastreg.bench.table import step_line, table

#: Wide enough for a row on one line, where the output is a file and has no width of its own.
FILE_WIDTH = 160


def run(choices: argparse.Namespace) -> int:
    """Measure what the options ask for, and show it; the exit status."""
    options.complete(choices)
    with _threads(choices.threads):
        command = shlex.join(["python", "-m", "fastreg", *choices.arguments])
        circumstances = record.Circumstances.here(command, choices.repeats)
        rows = _measure_all(choices)
        step_row = step.measure(choices.repeats) if choices.step else None

    console = Console()
    if not console.is_terminal:
        console = Console(width=FILE_WIDTH)
    console.print(table(circumstances, rows))
    if step_row is not None:
        console.print(step_line(step_row))
    if choices.json is not None:
        text = json.dumps(record.as_json(circumstances, rows, step_row), indent=1)
        choices.json.write_text(text + "\n", encoding="utf-8")
    if choices.plot is not None:
        from fastreg.bench import plot

        plot.save(choices.plot, circumstances, rows)
    return 0


def _measure_all(choices: argparse.Namespace) -> list[Row]:
    peers = [PEERS[name] for name in choices.peers if PEERS[name].available()]
    cells = [choices.sizes, choices.dtypes, choices.terms, choices.outputs]
    total = 1
    for axis in cells:
        total *= len(axis)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    rows = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=total)
        for workload in cases.workloads(*cells):
            progress.update(task, description=f"{workload.case!s:40}")
            rows.append(measure(workload, peers, choices.repeats))
            progress.advance(task)
    return rows


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = fastreg.get_num_threads()
    if count is not None:
        fastreg.set_num_threads(count)
    try:
        yield
    finally:
        fastreg.set_num_threads(before)
