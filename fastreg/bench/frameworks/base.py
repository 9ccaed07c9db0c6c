"""What is measured in turn, and the row that comes of it.

Contract: nothing is timed that does not do the work. Before they are timed, all variants of a
setting run once from the same start, and must leave behind what the usual way leaves, to what
float32 sums explain; steps without penalties are not asked, but must leave something else. One that
fails, or that is off, is a blank with its reason. The variants take turns; shares and ratios are
formed turn by turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import shorten
from typing import Any

import numpy as np

from fastreg.bench.measure import interleave
from fastreg.bench.spread import Spread
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
    """Variants to compare; ``usual`` is the name of what users write without fastreg."""

    framework: str
    what: str
    variants: dict[str, Variant]
    usual: str
    #: The name of the step without penalties; None where there is no step.
    bare: str | None = None
    #: The name of the step that only adds weights to gradients: a pass over the same memory.
    addition: str | None = None
    #: The name of the step whose addition is the measure of the others'.
    measure: str | None = None


@dataclass(frozen=True)
class Row:
    """What a setting has shown: by variant, seconds per call in step, and their comparison."""

    framework: str
    what: str
    usual: str
    bare: str | None
    addition: str | None
    samples: dict[str, list[float]]
    blanks: dict[str, str]
    measure: str | None = None

    def seconds(self, name: str) -> Spread:
        """Median and quartiles of the time per call."""
        return Spread.quartiles(self.samples[name])

    def added(self, name: str) -> Spread | None:
        """What the penalties add to the bare step, as a share of it: 0.05 is five percent."""
        if self.bare not in self.samples or name == self.bare:
            return None
        pairs = zip(self.samples[name], self.samples[self.bare], strict=True)
        return Spread.quartiles([(taken - bare) / bare for taken, bare in pairs])

    def of_measure(self, name: str) -> float | None:
        """What a step adds to the bare one, over what the step that is the measure adds to it.

        Both are medians of the turns: in one turn the second may be less than the noise.
        """
        if name in (self.usual, self.bare, self.addition, self.measure):
            return None
        if self.bare not in self.samples or self.measure not in self.samples:
            return None
        added, unit = (
            median(
                taken - bare
                for taken, bare in zip(self.samples[one], self.samples[self.bare], strict=True)
            )
            for one in (name, self.measure)
        )
        return added / unit if unit > 0.0 else None

    def of_usual(self, name: str) -> Spread | None:
        """The time over that of the usual way; a step that does less has none."""
        if self.usual not in self.samples or name in (self.usual, self.bare, self.addition):
            return None
        return Spread.of_ratio(self.samples[name], self.samples[self.usual])


def measure(setting: Setting, repeats: int) -> Row:
    """Check and time the variants of a setting."""
    calls, outcomes, blanks = {}, {}, {}
    for name, variant in setting.variants.items():
        try:
            call = variant.make()
            variant.start()
            call()
            outcomes[name] = [np.array(array, np.float64) for array in variant.outcome()]
            calls[name] = call
        except Exception as error:  # whatever a framework raises
            blanks[name] = shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
    expected = outcomes.get(setting.usual)
    for name in list(calls):
        if expected is None or name == setting.usual:
            continue
        if name in (setting.bare, setting.addition):
            if distance(outcomes[name], expected) < 10 * TOLERANCE:
                raise ValueError(f"{setting.what}: {name} leaves what {setting.usual} leaves")
            continue
        if (off := distance(outcomes[name], expected)) > TOLERANCE:
            blanks[name] = f"what it computes is off by {off:.1g}"
            del calls[name]
    samples = interleave(calls, repeats, spinning=calls)
    return Row(
        setting.framework,
        setting.what,
        setting.usual,
        setting.bare,
        setting.addition,
        samples,
        blanks,
        setting.measure,
    )


def distance(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """The largest difference of two lists of arrays, relative to the largest of each array.

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
