"""Timing: all variants of a case take turns, and every comparison is made turn by turn.

Contract: a turn runs each variant once, as a batch of calls long enough for the clock, in an order
drawn anew: with a fixed one, even a rotating one, each variant would always find the cache as the
same other one left it. Where a batch has several calls, that of each variant is preceded by one
that is not timed, so that all find the cache as warm; one whose threads keep spinning is followed
by a rest. Times are seconds per call.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import repeat
from random import Random
from time import perf_counter, sleep

#: A batch of calls takes at least this long, over a thousand ticks of any clock in use.
BATCH_SECONDS = 200e-6

#: Worker threads of OpenMP spin after their call (libgomp's: three to eight milliseconds, by
#: processor), and would take the processor from whoever is timed next.
REST_SECONDS = 10e-3

Call = Callable[[], object]

#: Seconds per call of a variant, by name; what a device measures is read when the turn is over.
Timer = Callable[[str, Call], "float | Callable[[], float]"]

#: Times calls in turns, as :func:`interleave` does: calls, repeats, whom to rest after.
InTurns = Callable[[Mapping[str, Call], int, Collection[str]], dict[str, list[float]]]


def batch_time(call: Call, loops: int, warm: bool = False) -> float:
    """Return seconds that ``loops`` calls take together; warm if asked or if there are several."""
    if warm or loops > 1:
        call()
    turns = repeat(None, loops)
    start = perf_counter()
    for _ in turns:
        call()
    return perf_counter() - start


def loops_for(call: Call, seconds: float = BATCH_SECONDS) -> int:
    """Return how many calls make a batch of at least ``seconds``; also warm up.

    Examples
    --------
    >>> from time import sleep
    >>> loops_for(lambda: sleep(0.01))
    1
    """
    # the first calls find cold code, and any may be interrupted: neither must pass for a slow call
    if batch_time(call, 1) > 50 * seconds:
        return 1
    loops = 1
    while (taken := min(batch_time(call, loops) for _ in range(3))) < seconds:
        loops = min(10 * loops, max(loops + 1, int(1.2 * loops * seconds / taken)))
    return loops


def batches(calls: Mapping[str, Call], spinning: Collection[str] = ()) -> Timer:
    """Return a timer of batches by the host's clock; ``spinning`` are those to rest after."""
    loops = {name: loops_for(call) for name, call in calls.items()}
    warm = any(count > 1 for count in loops.values())

    def taken(name: str, call: Call) -> float:
        seconds = batch_time(call, loops[name], warm) / loops[name]
        if name in spinning:
            sleep(REST_SECONDS)
        return seconds

    return taken


def straight_after(operation: Call) -> Timer:
    """Return a timer of single calls, each straight after an operation that is not timed."""

    def taken(name: str, call: Call) -> float:
        operation()
        return batch_time(call, 1)

    return taken


def interleave(
    calls: Mapping[str, Call],
    repeats: int,
    spinning: Collection[str] = (),
    timer: Timer | None = None,
    is_enough: Callable[[int], bool] = lambda turns: False,
    before: Mapping[str, Call] | None = None,
) -> dict[str, list[float]]:
    """Time the calls in turns: name -> ``repeats`` times in seconds per call, in step.

    ``timer`` is one of :func:`batches` unless it is given, ``spinning`` are the names of those to
    rest after. ``is_enough`` may end the turns early; it gets how many there were. ``before`` has
    what a variant needs before each of its batches, which is not timed.
    """
    before = before or {}
    timer = timer or batches(calls, spinning)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = Random(20260101).shuffle
    with no_collection():
        for turn in range(repeats):
            shuffle(order)
            taken = {}
            for name in order:
                before.get(name, _nothing)()
                taken[name] = timer(name, calls[name])
            for name, seconds in taken.items():
                samples[name].append(seconds() if callable(seconds) else seconds)
            if is_enough(turn + 1):
                break
    return samples


def _nothing() -> None:
    pass


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the timing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
