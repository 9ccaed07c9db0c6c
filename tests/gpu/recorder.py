"""A pytest plugin: outcomes on disk as they come, a limit for each test, an end at a lost device.

    python -m pytest -p recorder --record FILE --test-seconds N

Contract
--------
- Each test is a line of JSON when it begins and another when it has ended, so that a hang, a crash
  or a kill leaves the name of the test that it met.
- Tests that FILE has a line of already are left out: a second run goes on after the first.
- A test over its limit ends the process, with the stacks of all threads on stderr; a limit that
  Python could raise would not reach a thread that waits for a device.
- After a failure that has lost the device, nothing later in the process can be believed: it ends
  with the status LOST.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import pytest

#: The exit status of a process whose device is lost.
LOST = 87

#: What the runtime, the driver and the frameworks say of errors that stay.
LOST_DEVICE = re.compile(
    r"cudaError(?:IllegalAddress|LaunchFailure|LaunchTimeout|Assert|MisalignedAddress"
    r"|IllegalInstruction|HardwareStackError|InvalidPc|InvalidAddressSpace|ECCUncorrectable"
    r"|ContextIsDestroyed|DevicesUnavailable)"
    r"|CUDA_ERROR_(?:ILLEGAL_ADDRESS|LAUNCH_FAILED|LAUNCH_TIMEOUT|MISALIGNED_ADDRESS|ASSERT)"
    r"|cuda\w+: error (?:214|700|702|709|71[0-9])\b"
    r"|illegal memory access|unspecified launch failure|misaligned address"
    r"|device-side assert|uncorrectable ECC"
)

WORDS = 1500  # characters of a failure that are kept


class Recorder:
    """Writes the lines of one run."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.seconds = seconds
        self.known = {line["test"] for line in read_lines(path)}
        self.file: IO[str] = path.open("a", encoding="utf-8")
        self.began = 0.0
        self.outcome, self.words = "", ""

    def write(self, **entry: Any) -> None:
        self.file.write(json.dumps(entry) + "\n")
        self.file.flush()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.known]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.began, self.outcome, self.words = time.monotonic(), "passed", ""
        self.write(test=item.nodeid, event="begin")
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__)
        try:
            result = yield
        finally:
            faulthandler.cancel_dump_traceback_later()
        seconds = round(time.monotonic() - self.began, 3)
        self.write(
            test=item.nodeid, event="end", outcome=self.outcome, seconds=seconds, words=self.words
        )
        if self.outcome == "failed" and LOST_DEVICE.search(self.words):
            # Not by pytest.exit: what is torn down then may wait for the device.
            os._exit(LOST)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.outcome = "failed"
            self.words = shortened(self.words + report.longreprtext)
        elif report.skipped and self.outcome == "passed":
            self.outcome = "skipped"
            self.words = shortened(skip_reason(report))


def shortened(text: str) -> str:
    """Return a text's end, where pytest says what went wrong."""
    return text[-WORDS:]


def skip_reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    where = report.longrepr
    return str(where[2]) if isinstance(where, tuple) else str(where)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a record; the last line of one that was killed may be half a line."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("recorder")
    group.addoption("--record", type=Path, required=True, help="the file of outcomes")
    group.addoption("--test-seconds", type=float, default=60.0, help="the limit for each test")


def pytest_configure(config: pytest.Config) -> None:
    recorder = Recorder(config.getoption("--record"), config.getoption("--test-seconds"))
    config.pluginmanager.register(recorder, "recorder of outcomes")
