"""What a run prints: tables as wide as there is room, lines, notes, and a bar of progress.

Contract: tables and their lines go to standard output, progress and notes to standard error, so
that the one can be redirected without the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastreg.bench.table import Detail, Table

#: Wide enough for a row on one line, where the output is a file and has no width of its own.
FILE_WIDTH = 160

#: Columns below which tables have medians only.
WIDE = 120


def show_table(make: Callable[[Detail], Table]) -> None:
    """Print a table to standard output, as detailed as there is room for.

    A number is never cut: where not even medians fit, the lines are longer than the screen is wide.
    """
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(highlight=False, width=FILE_WIDTH)
    for detail in sorted(Detail, reverse=True) if console.width >= WIDE else [Detail.MEDIANS]:
        found = make(detail).with_rich()
        # the columns that it needs where nothing in it is cut
        unbounded = console.options.update(width=10_000)
        needed = found.__rich_measure__(console, unbounded).maximum
        if needed <= console.width:
            break
    Console(highlight=False, width=max(console.width, needed)).print(found, markup=False)


def show(text: str) -> None:
    """Print lines to standard output; a terminal gets them folded between words, a file as is."""
    _print(Console(highlight=False), text)


def note(text: str) -> None:
    """Print a line to standard error, as :func:`show` does."""
    _print(Console(stderr=True, highlight=False), text)


def progress_bar() -> Progress:
    """Return a bar on standard error that leaves nothing behind."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=not console.is_terminal)
