"""``bench compare A B``: two records, or two commits, case by case.

Contract: a ratio is B's time over A's (0.5: B takes half the time), with a 95 % confidence
interval. A case is marked when the interval leaves out 1. Two records come from different minutes
of a machine, so there the time over that of the yardstick, a case's floor or the usual way of a
framework, must tell the same before a case is marked; two commits are measured in turn. Of cases
that did not change, about one in twenty is marked by chance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean

from fastreg._base import files
from fastreg.bench import record
from fastreg.bench.cases import Case
from fastreg.bench.options import UsageError
from fastreg.bench.row import OWN, Row, Work
from fastreg.bench.spread import Spread

#: Circumstances that two records should share.
SHARED = ("threads", "backend", "instruction_set", "machine", "memory", "gpus", "versions")


@dataclass(frozen=True)
class Comparison:
    """One case in A and B: seconds per call, and B's over A's."""

    case: Case | Work
    before: Spread
    after: Spread
    ratio: Spread
    #: "faster" or "slower" where B differs beyond noise, else "".
    mark: str
    #: Whether both gave the same bits; None where that was not looked at.
    same_bits: bool | None = None
    variant: str = OWN

    @classmethod
    def in_turn(
        cls, case: Case, before: Sequence[float], after: Sequence[float], same_bits: bool
    ) -> Comparison:
        """Compare samples that were taken in turn."""
        ratio = Spread.of_ratio(after, before)
        a, b = (Spread.quartiles(sample) for sample in (before, after))
        return cls(case, a, b, ratio, mark(ratio), same_bits)

    def __str__(self) -> str:
        return str(self.case) if self.variant == OWN else f"{self.case}, {self.variant}"


def records(before: Path, after: Path) -> tuple[list[Comparison], list[str]]:
    """Return the cases that two records share, and what else there is to know.

    Raises
    ------
    UsageError
        A file cannot be read, or the two have no case in common.
    """
    a, b = _read(before), _read(after)
    old, new = _by_variant(a), _by_variant(b)
    found = [_compared(old[key], row, key[1]) for key, row in new.items() if key in old]
    if not found:
        raise UsageError(f"{before} and {after} have no case in common")
    notes = []
    for name in SHARED:
        both = [getattr(run.circumstances, name) for run in (a, b)]
        if both[0] != both[1] and None not in both:
            notes.append(f"not the same in both: {name} ({both[0]}, {both[1]})")
    alone = [(path, len(rows) - len(found)) for path, rows in ((before, old), (after, new))]
    notes += [f"only in {path}: {count} cases" for path, count in alone if count]
    return found, notes


def _by_variant(run: record.Record) -> dict[tuple[Case | Work, str], Row]:
    """Return the rows by what fastreg did in them; of a case measured twice the first."""
    found: dict[tuple[Case | Work, str], Row] = {}
    for row in run.rows:
        for name in row.own:
            found.setdefault((row.what, name), row)
    return found


def _compared(old: Row, new: Row, name: str) -> Comparison:
    ratio = Spread.of_medians(new.samples[name], old.samples[name])
    agrees = False
    if all(row.yardstick in row.samples for row in (old, new)):
        # its time over the variant's, turn by turn: what the machine did to both cancels
        shares = Spread.of_medians(*(
            [y / s for y, s in zip(row.samples[row.yardstick], row.samples[name], strict=True)]
            for row in (old, new)
        ))  # fmt: skip
        agrees = (shares.median > 1) == (ratio.median > 1) and shares.excludes(1)
    a, b = old.seconds(name), new.seconds(name)
    return Comparison(new.what, a, b, ratio, mark(ratio) if agrees else "", variant=name)


def mark(ratio: Spread) -> str:
    """Return what an interval says of B.

    Examples
    --------
    >>> mark(Spread(0.9, 0.85, 0.95)), mark(Spread(1.1, 1.0, 1.2))
    ('faster', '')
    """
    if not ratio.excludes(1.0):
        return ""
    return "faster" if ratio.median < 1 else "slower"


def summary(found: Sequence[Comparison]) -> list[str]:
    """Return the whole in one line, and the bits where they were looked at.

    Examples
    --------
    >>> one = Spread(1.0, 0.9, 1.1)
    >>> summary([Comparison(Case("f32", "L1", "value", 8), one, one, one, "", True)])
    ['1 case: 0 faster, 0 slower; geometric mean of B / A 1.00']
    """
    mean = geometric_mean([one.ratio.median for one in found])
    counts = {name: sum(one.mark == name for one in found) for name in ("faster", "slower")}
    marks = ", ".join(f"{count} {name}" for name, count in counts.items())
    noun = "case" if len(found) == 1 else "cases"
    lines = [f"{len(found)} {noun}: {marks}; geometric mean of B / A {mean:.2f}"]
    if other := sum(one.same_bits is False for one in found):
        lines.append(f"the bits of results differ in {other} of them")
    return lines


def write_json(path: Path, before: str, after: str, found: Sequence[Comparison]) -> None:
    """Write the comparison; keys as in ``Comparison``."""
    document = {
        "schema": record.SCHEMA,
        "before": before,
        "after": after,
        "cases": [asdict(comparison) for comparison in found],
    }
    files.replace_text(path, json.dumps(document, indent=1) + "\n")


def _read(path: Path) -> record.Record:
    try:
        return record.read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be compared: {error}") from error
