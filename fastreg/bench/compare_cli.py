"""The run of ``python -m fastreg bench compare``: table, notes, file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastreg.bench import commits, compare, options
from fastreg.bench.cli import show, show_table, write_files
from fastreg.bench.compare import Comparison
from fastreg.bench.table import Detail, duration, ratio

MEDIANS_LEGEND = (
    "times: median. B / A: median, marked where its 95 % confidence interval leaves out 1. From "
    "120 columns on, and with --json: quartiles and intervals."
)
LEGEND = (
    "times: median (quartiles). B / A: median (95 % confidence interval); "
    "marked where the interval leaves out 1."
)


def run(choices: argparse.Namespace) -> int:
    """Compare, and show it; the exit status."""
    if compare.is_record(choices.before):
        found, notes = compare.records(Path(choices.before), Path(choices.after))
    else:
        options.complete(choices)
        found, notes = commits.compare(choices)
    writers = {"json": lambda path: compare.write_json(path, choices.before, choices.after, found)}
    written = write_files(choices, writers)
    show_table(lambda detail: table(choices.before, choices.after, found, detail))
    show("\n".join([*summary(found), *notes]))
    return 0 if written else 1


def table(
    before: str, after: str, found: Sequence[Comparison], detail: Detail = Detail.ALL
) -> Table:
    """One line per case."""
    narrow = detail == Detail.MEDIANS
    result = Table(
        title=f"A: {before}, B: {after}",
        caption=MEDIANS_LEGEND if narrow else LEGEND,
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=not narrow,
    )
    result.add_column("case", no_wrap=True)
    for heading in ("A", "B", "B / A"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("", max_width=None if detail == Detail.ALL else 10)
    for one in found:
        marks = [one.mark] if one.mark else []
        marks += ["other bits"] if one.same_bits is False else []
        times = (duration(seconds, narrow) for seconds in (one.before, one.after))
        result.add_row(str(one.case), *times, ratio(one.ratio, narrow), ", ".join(marks))
    return result


def summary(found: Sequence[Comparison]) -> list[str]:
    """The whole in one line, and the bits where they were looked at.

    Examples
    --------
    >>> from fastreg.bench.cases import Case
    >>> from fastreg.bench.spread import Spread
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
