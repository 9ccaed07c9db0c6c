"""Rows as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from fastreg.bench.frameworks.base import Row
from fastreg.bench.record import Circumstances
from fastreg.bench.table import Detail, duration, percentage, ratio

MEDIANS_LEGEND = (
    "time: median. added: what the penalties add to the step without them, as a share of it. times "
    "the usual way: the time over that of what is written without fastreg. From 120 columns "
    "on, and with --json: quartiles and intervals."
)
LEGEND = (
    "time: median (quartiles). added: what the penalties add to the step without them, as a share "
    "of it: median (quartiles) of the turns. times the usual way: the time over that of what is "
    "written without fastreg: median (95 % confidence interval) of the turns."
)


def table(circumstances: Circumstances, rows: Sequence[Row], detail: Detail = Detail.ALL) -> Table:
    """One section per row, one line per variant."""
    narrow = detail == Detail.MEDIANS
    result = Table(
        title=circumstances.title(),
        caption=MEDIANS_LEGEND if narrow else LEGEND,
        header_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=not narrow,
    )
    widest = None if detail == Detail.ALL else 22
    for heading in ("what", "variant"):  # words, which may go on in the next line
        result.add_column(heading, overflow="fold", max_width=widest)
    for heading in ("time", "added", "times the\nusual way" if narrow else "times the usual way"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        lines = []
        for name in row.samples:
            added, of_usual = row.added(name), row.of_usual(name)
            lines.append(
                (
                    name,
                    duration(row.seconds(name), narrow),
                    "" if added is None else percentage(added, narrow),
                    "" if of_usual is None else ratio(of_usual, narrow),
                )
            )
        lines += [(name, "-", "", "") for name in row.blanks]
        for number, line in enumerate(lines):
            label = f"{row.framework}: {row.what}" if number == 0 else ""
            result.add_row(label, *line, end_section=number == len(lines) - 1)
    return result


def blanks(rows: Sequence[Row]) -> list[str]:
    """Why there is no time where there is none."""
    return [
        f"blank: {row.framework}, {name}, {reason}"
        for row in rows
        for name, reason in row.blanks.items()
    ]


def comparisons(rows: Sequence[Row]) -> list[str]:
    """What the ways to add penalties to a step add, over what the plainest of them adds."""
    return [
        f"{row.framework}, {name}: adds {times:.2f} times what {row.measure} adds"
        for row in rows
        for name in row.samples
        if (times := row.of_measure(name)) is not None
    ]
