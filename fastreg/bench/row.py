"""One row for whatever is measured: what it is, and the times of each variant.

Contract: samples are seconds per call, in step over the variants of a row: one of each turn. All
figures follow from them. Times have quartiles; ratios are formed turn by turn, and have a 95 %
confidence interval of their median.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from textwrap import shorten

from fastreg.bench.accuracy import Errors
from fastreg.bench.cases import DTYPES, Case
from fastreg.bench.spread import Spread

OWN = "fastreg"
FLOOR = "floor"
#: A device's own copy, which is measured there whatever the floor is.
COPY = "copy"
#: The variant beside a model's many tensors: fastreg on one tensor of the same size.
ONE_TENSOR = "one tensor"


@dataclass(frozen=True)
class Work:
    """What is measured where it is no case: variants by name, and whose measure each is."""

    framework: str
    what: str
    #: What users write without fastreg.
    usual: str
    #: The step without penalties; None where there is no step.
    bare: str | None = None
    #: The step that only adds weights to gradients: a pass over the same memory.
    addition: str | None = None
    #: The step whose addition is the measure of the others'.
    measure: str | None = None

    def __str__(self) -> str:
        return f"{self.framework}: {self.what}"


@dataclass(frozen=True)
class Row:
    """What was measured in turn; ``blanks`` has the reasons of those that could not be."""

    what: Case | Work
    samples: dict[str, list[float]]
    blanks: dict[str, str] = field(default_factory=dict)
    #: Of a case: how far each variant's result is from float64.
    errors: dict[str, Errors] = field(default_factory=dict)

    @property
    def case(self) -> Case:
        assert isinstance(self.what, Case)
        return self.what

    @property
    def work(self) -> Work:
        assert isinstance(self.what, Work)
        return self.what

    @property
    def own(self) -> list[str]:
        """The variants that are fastreg's."""
        return [name for name in self.samples if name.startswith(OWN)]

    @property
    def compared(self) -> list[str]:
        """The variants of a case that are peers."""
        others = (*self.own, *self.floors, COPY, ONE_TENSOR)
        return [name for name in self.samples if name not in others]

    @property
    def floors(self) -> list[str]:
        """The variants that are bare loops over the bytes of a case."""
        return [name for name in self.samples if name.split("-")[0] == FLOOR] or [self.case.floor]

    @property
    def floor(self) -> str:
        """The floor of a case: the fastest of the bare loops."""
        return min(self.floors, key=lambda name: median(self.samples[name]))

    @property
    def yardstick(self) -> str:
        """The variant that tells what the machine did, where two runs are compared."""
        return self.work.usual if isinstance(self.what, Work) else self.floors[0]

    def seconds(self, name: str) -> Spread:
        """Return median and quartiles of the time per call."""
        return Spread.quartiles(self.samples[name])

    def gb_per_s(self, name: str) -> float:
        """Return declared bytes over the median time, in 10^9 bytes per second."""
        return self.case.bytes / self.seconds(name).median / 1e9

    def share_of_floor(self, name: str) -> Spread:
        """Return the floor's time over this one's (1.0: as fast as the bare loop)."""
        return Spread.of_ratio(self.samples[self.floor], self.samples[name])

    def times_floor(self, name: str) -> Spread:
        """Return this one's time over the floor's (1.0: as fast as the bare loop)."""
        return Spread.of_ratio(self.samples[name], self.samples[self.floor])

    def share_of_copy(self, name: str) -> Spread:
        """Return bytes per second over those of the device's copy."""
        copied = 2 * self.case.size * DTYPES[self.case.dtype]
        copies = [seconds * self.case.bytes / copied for seconds in self.samples[COPY]]
        return Spread.of_ratio(copies, self.samples[name])

    def times_fastreg(self, name: str) -> Spread:
        """Return this one's time over fastreg's (10.0: fastreg is ten times faster)."""
        return Spread.of_ratio(self.samples[name], self.samples[OWN])

    def added(self, name: str) -> Spread | None:
        """Return what penalties add to the bare step, as a share of it: 0.05 is five percent."""
        if self.work.bare not in self.samples or name == self.work.bare:
            return None
        pairs = zip(self.samples[name], self.samples[self.work.bare], strict=True)
        return Spread.quartiles([(taken - bare) / bare for taken, bare in pairs])

    def of_usual(self, name: str) -> Spread | None:
        """Return the time over that of the usual way; a step that does less has none."""
        work = self.work
        if work.usual not in self.samples or name in (work.usual, work.bare, work.addition):
            return None
        return Spread.of_ratio(self.samples[name], self.samples[work.usual])

    def of_measure(self, name: str) -> float | None:
        """Return what a step adds to the bare one, over what the step that is the measure adds.

        Both are medians of the turns: in one turn the second may be less than the noise.
        """
        work, samples = self.work, self.samples
        if name in (work.usual, work.bare, work.addition, work.measure):
            return None
        if work.bare not in samples or work.measure not in samples:
            return None
        added, unit = (
            median(
                taken - bare for taken, bare in zip(samples[one], samples[work.bare], strict=True)
            )
            for one in (name, work.measure)
        )
        return added / unit if unit > 0.0 else None


def in_short(error: Exception) -> str:
    """Return an error as the reason of a blank; frameworks put the cause into their second line.

    Examples
    --------
    >>> in_short(RuntimeError("it failed:\\nno compiler\\nsee the manual"))
    'RuntimeError: it failed: no compiler'
    """
    words = " ".join(str(error).split("\n")[:2]).split()
    return shorten(f"{type(error).__name__}: {' '.join(words)}", 200)
