"""The rows of a run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.table import Table

from fastreg.bench.measure import Spread
from fastreg.bench.record import Circumstances
from fastreg.bench.run import Row
from fastreg.bench.step import TITLE, StepRow

LEGEND = (
    "all figures: median (quartiles). share: time of the bare loop over the same bytes "
    "/ time of fastreg. x peer: how many times the peer's time is fastreg's."
)


def table(circumstances: Circumstances, rows: Sequence[Row]) -> Table:
    """One line per row, one section per size and dtype."""
    peers = list(dict.fromkeys(name for row in rows for name in row.ratio_to_peer))
    result = Table(title=circumstances.title(), caption=LEGEND, header_style="bold")
    for heading in ("elements", "dtype", "terms", "outputs"):
        result.add_column(
            heading, justify="right" if heading == "elements" else "left", no_wrap=True
        )
    for heading in ("time", "GB/s", "share of floor", *(f"x {name}" for name in peers)):
        result.add_column(heading, justify="right", overflow="fold")

    ends = [_section(row) != _section(following) for row, following in pairwise(rows)]
    for row, ends_section in zip(rows, [*ends, True], strict=True):
        case = row.case
        result.add_row(
            f"{case.size:,}",
            case.dtype,
            case.terms,
            case.outputs,
            duration(row.seconds["fastreg"]),
            f"{row.gb_per_s:.1f}",
            f"{case.floor} {percentage(row.share_of_floor)}",
            *(ratio(row.ratio_to_peer.get(name)) for name in peers),
            end_section=ends_section,
        )
    return result


def step_line(row: StepRow) -> str:
    """The penalties' share of a training step, in words.

    Examples
    --------
    >>> spread = Spread(0.01, 0.01, 0.01)
    >>> seconds = dict.fromkeys(("no penalty", "fastreg", "by hand"), spread)
    >>> print(step_line(StepRow(seconds, {"fastreg": spread, "by hand": spread})))
    training step: Dense 784-1024-1024-10, batch 64, f32, L1L2 on kernels, L1 on activities
    no penalty 10.0 (10.0-10.0) ms
    fastreg    10.0 (10.0-10.0) ms, penalties 1 (1-1) % of it
    by hand    10.0 (10.0-10.0) ms, penalties 1 (1-1) % of it
    """
    lines = [TITLE]
    for name, seconds in row.seconds.items():
        line = f"{name:10} {duration(seconds)}"
        if name in row.share:
            line += f", penalties {percentage(row.share[name])} of it"
        lines.append(line)
    return "\n".join(lines)


def _section(row: Row) -> tuple[int, str]:
    return row.case.size, row.case.dtype


def duration(seconds: Spread) -> str:
    """A time and its quartiles in the unit that fits the median.

    Examples
    --------
    >>> duration(Spread(1.5e-6, 1.4e-6, 1.75e-6))
    '1.50 (1.40-1.75) us'
    """
    units = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
    unit = next((u for u, factor in units.items() if seconds.median * factor >= 1), "ns")
    factor = units[unit]
    median, low, high = (_digits(s * factor) for s in (seconds.median, seconds.low, seconds.high))
    return f"{median} ({low}-{high}) {unit}"


def percentage(share: Spread) -> str:
    """A share in percent.

    Examples
    --------
    >>> percentage(Spread(0.97, 0.95, 1.01))
    '97 (95-101) %'
    """
    return f"{share.median:.0%} ({share.low:.0%}-{share.high:.0%})".replace("%", "") + " %"


def ratio(times: Spread | None) -> str:
    """How many times faster; a dash where the peer does not do the case.

    Examples
    --------
    >>> ratio(Spread(11.6, 11.2, 12.0)), ratio(None)
    ('11.6 (11.2-12.0)', '-')
    """
    if times is None:
        return "-"
    return f"{_digits(times.median)} ({_digits(times.low)}-{_digits(times.high)})"


def _digits(number: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f}"
