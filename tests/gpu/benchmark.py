"""Every cell on a GPU against a copy, torch, torch.compile, Triton, CuPy and JAX.

    python tests/gpu/benchmark.py --help

Contract
--------
- Three stages, each a run of its own: the headline (both terms, f32 and bf16, whole models, a
  training step, the cost of a call), the other cells, and the headline's cells under
  torch.compile, which takes longest.  All write into one file, a stage into its own entry.
- Within a stage cells come in order of weight until the time is used up; those left are named.
- The variants of a case take turns, in an order drawn anew.  Each sample begins with a read of more
  memory than the second-level cache holds: that empties it, and keeps the device busy while the
  host queues the call, so that events around the call time the device alone.  JAX, whose streams
  are its own, is timed by the host's clock, which includes a launch and a wait.
- Every figure that compares is a median of ratios taken turn by turn within this run.
- Time of the host per call is measured apart, without waiting for the device.
- Without a GPU (``--device cpu``) the same code runs in host memory; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import gpu_peers

import fastreg
from fastreg.bench.cases import DTYPES, L1_STRENGTH, L2_STRENGTH, OUTPUTS, TERMS, Case
from fastreg.bench.spread import Spread
from fastreg.regularizers import L1L2

SCHEMA = 2

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
    "headline": Stage(True, ("torch", "foreach", "triton", "cupy", "jax"), True),
    "cells": Stage(False, ("torch", "triton", "cupy"), False),
    "compiled": Stage(True, ("torch.compile",), False),
}
#: Without a stage: all cells against all peers.
EVERYTHING = "all"

#: A peer that has failed in so many cases is not tried again.
MOST_FAILURES = 3


class DeviceClock:
    """Seconds between two events on torch's current stream, read when a turn is over."""

    def __init__(self, torch: Any, flush_bytes: int) -> None:
        self.torch = torch
        self.flushed = torch.ones(flush_bytes // 4, dtype=torch.int32, device="cuda")
        self.sink = torch.empty((), dtype=torch.int64, device="cuda")
        self.pending: list[tuple[str, Any, Any]] = []

    def flush(self) -> None:
        self.torch.sum(self.flushed, 0, out=self.sink)

    def sample(self, name: str, call: Callable[[], object]) -> None:
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush()
        begin.record()
        call()
        end.record()
        self.pending.append((name, begin, end))

    def wait(self) -> None:
        self.torch.cuda.synchronize()

    def read(self) -> dict[str, float]:
        self.wait()
        seconds = {name: begin.elapsed_time(end) / 1e3 for name, begin, end in self.pending}
        self.pending.clear()
        return seconds


class HostClock:
    """Seconds of the host, for what is done when a call returns."""

    def __init__(self, before: Callable[[], object] = lambda: None) -> None:
        self.before = before
        self.taken: dict[str, float] = {}

    def sample(self, name: str, call: Callable[[], object]) -> None:
        self.before()
        start = time.perf_counter()
        call()
        self.taken[name] = time.perf_counter() - start

    def wait(self) -> None:
        pass

    def read(self) -> dict[str, float]:
        taken, self.taken = self.taken, {}
        return taken


class Bench:
    """A run: its device, clocks, and until when it may go on."""

    def __init__(self, device: str, seconds: float, repeats: int) -> None:
        import torch

        self.torch, self.device, self.repeats = torch, device, repeats
        self.end = time.monotonic() + seconds
        self.on_gpu = device == "cuda"
        self.place = torch.device(device)
        self.shuffle = Random(20260101).shuffle
        self.clock: Any
        if self.on_gpu:
            properties = torch.cuda.get_device_properties(0)
            l2 = getattr(properties, "L2_cache_size", 2**26)
            free, _ = torch.cuda.mem_get_info()
            device_clock = DeviceClock(torch, min(max(2**30, 4 * l2), free // 16) // 4 * 4)

            def flush_and_wait() -> None:
                device_clock.flush()
                device_clock.wait()

            self.clock, self.host_clock = device_clock, HostClock(flush_and_wait)
        else:
            self.clock, self.host_clock = HostClock(), HostClock()

    def has_time(self, needed: float = 0.0) -> bool:
        return time.monotonic() + needed < self.end

    def turns(self, variants: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        """Time variants in turns, after calls that warm them up."""
        samples: dict[str, list[float]] = {name: [] for name in variants}
        for call in variants.values():
            call()
            call()
        self.clock.wait()
        order = list(variants)
        gc.disable()
        try:
            for _ in range(self.repeats):
                self.shuffle(order)
                for name in order:
                    clock = self.host_clock if name in gpu_peers.HOST_CLOCK else self.clock
                    clock.sample(name, variants[name])
                for name, taken in (self.clock.read() | self.host_clock.read()).items():
                    samples[name].append(taken)
                if not self.has_time() and len(samples[order[0]]) >= 5:
                    break
        finally:
            gc.enable()
        return samples

    def free_bytes(self) -> int:
        if self.on_gpu:
            self.torch.cuda.empty_cache()
            return int(self.torch.cuda.mem_get_info()[0])
        return 2**28


# --------------------------------------------------------------------------------- one tensor


def cells(
    sizes: Sequence[int], dtypes: Sequence[str], terms: Sequence[str], outputs: Sequence[str]
) -> Iterator[Case]:
    """Give every cell at every size; first those of both terms at all sizes."""
    both, single = ([t for t in terms if (t == "L1L2") == wanted] for wanted in (True, False))
    for group in (both, single):
        for size, dtype, term, output in itertools.product(sizes, dtypes, group, outputs):
            yield Case(dtype, term, output, size)


def variants_of(
    workload: gpu_peers.Workload, peers: Sequence[str], failures: dict[str, str]
) -> dict[str, Callable[[], object]]:
    """Make fastreg, the copy, the cell's floor, and the peers that do it."""
    variants: dict[str, Callable[[], object]] = {"fastreg": gpu_peers.fastreg_variant(workload)}
    for floor in dict.fromkeys(("copy", workload.case.floor)):
        variants[floor] = gpu_peers.floor_variant(workload, floor)
    for name in peers:
        try:
            variant = gpu_peers.PEERS[name](workload)
            if variant is not None:
                variant()
                variants[name] = variant
        except Exception as error:  # a peer's failure is a line in the result, not the end of it
            failures[name] = f"{type(error).__name__}: {str(error)[:300]}"
    return variants


def measure(bench: Bench, case: Case, peers: Sequence[str]) -> dict[str, Any]:
    """Give one row: seconds of each variant, and ratios taken turn by turn."""
    workload = gpu_peers.Workload(bench.torch, case, bench.place)
    failures: dict[str, str] = {}
    variants = variants_of(workload, peers, failures)
    samples = bench.turns(variants)
    own = samples["fastreg"]
    copied = 2 * case.size * DTYPES[case.dtype]
    # The copy's bytes differ from the cell's: shares compare bytes per second.
    share_of_copy = Spread.of_ratio(
        [seconds * case.bytes / copied for seconds in samples["copy"]], own
    )
    return {
        **asdict(case),
        "bytes": case.bytes,
        "floor": case.floor,
        "samples": len(own),
        "seconds": {name: asdict(Spread.quartiles(taken)) for name, taken in samples.items()},
        "gb_per_s": case.bytes / Spread.quartiles(own).median / 1e9,
        "copy_gb_per_s": copied / Spread.quartiles(samples["copy"]).median / 1e9,
        "share_of_copy": asdict(share_of_copy),
        "share_of_floor": asdict(Spread.of_ratio(samples[case.floor], own)),
        "ratio_to_peer": {
            name: asdict(Spread.of_ratio(samples[name], own)) for name in peers if name in samples
        },
        "failures": failures,
    }


def needed_bytes(case: Case) -> int:
    """Give what a case takes at most: arrays, those of peers, and what torch makes by hand."""
    return 9 * case.size * max(DTYPES[case.dtype], 4)


# ---------------------------------------------------------------------------- cost of a call


def launch_costs(bench: Bench, peers: Sequence[str], size: int = 4096) -> list[dict[str, Any]]:
    """Give the host's seconds per call, while the device keeps up: many calls, one wait."""
    rows = []
    for outputs in OUTPUTS:
        workload = gpu_peers.Workload(bench.torch, Case("f32", "L1L2", outputs, size), bench.place)
        failures: dict[str, str] = {}
        # JAX's variant waits for its result: its cost here is that of a launch and a wait.
        variants = variants_of(workload, peers, failures)
        samples: dict[str, list[float]] = {name: [] for name in variants}
        order = list(variants)
        for _ in range(bench.repeats):
            bench.shuffle(order)
            for name in order:
                call, calls = variants[name], 100 if bench.on_gpu else 5
                call()
                bench.clock.wait()
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                samples[name].append((time.perf_counter() - start) / calls)
                bench.clock.wait()
        rows.append(
            {
                "outputs": outputs,
                "elements": size,
                "host_seconds_per_call": {
                    name: asdict(Spread.quartiles(taken)) for name, taken in samples.items()
                },
                "failures": failures,
            }
        )
    return rows


# ------------------------------------------------------------------------------ many tensors


def many_tensors(
    bench: Bench, name: str, shapes: Sequence[tuple[int, ...]], dtype: str
) -> dict[str, Any]:
    """Time value and addition over a whole list: fastreg, torch over lists, torch in a loop."""
    torch = bench.torch
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    weights = [torch.randn(s, device=bench.place).mul_(0.05).to(kind) for s in shapes]
    grads = [torch.zeros_like(w) for w in weights]
    penalties = fastreg.attach(weights, L1L2(L1_STRENGTH, L2_STRENGTH))
    strengths = (L1_STRENGTH, L2_STRENGTH)
    elements = sum(math.prod(shape) for shape in shapes)
    one_weight = torch.randn(elements, device=bench.place).mul_(0.05).to(kind)
    one_grad = torch.zeros_like(one_weight)
    rule = L1L2(L1_STRENGTH, L2_STRENGTH)
    variants = {
        "fastreg": lambda: penalties.accumulate(grads),
        "one tensor": lambda: rule.accumulate(one_weight, one_grad),
        "torch lists": gpu_peers.foreach_variant(torch, weights, grads, *strengths),
        "torch loop": gpu_peers.loop_variant(torch, weights, grads, *strengths),
        "add": lambda: torch._foreach_add_(grads, weights),
    }
    wall: dict[str, list[float]] = {key: [] for key in variants}
    for call in variants.values():
        call()
    bench.clock.wait()
    order = list(variants)
    for _ in range(bench.repeats):
        bench.shuffle(order)
        for key in order:
            start = time.perf_counter()
            variants[key]()
            bench.clock.wait()
            wall[key].append(time.perf_counter() - start)
        if not bench.has_time() and len(wall["fastreg"]) >= 3:
            break
    moved = 3 * elements * DTYPES[dtype]
    return {
        "model": name,
        "dtype": dtype,
        "tensors": len(shapes),
        "elements": elements,
        "bytes": moved,
        "wall_seconds": {key: asdict(Spread.quartiles(taken)) for key, taken in wall.items()},
        "gb_per_s": moved / Spread.quartiles(wall["fastreg"]).median / 1e9,
        "ratio_to_peer": {
            key: asdict(Spread.of_ratio(wall[key], wall["fastreg"])) for key in list(variants)[1:]
        },
    }


# ---------------------------------------------------------------------------- a training step


def training_step(bench: Bench) -> dict[str, Any]:
    """Time a step of a small network without a penalty, with it, and with it written by hand."""
    torch = bench.torch
    width, depth, batch = (2048, 8, 512) if bench.on_gpu else (64, 2, 8)
    layers = [torch.nn.Linear(width, width) for _ in range(depth)]
    model = torch.nn.Sequential(*layers).to(bench.place)
    weights = [layer.weight for layer in layers]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, foreach=True)
    x = torch.randn(batch, width, device=bench.place)
    penalties = fastreg.attach(weights, L1L2(L1_STRENGTH, L2_STRENGTH))

    def step(add: Callable[[], object], extra: Callable[[], Any] | None = None) -> None:
        optimizer.zero_grad(set_to_none=False)
        loss = model(x).square().mean()
        (loss if extra is None else loss + extra()).backward()
        add()
        optimizer.step()

    def by_hand() -> Any:
        return sum(L1_STRENGTH * w.abs().sum() + L2_STRENGTH * w.square().sum() for w in weights)

    variants: dict[str, Callable[[], object]] = {
        "no penalty": lambda: step(lambda: None),
        "accumulate": lambda: step(lambda: penalties.accumulate([w.grad for w in weights])),
        "add": lambda: step(lambda: torch._foreach_add_([w.grad for w in weights], weights)),
        "in the loss, by hand": lambda: step(lambda: None, by_hand),
    }
    with torch.enable_grad():
        samples = bench.turns(variants)
    plain = samples["no penalty"]
    return {
        "model": f"{depth} x Linear({width}), batch {batch}",
        "seconds": asdict(Spread.quartiles(plain)),
        "added": {
            name: asdict(Spread.quartiles([a / b - 1 for a, b in zip(taken, plain, strict=True)]))
            for name, taken in samples.items()
            if name != "no penalty"
        },
    }


# ------------------------------------------------------------------------------------ a run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what there is time for; give the result, and write it after each part."""
    bench = Bench(options.device, options.seconds, options.repeats)
    stage = STAGES.get(options.stage, Stage(True, tuple(gpu_peers.PEERS), True))
    wanted = [name for name in options.peers if name in stage.peers]
    peers, absent = usable_peers(wanted, bench.on_gpu)
    result: dict[str, Any] = {
        "stage": options.stage,
        "device": options.device,
        "device_name": bench.torch.cuda.get_device_name() if bench.on_gpu else "host memory",
        "means_something": bench.on_gpu,
        "repeats": options.repeats,
        "peers": peers,
        "peers_not_run": absent,
        "rows": [],
        "not_run": [],
        "launches": [],
        "many_tensors": [],
        "steps": [],
        "failures": [],
    }
    todo = cases_of(options)
    # The cost of a call, and whole models, come after the first size, so that both have time.
    first = [case for case in todo if case.size == todo[0].size and case.terms == "L1L2"]
    rest = [case for case in todo if case not in set(first)]
    measure_all(bench, first, peers, result, options)
    if stage.models:
        measure_models(bench, peers, result, options)
    measure_all(bench, rest, peers, result, options)
    write(result, options.json)
    return result


def cases_of(options: argparse.Namespace) -> list[Case]:
    """Return a stage's cells, in order of weight."""
    every = list(cells(options.sizes, options.dtypes, options.terms, options.outputs))
    if options.stage == EVERYTHING:
        return every
    sizes = [size for size in HEADLINE_SIZES if size in options.sizes] or options.sizes
    headline = [
        case
        for case in cells(sizes, HEADLINE_DTYPES, ["L1L2"], options.outputs)
        if case.dtype in options.dtypes
    ]
    if STAGES[options.stage].headline:
        return headline
    return [case for case in every if case not in set(headline)] or headline


def measure_models(
    bench: Bench, peers: Sequence[str], result: dict[str, Any], options: argparse.Namespace
) -> None:
    """Measure lists of tensors, a training step and the cost of a call."""
    for name, shapes in models(options.device):
        for dtype in ("f32", "bf16"):
            guarded(
                result,
                f"{name} {dtype}",
                lambda model=(name, shapes, dtype): result["many_tensors"].append(
                    many_tensors(bench, *model)
                ),
            )
    guarded(result, "a training step", lambda: result["steps"].append(training_step(bench)))
    write(result, options.json)
    guarded(result, "cost of a call", lambda: result["launches"].extend(launch_costs(bench, peers)))
    write(result, options.json)


def guarded(result: dict[str, Any], what: str, part: Callable[[], object]) -> None:
    """Run a part of the benchmark; its failure is kept, and the next part runs."""
    try:
        part()
    except Exception as error:
        result["failures"].append(f"{what}: {type(error).__name__}: {str(error)[:300]}")


def models(device: str) -> list[tuple[str, list[tuple[int, ...]]]]:
    if device == "cpu":  # the same code over less
        return [("12 small tensors", gpu_peers.small_tensors(12))]
    return [
        ("GPT-2 small", gpu_peers.gpt2_small()),
        ("400 mixed tensors", gpu_peers.mixed_tensors()),
        ("3,000 small tensors", gpu_peers.small_tensors()),
    ]


def measure_all(
    bench: Bench,
    cases: Sequence[Case],
    peers: Sequence[str],
    result: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    for case in cases:
        if not bench.has_time(1.0):
            result["not_run"].append({"case": str(case), "reason": "the time was used up"})
        elif needed_bytes(case) > bench.free_bytes():
            result["not_run"].append({"case": str(case), "reason": "memory does not suffice"})
        else:
            failed = [name for row in result["rows"] for name in row["failures"]]
            usable = [name for name in peers if failed.count(name) < MOST_FAILURES]

            def measured(case: Case = case, usable: Sequence[str] = usable) -> None:
                result["rows"].append(measure(bench, case, usable))

            guarded(result, str(case), measured)
            if not options.quiet and result["rows"]:
                print(line(result["rows"][-1]), flush=True)
            if len(result["rows"]) % 5 == 4:
                write(result, options.json)


#: Peers that are functions of another package.
PACKAGE_OF = {"foreach": "torch"}


def usable_peers(wanted: Sequence[str], on_gpu: bool) -> tuple[list[str], dict[str, str]]:
    """Split peers into those that are here and why the others are not."""
    found, absent = [], {}
    for name in wanted:
        if importlib.util.find_spec(PACKAGE_OF.get(name, name.split(".")[0])) is None:
            absent[name] = "not installed"
        elif name in ("cupy", "triton") and not on_gpu:
            absent[name] = "needs a GPU"
        elif name == "jax" and on_gpu and (reason := _jax_without_gpu()):
            absent[name] = reason
        else:
            found.append(name)
    return found, absent


def _jax_without_gpu() -> str:
    import jax

    try:
        jax.devices("gpu")
    except RuntimeError as error:
        return f"finds no GPU: {error}"
    return ""


def write(result: dict[str, Any], path: Path | None) -> None:
    """Write a stage's result beside those of other stages, so that a reader finds them whole."""
    if path is None:
        return
    everything: dict[str, Any] = {"schema": SCHEMA, "stages": {}}
    if path.exists():
        everything = json.loads(path.read_text(encoding="utf-8"))
    everything["stages"][result["stage"]] = result
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


# ------------------------------------------------------------------------------------ tables

HEADINGS = ("elements", "dtype", "terms", "outputs", "time", "GB/s", "of copy", "of floor")


def record(row: dict[str, Any], peers: Sequence[str]) -> list[str]:
    """Give a row's cells as text."""
    seconds = row["seconds"]["fastreg"]["median"]
    ratios = (row["ratio_to_peer"].get(name) for name in peers)
    return [
        f"{row['size']:,}",
        row["dtype"],
        row["terms"],
        row["outputs"],
        f"{seconds * 1e6:.1f} us",
        f"{row['gb_per_s']:.0f}",
        f"{row['share_of_copy']['median']:.0%}",
        f"{row['floor']} {row['share_of_floor']['median']:.0%}",
        *("-" if ratio is None else f"{ratio['median']:.2f}" for ratio in ratios),
    ]


def line(row: dict[str, Any]) -> str:
    """Give a row as one line of progress."""
    cells_of_row = record(row, list(row["ratio_to_peer"]))
    names = list(row["ratio_to_peer"])
    ratios = ", ".join(
        f"{name} x{value}" for name, value in zip(names, cells_of_row[8:], strict=True)
    )
    return "  ".join(cells_of_row[:8]) + (f"  ({ratios})" if ratios else "")


def summary(result: dict[str, Any]) -> str:
    """Give the parts that are no cells as text."""
    lines = []
    if not result["means_something"]:
        lines.append("in host memory: these figures say nothing about a GPU")
    for row in result["launches"]:
        costs = row["host_seconds_per_call"].items()
        told = ", ".join(f"{name} {spread['median'] * 1e6:.1f}" for name, spread in costs)
        lines.append(f"host, us per call of {row['elements']:,} f32, {row['outputs']}: {told}")
    for row in result["steps"]:
        added = ", ".join(f"{name} {one['median']:+.1%}" for name, one in row["added"].items())
        lines.append(f"step of {row['model']}: {row['seconds']['median'] * 1e3:.2f} ms, {added}")
    for row in result["many_tensors"]:
        ratios = row["ratio_to_peer"].items()
        told = ", ".join(f"{name} x{spread['median']:.2f}" for name, spread in ratios)
        wall = row["wall_seconds"]["fastreg"]["median"]
        lines.append(
            f"{row['model']} {row['dtype']}: {row['tensors']} tensors, {wall * 1e6:.0f} us, "
            f"{row['gb_per_s']:.0f} GB/s ({told})"
        )
    lines += [f"{name} was not run: {reason}" for name, reason in result["peers_not_run"].items()]
    reasons = [entry["reason"] for entry in result["not_run"]]
    lines += [f"{reasons.count(why)} cases were not run: {why}" for why in sorted(set(reasons))]
    lines += [f"FAILED: {failure}" for failure in result["failures"]]
    failed = {(name, text) for row in result["rows"] for name, text in row["failures"].items()}
    lines += [f"FAILED: {name}: {text}" for name, text in sorted(failed)]
    return "\n".join(lines)


def show(result: dict[str, Any]) -> None:
    """Print all rows: with rich a table, without it aligned text."""
    peers = result["peers"]
    headings = [*HEADINGS, *(f"x {name}" for name in peers)]
    rows = [record(row, peers) for row in sorted(result["rows"], key=_order)]
    title = f"fastreg {fastreg.__version__} on {result['device_name']}"
    if importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, header_style="bold")
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    else:
        widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
        print(title)
        for row in (headings, *rows):
            print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    print(summary(result))


def _order(row: dict[str, Any]) -> tuple[int, ...]:
    places = (list(DTYPES), list(TERMS), list(OUTPUTS))
    keys = ("dtype", "terms", "outputs")
    return (row["size"], *(p.index(row[k]) for p, k in zip(places, keys, strict=True)))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    def choices(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            wrong = [word for word in chosen if word not in known]
            if wrong:
                raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
            return chosen

        return parse

    def sizes(text: str) -> list[int]:
        return [int(float(word)) for word in text.split(",")]

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
    parser.add_argument("--sizes", type=sizes, default=list(SIZES), help="elements, as 4096,1e6")
    for name, known in (
        ("dtypes", list(DTYPES)),
        ("terms", list(TERMS)),
        ("outputs", list(OUTPUTS)),
        ("peers", list(gpu_peers.PEERS)),
    ):
        parser.add_argument(
            f"--{name}", type=choices(known), default=known, help=f"of {','.join(known)}"
        )
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--quiet", action="store_true", help="no line for each row")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    # JAX would otherwise take three quarters of the device for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if importlib.util.find_spec("torch") is None:
        print("the benchmark needs torch, which is not installed", file=sys.stderr)
        return 2
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device (--device cpu checks the benchmark)", file=sys.stderr)
        return 2
    result = run(options)
    show(result)
    peers_failed = any(row["failures"] for row in result["rows"])
    return 1 if result["failures"] or peers_failed or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
