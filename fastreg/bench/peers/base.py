"""What a benchmark asks of everyone who takes part.

Contract: a peer has a name, says whether it can run here, and makes for a workload one prepared
call, or None where it has nothing to measure. The call does the whole work of the case: it gives
the value where the case has one and leaves the gradients in place, as a training loop wants them.
Preparation that such a loop does once (choosing a function, compiling it, wrapping strengths,
making buffers) belongs into ``make``. Nothing is imported before ``session``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

from fastreg.bench.cases import OUTPUTS, Case
from fastreg.bench.workloads import Array, Workload

Call = Callable[[], Any]


@dataclass(frozen=True)
class Prepared:
    """A call to time, and how to see afterwards what it has computed.

    ``call`` gives the value, in the peer's own kind, or something else where the case has none.
    ``gradients`` gives the gradients after the latest call, as NumPy sees them. ``before`` comes
    before each batch of calls, and is not timed.
    """

    call: Call
    gradients: Callable[[], Iterable[Array]]
    value: Callable[[Any], float] = float
    before: Call | None = None


class Peer(ABC):
    """One who takes part in a measurement."""

    #: In options, tables and files.
    name: ClassVar[str]
    #: What must be installed, by module name; their versions go into the record.
    modules: ClassVar[tuple[str, ...]] = ()
    #: What it does, for the help.
    summary: ClassVar[str]
    #: Whether making a call takes seconds: then a quick run does without, unless asked.
    compiles_slowly: ClassVar[bool] = False
    #: Whether its threads (OpenMP's) keep spinning after a call.
    spins: ClassVar[bool] = False
    #: How far its value may be off, relatively: BLAS in float32 loses up to about 0.3 % on large
    #: sums; a wrong formula is off by far more.
    value_tolerance: ClassVar[float] = 1e-2

    def available(self) -> bool:
        """Return whether what the peer needs is installed."""
        return all(find_spec(module) is not None for module in self.modules)

    #: The module that has the peer's threads; none: it has one thread.
    pool: ClassVar[str] = ""

    @contextmanager
    def session(self, threads: int) -> Iterator[int]:
        """Import what is needed and set its threads for a while.

        Yields the number of threads that the peer's calls may use in truth.
        """
        if not self.pool:
            yield 1
            return
        pool: Any = import_module(self.pool)
        before = pool.get_num_threads()
        pool.set_num_threads(self.most_threads(pool, threads))
        try:
            yield pool.get_num_threads()
        finally:
            pool.set_num_threads(before)

    def most_threads(self, pool: Any, threads: int) -> int:
        """Return how many of so many threads the pool can have."""
        return threads

    @abstractmethod
    def make(self, workload: Workload) -> Prepared | None:
        """Return the call to time, or None where the peer does not do this case."""


def written_out(case: Case, x: Any, g: Any, sign: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return value and new gradient of a tensor as expressions, for those who compile them.

    What the case does not ask for is 0.0.
    """
    l1, l2 = case.strengths
    outputs = OUTPUTS[case.outputs]
    value: Any = 0.0
    slope: Any = 0.0
    if outputs.has_value:
        value = (abs(x).sum() * l1 if l1 else 0.0) + ((x * x).sum() * l2 if l2 else 0.0)
    if outputs.mask & 6:
        slope = (sign(x) * l1 if l1 else 0.0) + (x * (2 * l2) if l2 else 0.0)
        if outputs.adds:
            slope = g + slope
    return value, slope
