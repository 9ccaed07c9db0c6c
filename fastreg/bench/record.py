"""A run as JSON and CSV: every row, and where, when and how it was measured.

Contract: the schema is versioned. ``schema`` rises when a key changes its meaning or goes; new
keys may come without. Times are seconds per call. ``seconds`` has the median and the quartiles
(``low``, ``high``) of ``samples``, which are in step over the variants of a row; ``share_of_floor``
and ``times_fastreg`` have the median of the turn-by-turn ratios and its 95 % confidence interval.
The CSV has one line for each variant of each row.  A file that is there is replaced by a whole one,
or stays.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastreg
from fastreg import _backend, _files, _info
from fastreg.bench.accuracy import Errors
from fastreg.bench.cases import Case
from fastreg.bench.run import Measurement, Row
from fastreg.bench.spread import Spread
from fastreg.bench.step import TITLE, StepRow

SCHEMA = 2

CSV_COLUMNS = (
    "dtype",
    "terms",
    "outputs",
    "model",
    "elements",
    "bytes",
    "floor",
    "variant",
    "seconds",
    "seconds_low",
    "seconds_high",
    "gb_per_s",
    "share_of_floor",
    "share_of_floor_low",
    "share_of_floor_high",
    "times_fastreg",
    "times_fastreg_low",
    "times_fastreg_high",
    "value_error",
    "gradient_error",
)


@dataclass(frozen=True)
class Circumstances:
    """Where, when and how a run took place; ``peer_threads`` is 0 where a peer decides itself."""

    command: str
    date: str
    repeats: int
    threads: int
    backend: str
    instruction_set: str
    machine: dict[str, Any]
    versions: dict[str, str]
    peer_threads: dict[str, int]

    @classmethod
    def here(
        cls, command: str, repeats: int, peer_threads: Mapping[str, int], modules: Sequence[str]
    ) -> Circumstances:
        """Those of this process, now."""
        # With the build, as a library that is imported says it: 2.14.1+cpu is not 2.14.1+cu130.
        versions = {module: str(_info.version(module)) for module in ("numpy", *modules)}
        return cls(
            command=command,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            repeats=repeats,
            threads=fastreg.get_num_threads(),
            backend=_backend.name,
            instruction_set=_backend.instruction_set(),
            machine=_info.machine(),
            versions={"fastreg": fastreg.__version__, **versions},
            peer_threads=dict(peer_threads),
        )

    def title(self) -> str:
        """One line for the head of a table or a picture."""
        own, *others = self.versions.items()
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"fastreg {own[1]} ({self.backend}, {self.instruction_set}, {threads}), "
            f"{', '.join(' '.join(other) for other in others)}, {self.machine['processor']}, "
            f"{self.date[:10]}"
        )

    def differing_threads(self) -> dict[str, str]:
        """The peers that do not run on as many threads as fastreg."""
        return {
            name: str(count) if count else "its own choice"
            for name, count in self.peer_threads.items()
            if count != self.threads
        }


@dataclass(frozen=True)
class Record:
    """What a run leaves behind."""

    circumstances: Circumstances
    rows: list[Row]


def write_json(
    path: Path, circumstances: Circumstances, rows: Sequence[Row], step: StepRow | None
) -> None:
    """The whole run; "training_step" is there where it was measured."""
    document = {
        "schema": SCHEMA,
        **asdict(circumstances),
        "rows": [_row_as_json(row) for row in rows],
        **({} if step is None else {"training_step": {"what": TITLE, **asdict(step)}}),
    }
    _files.replace_text(path, json.dumps(document) + "\n")


def read_json(path: Path) -> Record:
    """What ``write_json`` wrote, the training step aside.

    Raises
    ------
    ValueError
        The file is not such a record; the message says what it is.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        schema = document["schema"]
        if schema == SCHEMA:
            circumstances = {f.name: document[f.name] for f in fields(Circumstances)}
            rows = [_row_from_json(row) for row in document["rows"]]
            return Record(Circumstances(**circumstances), rows)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError("it is no record of `python -m fastreg bench --json`") from error
    raise ValueError(f"its schema is {schema}, this version reads {SCHEMA}; measure again")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line for each variant of each row, with the columns CSV_COLUMNS."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        case = row.case
        cell = (case.dtype, case.terms, case.outputs, case.model, case.size)
        for name, found in row.variants.items():
            writer.writerow(
                (
                    *cell,
                    case.bytes,
                    case.floor,
                    name,
                    *_flat(found.seconds),
                    row.gb_per_s(name),
                    *_flat(found.share_of_floor),
                    *_flat(found.times_fastreg),
                    found.errors.value,
                    found.errors.gradient,
                )
            )
    _files.replace_text(path, text.getvalue())


def _flat(spread: Spread) -> tuple[float, float, float]:
    return spread.median, spread.low, spread.high


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.case),
        "bytes": row.case.bytes,
        "floor": row.case.floor,
        "variants": {
            name: {
                **asdict(found),
                "gb_per_s": row.gb_per_s(name),
                "samples": [float(f"{seconds:.6g}") for seconds in found.samples],
            }
            for name, found in row.variants.items()
        },
        "blanks": row.blanks,
    }


def _row_from_json(row: Mapping[str, Any]) -> Row:
    return Row(
        case=Case(**{f.name: row[f.name] for f in fields(Case)}),
        variants={
            name: Measurement(
                samples=[_positive(seconds) for seconds in found["samples"]],
                seconds=_spread(found["seconds"]),
                share_of_floor=_spread(found["share_of_floor"]),
                times_fastreg=_spread(found["times_fastreg"]),
                errors=Errors(**found["errors"]),
            )
            for name, found in row["variants"].items()
        },
        blanks=row["blanks"],
    )


def _spread(found: Mapping[str, Any]) -> Spread:
    return Spread(**{name: _positive(number) for name, number in found.items()})


def _positive(number: Any) -> float:
    if not (isinstance(number, (int, float)) and 0 < number < math.inf):
        raise ValueError("times and their ratios are positive numbers")
    return float(number)
