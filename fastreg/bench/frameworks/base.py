"""The ways to do the work of a framework: checked against each other, then timed in turn.

Contract: nothing is timed that does not do the work. Before they are timed, all variants of a
setting run once from the same start, and must leave behind what the usual way leaves, to what
float32 sums explain; steps without penalties are not asked, but must leave something else. One that
fails, or that is off, is a blank with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastreg.bench.measure import InTurns, interleave
from fastreg.bench.row import Row, Work, in_short
from fastreg.bench.workloads import Array

#: Relative, of gradients and changed weights; those of a model are sums in float32 themselves.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Variant:
    """One way to do the work."""

    #: Makes the call to time: compiles, attaches, makes optimizers.
    make: Callable[[], Callable[[], object]]
    #: Goes back to the start.
    start: Callable[[], object]
    #: What a call has left behind: weights, gradients, values.
    outcome: Callable[[], Sequence[Any]]


@dataclass(frozen=True)
class Setting:
    """Work, and the ways to do it."""

    work: Work
    variants: dict[str, Variant]


def measure(setting: Setting, repeats: int, in_turns: InTurns = interleave) -> Row:
    """Check and time the variants of a setting."""
    work = setting.work
    calls, outcomes, blanks = {}, {}, {}
    for name, variant in setting.variants.items():
        try:
            call = variant.make()
            variant.start()
            call()
            outcomes[name] = [np.array(array, np.float64) for array in variant.outcome()]
            calls[name] = call
        except Exception as error:  # whatever a framework raises
            blanks[name] = in_short(error)
    expected = outcomes.get(work.usual)
    for name in list(calls):
        if expected is None or name == work.usual:
            continue
        if name in (work.bare, work.addition):
            if distance(outcomes[name], expected) < 10 * TOLERANCE:
                raise ValueError(f"{work.what}: {name} leaves what {work.usual} leaves")
            continue
        if (off := distance(outcomes[name], expected)) > TOLERANCE:
            blanks[name] = f"what it computes is off by {off:.1g}"
            del calls[name]
    return Row(work, in_turns(calls, repeats, calls), blanks)


def distance(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Return the largest difference of two lists, relative to the largest of each array.

    Examples
    --------
    >>> distance([np.array([1.0, 2.0])], [np.array([1.0, 2.5])])
    0.2
    """
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        scale = np.abs(other).max(initial=1e-30)
        off = float(np.abs(one - other).max(initial=0.0) / scale)
        largest = max(largest, off if off == off else float("inf"))
    return largest


#: The rows of a framework: sizes are given, and settings come one after the other.
Settings = Iterator[Setting]
