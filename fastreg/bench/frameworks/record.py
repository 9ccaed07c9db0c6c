"""Rows as JSON and CSV.

Contract: the schema is versioned, as that of ``fastreg.bench.record``, and its own. Times are
seconds per call, in step over the variants of a row. ``added`` (the share of the bare step that the
penalties add) has median and quartiles, ``of_usual`` (the time over the usual way's) a median and
its 95 % confidence interval, ``of_measure`` (what a way adds over what ``measure`` adds) is a
number, in JSON alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fastreg import _files
from fastreg.bench.frameworks.base import Row
from fastreg.bench.record import Circumstances
from fastreg.bench.spread import Spread

SCHEMA = 1

CSV_COLUMNS = (
    "framework",
    "what",
    "variant",
    *("seconds", "seconds_low", "seconds_high"),
    *("added", "added_low", "added_high"),
    *("of_usual", "of_usual_low", "of_usual_high"),
)


def write_json(path: Path, circumstances: Circumstances, rows: Sequence[Row]) -> None:
    """The whole run."""
    document = {"schema": SCHEMA, **asdict(circumstances), "rows": [_as_json(row) for row in rows]}
    _files.replace_text(path, json.dumps(document) + "\n")


def _as_json(row: Row) -> dict[str, object]:
    variants = {
        name: {
            "samples": samples,
            "seconds": asdict(row.seconds(name)),
            "added": _spread(row.added(name)),
            "of_usual": _spread(row.of_usual(name)),
            "of_measure": row.of_measure(name),
        }
        for name, samples in row.samples.items()
    }
    head = {"framework": row.framework, "what": row.what, "usual": row.usual, "bare": row.bare}
    return {**head, "measure": row.measure, "variants": variants, "blanks": row.blanks}


def _spread(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line for each variant of each row, with the columns CSV_COLUMNS."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        for name in row.samples:
            found = (row.seconds(name), row.added(name), row.of_usual(name))
            flat = [
                number
                for spread in found
                for number in (
                    ("", "", "") if spread is None else (spread.median, spread.low, spread.high)
                )
            ]
            writer.writerow((row.framework, row.what, name, *flat))
    _files.replace_text(path, text.getvalue())
