"""Build, test and measure on a machine with a GPU, by one command, the best evidence first.

    python tests/gpu/check.py

Contract
--------
- Only what is installed is used: no network, no build isolation, nothing is installed.  The build
  is plain CMake, in a directory of its own, for the device's own architecture; a second run finds
  it.
- Parts come in the order of what they are worth, and each has an end, counted from the start: what
  one leaves is the next one's.  A part out of time has failed; the next ones run.
- Nothing is lost: check.json is written after each part, tests and benchmark write as they go, and
  SIGTERM ends the children, writes what there is, and shows it.  All files, 8 at most, lie in one
  directory.
- Without a GPU a part is at best "self-check passed".
- Exit status: 0 when every part that was asked for passed, 1 when one failed or the check was told
  to end, 2 when there is no device, 3 when none failed but one could not run.
- ``--device stand-in`` runs all of it on the stand-in for a GPU, ``--device cpu`` the script's own
  logic; what they find says nothing about a GPU.  ``--dry-run`` shows the commands.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import check_parts
import check_summary
import gpu_machine
from check_parts import ROOT, Bench, Part
from gpu_commands import InterruptedCheckError, Runner, ended_by_signals

SCHEMA = 2


class Planned(NamedTuple):
    """A part of the plan: what kind it is, its share of the time, and what runs it."""

    kind: str
    seconds: float
    run: Callable[[Bench, Part], None]


#: In order of what they are worth; seconds of 9 minutes.
PLAN = {
    "build": Planned("build", 60, check_parts.build),
    **{
        maker: Planned("tests", seconds, check_parts.tests_of(maker))
        for maker, seconds in (("bare", 45), ("torch", 35), ("cupy", 15), ("jax", 25))
    },
    "headline": Planned("benchmark", 90, check_parts.benchmark("headline")),
    "memcheck": Planned("sanitizers", 40, check_parts.sanitizer("memcheck")),
    "racecheck": Planned("sanitizers", 40, check_parts.sanitizer("racecheck")),
    "cells": Planned("benchmark", 70, check_parts.benchmark("cells")),
    "compiled": Planned("benchmark", 60, check_parts.benchmark("compiled")),
    "initcheck": Planned("sanitizers", 30, check_parts.sanitizer("initcheck")),
    "synccheck": Planned("sanitizers", 30, check_parts.sanitizer("synccheck")),
}
KINDS = tuple(dict.fromkeys(planned.kind for planned in PLAN.values()))


class Check:
    """A run of the chosen parts."""

    def __init__(self, options: argparse.Namespace, facts: dict[str, Any]) -> None:
        self.options, self.facts = options, facts
        self.runner = Runner(options.output / "log.txt", options.dry_run)
        self.bench = Bench(
            options.device,
            options.build_directory.resolve(),
            options.output.resolve(),
            str(options.library or ""),
            options.jobs,
            options.architectures,
            options.test_seconds,
            facts,
            self.runner,
        )
        self.chosen = {
            name: planned
            for name, planned in PLAN.items()
            if name in options.parts or planned.kind in options.parts
        }
        self.parts = {name: Part() for name in self.chosen}
        self.interrupted = ""

    def run(self) -> int:
        self.options.output.mkdir(parents=True, exist_ok=True)
        for stale in ("log.txt", "benchmark.json"):
            (self.options.output / stale).unlink(missing_ok=True)
        self.write()
        try:
            with ended_by_signals():
                self.run_parts()
        except InterruptedCheckError as interruption:
            self.interrupted = str(interruption)
        self.write()
        print(check_summary.summary(self.result(), self.options.output))
        return self.status()

    def run_parts(self) -> None:
        scale = 60 * self.options.minutes / sum(planned.seconds for planned in self.chosen.values())
        start, share = time.monotonic(), 0.0
        for name, planned in self.chosen.items():
            part = self.parts[name]
            share += planned.seconds * scale
            self.runner.end = start + share
            print(f"\n== {name} (until {share:.0f} s)", flush=True)
            began = time.monotonic()
            self.runner.commands = part.commands
            try:
                planned.run(self.bench, part)
            except InterruptedCheckError as interruption:
                part.state, part.reason = "failed", f"interrupted by {interruption}"
                raise
            except Exception as error:
                part.state, part.reason = "failed", f"{type(error).__name__}: {error}"
            finally:
                part.seconds = round(time.monotonic() - began, 3)
                self.write()
            if self.options.dry_run:
                part.state, part.reason = "not run", "--dry-run"
            elif not self.bench.on_gpu and part.state == "passed":
                part.state = "self-check passed"
            print(check_summary.line(name, asdict(part)), flush=True)

    def status(self) -> int:
        states = {part.state for part in self.parts.values()}
        if "failed" in states or self.interrupted:
            return 1
        if self.options.dry_run or not self.bench.on_gpu:
            return 0
        return 3 if "not run" in states else 0

    def result(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "device": self.options.device,
            "on_gpu": self.bench.on_gpu and bool(self.facts["devices"]) and not self.runner.dry_run,
            "interrupted": self.interrupted,
            "machine": self.facts,
            "parts": {name: asdict(part) for name, part in self.parts.items()},
        }

    def write(self) -> None:
        """Write the result; a reader finds the last one whole."""
        partial = self.options.output / "check.json.partial"
        partial.write_text(json.dumps(self.result(), indent=1) + "\n", encoding="utf-8")
        partial.replace(self.options.output / "check.json")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    def parts(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in PLAN and name not in KINDS:
                known = ", ".join((*KINDS, *PLAN))
                raise argparse.ArgumentTypeError(f"{name!r} is none of {known}")
        return chosen

    parser = argparse.ArgumentParser(
        description="Build, test and measure fastreg on a GPU, the best evidence first.",
        epilog="Exit status: 0 all passed, 1 a part failed, 2 no device, 3 a part could not run.",
    )
    parser.add_argument(
        "--parts",
        type=parts,
        default=list(KINDS),
        help=f"kinds ({', '.join(KINDS)}) or parts ({', '.join(PLAN)}), with commas between",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="default: %(default)s")
    parser.add_argument(
        "--test-seconds", type=float, default=45.0, help="for each test; default: %(default)s"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the directory of results; default: $OUT, or `check` in the build directory",
    )
    parser.add_argument("--build-directory", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument(
        "--architectures", help="CMAKE_CUDA_ARCHITECTURES; default: those of the devices here"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--device",
        choices=("cuda", "stand-in", "cpu"),
        default="cuda",
        help="stand-in, cpu: without a GPU, and so without anything said about one",
    )
    parser.add_argument(
        "--library", type=Path, help="the stand-in's library, for --device stand-in"
    )
    parser.add_argument("--dry-run", action="store_true", help="show the commands, run none")
    options = parser.parse_args(arguments)
    if (options.device == "stand-in") != (options.library is not None):
        parser.error("--device stand-in and --library go together")
    if options.output is None:
        chosen = os.environ.get("OUT", "")
        options.output = Path(chosen) if chosen else options.build_directory / "check"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    facts = gpu_machine.facts(ROOT)
    for device in facts["devices"]:
        print(f"{device['name']}, compute capability {'.'.join(map(str, device['capability']))}")
    check = Check(options, facts)
    if facts["no_device"] is not None:
        print(f"there is no CUDA device here: {facts['no_device']}")
        if options.device == "cuda" and not options.dry_run:
            options.output.mkdir(parents=True, exist_ok=True)
            check.parts.clear()
            check.write()
            return 2
    return check.run()


if __name__ == "__main__":
    sys.exit(main())
