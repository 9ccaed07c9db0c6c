"""The sums that norms are made of, of arrays that several processes share: docs/numerics.md, 10.

Contract
--------
- Each process measures its local shards.  A tensor's sums are those of the shards, added up in rank
  order; the total's are those of what each process counts, added up in rank order.
- All processes have the same numbers, with the same bits, go on by them alone, and so do the same.
- Gathered are five numbers of each process and its first array that is not finite; for norms of
  each array five numbers of that as well; and once more what needs an exponent.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from .._base.float_environment import Default
from .._engine import backend
from .._engine.totals import Sums, Total, exponent_for, together, total_of
from .measured import Judge, Measured, Selected, norm_of
from .records import Norm
from .shards import Rows, Shards

NONE = (-1, 0)
"""What stands for the first array that is not finite, and its number of elements that are not."""


def measured(chosen: Selected, written: bool, question: str, judge: Judge) -> Measured:
    """Return the sums of arrays of which some are DTensors."""
    shards = Shards(chosen.names, chosen.arrays)
    local = chosen._replace(arrays=shards.local())
    if shards.own is None:  # the mesh leaves this process out
        return Measured(local, written, judge)
    return Shared(local, shards, written, question, judge)


class Shared(Measured):
    """The sums of arrays that processes share."""

    _may_be_plain = False  # which are the same must not depend on where shards are empty

    def __init__(
        self, chosen: Selected, shards: Shards, written: bool, question: str, judge: Judge
    ) -> None:
        self._shards = shards
        try:
            super().__init__(chosen, written, judge)
        except Exception as error:
            shards.refuse(error)
            raise
        first = super().first_nonfinite()
        with Default():
            mine = together([self._own(place) for place in self.counted])
        numbers = [*(NONE if first is None else first), *mine]
        if not written:  # the norms of each are asked for
            numbers += [number for one in self.sums for number in one]
        self._rows = shards.ask(question, numbers, self.counted)

    def _identity(self, place: int) -> Hashable:
        return self._shards.identity(place)

    def written(self, arrays: Sequence[Any]) -> list[Any]:
        """Return the arrays of the call that were written, and the local shards."""
        local = self._chosen.arrays
        return [
            *super().written(arrays),
            *(local[p] for p in self.counted if arrays[p] is not local[p]),
        ]

    def _own(self, place: int) -> Sums:
        return own(self._shards, place, self.sums[place])

    def first_nonfinite(self) -> tuple[int, int] | None:
        """Return the place of the first array that is not finite anywhere, and of how many."""
        return first_in(self._rows, self._shards)

    def total(self) -> Total:
        """Return the sums of all arrays together."""
        known = [sums_at(self._rows, len(NONE))]

        def gathered(sums: Sums) -> list[Sums]:
            return known.pop() if known else sums_at(self._shards.gather(sums), 0)

        return total_of([self._own(place) for place in self.counted], self._own_squares, gathered)

    def _own_squares(self, exponent: int) -> list[float]:
        squares = self._squares(self.counted, exponent)
        return [
            number if self._shards.own in self._shards.counting(place) else 0.0
            for place, number in zip(self.counted, squares, strict=True)
        ]

    def each(self) -> dict[str, Norm]:
        """Return the norms by name."""
        found = [self._joined(place) for place in range(len(self.sums))]
        exponents = [exponent_for(sums.maximum) for sums in found]
        again = [place for place, exponent in enumerate(exponents) if exponent]
        if again:
            squares = [self._squares([place], exponents[place])[0] for place in again]
            rows = self._shards.gather(squares)
            for column, place in enumerate(again):
                counting = self._shards.counting(place)
                whole = backend.canonical_sum([rows[number][column] for number in counting])
                found[place] = found[place]._replace(squares=whole)
        norms = [norm_of(*pair) for pair in zip(found, exponents, strict=True)]
        return dict(zip(self._chosen.names, norms, strict=True))

    def _joined(self, place: int) -> Sums:
        """Return the sums of a whole array."""
        rows = sums_at(self._rows, len(NONE) + (1 + place) * len(Sums._fields))
        sums = together([rows[number] for number in self._shards.counting(place)])
        return sums._replace(maximum=together(rows).maximum)


def own(shards: Shards, place: int, sums: Sums) -> Sums:
    """Return what this process counts of an array, given the sums of its shard."""
    if shards.own in shards.counting(place):
        return sums
    return Sums(0.0, 0.0, sums.maximum, 0, 0)


def first_in(rows: Rows, shards: Shards) -> tuple[int, int] | None:
    """Return the place of the first array that is not finite anywhere, and of how many.

    Rows begin with that of each process.
    """
    place = min((int(row[0]) for row in rows if row[1]), default=None)
    if place is None:
        return None
    counts = {number: int(row[1]) for number, row in enumerate(rows) if row[0] == place}
    counted = sum(counts.get(number, 0) for number in shards.counting(place))
    return place, counted or max(counts.values())  # of a replica alone, where these differ


def sums_at(rows: Rows, start: int) -> list[Sums]:
    """Return the sums that begin at a place of each row."""
    found = []
    for row in rows:
        l1, squares, maximum, zeros, nonfinite = row[start : start + len(Sums._fields)]
        found.append(Sums(l1, squares, maximum, int(zeros), int(nonfinite)))
    return found
