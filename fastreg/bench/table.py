"""Rows as tables for the terminal, and what they amount to in words.

Contract: a number is never folded or cut. A table that has little room leaves out rates and errors,
and one that has less quartiles and intervals as well; the files have them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from statistics import geometric_mean

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastreg.bench.peers import Fastreg, Floor
from fastreg.bench.record import Circumstances
from fastreg.bench.run import Row
from fastreg.bench.spread import Spread
from fastreg.bench.step import TITLE, StepRow


class Detail(IntEnum):
    """How much a table tells."""

    MEDIANS = 0
    SPREADS = 1
    ALL = 2


_SPREADS_LEGEND = (
    "time: median (quartiles). share: time of the bare loop over the same bytes / time of the "
    "variant. times fastreg: how many times fastreg's time the variant takes. Both: median "
    "(95 % confidence interval) of the turns."
)
LEGENDS = {
    Detail.MEDIANS: "time: median. of floor: time of the bare loop over the same bytes (the floor) "
    "/ time of the variant. times fastreg: how many times fastreg's time the variant takes. From "
    "120 columns on, and with --json: quartiles, intervals, GB/s and errors.",
    Detail.SPREADS: _SPREADS_LEGEND,
    Detail.ALL: f"{_SPREADS_LEGEND} errors: against float64, relative; the gradient's to the "
    "largest gradient.",
}


def table(circumstances: Circumstances, rows: Sequence[Row], detail: Detail = Detail.ALL) -> Table:
    """One section per case, one line per variant."""
    narrow = detail == Detail.MEDIANS
    result = Table(
        title=circumstances.title(),
        caption=LEGENDS[detail],
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=not narrow,
    )
    for heading in ("case", "variant"):
        result.add_column(heading, no_wrap=True)
    headings = ["time", "of floor" if narrow else "share of floor", "times fastreg"]
    headings += ["GB/s", "value error", "grad error"] if detail == Detail.ALL else []
    for heading in headings:
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        case = row.case
        place = case.model or f"{case.size:,} elements"
        labels = [f"{case.dtype} {case.terms} {case.outputs}", place]
        lines = []
        for name, found in row.variants.items():
            cells = [
                duration(found.seconds, narrow),
                case.floor if name == Floor.name else percentage(found.share_of_floor, narrow),
                "" if name == Fastreg.name else ratio(found.times_fastreg, narrow),
                f"{row.gb_per_s(name):.1f}",
                _error(found.errors.value),
                _error(found.errors.gradient),
            ]
            lines.append((name, *cells[: len(headings)]))
        lines += [(name, "-") for name in row.blanks]
        labels += [""] * (len(lines) - len(labels))
        for number, (label, line) in enumerate(zip(labels, lines, strict=True), start=1):
            result.add_row(label, *line, end_section=number == len(lines))
    return result


def summary(rows: Sequence[Row]) -> list[str]:
    """How fastreg compares with the best peer of each case, and what was left blank.

    The best peer is the one with the smallest median time.
    """
    best = {}
    for row in rows:
        if row.compared:
            name, found = min(row.compared.items(), key=lambda item: item[1].seconds.median)
            best[row.case] = name, found.times_fastreg
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
    return lines + _blanks(rows)


def _blanks(rows: Iterable[Row]) -> list[str]:
    """The reasons of blanks, each with the number of its cases."""
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        for blank in row.blanks.items():
            counts[blank] = counts.get(blank, 0) + 1
    return [
        f"blank: {name}, {reason} ({count} {'case' if count == 1 else 'cases'})"
        for (name, reason), count in counts.items()
    ]


def step_line(row: StepRow) -> str:
    """The penalties' share of a training step, in words.

    Examples
    --------
    >>> spread = Spread(0.01, 0.01, 0.01)
    >>> seconds = dict.fromkeys(("no penalty", "fastreg", "by hand"), spread)
    >>> print(step_line(StepRow(seconds, {"fastreg": spread, "by hand": spread})))
    training step: Dense 784-1024-1024-10, batch 64, f32, L1L2 on kernels, L1 on activities
    no penalty 10.0 (10.0-10.0) ms
    fastreg    10.0 (10.0-10.0) ms, penalties 1.0 (1.0-1.0) % of it
    by hand    10.0 (10.0-10.0) ms, penalties 1.0 (1.0-1.0) % of it
    """
    lines = [TITLE]
    for name, seconds in row.seconds.items():
        line = f"{name:10} {duration(seconds)}"
        if name in row.share:
            line += f", penalties {percentage(row.share[name])} of it"
        lines.append(line)
    return "\n".join(lines)


def duration(seconds: Spread, narrow: bool = False) -> str:
    """A time and its quartiles in the unit that fits the median.

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
    """A share in percent.

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
    """A ratio and its bounds.

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
