"""``python -m fastreg bench`` on a GPU: every case against copies, torch, Triton, CuPy and JAX.

    python tests/gpu/benchmark.py --help

Contract
--------
- Cases, peers, checks, rows, record and table are those of ``fastreg.bench``.  What differs is
  where arrays lie (``gpu_peers``), what times calls (``Device``), and that the time decides how
  much is measured.
- Three stages, each a run of its own: the headline (both terms, f32 and bf16, whole models, a
  training step, the cost of a call), the other cells, and the headline's cells under
  torch.compile, which takes longest.  All write into one file, a stage into its own entry.
- Within a stage cells come in order of weight until the time is used up; those left are named.
- Time of the host per call is measured apart, without waiting for the device.
- Without a GPU (``--device cpu``) the same code runs in host memory; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import check_summary
import gpu_peers

from fastreg.bench import options, record
from fastreg.bench.cases import DTYPES, OUTPUTS, TERMS, Case
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.frameworks import base, with_torch
from fastreg.bench.frameworks.sizes import SIZES as STEPS
from fastreg.bench.measure import Call, InTurns, Timer, batch_time, interleave
from fastreg.bench.row import OWN, Row, in_short
from fastreg.bench.run import measure
from fastreg.bench.shapes import MODELS
from fastreg.bench.table import Detail, duration, ratio, table

#: In order of weight: from DRAM, where a launch is all, between; then the largest.
SIZES = (2**26, 2**12, 2**20, 2**28, 2**16, 2**24)
HEADLINE_SIZES = (2**26, 2**24, 2**28, 2**20)
HEADLINE_DTYPES = ("f32", "bf16")


class Stage(NamedTuple):
    """What a stage measures."""

    headline: bool  # the cells of the headline, or the others
    peers: tuple[str, ...]
    models: bool  # lists of tensors, steps and the cost of a call as well


STAGES = {
    "headline": Stage(True, ("torch", "torch-foreach", "triton", "cupy", "jax"), True),
    "cells": Stage(False, ("torch", "triton", "cupy"), False),
    "compiled": Stage(True, ("torch-compile",), False),
}
#: Without a stage: all cells against all peers.
EVERYTHING = "all"

#: A peer that has failed in so many cases is not tried again.
MOST_FAILURES = 3
#: Calls of which the host's time is taken together.
CALLS = 100


class Device:
    """What times calls on a device, until when it may go on."""

    def __init__(self, name: str, seconds: float, repeats: int) -> None:
        import torch

        self.torch, self.repeats = torch, repeats
        self.end = time.monotonic() + seconds
        self.on_gpu = name == "cuda"
        self.place = torch.device(name)
        if self.on_gpu:
            l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 2**26)
            flush_bytes = min(max(2**30, 4 * l2), self.free_bytes() // 16)
            self.flushed = torch.ones(flush_bytes // 4, dtype=torch.int32, device="cuda")
            self.sink = torch.empty((), dtype=torch.int64, device="cuda")

    def has_time(self, needed: float = 0.0) -> bool:
        return time.monotonic() + needed < self.end

    def free_bytes(self) -> int:
        if self.on_gpu:
            self.torch.cuda.empty_cache()
            return int(self.torch.cuda.mem_get_info()[0])
        return 2**28

    def wait(self) -> None:
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def flush(self) -> None:
        """Read more memory than the second-level cache holds.

        That empties it, and keeps the device busy while the host queues the call, so that events
        around the call time the device alone.
        """
        if self.on_gpu:
            self.torch.sum(self.flushed, 0, out=self.sink)

    def device_time(self, name: str, call: Call) -> float | Callable[[], float]:
        """Time a call by events, or by the host's clock, which includes a launch and a wait."""
        self.flush()
        if not self.on_gpu or name in gpu_peers.HOST_CLOCK:
            self.wait()
            return self.until_done(name, call)
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()

        def seconds() -> float:
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1e3

        return seconds

    def until_done(self, name: str, call: Call) -> float:
        """Time a call and a wait for the device."""
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def host_time(self, name: str, call: Call) -> float:
        """Time the host per call, while the device keeps up: many calls, one wait."""
        self.wait()
        calls = CALLS if self.on_gpu else 5
        return batch_time(call, calls) / calls

    def in_turns(self, timer: Timer) -> InTurns:
        """Return what times variants in turns, once they are warm, while there is time."""

        def run(calls: Mapping[str, Call], repeats: int, _: object) -> dict[str, list[float]]:
            for call in (*calls.values(), *calls.values()):
                call()
            self.wait()
            return interleave(calls, repeats, (), timer, self.is_enough)

        return run

    def is_enough(self, turns: int) -> bool:
        return turns >= 5 and not self.has_time()


def cells(
    sizes: Sequence[int], dtypes: Sequence[str], terms: Sequence[str], outputs: Sequence[str]
) -> Iterator[Case]:
    """Yield every cell at every size; first those of both terms at all sizes."""
    both, single = ([t for t in terms if (t == "L1L2") == wanted] for wanted in (True, False))
    for group in (both, single):
        for size, dtype, term, output in itertools.product(sizes, dtypes, group, outputs):
            yield Case(dtype, term, output, size)


def cases_of(choices: argparse.Namespace) -> list[Case]:
    """Return a stage's cells, in order of weight."""
    every = list(cells(choices.sizes, choices.dtypes, choices.terms, choices.outputs))
    if choices.stage == EVERYTHING:
        return every
    sizes = [size for size in HEADLINE_SIZES if size in choices.sizes] or choices.sizes
    headline = [
        case
        for case in cells(sizes, HEADLINE_DTYPES, ["L1L2"], choices.outputs)
        if case.dtype in choices.dtypes
    ]
    if STAGES[choices.stage].headline:
        return headline
    return [case for case in every if case not in set(headline)] or headline


def lists_of(device: str) -> list[Case]:
    """Return whole models and other lists of tensors."""
    names = ("gpt2", "400 mixed tensors", "3,000 small tensors")
    every = MODELS | gpu_peers.LISTS
    sizes = {
        name: sum(math.prod(shape) for shape in every[name].values())
        for name in (names if device == "cuda" else ("12 small tensors",))
    }
    return [
        Case(dtype, "L1L2", "value+add", size, name)
        for name, size in sizes.items()
        for dtype in HEADLINE_DTYPES
    ]


def needed_bytes(case: Case) -> int:
    """Return what a case takes at most: arrays, those of peers, and what torch makes by hand."""
    return 9 * case.size * max(DTYPES[case.dtype], 4)


class Run:
    """A stage: what it has measured, which is written after each part."""

    def __init__(self, choices: argparse.Namespace) -> None:
        self.choices = choices
        self.device = Device(choices.device, choices.seconds, choices.repeats)
        self.stage = STAGES.get(choices.stage, Stage(True, tuple(gpu_peers.PEERS), True))
        wanted = [name for name in choices.peers if name in self.stage.peers]
        self.peers, absent = gpu_peers.usable(wanted, self.device.on_gpu)
        on_gpu = self.device.on_gpu
        name = self.device.torch.cuda.get_device_name() if on_gpu else "host memory"
        command = shlex.join(["python", "tests/gpu/benchmark.py", *choices.arguments])
        modules = {m: None for peer in self.peers for m in gpu_peers.PEERS[peer].modules}
        here = Circumstances.here(command, choices.repeats, {}, list({"torch": None} | modules))
        self.result: dict[str, Any] = {
            **record.as_json(dataclasses.replace(here, gpus=[name] if on_gpu else []), ()),
            "stage": choices.stage,
            "device": choices.device,
            "device_name": name,
            "means_something": on_gpu,
            "peers": self.peers,
            "peers_not_run": absent,
            "not_run": [],
            "launches": [],
            "many_tensors": [],
            "steps": [],
            "failures": [],
        }

    def all(self) -> dict[str, Any]:
        """Measure what there is time for, and return the result."""
        todo = cases_of(self.choices)
        # The cost of a call, and whole models, come after the first size, so that both have time.
        first = [case for case in todo if case.size == todo[0].size and case.terms == "L1L2"]
        self.cells(first)
        if self.stage.models:
            self.models()
        self.cells([case for case in todo if case not in set(first)])
        self.write()
        return self.result

    def cells(self, cases: Sequence[Case]) -> None:
        rows = self.result["rows"]
        for case in cases:
            if not self.device.has_time(1.0):
                self.result["not_run"].append({"case": str(case), "reason": "the time was used up"})
                continue
            if needed_bytes(case) > self.device.free_bytes():
                self.result["not_run"].append(
                    {"case": str(case), "reason": "memory does not suffice"}
                )
                continue
            failed = [name for row in rows for name in row["blanks"]]
            usable = [name for name in self.peers if failed.count(name) < MOST_FAILURES]
            row = self.case("rows", case, usable, self.device.device_time)
            if row is not None and not self.choices.quiet:
                print(line(row), flush=True)
            if len(rows) % 5 == 4:
                self.write()

    def models(self) -> None:
        """Measure lists of tensors, a training step and the cost of a call."""
        device = self.device
        over_lists = [name for name in ("torch-foreach", "torch") if name in gpu_peers.PEERS]
        for case in lists_of(self.choices.device):
            self.case("many_tensors", case, over_lists, device.until_done)
        sizes = STEPS["full" if device.on_gpu else "tiny"]
        if device.on_gpu:
            sizes = dataclasses.replace(sizes, torch_layers=8, torch_width=2048, batch=512)

        def step() -> Row:
            with device.torch.enable_grad():
                setting = with_torch.step(device.torch, sizes, self.choices.device)
                return base.measure(setting, device.repeats, device.in_turns(device.device_time))

        self.guarded("steps", "a training step", step)
        self.write()
        for outputs in OUTPUTS:
            # JAX waits for its result: its cost here is that of a launch and a wait.
            self.case("launches", Case("f32", "L1L2", outputs, 4096), self.peers, device.host_time)
        self.write()

    def case(self, part: str, case: Case, peers: Sequence[str], timer: Timer) -> Row | None:
        def row() -> Row:
            device = self.device
            (workload,) = gpu_peers.workloads(device.torch, [case], device.place)
            return measure(
                workload,
                [gpu_peers.PEERS[name] for name in peers],
                device.repeats,
                gpu_peers.OnDevice(),
                gpu_peers.floors(case),
                device.in_turns(timer),
            )

        return self.guarded(part, str(case), row)

    def guarded(self, part: str, what: str, make: Callable[[], Row]) -> Row | None:
        """Add a row to a part of the result; a failure is kept, and the next row comes."""
        try:
            row = make()
        except Exception as error:
            self.result["failures"].append(f"{what}: {in_short(error)}")
            return None
        self.result[part].append(record.row_as_json(row))
        return row

    def write(self) -> None:
        if self.choices.json is not None:
            record.write_stage(self.choices.json, self.choices.stage, self.result)


def line(row: Row) -> str:
    """Return what fastreg shows in a row, as one line."""
    ratios = (f"{name} x{ratio(row.times_fastreg(name), narrow=True)}" for name in row.compared)
    figures = (
        f"{row.what}: {duration(row.seconds(OWN), narrow=True)}",
        f"{row.gb_per_s(OWN):.0f} GB/s",
        f"{row.share_of_copy(OWN).median:.0%} of copy",
        f"{row.share_of_floor(OWN).median:.0%} of {row.floor}",
    )
    return ", ".join([*figures, *ratios])


def failures(result: dict[str, Any]) -> list[str]:
    """Return what has failed: parts, and variants of rows."""
    rows = [row for part in ("rows", "many_tensors", "steps", "launches") for row in result[part]]
    blanks = {f"{name}: {why}" for row in rows for name, why in row["blanks"].items()}
    return [*result["failures"], *sorted(blanks)]


def show(result: dict[str, Any]) -> None:
    """Print all rows: with rich a table, without it aligned text."""
    run = record.from_json(result)
    if run.rows:
        make = partial(table, run.circumstances, sorted(run.rows, key=_order))
        if importlib.util.find_spec("rich") is not None:
            from fastreg.bench.screen import show_table

            show_table(make)
        else:
            print(make(Detail.ALL).plain())
    if result["means_something"]:
        print(f"on {result['device_name']}")
    else:
        print("in host memory: these figures say nothing about a GPU")
    for told in check_summary.others(result):
        print(told)
    for name, reason in result["peers_not_run"].items():
        print(f"{name} was not run: {reason}")
    reasons = [entry["reason"] for entry in result["not_run"]]
    for why in sorted(set(reasons)):
        print(f"{reasons.count(why)} cases were not run: {why}")
    for failure in failures(result):
        print(f"FAILED: {failure}")


def _order(row: Row) -> tuple[int, ...]:
    case = row.case
    places = ((DTYPES, case.dtype), (TERMS, case.terms), (OUTPUTS, case.outputs))
    return (case.size, *(list(known).index(name) for known, name in places))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Benchmark every cell on a GPU; the time decides how many.",
        epilog="Exit status: 0, or 1 when a part failed.",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--stage",
        choices=(*STAGES, EVERYTHING),
        default=EVERYTHING,
        help="the headline's cells and whole models, the other cells, or the headline's cells "
        "under torch.compile; default: all cells against all peers",
    )
    parser.add_argument("--seconds", type=float, default=200.0, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=15, help="turns; default: %(default)s")
    parser.add_argument(
        "--sizes", type=options.sizes, default=list(SIZES), help="elements, as 4096,1e6"
    )
    for name, known in (
        ("dtypes", list(DTYPES)),
        ("terms", list(TERMS)),
        ("outputs", list(OUTPUTS)),
        ("peers", list(gpu_peers.PEERS)),
    ):
        parser.add_argument(
            f"--{name}", type=options.names(known), default=known, help=f"of {','.join(known)}"
        )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--quiet", action="store_true", help="no line for each row")
    choices = parser.parse_args(arguments)
    choices.arguments = list(sys.argv[1:] if arguments is None else arguments)
    return choices


def main(arguments: Sequence[str] | None = None) -> int:
    choices = parsed(arguments)
    # JAX would otherwise take three quarters of the device for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if importlib.util.find_spec("torch") is None:
        print("the benchmark needs torch, which is not installed", file=sys.stderr)
        return 2
    import torch

    if choices.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device (--device cpu checks the benchmark)", file=sys.stderr)
        return 2
    result = Run(choices).all()
    show(result)
    return 1 if failures(result) or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
