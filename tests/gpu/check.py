"""Build, test and measure on a machine with a GPU, by one command; the result is one JSON file.

    python tests/gpu/check.py

Contract
--------
- Only what is installed is used: no network, no build isolation, nothing is installed.  The build
  is plain CMake, in a directory of its own, for the device's own architecture.
- Steps share the time; what one leaves is the next one's.  A step out of time has failed.
- A step is "passed", "failed" or "not run"; what could not run, a missing tool or framework, is
  said by name and is never "passed".  Without a GPU a step is at best "self-check passed".
- The result is written after each step, so that what was found outlasts an interruption.
- Exit status: 0 when every step that was asked for passed, 1 when one failed, 2 when there is no
  device, 3 when none failed but one could not run.
- ``--device cpu`` runs the script's own logic without a GPU, ``--dry-run`` shows the commands.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import gpu_machine

SCHEMA = 1
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: The steps in their order, and the weight of each in the sharing of time.
STEPS = {"build": 3.0, "tests": 3.0, "sanitizers": 2.0, "benchmark": 4.0}

#: compute-sanitizer's tools, each with what it prints when it has found nothing.
SANITIZERS = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
}

#: What runs under a sanitizer, which slows kernels a hundredfold; without a framework, whose own
#: kernels would be checked as well.
SANITIZED_TESTS = ("test_gpu_bits.py", "test_gpu_streams.py")
SANITIZED = (
    "bare and (test_unaligned or test_without_any or test_lists and not 3000 or two_streams)"
)

#: The tests on the stand-in for a GPU that need no sanitizer's build.
STAND_IN_TESTS = r"^cuda\.(plain|python|gpu_tests)"
STAND_IN_TARGETS = ("cuda_tests_plain", "fastreg_cuda_stand_in")

TAIL = 6000  # characters of a command's output that are kept


# ----------------------------------------------------------------------------------- commands


@dataclass
class Command:
    """A command that was run, and what came of it."""

    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    return_code: int | None = None
    timed_out: bool = False
    seconds: float = 0.0
    tail: str = ""

    @property
    def succeeded(self) -> bool:
        return self.return_code == 0

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(text)}" for name, text in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command)])


@dataclass
class Step:
    """A step's state, and what shows it."""

    state: str = "not run"
    reason: str = ""
    seconds: float = 0.0
    commands: list[Command] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


class Runner:
    """Runs commands of a step until its time is up, prints what they print, and keeps its end."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.step = Step()
        self.end = 0.0

    def remaining(self) -> float:
        return max(self.end - time.monotonic(), 1.0)

    def run(
        self,
        command: Sequence[str],
        *,
        directory: Path = ROOT,
        environment: dict[str, str] | None = None,
        most: float = float("inf"),
    ) -> Command:
        done = Command(list(command), dict(environment or {}))
        self.step.commands.append(done)
        print(f"$ {done}", flush=True)
        if self.dry_run:
            return done
        start = time.monotonic()
        with subprocess.Popen(
            command,
            cwd=directory,
            env=own_environment() | done.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of its processes can be ended
        ) as process:
            timer = threading.Timer(min(self.remaining(), most), self._end, (process, done))
            timer.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    print(f"  {line}", end="", flush=True)
                    done.tail = (done.tail + line)[-TAIL:]
                done.return_code = process.wait()
            except BaseException:  # an interruption is for the command as well
                self._end(process, done)
                raise
            finally:
                timer.cancel()
        done.seconds = round(time.monotonic() - start, 3)
        return done

    @staticmethod
    def _end(process: subprocess.Popen[str], done: Command) -> None:
        done.timed_out = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def own_environment() -> dict[str, str]:
    """Give this process' environment without settings of fastreg's, which would change results."""
    return {name: text for name, text in os.environ.items() if not name.startswith("FASTREG_")}


def conclude(step: Step, failures: Sequence[str]) -> None:
    """Set a step's state by its commands and what else went wrong."""
    reasons = list(failures)
    for done in step.commands:
        if done.timed_out:
            reasons.append(f"out of time: {done}")
        elif not done.succeeded:
            reasons.append(f"exit status {done.return_code}: {done}")
    step.state = "failed" if reasons else "passed"
    step.reason = "; ".join(reasons)


# -------------------------------------------------------------------------------------- steps


class Check:
    """A run: options, the machine's facts, and the steps."""

    def __init__(self, options: argparse.Namespace, facts: dict[str, Any]) -> None:
        self.options, self.facts = options, facts
        self.build = options.build_directory.resolve()
        self.runner = Runner(options.dry_run)
        self.on_gpu = options.device == "cuda"
        self.steps: dict[str, Step] = {}

    def environment(self) -> dict[str, str]:
        """Give what finds the package that was built, else the one that is installed."""
        settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        built = self.build / "python"
        if (built / "fastreg").exists() or ("build" in self.options.steps and self.options.dry_run):
            settings["PYTHONPATH"] = str(built)
        elif importlib.util.find_spec("fastreg") is None:
            settings["PYTHONPATH"] = str(
                ROOT
            )  # the NumPy fallback: good for the script's own logic
        return settings

    def directory(self) -> Path:
        """Give where tests run: not in the checkout, whose package has no core beside it."""
        self.build.mkdir(parents=True, exist_ok=True)
        return self.build

    def pytest(self, *arguments: str) -> list[str]:
        settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
        # Warnings of frameworks that were never seen here are no failures.
        quiet = ["-q", "-p", "no:cacheprovider", "-W", "default", "-o", "faulthandler_timeout=120"]
        return [sys.executable, "-m", "pytest", *quiet, *settings, *arguments]

    # ---- build

    def step_build(self, step: Step) -> None:
        if not self.on_gpu:
            step.reason = "--device cpu uses the package as it is"
            return
        nvcc = self.facts["nvcc"]
        pybind11 = gpu_machine.pybind11_package(self.build / "pybind11")
        missing = gpu_machine.missing_for_build(nvcc, pybind11)
        if missing and not self.options.dry_run:
            step.reason = f"missing: {', '.join(missing)}"
            return
        architectures = self.options.architectures or self.architectures(nvcc)
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(self.build),
            *(("-G", "Ninja") if shutil.which("ninja") else ()),
            "-DCMAKE_BUILD_TYPE=Release", "-DFASTREG_CUDA=ON", "-DFASTREG_BUILD_TESTS=ON",
            f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
            f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}",
        ]  # fmt: skip
        step.figures["architectures"] = architectures
        targets = ["python_package", *(STAND_IN_TARGETS if "tests" in self.options.steps else ())]
        make = ["cmake", "--build", str(self.build), "--parallel", str(self.options.jobs)]
        done = self.runner.run(configure)
        if done.succeeded or self.options.dry_run:
            done = self.runner.run([*make, "--target", *targets])
        if done.succeeded or self.options.dry_run:
            # What was built must find the device: everything else would test something else.
            code = (
                "from fastreg import _backend, _info; facts = _info.gather(); "
                "print(_info.render(facts)); assert _backend.name == 'native'; "
                "assert facts['cuda']['available'], facts['cuda']['reason']"
            )
            self.runner.run(
                [sys.executable, "-c", code],
                directory=self.directory(),
                environment=self.environment(),
            )
        conclude(step, ())

    def architectures(self, nvcc: str | None) -> str:
        devices = self.facts["devices"] or [{"capability": [9, 0]}]
        known = gpu_machine.known_architectures(nvcc) if nvcc else []
        found = [gpu_machine.architecture(device["capability"], known) for device in devices]
        return ";".join(dict.fromkeys(found))

    # ---- tests

    def step_tests(self, step: Step) -> None:
        if not self.on_gpu:
            chosen = ["-k", "torch_on_host", str(HERE / "test_gpu_torch.py")]
            self.tested(step, "gpu", chosen, {})
            return
        usable, absent = self.frameworks()
        step.figures["not_run"] = absent
        required = "1" if not absent else ",".join(usable)
        self.tested(
            step, "gpu", ["-m", "gpu", str(HERE)], {"FASTREG_REQUIRE_CUDA": required}, absent
        )
        if (self.build / "CTestTestfile.cmake").exists() or self.options.dry_run:
            jobs = ["-j", str(self.options.jobs)]
            self.runner.run(
                ["ctest", "--test-dir", str(self.build), "-R", STAND_IN_TESTS, *jobs,
                 "--output-on-failure", "--no-tests=error"]
            )  # fmt: skip
        else:
            step.figures["not_run"]["stand-in"] = "there is no build"
        conclude(step, step.figures.pop("failures", ()))

    def frameworks(self) -> tuple[list[str], dict[str, str]]:
        """Split the makers of arrays into those that see the device, and why others do not."""
        if self.options.dry_run:
            return ["bare", "torch", "cupy", "jax"], {}
        code = (
            f"import sys; sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent / 'cuda')!r}]\n"
            "import json, makers; print('\\n' + json.dumps(makers.reasons()))"
        )
        done = self.runner.run(
            [sys.executable, "-c", code],
            directory=self.directory(),
            environment=self.environment(),
            most=120,
        )
        try:
            reasons = json.loads(done.tail.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return ["bare"], {"frameworks": "could not be asked"}
        # Arrays without a framework need nothing that a GPU machine may lack.
        absent = {name: why for name, why in reasons.items() if why and name != "bare"}
        return [name for name in reasons if name not in absent], absent

    def tested(
        self,
        step: Step,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        absent: dict[str, str] | None = None,
    ) -> None:
        """Run pytest, and read what it says of each test."""
        report = self.directory() / f"{name}-tests.xml"
        report.unlink(missing_ok=True)
        done = self.runner.run(
            self.pytest(f"--junitxml={report}", *arguments),
            directory=self.directory(),
            environment=self.environment() | environment,
        )
        failures = []
        if report.exists():
            step.figures[name] = counts = read_report(report)
            if not counts["passed"]:
                failures.append("no test passed")
        elif not self.options.dry_run and not done.timed_out:
            failures.append("pytest wrote no report")
        if absent is None:
            conclude(step, failures)
        else:
            step.figures["failures"] = failures

    # ---- sanitizers

    def step_sanitizers(self, step: Step) -> None:
        tool = self.facts["compute_sanitizer"]
        show_only = self.options.dry_run or not self.on_gpu
        if tool is None and not show_only:
            step.reason = "missing: compute-sanitizer"
            return
        failures, refused = [], []
        for name, clean in SANITIZERS.items():
            command = self.sanitizer_command(tool or "compute-sanitizer", name)
            settings = self.environment() | {"FASTREG_REQUIRE_CUDA": "bare"}
            if show_only:
                step.commands.append(Command(command, settings))
                print(f"$ {step.commands[-1]}")
                continue
            share = self.runner.remaining() / (len(SANITIZERS) - len(step.commands))
            done = self.runner.run(
                command, directory=self.directory(), environment=settings, most=share
            )
            step.figures[name] = verdict = sanitizer_verdict(done, clean)
            if verdict.startswith("not run"):
                refused.append(f"{name} {verdict}")
            elif verdict != "passed":
                failures.append(f"{name}: {verdict}")
        if show_only:
            step.reason = "no GPU: the commands were only composed"
            return
        step.state = "failed" if failures else "not run" if refused else "passed"
        step.reason = "; ".join([*failures, *refused])

    def sanitizer_command(self, tool: str, name: str) -> list[str]:
        options = ["--tool", name, "--error-exitcode", "86", "--target-processes", "all"]
        tests = [str(HERE / test) for test in SANITIZED_TESTS]
        return [tool, *options, *self.pytest("-m", "gpu", "-k", SANITIZED, *tests)]

    # ---- benchmark

    def step_benchmark(self, step: Step) -> None:
        if self.facts["packages"]["torch"] is None and not self.options.dry_run:
            step.reason = "missing: torch"
            return
        report = self.directory() / "benchmark.json"
        report.unlink(missing_ok=True)
        # It ends by itself, in time for the last row and the table.
        seconds = max(0.85 * self.runner.remaining() - 10.0, 5.0)
        arguments = ["--device", self.options.device, "--json", str(report)]
        if self.on_gpu:
            arguments += ["--seconds", f"{seconds:.0f}"]
        else:
            arguments += ["--seconds", "5", "--sizes", "1000", "--repeats", "2", "--quiet"]
            arguments += ["--terms", "L1L2", "--peers", "torch"]
        self.runner.run(
            [sys.executable, str(HERE / "benchmark.py"), *arguments],
            directory=self.directory(),
            environment=self.environment(),
        )
        if report.exists():
            step.figures = json.loads(report.read_text())
        conclude(step, [] if report.exists() or self.options.dry_run else ["no result was written"])

    # ---- all of them

    def run(self) -> int:
        weights = {name: STEPS[name] for name in self.options.steps}
        end = time.monotonic() + 60 * self.options.minutes
        for name in weights:
            later = list(weights.values())[list(weights).index(name) :]
            seconds = (end - time.monotonic()) * weights[name] / sum(later)
            self.steps[name] = step = self.runner.step = Step()
            print(f"\n== {name} (at most {max(seconds, 1.0):.0f} s)", flush=True)
            start = time.monotonic()
            self.runner.end = start + seconds
            method: Callable[[Step], None] = getattr(self, f"step_{name}")
            try:
                method(step)
            except Exception as error:
                step.state, step.reason = "failed", f"{type(error).__name__}: {error}"
            if self.options.dry_run:
                step.state, step.reason = "not run", "--dry-run"
            elif not self.on_gpu and step.state == "passed":
                step.state = "self-check passed"
            step.seconds = round(time.monotonic() - start, 3)
            self.write()
        print("\n== result")
        for name, step in self.steps.items():
            print(
                f"{name:11} {step.seconds:5.0f} s  {step.state}: {step.reason}"[:400].rstrip(" :")
            )
        print(f"written to {self.options.json}")
        return self.status()

    def status(self) -> int:
        states = {step.state for step in self.steps.values()}
        if "failed" in states:
            return 1
        if self.options.dry_run or not self.on_gpu:
            return 0
        return 3 if "not run" in states else 0

    def write(self) -> None:
        write_result(self.options, self.facts, self.steps)


def write_result(
    options: argparse.Namespace, facts: dict[str, Any], steps: dict[str, Step]
) -> None:
    result = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "on_gpu": options.device == "cuda" and bool(facts["devices"]) and not options.dry_run,
        "machine": facts,
        "steps": {name: asdict(step) for name, step in steps.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    partial = options.json.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(options.json)


def read_report(path: Path) -> dict[str, Any]:
    """Count what a JUnit report of pytest says, with reasons of skips and names of failures."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0}
    reasons: Counter[str] = Counter()
    failed = []
    for case in xml.etree.ElementTree.parse(path).iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is not None:
            counts["skipped"] += 1
            reasons[skipped.get("message", "")] += 1
        else:
            counts["passed"] += 1
    return counts | {"reasons_of_skips": dict(reasons), "failures": failed[:100]}


def sanitizer_verdict(done: Command, clean: str) -> str:
    """Say what a run under a sanitizer shows.

    The tool's own line must be there: without it nothing was watched, whatever the exit status.
    """
    if done.timed_out:
        return "out of time"
    refusal = re.search(r"[^\n]*(?:[Nn]ot supported|Unable to find injection)[^\n]*", done.tail)
    if refusal is not None and clean not in done.tail:
        return f"not run: {refusal.group(0).strip()}"
    if not done.succeeded:
        return f"exit status {done.return_code}"
    if clean not in done.tail:
        return f"it did not say {clean!r}"
    return "passed" if re.search(r"\b[1-9]\d* passed", done.tail) else "no test ran"


# ---------------------------------------------------------------------------------- arguments


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    def steps(text: str) -> list[str]:
        chosen = text.split(",")
        wrong = [name for name in chosen if name not in STEPS]
        if wrong:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(STEPS)}")
        return [name for name in STEPS if name in chosen]

    parser = argparse.ArgumentParser(
        description="Build, test and measure fastreg on a GPU; the result is one JSON file.",
        epilog="Exit status: 0 all passed, 1 a step failed, 2 no device, 3 a step could not run.",
    )
    parser.add_argument("--steps", type=steps, default=list(STEPS), help="of " + ",".join(STEPS))
    parser.add_argument("--minutes", type=float, default=8.0, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="default: check.json in the build directory")
    parser.add_argument("--build-directory", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument(
        "--architectures", help="CMAKE_CUDA_ARCHITECTURES; default: those of the devices here"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: the script's own logic, without a GPU; shows nothing about one",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the commands, run none")
    options = parser.parse_args(arguments)
    if options.json is None:
        options.json = options.build_directory / "check.json"
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    facts = gpu_machine.facts(ROOT)
    for device in facts["devices"]:
        print(f"{device['name']}, compute capability {'.'.join(map(str, device['capability']))}")
    if facts["no_device"] is not None:
        print(f"there is no CUDA device here: {facts['no_device']}")
        if options.device == "cuda" and not options.dry_run:
            write_result(options, facts, {})
            return 2
    return Check(options, facts).run()


if __name__ == "__main__":
    sys.exit(main())
