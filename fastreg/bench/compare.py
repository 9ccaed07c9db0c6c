"""``bench compare A B``: two records, or two commits, case by case.

Contract: a ratio is B's time over A's (0.5: B takes half the time), with a 95 % confidence
interval. A case is marked when the interval leaves out 1. Two records come from different minutes
of a machine, so there the share of the floor must tell the same before a case is marked; two
commits are measured in turn. Of cases that did not change, about one in twenty is marked by chance.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from fastreg import _files
from fastreg.bench import options, record
from fastreg.bench.cases import Case
from fastreg.bench.options import UsageError
from fastreg.bench.spread import Spread

EPILOG = (
    "A and B are two records written by `bench --json`, or two commits of the checkout that this "
    "is run in: they are built in two temporary worktrees and measured by two processes that take "
    "turns, with the benchmark of this installation. `compare main HEAD` shows what a branch has "
    "changed, `compare HEAD HEAD` how much noise there is, `compare HEAD $(git stash create)` what "
    "is not committed yet. The options that choose cases are for commits only. About one case in "
    "twenty that did not change is marked by chance."
)


@dataclass(frozen=True)
class Comparison:
    """One case in A and B: seconds per call, and B's over A's."""

    case: Case
    before: Spread
    after: Spread
    ratio: Spread
    #: "faster" or "slower" where B differs beyond noise, else "".
    mark: str
    #: Whether both gave the same bits; None where that was not looked at.
    same_bits: bool | None = None


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``bench compare`` to a parser."""
    parser.add_argument("before", metavar="A", help="a record (.json) or a commit")
    parser.add_argument("after", metavar="B", help="another of the same kind")
    options.add_cases(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the comparison as JSON")


def check(choices: argparse.Namespace) -> None:
    """Refuse to start what would fail later.

    Raises
    ------
    UsageError
        A and B are of different kinds, a file is not there, options do not fit, or something is
        not installed.
    """
    for option in ("peers", "csv", "plot"):
        if getattr(choices, option) is not None:
            raise UsageError(f"--{option} is not for `compare`")
    options.check_files(choices, "json")
    options.require({"rich": "the table and the progress bar"})
    sides = (choices.before, choices.after)
    if not any(is_record(side) for side in sides):
        options.check_cases(choices, {})
        return
    for side in sides:
        if not is_record(side):
            raise UsageError(
                f"{side!r} is not a record (.json); compare two records, or two commits"
            )
        if not Path(side).is_file():
            raise UsageError(f"{side!r} is not there")
    given = [
        f"--{option}"
        for option in ("sizes", "models", "dtypes", "terms", "outputs", "repeats", "threads")
        if getattr(choices, option) is not None
    ]
    given += ["--quick"] if choices.quick else []
    if given:
        raise UsageError(f"{', '.join(given)}: only for commits; records are compared as they are")


def is_record(side: str) -> bool:
    """Whether an argument means a file; a commit has no such name."""
    return side.endswith(".json") or Path(side).is_file()


def records(before: Path, after: Path) -> tuple[list[Comparison], list[str]]:
    """The cases that two records share, and what else there is to know.

    Raises
    ------
    UsageError
        A file cannot be read, or the two have no case in common.
    """
    a, b = _read(before), _read(after)
    rows = {row.case: row for row in a.rows}
    found = []
    for row in b.rows:
        if row.case not in rows:
            continue
        old, new = rows[row.case].own, row.own
        ratio = Spread.of_medians(new.samples, old.samples)
        # the floor's time over the variant's, turn by turn: what the machine did to both cancels
        floors = [
            [f / s for f, s in zip(r.variants["floor"].samples, r.own.samples, strict=True)]
            for r in (rows[row.case], row)
        ]
        shares = Spread.of_medians(floors[0], floors[1])
        agrees = (shares.median > 1) == (ratio.median > 1) and shares.excludes(1)
        found.append(
            Comparison(row.case, old.seconds, new.seconds, ratio, mark(ratio) if agrees else "")
        )
    if not found:
        raise UsageError(f"{before} and {after} have no case in common")
    notes = [
        f"not the same in both: {field.name} ({_short(a, field.name)}, {_short(b, field.name)})"
        for field in fields(record.Circumstances)
        if field.name in ("threads", "backend", "instruction_set", "machine", "versions")
        and _short(a, field.name) != _short(b, field.name)
    ]
    alone = [(str(path), len(r.rows) - len(found)) for path, r in ((before, a), (after, b))]
    notes += [f"only in {path}: {count} cases" for path, count in alone if count]
    return found, notes


def mark(ratio: Spread) -> str:
    """What an interval says of B.

    Examples
    --------
    >>> mark(Spread(0.9, 0.85, 0.95)), mark(Spread(1.1, 1.0, 1.2))
    ('faster', '')
    """
    if not ratio.excludes(1.0):
        return ""
    return "faster" if ratio.median < 1 else "slower"


def write_json(path: Path, before: str, after: str, found: Sequence[Comparison]) -> None:
    """The comparison; keys as in ``Comparison``."""
    document = {
        "schema": record.SCHEMA,
        "before": before,
        "after": after,
        "cases": [asdict(comparison) for comparison in found],
    }
    _files.replace_text(path, json.dumps(document, indent=1) + "\n")


def _read(path: Path) -> record.Record:
    try:
        return record.read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be compared: {error}") from error


def _short(run: record.Record, name: str) -> str:
    return str(getattr(run.circumstances, name))
