"""Rows as tables, and what they amount to in words.

Contract: a number is never folded or cut. A table that has little room leaves out rates and errors,
and one that has less quartiles and intervals as well; the files have them all. Importing this file
needs no Rich, for machines without it: ``with_rich`` does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import geometric_mean
from typing import Any

from fastreg.bench.cases import Case
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.compare import Comparison
from fastreg.bench.row import OWN, Row
from fastreg.bench.spread import Spread
from fastreg.bench.step import TITLE, shares


class Detail(IntEnum):
    """How much a table tells."""

    MEDIANS = 0
    SPREADS = 1
    ALL = 2


@dataclass(frozen=True)
class Table:
    """Lines in sections under headings; columns of words may be folded, those of numbers not."""

    title: str
    legend: str
    detail: Detail
    words: Sequence[str]
    numbers: Sequence[str]
    sections: Sequence[Sequence[Sequence[str]]]
    #: Of a folded column of words; None where words are not folded either.
    widest: int | None = None
    #: Whether a line may end in words without a heading.
    remarks: bool = False

    def with_rich(self) -> Any:
        """Return a table of Rich's."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        result = RichTable(
            title=self.title,
            caption=self.legend,
            header_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=self.detail != Detail.MEDIANS,
        )
        for heading in self.words:
            fold = self.widest is not None
            result.add_column(heading, no_wrap=not fold, overflow="fold", max_width=self.widest)
        for heading in self.numbers:
            result.add_column(heading, justify="right", no_wrap=True)
        if self.remarks:
            result.add_column("", max_width=None if self.detail == Detail.ALL else 10)
        for section in self.sections:
            for number, line in enumerate(section, start=1):
                result.add_row(*line, end_section=number == len(section))
        return result

    def plain(self) -> str:
        """Return the table as aligned text."""
        headings = [heading.replace("\n", " ") for heading in (*self.words, *self.numbers)]
        headings += [""] if self.remarks else []
        lines = [headings, *(line for section in self.sections for line in section)]
        lines = [[*line, *[""] * (len(headings) - len(line))] for line in lines]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = (
            "  ".join(
                text.ljust(width) if place < len(self.words) else text.rjust(width)
                for place, (text, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([self.title, *aligned, self.legend])


def _legends(medians: str, spreads: str, errors: str = "") -> dict[Detail, str]:
    """Return the legend of a table by what it tells."""
    files = "From 120 columns on, and with --json: quartiles"
    narrow = f"{medians} {files}{', intervals, GB/s and errors' if errors else ' and intervals'}."
    return {Detail.MEDIANS: narrow, Detail.SPREADS: spreads, Detail.ALL: spreads + errors}


CASES = _legends(
    "time: median. of floor: time of the bare loop over the same bytes (the floor) / time of the "
    "variant. times fastreg: how many times fastreg's time the variant takes.",
    "time: median (quartiles). share: time of the bare loop over the same bytes / time of the "
    "variant. times fastreg: how many times fastreg's time the variant takes. Both: median "
    "(95 % confidence interval) of the turns.",
    " errors: against float64, relative; the gradient's to the largest gradient.",
)
WORKS = _legends(
    "time: median. added: what the penalties add to the step without them, as a share of it. times "
    "the usual way: the time over that of what is written without fastreg.",
    "time: median (quartiles). added: what the penalties add to the step without them, as a share "
    "of it: median (quartiles) of the turns. times the usual way: the time over that of what is "
    "written without fastreg: median (95 % confidence interval) of the turns.",
)
COMPARISONS = _legends(
    "times: median. B / A: median, marked where its 95 % confidence interval leaves out 1.",
    "times: median (quartiles). B / A: median (95 % confidence interval); marked where the "
    "interval leaves out 1.",
)


def table(circumstances: Circumstances, rows: Sequence[Row], detail: Detail = Detail.ALL) -> Table:
    """Return one section per row, one line per variant; rows are of cases, or of other work."""
    narrow = detail == Detail.MEDIANS
    if isinstance(rows[0].what, Case):
        numbers = ["time", "of floor" if narrow else "share of floor", "times fastreg"]
        numbers += ["GB/s", "value error", "grad error"] if detail == Detail.ALL else []
        legends, words, widest, lines_of = CASES, ("case", "variant"), None, _of_case
    else:
        numbers = ["time", "added", "times the\nusual way" if narrow else "times the usual way"]
        widest = None if detail == Detail.ALL else 22
        legends, words, lines_of = WORKS, ("what", "variant"), _of_work
    sections = []
    for row in rows:
        labels, lines = lines_of(row, narrow)
        lines += [(name, "-") for name in row.blanks]
        labels = [*labels[: len(lines) - 1], ", ".join(labels[len(lines) - 1 :])]
        labels += [""] * (len(lines) - len(labels))
        sections.append(
            [(label, *line[: 1 + len(numbers)]) for label, line in zip(labels, lines, strict=True)]
        )
    title = circumstances.title()
    return Table(title, legends[detail], detail, words, numbers, sections, widest)


_Lines = tuple[list[str], list[tuple[str, ...]]]


def _of_case(row: Row, narrow: bool) -> _Lines:
    case = row.case
    labels = [f"{case.dtype} {case.terms} {case.outputs}", case.model or f"{case.size:,} elements"]
    labels += case.setting
    lines: list[tuple[str, ...]] = []
    for name in row.samples:
        share = case.floor if name == row.floor else percentage(row.share_of_floor(name), narrow)
        times = "" if name == OWN else ratio(row.times_fastreg(name), narrow)
        found = row.errors.get(name)
        errors = ("", "") if found is None else (_error(found.value), _error(found.gradient))
        rate = f"{row.gb_per_s(name):.1f}"
        lines.append((name, duration(row.seconds(name), narrow), share, times, rate, *errors))
    return labels, lines


def _of_work(row: Row, narrow: bool) -> _Lines:
    lines: list[tuple[str, ...]] = []
    for name in row.samples:
        added, of_usual = row.added(name), row.of_usual(name)
        share = "" if added is None else percentage(added, narrow)
        times = "" if of_usual is None else ratio(of_usual, narrow)
        lines.append((name, duration(row.seconds(name), narrow), share, times))
    return [str(row.work)], lines


def comparison(
    before: str, after: str, found: Sequence[Comparison], detail: Detail = Detail.ALL
) -> Table:
    """Return one line per case."""
    narrow = detail == Detail.MEDIANS
    lines = []
    for one in found:
        marks = [one.mark] if one.mark else []
        marks += ["other bits"] if one.same_bits is False else []
        times = (duration(seconds, narrow) for seconds in (one.before, one.after))
        lines.append((str(one), *times, ratio(one.ratio, narrow), ", ".join(marks)))
    are_cases = all(isinstance(one.case, Case) for one in found)
    title = f"A: {before}, B: {after}"
    numbers = ("A", "B", "B / A")
    widest = None if are_cases or detail == Detail.ALL else 40
    return Table(title, COMPARISONS[detail], detail, ["case"], numbers, [lines], widest, True)


def summary(rows: Sequence[Row]) -> list[str]:
    """Return how fastreg compares with the best peer of each case, and what was left blank.

    The best peer is the one with the smallest median time.
    """
    best = {}
    for row in rows:
        if row.compared:
            name = min(row.compared, key=lambda name: row.seconds(name).median)
            best[row.case] = name, row.times_fastreg(name)
    lines = []
    if best:
        mean = geometric_mean(times.median for _, times in best.values())
        slowest = min(best, key=lambda case: best[case][1].median)
        name, times = best[slowest]
        behind = sum(times.median < 1 for _, times in best.values())
        lines.append(
            f"against the best peer of each case: geometric mean {mean:.2f} times fastreg's time; "
            f"least {ratio(times)}, {name} on {slowest}; below 1 in {behind} of {len(best)} cases"
        )
    counts = Counter(blank for row in rows for blank in row.blanks.items())
    return lines + [
        f"blank: {name}, {reason} ({count} {'case' if count == 1 else 'cases'})"
        for (name, reason), count in counts.items()
    ]


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Return what ways to add penalties to a step add, over what the plainest of them adds.

    Then why there is no time where there is none.
    """
    added = [
        f"{row.work.framework}, {name}: adds {times:.2f} times what {row.work.measure} adds"
        for row in rows
        for name in row.samples
        if (times := row.of_measure(name)) is not None
    ]
    return added + [
        f"blank: {row.work.framework}, {name}, {reason}"
        for row in rows
        for name, reason in row.blanks.items()
    ]


def step_line(row: Row) -> str:
    """Return the penalties' share of a training step, in words.

    Examples
    --------
    >>> from fastreg.bench.step import setting
    >>> samples = {"no penalty": [0.01], "fastreg": [0.0125], "by hand": [0.02]}
    >>> print(step_line(Row(setting().work, samples)))
    training step: Dense 784-1024-1024-10, batch 64, f32, L1L2 on kernels, L1 on activities
    no penalty 10.0 (10.0-10.0) ms
    fastreg    12.5 (12.5-12.5) ms, penalties 20 (20-20) % of it
    by hand    20.0 (20.0-20.0) ms, penalties 50 (50-50) % of it
    """
    lines, found = [TITLE], shares(row)
    for name in row.samples:
        line = f"{name:10} {duration(row.seconds(name))}"
        lines.append(
            f"{line}, penalties {percentage(found[name])} of it" if name in found else line
        )
    lines += [f"blank: {name}, {reason}" for name, reason in row.blanks.items()]
    return "\n".join(lines)


def duration(seconds: Spread, narrow: bool = False) -> str:
    """Return a time and its quartiles in the unit that fits the median.

    Examples
    --------
    >>> duration(Spread(1.5e-6, 1.4e-6, 1.75e-6))
    '1.50 (1.40-1.75) us'
    >>> duration(Spread(1.5e-6, 1.4e-6, 1.75e-6), narrow=True)
    '1.50 us'
    """
    units = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
    unit = next((u for u, factor in units.items() if seconds.median * factor >= 1), "ns")
    factor = units[unit]
    median, low, high = (_digits(s * factor) for s in (seconds.median, seconds.low, seconds.high))
    return f"{median} {unit}" if narrow else f"{median} ({low}-{high}) {unit}"


def percentage(share: Spread, narrow: bool = False) -> str:
    """Return a share in percent.

    Examples
    --------
    >>> percentage(Spread(0.97, 0.95, 1.01))
    '97 (95-101) %'
    """
    median, low, high = (
        f"{100 * part:.{1 if abs(part) < 0.1 else 0}f}"
        for part in (share.median, share.low, share.high)
    )
    return f"{median} %" if narrow else f"{median} ({low}-{high}) %"


def ratio(times: Spread, narrow: bool = False) -> str:
    """Return a ratio and its bounds.

    Examples
    --------
    >>> ratio(Spread(11.6, 11.2, 12.0))
    '11.6 (11.2-12.0)'
    """
    median, low, high = map(_digits, (times.median, times.low, times.high))
    return median if narrow else f"{median} ({low}-{high})"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.1g}"


def _digits(number: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"
