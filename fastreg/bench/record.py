"""A run as JSON and CSV: every row, and where, when and how it was measured.

Contract: one format for cases, frameworks and GPUs. The schema is versioned: ``schema`` rises when
a key changes its meaning or goes; new keys may come without. Times are seconds per call. Each
variant has ``samples``, in step over the variants of a row, their median and quartiles
(``seconds``), and

- of a case ``gb_per_s``, ``share_of_floor``, ``times_fastreg`` and ``errors``, on a GPU
  ``share_of_copy`` as well;
- of other work ``added`` (the share of the bare step that the penalties add: median and
  quartiles), ``of_usual`` (the time over the usual way's) and ``of_measure`` (what a way adds over
  what ``measure`` adds, a number).

Ratios have the median of the turn-by-turn ratios and its 95 % confidence interval. The CSV has one
line for each variant of each row. A file that is there is replaced by a whole one, or stays.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastreg._base import files
from fastreg.bench import step
from fastreg.bench.accuracy import Errors
from fastreg.bench.cases import Case
from fastreg.bench.circumstances import Circumstances
from fastreg.bench.row import COPY, Row, Work
from fastreg.bench.spread import Spread

SCHEMA = 2


def _spreads(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


CSV_COLUMNS = (
    *("dtype", "terms", "outputs", "model", "elements", "memory", "before", "threads"),
    *("bytes", "floor", "variant"),
    *_spreads("seconds"),
    "gb_per_s",
    *_spreads("share_of_floor", "times_fastreg"),
    *("value_error", "gradient_error"),
)
WORK_COLUMNS = ("framework", "what", "variant", *_spreads("seconds", "added", "of_usual"))


@dataclass(frozen=True)
class Record:
    """What a run leaves behind."""

    circumstances: Circumstances
    rows: list[Row]


def as_json(circumstances: Circumstances, rows: Sequence[Row]) -> dict[str, Any]:
    """Return a run as what JSON can say."""
    return {
        "schema": SCHEMA,
        **asdict(circumstances),
        "rows": [row_as_json(row) for row in rows],
    }


def write_json(
    path: Path, circumstances: Circumstances, rows: Sequence[Row], training: Row | None = None
) -> None:
    """Write the whole run; "training_step" is there where it was measured."""
    document = as_json(circumstances, rows)
    if training is not None:
        document["training_step"] = step.as_json(training)
    files.replace_text(path, json.dumps(document) + "\n")


def write_stage(path: Path, name: str, document: Mapping[str, Any]) -> None:
    """Write a run that is a stage of a longer one beside the other stages that a file has."""
    stages: dict[str, Any] = {}
    if path.exists():
        stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    whole = {"schema": SCHEMA, "stages": {**stages, name: document}}
    files.replace_text(path, _in_lines(whole) + "\n")


def _in_lines(value: Any, indent: str = "\n") -> str:
    """Return JSON in which what holds no lists and no objects, as samples do, is one line."""
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)) or not any(isinstance(p, (dict, list)) for p in parts):
        return json.dumps(value)
    deeper = f"{indent} "
    if isinstance(value, list):
        return f"[{deeper}{f',{deeper}'.join(_in_lines(p, deeper) for p in value)}{indent}]"
    items = (f"{json.dumps(key)}: {_in_lines(p, deeper)}" for key, p in value.items())
    return f"{{{deeper}{f',{deeper}'.join(items)}{indent}}}"


def from_json(document: Mapping[str, Any]) -> Record:
    """Return the run that ``as_json`` told.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError
        It is no such run.
    """
    known = {f.name: document[f.name] for f in fields(Circumstances) if f.name in document}
    return Record(Circumstances(**known), [row_from_json(row) for row in document["rows"]])


def stages_from_json(document: Mapping[str, Any]) -> dict[str, Record]:
    """Return the runs of a file by stage; a case has its threads where these differ.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError
        It has no such stages.
    """
    stages = {name: from_json(stage) for name, stage in document["stages"].items()}
    if len({run.circumstances.threads for run in stages.values()}) > 1:
        for run in stages.values():
            threads = run.circumstances.threads
            run.rows[:] = [
                replace(row, what=replace(row.what, threads=threads))
                if isinstance(row.what, Case)
                else row
                for row in run.rows
            ]
    return stages


def read_json(path: Path) -> Record:
    """Return what ``write_json`` wrote, the training step aside, or the rows of all stages.

    Raises
    ------
    ValueError
        The file is not such a record; the message says what it is.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
        if schema == SCHEMA:
            if "stages" not in document:
                return from_json(document)
            stages = list(stages_from_json(document).values())
            return Record(stages[0].circumstances, [row for stage in stages for row in stage.rows])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("it is no record of `python -m fastreg bench --json`") from error
    raise ValueError(f"its schema is {schema}, this version reads {SCHEMA}; measure again")


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str] = CSV_COLUMNS) -> None:
    """Write one line for each variant of each row."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        head = _head(row)
        for name in row.samples:
            line = {**head, "elements": head.get("size"), "variant": name}
            for key, found in figures(row, name).items():
                if isinstance(found, Spread):
                    numbers = (found.median, found.low, found.high)
                    line |= zip(_spreads(key), numbers, strict=True)
                elif isinstance(found, Errors):
                    line |= {"value_error": found.value, "gradient_error": found.gradient}
                else:
                    line[key] = found
            writer.writerow(line)
    files.replace_text(path, text.getvalue())


def figures(row: Row, name: str) -> dict[str, Any]:
    """Return what the samples of a variant amount to, by key."""
    if isinstance(row.what, Work):
        return {
            "seconds": row.seconds(name),
            "added": row.added(name),
            "of_usual": row.of_usual(name),
            "of_measure": row.of_measure(name),
        }
    found: dict[str, Any] = {
        "seconds": row.seconds(name),
        "gb_per_s": row.gb_per_s(name),
        "share_of_floor": row.share_of_floor(name),
        "times_fastreg": row.times_fastreg(name),
        "errors": row.errors.get(name, Errors(None, None)),
    }
    if COPY in row.samples:
        found["share_of_copy"] = row.share_of_copy(name)
    return found


def _head(row: Row) -> dict[str, Any]:
    if isinstance(row.what, Case):
        return {**asdict(row.what), "bytes": row.what.bytes, "floor": row.what.floor}
    return asdict(row.what)


def row_as_json(row: Row) -> dict[str, Any]:
    """Return a row as what JSON can say."""
    variants: dict[str, dict[str, Any]] = {}
    for name, samples in row.samples.items():
        variants[name] = {
            key: asdict(found) if isinstance(found, (Spread, Errors)) else found
            for key, found in figures(row, name).items()
        }
        variants[name]["samples"] = [float(f"{seconds:.6g}") for seconds in samples]
    return {**_head(row), "variants": variants, "blanks": row.blanks}


def row_from_json(row: Mapping[str, Any]) -> Row:
    """Return the row of which ``row_as_json`` told.

    Raises
    ------
    ValueError, LookupError, TypeError, AttributeError
        It is no such row.
    """
    kind: type[Case | Work] = Case if "dtype" in row else Work
    variants = row["variants"]
    samples = {
        name: [_positive(seconds) for seconds in found["samples"]]
        for name, found in variants.items()
    }
    if len({len(sample) for sample in samples.values()}) > 1:
        raise ValueError("samples of a row are of the same turns")
    return Row(
        what=kind(**{f.name: row[f.name] for f in fields(kind) if f.name in row}),
        samples=samples,
        blanks=row["blanks"],
        errors={n: Errors(**found["errors"]) for n, found in variants.items() if "errors" in found},
    )


def _positive(number: Any) -> float:
    if not (isinstance(number, (int, float)) and 0 < number < math.inf):
        raise ValueError("times are positive numbers")
    return float(number)
