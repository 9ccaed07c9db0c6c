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
from dataclasses import replace
from functools import partial
from pathlib import Path

import fastreg
from fastreg.bench import commits, compare, headline, options, page, record, step
from fastreg.bench import table as tables
from fastreg.bench.cases import cases
from fastreg.bench.circumstances import Circumstances, Watch
from fastreg.bench.frameworks import base
from fastreg.bench.frameworks.known import FRAMEWORKS
from fastreg.bench.frameworks.worker import rows_of
from fastreg.bench.peers import FLOORS, PEERS, Peer, TorchFloor, under_policies
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
    watch = Watch()
    with threads(choices.threads), ExitStack() as sessions:
        peers, peer_threads = _enter(sessions, [PEERS[name] for name in choices.peers])
        own, forced = sessions.enter_context(under_policies(choices.policies or ()))
        floors: list[Peer] = list(FLOORS)
        with_torch = "torch" in (*choices.memory, *choices.runs_before)
        if with_torch or any("torch" in peer.modules for peer in peers):
            others, counts = _enter(sessions, [TorchFloor()])
            floors += others
            peer_threads |= counts
        modules = dict.fromkeys(module for one in (*floors, *peers) for module in one.modules)
        circumstances = _circumstances(choices, list(modules), peer_threads)
        try:
            _measure_all(choices, own, floors, [*forced, *peers], rows)
            if choices.step:
                training = base.measure(step.setting(), choices.repeats)
        except KeyboardInterrupt:
            note("interrupted: this is what was measured until then")
            status = 130
        except MemoryError:
            note("out of memory: this is what was measured until then; choose smaller --sizes")
            status = 1
    circumstances = replace(circumstances, others=watch.others())
    writers = {
        "json": lambda path: record.write_json(path, circumstances, rows, training),
        "csv": lambda path: record.write_csv(path, rows),
        "plot": lambda path: _draw(path, circumstances, rows),
    }
    lines = tables.summary(rows)
    if differing := circumstances.differing_threads():
        listed = ", ".join(f"{name}: {count}" for name, count in differing.items())
        lines.append(f"threads, where not those of fastreg: {listed}")
    lines += circumstances.doubts(rows)
    if training is not None:
        lines.append(tables.step_line(training))
    return _finish(choices, circumstances, rows, writers, lines, status)


def run_frameworks(choices: argparse.Namespace) -> int:
    """Measure the frameworks that the options ask for, and show them; the exit status."""
    rows: list[Row] = []
    status = 0
    watch = Watch()
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
    circumstances = replace(_circumstances(choices, list(modules), {}), others=watch.others())
    lines = [*tables.comparisons(rows), *circumstances.doubts(rows)]
    writers = {
        "json": lambda path: record.write_json(path, circumstances, rows),
        "csv": lambda path: record.write_csv(path, rows, record.WORK_COLUMNS),
    }
    return _finish(choices, circumstances, rows, writers, lines, status)


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


def run_record(choices: argparse.Namespace) -> int:
    """Record the headline cells of this machine, stage by stage; the exit status."""
    status = 0
    for name in choices.stages or headline.STAGES:
        note(f"{name}: {headline.STAGES[name].summary}")
        try:
            document = headline.measure(name, choices.repeats, fastreg.get_num_threads())
        except RuntimeError as error:
            note(f"{name} is left out: {error}")
            status = 1
        else:
            record.write_stage(choices.out, name, document)
    if not choices.out.exists():
        return 1
    show("\n".join([str(choices.out), *page.shortfalls(choices.out)]))
    return status


def run_page(choices: argparse.Namespace) -> int:
    """Write the tables of the pages from all records, or see whether they are; the exit status."""
    changed = page.regenerate(write=not choices.check)
    for path in changed:
        note(f"{path}: {'is not what the records give' if choices.check else 'written'}")
    return 1 if choices.check and changed else 0


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


def _enter(sessions: ExitStack, chosen: Sequence[Peer]) -> tuple[list[Peer], dict[str, int]]:
    """Start the peers; one whose framework does not start is noted and left out."""
    peers, counts = [], {}
    for peer in chosen:
        try:
            counts[peer.name] = sessions.enter_context(peer.session(fastreg.get_num_threads()))
        except Exception as error:  # whatever a broken installation raises
            note(f"{peer.name} is left out: {type(error).__name__}: {error}")
        else:
            peers.append(peer)
    return peers, counts


def _measure_all(
    choices: argparse.Namespace,
    own: Peer,
    floors: Sequence[Peer],
    peers: Sequence[Peer],
    rows: list[Row],
) -> None:
    chosen = cases(
        *(choices.sizes, choices.models, choices.dtypes, choices.terms, choices.outputs),
        *(choices.memory, choices.runs_before),
    )
    with progress_bar() as progress:
        task = progress.add_task("starting", total=len(chosen))
        for workload in workloads(chosen):
            progress.update(task, description=f"{workload.case!s:40}")
            rows.append(measure(workload, peers, choices.repeats, own, floors))
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
