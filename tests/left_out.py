"""What a run of the tests leaves out, said at its end: skips by reason, and frameworks in one line.

Contract
--------
- The tests of a framework (a folder ``tests/with_*``) and the doctests of modules that import it
  are collected where it can be found, and nowhere else.
- A run in which a framework is missing names what was left out for it, and what runs everything.
- Skipped tests are counted by reason; pytest's option ``-rs`` lists where they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

FRAMEWORKS = ("torch", "jax", "keras")
# By folder, without which it has nothing to run. Some tests of with_keras need no Keras.
FOLDERS = {"with_torch": "torch", "with_jax": "jax", "with_loops": "torch"}
EVERYTHING = "pip install -e '.[test-frameworks]' && python -m pytest"
WHOLE = " (whole files)"


def missing_frameworks() -> list[str]:
    """Return the names of the frameworks that are not installed."""
    return [name for name in FRAMEWORKS if find_spec(name) is None]


@cache
def imported_by(path: Path) -> frozenset[str]:
    """Return the frameworks that a module of the package needs: for its folder, or at its top.

    What it needs are also those of the modules that it imports at its top.
    """
    names = []
    folder = path if path.is_dir() else path.parent
    while (folder / "__init__.py").exists():
        names.append(folder.name)
        folder = folder.parent
    if names[-1:] != ["fastreg"]:
        return frozenset()
    if path.suffix == ".py":
        text = path.read_text("utf-8")
        names += re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
        for dots, name in re.findall(r"^from (\.+)([\w.]+) import", text, re.MULTILINE):
            module = path.parents[len(dots) - 1].joinpath(*name.split(".")).with_suffix(".py")
            if module.exists():
                names += imported_by(module)
    return frozenset(names).intersection(FRAMEWORKS)


class LeftOut:
    """The plugin of `tests/conftest.py`.

    A plugin, because a conftest's own hooks are not asked about directories beside it.
    """

    def __init__(self) -> None:
        self.folders: set[str] = set()

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if any(find_spec(name) is None for name in imported_by(collection_path)):
            return True
        # The folder itself is not asked about where the command line names it; its files are.
        for path in (collection_path, collection_path.parent):
            name, above = path.name, path.parent.name
            if above == "tests" and name in FOLDERS and find_spec(FOLDERS[name]) is None:
                self.folders.add(f"tests/{name}")
                return True
        return None

    # Around all others: what is said last is read.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
        yield
        # By name and reason: a file is collected twice, for its tests and for its doctests.
        skipped = {
            (report.nodeid, reason_of(report))
            for report in terminalreporter.stats.get("skipped", [])
        }
        reasons = Counter(reason for _, reason in skipped)
        if reasons:
            terminalreporter.section("skipped, by reason")
            for reason, count in reasons.most_common():
                terminalreporter.line(f"{count:5d}  {reason}")
        line = frameworks_line(self.folders, reasons)
        if line:
            terminalreporter.section("left out")
            terminalreporter.line(line)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test or a file was skipped; lines that differ in nothing else are one."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ").splitlines()[0]
    absent = re.match(r"could not import '(\w+)(\.\w+)*'", reason)
    if absent:
        reason = f"{absent[1]} is not installed"
    else:
        reason = re.sub(
            r"^(\w+) is not installed\b.*", lambda m: f"{m[1].lower()} is not installed", reason
        )
    if isinstance(report, pytest.CollectReport):
        reason += WHOLE
    return reason


def frameworks_line(folders: set[str], reasons: Counter[str]) -> str:
    """Return what was left out for want of frameworks, and what runs it; nothing if none is."""
    missing = missing_frameworks()
    tests = files = 0
    for reason, count in reasons.items():
        if reason.split(" is not installed")[0] in missing:
            whole = reason.endswith(WHOLE)
            files += count * whole
            tests += count * (not whole)
    parts = sorted(folders)
    parts += [f"{tests} tests elsewhere"] * bool(tests) + [f"{files} files elsewhere"] * bool(files)
    if not parts:
        return ""
    return f"without {', '.join(missing)}: {', '.join(parts)}; everything: {EVERYTHING}"
