"""Timing: all variants of a case take turns, and every comparison is made turn by turn.

Contract: a turn runs each variant once, as a batch of calls long enough for the clock, in an order
drawn anew: with a fixed one, even a rotating one, each variant would always find the cache as the
same other one left it. A batch of several calls is preceded by one that is not timed. A ratio is
taken within each turn before the median, so that a slow spell of the machine, which hits all
variants of a turn, cancels. Spread is given as quartiles. Times are seconds per call.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from random import Random
from statistics import median, quantiles
from time import perf_counter

#: A batch of calls takes at least this long, over a thousand ticks of any clock in use.
BATCH_SECONDS = 200e-6

Call = Callable[[], object]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample.

    Examples
    --------
    >>> Spread.of([3.0, 1.0, 2.0, 5.0, 4.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> Spread:
        if len(sample) == 1:
            return cls(sample[0], sample[0], sample[0])
        low, _, high = quantiles(sample, n=4, method="inclusive")
        return cls(median(sample), low, high)

    @classmethod
    def of_ratio(cls, numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
        """The spread of the turn-by-turn ratios of two samples of one run.

        Examples
        --------
        >>> Spread.of_ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]).median
        2.0
        """
        return cls.of([n / d for n, d in zip(numerator, denominator, strict=True)])


def batch_time(call: Call, loops: int) -> float:
    """Seconds that ``loops`` calls take together, warm if there are several."""
    if loops > 1:
        call()
    turns = repeat(None, loops)
    start = perf_counter()
    for _ in turns:
        call()
    return perf_counter() - start


def loops_for(call: Call, seconds: float = BATCH_SECONDS) -> int:
    """How many calls make a batch of at least ``seconds``; also warms up.

    Examples
    --------
    >>> from time import sleep
    >>> loops_for(lambda: sleep(0.01))
    1
    """
    loops = 1
    while (taken := batch_time(call, loops)) < seconds:
        # a first batch is slow (cold code), so the estimate grows in steps of ten at most
        loops = min(10 * loops, max(loops + 1, int(1.2 * loops * seconds / taken)))
    return loops


def interleave(calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
    """Time the calls in turns: name -> ``repeats`` times in seconds per call, in step."""
    loops = {name: loops_for(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = Random(20260101).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeats):
            shuffle(order)
            for name in order:
                samples[name].append(batch_time(calls[name], loops[name]) / loops[name])
    finally:
        if collecting:
            gc.enable()
    return samples
