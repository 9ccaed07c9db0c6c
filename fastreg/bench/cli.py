"""The runs of ``python -m fastreg bench`` and of its commands: measuring, then table and files.

Contract: thread counts are put back afterwards. A run that is interrupted or out of memory shows
and writes the rows that it has finished, and ends with status 130 or 1; one whose files could not
all be written, or of which a framework's process has failed, with 1.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import fastreg
from fastreg.bench import commits, compare, options, record, step
from fastreg.bench import table as tables
from fastreg.bench.cases import cases
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.frameworks import base
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.worker import rows_of
from fastreg.bench.peers import PEERS, Peer
from fastreg.bench.row import Row
from fastreg.bench.run import measure
from fastreg.bench.screen import note, progress_bar, show, show_table
from fastreg.bench.workloads import workloads

Writers = Mapping[str, Callable[[Path], object]]


def run(choices: argparse.Namespace) -> int:
    """Measure the cases that the options ask for, and show them; the exit status."""
    options.complete(choices)
    rows: list[Row] = []
    training = None
    status = 0
    with threads(choices.threads), ExitStack() as sessions:
        peers, peer_threads = _enter(sessions, choices.peers)
        modules = dict.fromkeys(module for peer in peers for module in peer.modules)
        circumstances = _circumstances(choices, list(modules), peer_threads)
        try:
            _measure_all(choices, peers, rows)
            if choices.step:
                training = base.measure(step.setting(), choices.repeats)
        except KeyboardInterrupt:
            note("interrupted: this is what was measured until then")
            status = 130
        except MemoryError:
            note("out of memory: this is what was measured until then; choose smaller --sizes")
            status = 1
    writers = {
        "json": lambda path: record.write_json(path, circumstances, rows, training),
        "csv": lambda path: record.write_csv(path, rows),
        "plot": lambda path: _draw(path, circumstances, rows),
    }
    lines = tables.summary(rows)
    if differing := circumstances.differing_threads():
        counts = ", ".join(f"{name}: {count}" for name, count in differing.items())
        lines.append(f"threads, where not those of fastreg: {counts}")
    if training is not None:
        lines.append(tables.step_line(training))
    return _finish(choices, circumstances, rows, writers, lines, status)


def run_frameworks(choices: argparse.Namespace) -> int:
    """Measure the frameworks that the options ask for, and show them; the exit status."""
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
                note(f"{row.work}: done")
                rows.append(row)
        except RuntimeError as error:
            note(f"{name} is left out: {error}")
            status = 1
        except KeyboardInterrupt:
            note("interrupted: this is what was measured until then")
            status = 130
            break
    modules = dict.fromkeys(module for name in measured for module in FRAMEWORKS[name].modules)
    circumstances = _circumstances(choices, list(modules), {})
    writers = {
        "json": lambda path: record.write_json(path, circumstances, rows),
        "csv": lambda path: record.write_csv(path, rows, record.WORK_COLUMNS),
    }
    return _finish(choices, circumstances, rows, writers, tables.comparisons(rows), status)


def run_compare(choices: argparse.Namespace) -> int:
    """Compare two records or two commits, and show that; the exit status."""
    before, after = choices.before, choices.after
    if options.is_record(before):
        found, notes = compare.records(Path(before), Path(after))
    else:
        options.complete(choices)
        found, notes = commits.compare(choices)
    written = write_files(
        choices, {"json": lambda path: compare.write_json(path, before, after, found)}
    )
    show_table(partial(tables.comparison, before, after, found))
    show("\n".join([*compare.summary(found), *notes]))
    return 0 if written else 1


def _circumstances(
    choices: argparse.Namespace, modules: Sequence[str], peer_threads: Mapping[str, int]
) -> Circumstances:
    command = shlex.join(["python", "-m", "fastreg", *choices.arguments])
    others = [module for module in modules if module != "numpy"]
    return Circumstances.here(command, choices.repeats, peer_threads, others)


def _finish(
    choices: argparse.Namespace,
    circumstances: Circumstances,
    rows: Sequence[Row],
    writers: Writers,
    lines: Sequence[str],
    status: int,
) -> int:
    """Write and show what was measured; the exit status."""
    if not rows:
        note("nothing was measured")
        return status or 1
    written = write_files(choices, writers)  # first: the screen may be a pipe whose reader has gone
    show_table(partial(tables.table, circumstances, rows))
    if lines:
        show("\n".join(lines))
    return status if written else status or 1


def write_files(choices: argparse.Namespace, writers: Writers) -> bool:
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


def _draw(path: Path, circumstances: Circumstances, rows: Sequence[Row]) -> None:
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
