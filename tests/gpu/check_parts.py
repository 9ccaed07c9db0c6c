"""The parts of a check: what each runs, and what its verdict is.

Contract
--------
- A part is "passed", "failed" or "not run"; what could not run, a missing tool or framework, is
  said by name and is never "passed".
- Tests of one maker of arrays are a process of their own, and a file of their own: an error that
  loses the device is one maker's.  A process that ends in the midst of a test (a hang, a crash, a
  lost device) has failed that test; the others go on in a new one while there is time.
- Nothing is installed or fetched, and nothing here measures.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_machine
from gpu_commands import Command, Runner
from recorder import LOST, read_lines

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: The makers of arrays whose tests are parts, and who stands for them without a GPU.
MAKERS = {"bare": "stand_in", "torch": "torch_on_host", "cupy": "", "jax": "jax_on_host"}

#: What is tested with each maker, in this order.
TESTS = (
    "test_gpu_bits.py",
    "test_gpu_prox.py",
    "test_gpu_norms.py",
    "test_gpu_errors.py",
    "test_gpu_streams.py",
    "test_gpu_layouts.py",
    "test_gpu_torch.py",
    "test_gpu_training.py",
    "test_gpu_jax.py",
)

#: How often the tests of a maker are begun again after a process that ended in one of them.
MOST_PROCESSES = 6

#: compute-sanitizer's tools, each with what it prints when it has found nothing.
SANITIZERS = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
}

#: What runs under a sanitizer, which slows kernels a hundredfold; without a framework, whose own
#: kernels would be checked as well.
SANITIZED_TESTS = (
    "test_gpu_bits.py",
    "test_gpu_layouts.py",
    "test_gpu_prox.py",
    "test_gpu_norms.py",
    "test_gpu_streams.py",
)
SANITIZED = "test_sanitized or test_two_streams_at_once or (test_lists and 7)"


@dataclass
class Part:
    """A part's state, and what shows it."""

    state: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    commands: list[Command] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def conclude(part: Part, failures: Sequence[str]) -> None:
    """Set a part's state by its commands and what else went wrong."""
    reasons = list(failures)
    for done in part.commands:
        if done.timed_out:
            reasons.append(f"out of time: {done}")
        elif not done.succeeded:
            reasons.append(f"exit status {done.return_code}: {done}")
    part.state = "failed" if reasons else "passed"
    part.reason = "; ".join(reasons)


@dataclass
class Bench:
    """Where a check runs: the device it is for, the build, the output, and the machine's facts."""

    device: str  # "cuda", "stand-in" or "cpu"
    build: Path
    output: Path
    library: str  # the stand-in's
    jobs: int
    architectures: str | None
    test_seconds: float
    facts: dict[str, Any]
    runner: Runner

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def environment(self) -> dict[str, str]:
        """Return what finds the package that was built, else the one that is installed."""
        settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        built = self.build / "python"
        if (built / "fastreg").exists() or (self.on_gpu and self.runner.dry_run):
            settings["PYTHONPATH"] = str(built)
        elif importlib.util.find_spec("fastreg") is None:
            settings["PYTHONPATH"] = str(ROOT)  # the NumPy fallback: good for the script's logic
        return settings

    def directory(self) -> Path:
        """Return where tests run: not in the checkout, whose package has no core beside it."""
        self.build.mkdir(parents=True, exist_ok=True)
        return self.build

    def run(self, command: Sequence[str], **changes: Any) -> Command:
        settings = self.environment() | changes.pop("environment", {})
        return self.runner.run(command, directory=self.directory(), environment=settings, **changes)

    def pytest(self, *arguments: str) -> list[str]:
        settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
        # Warnings of frameworks that were never seen here are no failures.
        quiet = ["-q", "-p", "no:cacheprovider", "-W", "default"]
        return [sys.executable, "-m", "pytest", *quiet, *settings, *arguments]


# -------------------------------------------------------------------------------------- build


def build(bench: Bench, part: Part) -> None:
    """Build the package alone, for the device's own architecture, and see that it finds it."""
    if bench.device == "cpu":
        part.reason = "--device cpu uses the package as it is"
        return
    if bench.on_gpu and not configure(bench, part):
        return
    make = ["cmake", "--build", str(bench.build), "--parallel", str(bench.jobs)]
    done = bench.run([*make, "--target", "python_package"])
    if done.succeeded or bench.runner.dry_run:
        # What was built must find the device: everything else would test something else.
        code = (
            "from fastreg import _info; from fastreg._engine import backend; "
            "facts = _info.gather(); "
            "print(_info.render(facts)); assert backend.name == 'native'; "
            "assert facts['cuda']['available'], facts['cuda']['reason']"
        )
        settings = {"FASTREG_CUDA_LIBRARY": bench.library} if bench.library else {}
        bench.run([sys.executable, "-c", code], environment=settings)
    conclude(part, ())


def configure(bench: Bench, part: Part) -> bool:
    nvcc = bench.facts["nvcc"]
    pybind11 = gpu_machine.pybind11_package(bench.build / "pybind11")
    missing = gpu_machine.missing_for_build(nvcc, pybind11)
    if missing and not bench.runner.dry_run:
        part.reason = f"missing: {', '.join(missing)}"
        return False
    architectures = bench.architectures or architectures_of(bench.facts["devices"], nvcc)
    part.figures["architectures"] = architectures
    done = bench.run([
        "cmake", "-S", str(ROOT), "-B", str(bench.build),
        *(("-G", "Ninja") if shutil.which("ninja") else ()),
        "-DCMAKE_BUILD_TYPE=Release", "-DFASTREG_CUDA=ON", "-DFASTREG_BUILD_TESTS=OFF",
        f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}",
    ])  # fmt: skip
    if not done.succeeded and not bench.runner.dry_run:
        conclude(part, ())
        return False
    return True


def architectures_of(devices: Sequence[dict[str, Any]], nvcc: str | None) -> str:
    """Return CMAKE_CUDA_ARCHITECTURES for devices, those of a Hopper where there are none."""
    known = gpu_machine.known_architectures(nvcc) if nvcc else []
    capabilities = [device["capability"] for device in devices] or [[9, 0]]
    found = [gpu_machine.architecture(capability, known) for capability in capabilities]
    return ";".join(dict.fromkeys(found))


# -------------------------------------------------------------------------------------- tests


def tests_of(maker: str) -> Callable[[Bench, Part], None]:
    """Return the part that runs the tests of one maker of arrays."""

    def run(bench: Bench, part: Part) -> None:
        chosen = maker if bench.on_gpu else MAKERS[maker]
        package = maker if maker != "bare" else "numpy"
        if not chosen:
            part.reason = "needs a GPU"
            return
        if bench.facts["packages"][package] is None and not bench.runner.dry_run:
            part.reason = f"missing: {package}"
            return
        record = bench.output / f"{maker}.jsonl"
        record.unlink(missing_ok=True)
        settings = {"FASTREG_REQUIRE_CUDA": maker} if bench.on_gpu else {}
        if chosen == "stand_in":
            settings["FASTREG_CUDA_LIBRARY"] = bench.library
        command = bench.pytest(
            "-p", "recorder", "--record", str(record),
            "--test-seconds", f"{bench.test_seconds:g}",
            "--makers", chosen, *(str(HERE / name) for name in TESTS),
        )  # fmt: skip
        settings["PYTHONPATH"] = ":".join(
            filter(None, [str(HERE), bench.environment().get("PYTHONPATH", "")])
        )
        for _ in range(MOST_PROCESSES):
            before = len(read_lines(record))
            done = bench.run(command, environment=settings)
            finished = done.return_code in (0, 1) and unended(read_lines(record)) is None
            if bench.runner.dry_run or done.timed_out or finished:
                break
            if len(read_lines(record)) == before:
                break  # it does not come to any test
        part.figures = read_record(record)
        part.state, part.reason = verdict_of_tests(part.figures, done)

    return run


def unended(lines: Sequence[dict[str, Any]]) -> str | None:
    """Return the test that has begun last, where it has not ended."""
    if lines and lines[-1]["event"] == "begin":
        return str(lines[-1]["test"])
    return None


def read_record(path: Path) -> dict[str, Any]:
    """Return counts, reasons of skips, failures and what ended a process, of a file of outcomes."""
    ended: dict[str, dict[str, Any]] = {}
    begun: list[str] = []
    for line in read_lines(path):
        if line["event"] == "begin":
            begun.append(line["test"])
        else:
            ended[line["test"]] = line
    outcomes = Counter(line["outcome"] for line in ended.values())
    skips = Counter(line["words"] for line in ended.values() if line["outcome"] == "skipped")
    failures = [name for name, line in ended.items() if line["outcome"] == "failed"]
    return {
        "passed": outcomes["passed"],
        "failed": outcomes["failed"],
        "skipped": outcomes["skipped"],
        "reasons_of_skips": dict(skips),
        "failures": failures[:100],
        "ended_the_process": [name for name in begun if name not in ended],
        "slowest": sorted(((line["seconds"], name) for name, line in ended.items()), reverse=True)[
            :5
        ],
    }


def verdict_of_tests(figures: dict[str, Any], done: Command) -> tuple[str, str]:
    """Return state and reason of tests by their record and their last process."""
    reasons = [f"failed: {name}" for name in figures["failures"][:3]]
    if figures["failed"] > len(reasons):
        reasons.append(f"{figures['failed']} failed in all")
    reasons += [f"hung or crashed in {name}" for name in figures["ended_the_process"]]
    if done.return_code == LOST:
        reasons.append("the device was lost")
    elif done.timed_out:
        reasons.append("out of time")
    elif done.return_code not in (0, 1):
        reasons.append(f"exit status {done.return_code}: {done.tail[-300:].strip()}")
    if not reasons and not figures["passed"]:
        skips = "; ".join(figures["reasons_of_skips"])
        return ("not run", skips) if skips else ("failed", "no test passed")
    return ("failed" if reasons else "passed"), "; ".join(reasons)


# ---------------------------------------------------------------------------------- sanitizers


def sanitizer(name: str) -> Callable[[Bench, Part], None]:
    """Return the part that runs a few tests under one of compute-sanitizer's tools."""

    def run(bench: Bench, part: Part) -> None:
        tool = bench.facts["compute_sanitizer"]
        command = sanitizer_command(bench, tool or "compute-sanitizer", name)
        settings = {"FASTREG_REQUIRE_CUDA": "bare"}
        if not bench.on_gpu or bench.runner.dry_run:
            part.commands.append(Command(command, bench.environment() | settings))
            part.reason = "no GPU: the command was only composed"
            print(f"$ {part.commands[-1]}" if bench.runner.dry_run else f"  {part.reason}")
            return
        if tool is None:
            part.reason = "missing: compute-sanitizer"
            return
        done = bench.run(command, environment=settings, most=40.0)
        verdict = sanitizer_verdict(done, SANITIZERS[name])
        part.state, _, part.reason = verdict.partition(": ")

    return run


def sanitizer_command(bench: Bench, tool: str, name: str) -> list[str]:
    options = ["--tool", name, "--error-exitcode", "86", "--target-processes", "all"]
    tests = [str(HERE / test) for test in SANITIZED_TESTS]
    return [tool, *options, *bench.pytest("--makers", "bare", "-k", SANITIZED, *tests)]


def sanitizer_verdict(done: Command, clean: str) -> str:
    """Return "passed", or "failed" or "not run" with a reason.

    The tool's own line must be there: without it nothing was watched, whatever the exit status.
    """
    if done.timed_out:
        return "failed: out of time"
    refusal = re.search(r"[^\n]*(?:[Nn]ot supported|Unable to find injection)[^\n]*", done.tail)
    if refusal is not None and clean not in done.tail:
        return f"not run: {refusal.group(0).strip()}"
    if not done.succeeded:
        return f"failed: exit status {done.return_code}"
    if clean not in done.tail:
        return f"failed: it did not say {clean!r}"
    return "passed" if re.search(r"\b[1-9]\d* passed", done.tail) else "failed: no test ran"


# ----------------------------------------------------------------------------------- benchmark


def benchmark(stage: str) -> Callable[[Bench, Part], None]:
    """Return the part that runs one stage of the benchmark; all stages write to one file."""

    def run(bench: Bench, part: Part) -> None:
        if bench.facts["packages"]["torch"] is None and not bench.runner.dry_run:
            part.reason = "missing: torch"
            return
        report = bench.output / "benchmark.json"
        # It ends by itself, in time for the last row.
        seconds = max(0.85 * bench.runner.remaining() - 5.0, 2.0)
        arguments = ["--stage", stage, "--json", str(report), "--seconds", f"{seconds:.0f}"]
        if not bench.on_gpu:
            arguments += ["--device", "cpu", "--sizes", "1000", "--repeats", "2", "--quiet"]
            arguments += ["--terms", "L1L2", "--dtypes", "f32", "--peers", "torch,torch-foreach"]
        bench.run([sys.executable, str(HERE / "benchmark.py"), *arguments])
        if report.exists():
            part.figures = json.loads(report.read_text(encoding="utf-8"))["stages"].get(stage, {})
        conclude(part, [] if part.figures or bench.runner.dry_run else ["nothing was measured"])

    return run
