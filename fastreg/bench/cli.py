"""The run of ``python -m fastreg bench``: cases, progress, table, files.

Contract: the table goes to standard output, progress and notes to standard error, so that the one
can be redirected without the other. Thread counts are put back afterwards. A run interrupted or out
of memory shows and writes the cases that it has finished, and ends with status 130 or 1; one
whose files could not all be written with 1.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import fastreg
from fastreg.bench import options, record, step
from fastreg.bench.cases import cases
from fastreg.bench.peers import PEERS, Peer
from fastreg.bench.run import Row, measure
from fastreg.bench.table import Detail, step_line, summary, table
from fastreg.bench.workloads import workloads

#: Wide enough for a row on one line, where the output is a file and has no width of its own.
FILE_WIDTH = 160

#: Columns below which tables have medians only.
WIDE = 120


def run(choices: argparse.Namespace) -> int:
    """Measure what the options ask for, and show it; the exit status."""
    options.complete(choices)
    rows: list[Row] = []
    step_row = None
    status = 0
    with threads(choices.threads), ExitStack() as sessions:
        peers, peer_threads = _enter(sessions, choices.peers)
        modules = dict.fromkeys(module for peer in peers for module in peer.modules)
        circumstances = record.Circumstances.here(
            shlex.join(["python", "-m", "fastreg", *choices.arguments]),
            choices.repeats,
            peer_threads,
            [module for module in modules if module != "numpy"],
        )
        try:
            _measure_all(choices, peers, rows)
            step_row = step.measure(choices.repeats) if choices.step else None
        except KeyboardInterrupt:
            note("interrupted: this is what was measured until then")
            status = 130
        except MemoryError:
            note("out of memory: this is what was measured until then; choose smaller --sizes")
            status = 1

    if not rows:
        note("nothing was measured")
        return status or 1
    writers: dict[str, Callable[[Path], object]] = {
        "json": lambda path: record.write_json(path, circumstances, rows, step_row),
        "csv": lambda path: record.write_csv(path, rows),
        "plot": lambda path: _draw(path, circumstances, rows),
    }
    written = write_files(choices, writers)  # first: the screen may be a pipe whose reader has gone
    show_table(lambda detail: table(circumstances, rows, detail))
    lines = summary(rows)
    if differing := circumstances.differing_threads():
        counts = ", ".join(f"{name}: {count}" for name, count in differing.items())
        lines.append(f"threads, where not those of fastreg: {counts}")
    show("\n".join(lines))
    if step_row is not None:
        show(step_line(step_row))
    return status if written else status or 1


def write_files(
    choices: argparse.Namespace, writers: Mapping[str, Callable[[Path], object]]
) -> bool:
    """Write the files that were asked for; say whether each could be.

    One that cannot be written is noted, and the others are written all the same.
    """
    written = True
    for name, write in writers.items():
        path: Path | None = getattr(choices, name)
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            note(f"--{name}: {error}")
            written = False
    return written


def _draw(path: Path, circumstances: record.Circumstances, rows: Sequence[Row]) -> None:
    from fastreg.bench import plot

    plot.save(path, circumstances, rows)


def _enter(sessions: ExitStack, names: Sequence[str]) -> tuple[list[Peer], dict[str, int]]:
    """Start the peers; one whose framework does not start is noted and left out."""
    peers, counts = [], {}
    for name in names:
        peer = PEERS[name]
        try:
            counts[name] = sessions.enter_context(peer.session(fastreg.get_num_threads()))
        except Exception as error:  # whatever a broken installation raises
            note(f"{name} is left out: {type(error).__name__}: {error}")
        else:
            peers.append(peer)
    return peers, counts


def _measure_all(choices: argparse.Namespace, peers: Sequence[Peer], rows: list[Row]) -> None:
    chosen = cases(choices.sizes, choices.models, choices.dtypes, choices.terms, choices.outputs)
    with progress_bar() as progress:
        task = progress.add_task("starting", total=len(chosen))
        for workload in workloads(chosen):
            progress.update(task, description=f"{workload.case!s:40}")
            rows.append(measure(workload, peers, choices.repeats))
            progress.advance(task)
            del workload  # its arrays go before the next ones come


def progress_bar() -> Progress:
    """A bar on standard error that leaves nothing behind."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def show(text: str) -> None:
    """Print lines to standard output; a terminal gets them folded between words, a file as is."""
    _print(Console(highlight=False), text)


def show_table(make: Callable[[Detail], Table]) -> None:
    """Print a table to standard output, as detailed as there is room for.

    A number is never cut: where not even medians fit, the lines are longer than the screen is wide.
    """
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=FILE_WIDTH)
    for detail in sorted(Detail, reverse=True) if console.width >= WIDE else [Detail.MEDIANS]:
        found = make(detail)
        if (needed := _width_of(found, console)) <= console.width:
            break
    Console(highlight=False, width=max(console.width, needed)).print(found, markup=False)


def _width_of(table: Table, console: Console) -> int:
    """Return the columns of the screen that a table needs where nothing in it is cut."""
    return table.__rich_measure__(console, console.options.update(width=10_000)).maximum


def note(text: str) -> None:
    """Print a line to standard error, as :func:`show` does."""
    _print(Console(stderr=True, highlight=False), text)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let fastreg use so many threads for a while."""
    before = fastreg.get_num_threads()
    if count is not None:
        fastreg.set_num_threads(count)
    try:
        yield
    finally:
        fastreg.set_num_threads(before)
