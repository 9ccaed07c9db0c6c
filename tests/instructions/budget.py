"""Hold the instructions that every cell needs to their budget. No clock is read.

Instructions are the same at every run, however busy the machine, so that a kernel which a compiler
or a change has spoilt shows at once. What they do not show is waiting: for memory, or for a result.

Counted are the engine, cell by cell (count.cpp says which), and what the core takes of a call from
Python (calls.py), without what Python and NumPy take themselves: by callgrind, and by the trap flag
for AVX-512, which Valgrind does not know.
The budget is budget.json beside this file. More than 2 % and 8 instructions above it fail; with
another compiler than the recorded one more than 25 % do.

    cmake --preset release
    cmake --build --preset release --target fastreg_instructions
    python tests/instructions/budget.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUDGET = HERE / "budget.json"

TOLERANCE = 0.02
TOLERANCE_ELSEWHERE = 0.25
"""With other tools than the recorded ones: compilers differ, but not by that."""
A_FEW = 8
"""In a small call two percent are fewer instructions than one that was scheduled otherwise."""
WORTH_RENEWING = 0.05

BY_TRAP_FLAG = ("avx512",)
ONLY_FOR_TESTS = ("avx512_on_avx2",)

OF_PYTHON = re.compile(r"/(python[\d.]*|libpython[^/]*|_multiarray_umath[^/]*)$")
"""Libraries that are not counted: what they take differs by who has built Python and NumPy."""

Counts = dict[str, dict[str, int]]
"""Instructions by cell (``f32 L1L2 VGA``) and work (``65536 elements``)."""


class CannotCountError(Exception):
    """What is missing, in words."""


# --- judging


@dataclass(frozen=True)
class Finding:
    """One count beside its budget; None where there is no such count or no such budget."""

    cell: str
    work: str
    counted: int | None
    budget: int | None

    def verdict(self, tolerance: float) -> str:
        """Return "within", "over", "under", or, where one side is missing, "new" or "gone"."""
        if self.budget is None:
            return "new"
        if self.counted is None:
            return "gone"
        more = self.counted - self.budget
        if more > max(tolerance * self.budget, A_FEW):
            return "over"
        if -more > max(WORTH_RENEWING * self.budget, A_FEW):
            return "under"
        return "within"

    def __str__(self) -> str:
        if self.counted is None or self.budget is None:
            return f"{self.cell}, {self.work}: counted {self.counted}, budget {self.budget}"
        change = self.counted / self.budget - 1
        return f"{self.cell}, {self.work}: {self.counted:,} for {self.budget:,} ({change:+.1%})"


def compare(counted: Counts, budget: Counts) -> list[Finding]:
    """Pair counts with budgets, in the order of the counts; what was not counted comes last."""
    pairs = [(cell, work) for cell, works in counted.items() for work in works]
    pairs += [(cell, work) for cell, works in budget.items() for work in works]
    return [
        Finding(cell, work, counted.get(cell, {}).get(work), budget.get(cell, {}).get(work))
        for cell, work in dict.fromkeys(pairs)
    ]


# --- counting


def run(command: Sequence[str], **environment: str) -> str:
    try:
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise CannotCountError(f"there is no {command[0]}") from None
    if done.returncode != 0:
        raise CannotCountError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def callgrind(command: Sequence[str], *options: str, **environment: str) -> list[tuple[str, int]]:
    """Run a command that dumps counts; give their names and the instructions."""
    with tempfile.TemporaryDirectory() as folder:
        dumps = Path(folder, "dumps")
        run(
            [
                *("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={dumps}"),
                *("--collect-atstart=no", "--combine-dumps=yes", *options, *command),
            ],
            **environment,
        )
        return read_dumps(dumps.read_text())


def read_dumps(text: str) -> list[tuple[str, int]]:
    """Return the name and the sum of every dump that was asked for, in a file of callgrind's.

    A line of numbers is a position and what the function took by itself; the one after "calls="
    has what another function took, which is among its own lines already.

    >>> read_dumps("desc: Trigger: Client Request: here\\nob=(1) /core.so\\nfn=(1)\\n5 7\\n")
    [('here', 7)]
    """
    asked = "Client Request: "
    dumps: list[tuple[str, int]] = []
    objects: dict[str, str] = {}  # by the number in brackets, named where it comes first
    is_counted = is_of_another = False
    for line in text.splitlines():
        if trigger := re.match("desc: Trigger: (.*)", line):
            dumps.append((trigger[1], 0))
        elif library := re.match(r"(c?)ob=(\(\d+\)) ?(.*)", line):
            name = objects.setdefault(library[2], library[3])
            if not library[1]:  # "cob=" is the one of a function that is called
                is_counted = not OF_PYTHON.search(name)
        elif is_counted and not is_of_another and (own := re.match(r"[\d+*-]\S* (\d+)$", line)):
            dumps[-1] = (dumps[-1][0], dumps[-1][1] + int(own[1]))
        is_of_another = line.startswith("calls=")
    return [
        (trigger.removeprefix(asked), count)
        for trigger, count in dumps
        if trigger.startswith(asked)  # and not at the end of the program
    ]


def by_cell(counts: Iterable[tuple[str, int]]) -> Counts:
    """Sort "<cell>/<work>" under their cells; of a name that comes again, the last count holds."""
    result: Counts = {}
    for name, count in counts:
        cell, work = name.rsplit("/", 1)
        result.setdefault(cell, {})[work] = count
    return result


def engine_counts(counts: Mapping[str, int], instruction_set: str) -> Counts:
    """Pick one instruction set's counts, and take off what counting itself takes."""
    here = {
        name.removeprefix(f"{instruction_set}/"): count
        for name, count in counts.items()
        if name.startswith(f"{instruction_set}/")
    }
    nothing = here.pop("nothing")
    return by_cell((name, count - nothing) for name, count in here.items())


def count_under_callgrind(program: Path, instruction_sets: Sequence[str]) -> dict[str, Counts]:
    counts = dict(callgrind([str(program), *instruction_sets]))
    return {name: engine_counts(counts, name) for name in instruction_sets}


def count_by_trap_flag(program: Path, instruction_set: str) -> Counts:
    lines = run([str(program), instruction_set]).splitlines()
    counts = {name: int(n) for name, n in (line.rsplit(" ", 1) for line in lines)}
    return engine_counts(counts, instruction_set)


def count_calls(build: Path, python: str, instruction_set: str) -> Counts:
    """Count the core's entry points in a Python process, and all that they call but OF_PYTHON."""
    # One pattern: where two have a beginning in common, callgrind does as if the first were not.
    scope = "fastreg::python::(anonymous namespace)"
    entry_points = f"{scope}::evaluate_*(_object*, _object* const*, long)"
    marks = build / "tests/instructions/marks.so"
    counts = callgrind(
        [python, str(HERE / "calls.py"), instruction_set, str(marks)],
        "--instr-atstart=no",
        f"--toggle-collect={entry_points}",
        PYTHONPATH=str(build / "python"),
        PYTHONHASHSEED="0",
        FASTREG_NUM_THREADS="1",
    )
    if not all(count for _, count in counts):
        raise CannotCountError(f"no instructions in {entry_points}: {counts}")
    return by_cell(counts)


@dataclass(frozen=True)
class Group:
    """What was counted together: an instruction set, or the calls from Python."""

    counts: Counts
    made_with: dict[str, str]
    counted_with: str


def count_all(build: Path, python: str) -> tuple[dict[str, Group], dict[str, str]]:
    """Return the groups by name, and why each of those that are missing is missing."""
    program = build / "tests/instructions/fastreg_instructions"
    facts = dict(line.split(": ", 1) for line in run([str(program)]).splitlines())
    if facts["build type"] != "Release":
        raise CannotCountError(f"the budget is for a Release, not {facts['build type']}")
    valgrind = run(["valgrind", "--version"]).strip()
    engine = {"compiler": facts["compiler"]}
    usable = facts["instruction sets"].split()
    known = [name for name in usable if name not in BY_TRAP_FLAG + ONLY_FOR_TESTS]

    groups = {
        name: Group(counts, engine, valgrind)
        for name, counts in count_under_callgrind(program, known).items()
    }
    missing = {}
    for name in BY_TRAP_FLAG:
        if name not in usable:
            missing[name] = "this processor does not have it"
        elif facts["trap flag"] != "works":
            missing[name] = "the trap flag does not work here"
        else:
            groups[name] = Group(count_by_trap_flag(program, name), engine, "trap flag")
    tools = run([python, "-c", "import platform as p; print(p.python_version(), *p.libc_ver())"])
    python_version, _, libc = tools.strip().partition(" ")
    groups["calls from Python"] = Group(
        count_calls(build, python, known[0]),
        engine | {"Python": python_version.rpartition(".")[0], "libc": libc},
        valgrind,
    )
    return groups, missing


# --- showing and recording


def unit(work: str) -> tuple[str, float]:
    """Return what the instructions of a kind of work are divided by, and by how much.

    >>> unit("64 elements"), unit("65536 elements, streaming"), unit("400 tensors")
    (('a call of 64 elements', 1), ('32 elements, streaming', 2048.0), ('a tensor of 64', 400))
    """
    number, _, what = work.partition(" ")
    if what == "tensors":
        return "a tensor of 64", int(number)
    if int(number) < 1024:
        return f"a call of {number} {what}", 1
    return f"32 {what}", int(number) / 32


def show(title: str, findings: Sequence[Finding]) -> None:
    """Print one line per cell, one column per kind of work."""
    works = list(dict.fromkeys(finding.work for finding in findings))
    header = ["instructions for", *(unit(work)[0] for work in works)]
    cells: dict[str, dict[str, str]] = {}
    for finding in findings:
        text = "not counted"
        if finding.counted is not None:
            text = f"{finding.counted / unit(finding.work)[1]:,.1f}".removesuffix(".0")
            if finding.budget:
                text += f" {finding.counted / finding.budget - 1:+6.1%}"
        cells.setdefault(finding.cell, {})[finding.work] = text
    rows = [[cell, *(texts.get(work, "") for work in works)] for cell, texts in cells.items()]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        print(f"\n{title}")
        for row in [header, *rows]:
            print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    else:
        table = Table(title=title, header_style="bold")
        for index, heading in enumerate(header):
            table.add_column(heading, justify="right" if index else "left", no_wrap=not index)
        for row in rows:
            table.add_row(*row)
        console = Console()
        (console if console.is_terminal else Console(width=100)).print(table)


def record(groups: Mapping[str, Group], machine: str) -> None:
    """Write what was counted; what could not be counted here stays as it is recorded."""
    everything = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    mine = everything.setdefault(machine, {})
    for name, group in groups.items():
        mine[name] = {
            "made with": group.made_with,
            "counted with": group.counted_with,
            "instructions": group.counts,
        }
    text = json.dumps(everything, indent=2)
    # One line for each cell, so that a difference can be read.
    text = re.sub(r'\{\s+("[^{}]*?)\s+\}', lambda found: "{" + one_line(found[1]) + "}", text)
    BUDGET.write_text(text + "\n")


def one_line(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text)


def judge(groups: Mapping[str, Group], budget: Mapping[str, dict]) -> tuple[list[str], list[str]]:
    """Show every group; give what fails, and what is worth knowing."""
    failures, notes = [], []
    for name, group in groups.items():
        recorded = budget.get(name, {"made with": {}, "instructions": {}})
        tolerance = TOLERANCE
        if group.made_with != recorded["made with"]:
            tolerance = TOLERANCE_ELSEWHERE
            notes.append(
                f"{name}: made with {group.made_with}, recorded with {recorded['made with']}: "
                f"{tolerance:.0%} are allowed instead of {TOLERANCE:.0%}"
            )
        findings = compare(group.counts, recorded["instructions"])
        show(f"{name}, counted by {group.counted_with}", findings)
        for finding in findings:
            verdict = finding.verdict(tolerance)
            if verdict == "under":
                notes.append(f"{name} {finding}: renew the record")
            elif verdict != "within":
                failures.append(f"{name} {finding}: {verdict}")
    return failures, notes


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--build",
        type=Path,
        default=HERE.parents[1] / "build/release",
        help="where the release was built (default: build/release)",
    )
    parser.add_argument(
        "--python", default=sys.executable, help="the Python that it was built for (default: this)"
    )
    parser.add_argument("--record", action="store_true", help="make what is counted the budget")
    options = parser.parse_args(arguments)
    machine = platform.machine()
    try:
        groups, missing = count_all(options.build, options.python)
    except CannotCountError as error:
        print(f"cannot count: {error}", file=sys.stderr)
        return 2
    if options.record:
        record(groups, machine)
    elif not BUDGET.exists():
        print(f"there is no {BUDGET}: make one with --record", file=sys.stderr)
        return 2
    budget = json.loads(BUDGET.read_text()).get(machine, {})
    failures, notes = judge(groups, budget)
    for name, reason in missing.items():
        notes.append(f"{name}: not counted, because {reason}")
    for note in notes:
        print(f"NOTE {note}")
    for failure in failures:
        print(f"FAILED {failure}")
    counted = sum(len(works) for group in groups.values() for works in group.counts.values())
    print(f"{counted - len(failures)} of {counted} counts are within the budget for {machine}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
