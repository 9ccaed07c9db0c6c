"""What the headline cells are meant to reach, and whether a row of a record does.

Contract: a bar is on a ratio of the turns. Of a floor it is fastreg's time over that of the fastest
bare loop, and at most so much; of a peer its time over fastreg's, and at least so much.

==========================================  ===============================  =======
cell                                        ratio                            bar
==========================================  ===============================  =======
float32, float64: value; value and add,     to the floor, from DRAM          <= 1.05
from 16 million elements on                 NumPy's memory, after torch      <= 1.10
the same at 4 million                       to the floor                     <= 1.15
half precision at 16 million                to the floor                     <= 1.30
new gradient from 16 million on             to the best new copy             <= 1.05
peers with sums as wide as fastreg's        to fastreg, wherever             >= 1
numba with sums in float32                  to fastreg, from DRAM; in cache  >= 1; 0.75
the policy in use                           to the best of all forced ones   <= 1.10
400 small parameters of torch               time                             <= 100 us
``accumulate`` in a step of torch           beyond one addition, of a step   <= 2 %
==========================================  ===============================  =======
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastreg.bench.cases import DTYPES, Case
from fastreg.bench.row import OWN, Row
from fastreg.bench.spread import Spread

DRAM_ELEMENTS = 16_000_000
L3_ELEMENTS = 4_000_000
NARROW_SUMS = "numba-f32"
#: A ratio to a peer from here on is noise where its interval holds 1.
NOISE = 0.97
SMALL_SECONDS = 100e-6
STEP_SHARE = 0.02
POLICY_TIMES = 1.1
ACCUMULATE = f"{OWN}, accumulate"


@dataclass(frozen=True)
class Judged:
    """A figure of a row beside its bar."""

    what: str
    figure: Spread
    bar: float
    meets: bool
    unit: str = ""

    def __str__(self) -> str:
        sign = "<=" if self.unit or self.what.endswith("floor") else ">="
        median, low, high = self.figure.median, self.figure.low, self.figure.high
        return (
            f"{self.what}: {median:.3g} ({low:.3g}-{high:.3g}){self.unit}, bar {sign} {self.bar:g}"
        )


def judged(row: Row, cache_bytes: int) -> Iterator[Judged]:
    """Yield the figures of a row that have a bar; ``cache_bytes`` are those of the last cache."""
    if isinstance(row.what, Case):
        limit = floor_limit(row.case)
        if limit is not None:
            figure = row.times_floor(OWN)
            what = f"{row.case}, to the floor"
            yield Judged(what, figure, limit, figure.median <= limit)
        if len(row.own) > 1:
            figure = to_best_policy(row)
            meets = figure.median <= POLICY_TIMES
            yield Judged(f"{row.case}, to the best policy", figure, POLICY_TIMES, meets, " times")
        for name in row.compared:
            if (limit := peer_limit(row.case, name, cache_bytes)) is not None:
                figure = row.times_fastreg(name)
                yield Judged(f"{row.case}, {name}", figure, limit, reaches(figure, limit))
    elif ACCUMULATE in row.samples:
        if row.work.addition in row.samples:
            figure = beyond_addition(row)
            percents = Spread(*(100 * part for part in (figure.median, figure.low, figure.high)))
            meets = figure.median <= STEP_SHARE
            yield Judged(
                f"{row.work}, beyond one addition", percents, 100 * STEP_SHARE, meets, " %"
            )
        elif row.work.bare is None:
            time = row.seconds(ACCUMULATE)
            micro = Spread(*(1e6 * part for part in (time.median, time.low, time.high)))
            meets = time.median <= SMALL_SECONDS
            yield Judged(str(row.work), micro, 1e6 * SMALL_SECONDS, meets, " us")


def floor_limit(case: Case) -> float | None:
    """Return how many times the floor's time a case may take; None where nothing is meant."""
    if case.model or case.memory == "small-pages":
        return None
    if case.makes_arrays:
        return 1.05 if case.size >= DRAM_ELEMENTS and case.outputs == "new-gradient" else None
    if case.outputs not in ("value", "value+add") or case.size < L3_ELEMENTS:
        return None
    if case.is_half:
        return 1.3
    if case.size < DRAM_ELEMENTS:
        return 1.15
    return 1.1 if case.before == "torch" and case.memory != "torch" else 1.05


def peer_limit(case: Case, name: str, cache_bytes: int) -> float | None:
    """Return how many times fastreg's time a peer takes at least."""
    if case.model or case.is_half:
        return None
    if name != NARROW_SUMS:
        return 1.0
    arrays = 1 if case.outputs == "value" else 2
    return 0.75 if arrays * case.size * DTYPES[case.dtype] <= cache_bytes else 1.0


def reaches(times: Spread, limit: float) -> bool:
    """Return whether a peer's time over fastreg's is the bar, noise considered.

    Examples
    --------
    >>> reaches(Spread(0.98, 0.95, 1.01), 1.0), reaches(Spread(0.98, 0.97, 0.99), 1.0)
    (True, False)
    """
    return times.median >= limit or (times.median >= NOISE * limit and times.high >= limit)


def best_policy(row: Row) -> str:
    """Return the variant of fastreg with the smallest median."""
    return min(row.own, key=lambda name: row.seconds(name).median)


def to_best_policy(row: Row) -> Spread:
    """Return fastreg's time over that of the fastest of its variants."""
    return Spread.of_ratio(row.samples[OWN], row.samples[best_policy(row)])


def beyond_addition(row: Row) -> Spread:
    """Return what ``accumulate`` adds beyond one bare addition, as a share of the step."""
    work, samples = row.work, row.samples
    assert work.addition is not None
    assert work.bare is not None
    triples = zip(samples[ACCUMULATE], samples[work.addition], samples[work.bare], strict=True)
    return Spread.interval([(taken - added) / bare for taken, added, bare in triples])
