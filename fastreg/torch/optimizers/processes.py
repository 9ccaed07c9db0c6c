"""The processes that share the parameters of an optimizer: norms of gradients over all of them.

Contract
--------
- A norm, and whether a gradient is not finite, is that of the whole tensors: each process measures
  its shards, and one small all-gather makes the same numbers of them everywhere.  So all processes
  clip alike, and skip or raise alike.
- A process that refuses what it has says so before it raises: none waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..._engine.totals import Sums, first_nonfinite
from ..._norms.shards import Rows, Shards
from ..._norms.shared import NONE, first_in, own, sums_at


class Processes:
    """The processes that share DTensors, asked once in a step."""

    def __init__(self, shards: Shards, count: int, question: str) -> None:
        self._shards = shards
        self._places = range(count)
        self._question = question
        self._first: tuple[int, int] = NONE
        self._rows: Rows | None = None
        self._has_spoken = False
        """Whether this process has told the others what it has, or that it refuses it."""

    def own(self, sums: Sequence[Sums]) -> list[Sums]:
        """Return what this process counts of each tensor."""
        if self._rows is None:
            place = first_nonfinite(sums)
            self._first = NONE if place is None else (place, sums[place].nonfinite)
        return [own(self._shards, place, one) for place, one in enumerate(sums)]

    def gathered(self, sums: Sums) -> list[Sums]:
        """Return the sums of all processes: a collective operation."""
        if self._rows is not None:
            return sums_at(self._shards.gather(sums), 0)
        self._has_spoken = True
        self._rows = self._shards.ask(self._question, [*self._first, *sums], self._places)
        return sums_at(self._rows, len(NONE))

    def first_nonfinite(self) -> tuple[int, int] | None:
        """Return the place of the first tensor that is not finite anywhere, and of how many."""
        return None if self._rows is None else first_in(self._rows, self._shards)

    def refuse(self, error: Exception) -> None:
        """Tell the others, who wait for this process, of an error that it is about to raise."""
        if not self._has_spoken:
            self._has_spoken = True
            self._shards.refuse(error)


def processes_of(
    names: Sequence[str], parameters: Sequence[Any], question: str
) -> Processes | None:
    """Return the processes that share parameters of which some are DTensors.

    None where their mesh leaves this process out.
    """
    shards = Shards(names, parameters)
    return None if shards.own is None else Processes(shards, len(parameters), question)
