"""A run as JSON: every row, and where, when and how it was measured.

Contract: the schema is versioned. ``schema`` rises when a key changes its meaning or goes; new
keys may come without. Times are seconds per call; spreads have ``median``, ``low``, ``high``
(quartiles).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import fastreg
from fastreg import _backend, _info
from fastreg.bench.run import Row
from fastreg.bench.step import TITLE, StepRow

SCHEMA = 1


@dataclass(frozen=True)
class Circumstances:
    """Where, when and how a run took place."""

    command: str
    date: str
    repeats: int
    threads: int
    backend: str
    instruction_set: str
    machine: dict[str, Any]
    versions: dict[str, str]

    @classmethod
    def here(cls, command: str, repeats: int) -> Circumstances:
        """Those of this process, now."""
        return cls(
            command=command,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            repeats=repeats,
            threads=fastreg.get_num_threads(),
            backend=_backend.name,
            instruction_set=_backend.instruction_set(),
            machine=_info.machine(),
            versions={"fastreg": fastreg.__version__, "numpy": metadata.version("numpy")},
        )

    def title(self) -> str:
        """One line for the head of a table or a picture."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return (
            f"fastreg {self.versions['fastreg']} ({self.backend}, {self.instruction_set}, "
            f"{threads}), NumPy {self.versions['numpy']}, {self.machine['processor']}, "
            f"{self.date[:10]}"
        )


def as_json(
    circumstances: Circumstances, rows: Sequence[Row], step: StepRow | None = None
) -> dict[str, Any]:
    """The whole run, ready for ``json.dump``; "training_step" is there where it was measured."""
    return {
        "schema": SCHEMA,
        **asdict(circumstances),
        "rows": [_row_as_json(row) for row in rows],
        **({} if step is None else {"training_step": {"what": TITLE, **asdict(step)}}),
    }


def _row_as_json(row: Row) -> dict[str, Any]:
    return {
        **asdict(row.case),
        "bytes": row.case.bytes,
        "floor": row.case.floor,
        "gb_per_s": row.gb_per_s,
        "seconds": {name: asdict(spread) for name, spread in row.seconds.items()},
        "share_of_floor": asdict(row.share_of_floor),
        "ratio_to_peer": {name: asdict(spread) for name, spread in row.ratio_to_peer.items()},
    }
