"""From a workload to a row: check what each variant computes, then time them in turn.

Contract: nothing is timed that does not compute the case. Each variant runs once from the same
gradients, and its value and gradients are held against float64. A peer that is off by more than
its arithmetic (float32 sums, a rounding to half precision) explains, or that fails, leaves a blank
with its reason; fastreg itself must not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import shorten

from fastreg.bench.accuracy import START, Errors, errors
from fastreg.bench.cases import OUTPUTS, Case
from fastreg.bench.measure import interleave
from fastreg.bench.peers import Fastreg, Floor, Peer, Prepared
from fastreg.bench.spread import Spread
from fastreg.bench.workloads import Workload

#: BLAS in float32 loses up to about 0.3 % on large sums; a wrong formula is off by far more.
VALUE_TOLERANCE = 1e-2
#: Gradients differ by roundings of the narrowest dtype (bf16 has 8 bits).
GRADIENT_TOLERANCE = 2e-2
#: fastreg promises sums in float64.
OWN_VALUE_TOLERANCE = 1e-12

#: The variant beside a model's many tensors: fastreg on one tensor of the same size.
ONE_TENSOR = "one tensor"


@dataclass(frozen=True)
class Measurement:
    """One variant of a case, in seconds per call.

    ``share_of_floor`` is the floor's time over this one's (1.0: as fast as the bare loop);
    ``times_fastreg`` is this one's over fastreg's (10.0: fastreg is ten times faster).
    """

    samples: list[float]
    seconds: Spread
    share_of_floor: Spread
    times_fastreg: Spread
    errors: Errors


@dataclass(frozen=True)
class Row:
    """One case measured, by variant; ``blanks`` has the reasons of those that could not be."""

    case: Case
    variants: dict[str, Measurement]
    blanks: dict[str, str]

    @property
    def own(self) -> Measurement:
        return self.variants[Fastreg.name]

    @property
    def compared(self) -> dict[str, Measurement]:
        """The variants that are peers."""
        others = (Fastreg.name, Floor.name, ONE_TENSOR)
        return {name: found for name, found in self.variants.items() if name not in others}

    def gb_per_s(self, name: str) -> float:
        """Declared bytes over a variant's median time, in 10^9 bytes per second."""
        return self.case.bytes / self.variants[name].seconds.median / 1e9


def measure(workload: Workload, peers: Iterable[Peer], repeats: int) -> Row:
    """Check and time one case.

    Raises
    ------
    RuntimeError
        fastreg's own result is wrong.
    """
    peers = list(peers)
    own, own_errors = _own(workload)
    prepared = {Fastreg.name: own, Floor.name: Floor().make(workload)}
    found = {Fastreg.name: own_errors, Floor.name: Errors(None, None)}
    if workload.case.model:
        prepared[ONE_TENSOR], found[ONE_TENSOR] = _own(workload.one_tensor())
    blanks = {}
    for peer in peers:
        try:
            checked = _checked(peer, workload)
        except Exception as error:  # whatever a framework raises: the run goes on without it
            blanks[peer.name] = _in_short(error)
            continue
        if checked is None:
            continue
        call, off = checked
        if (off.value or 0.0) > VALUE_TOLERANCE:
            blanks[peer.name] = f"its value is off by {off.value:.1%}"
        elif (off.gradient or 0.0) > GRADIENT_TOLERANCE:
            blanks[peer.name] = f"its gradient is off by {off.gradient:.1%}"
        else:
            prepared[peer.name], found[peer.name] = call, off
    workload.fill_gradients(0.0)
    samples = interleave(
        {name: call.call for name, call in prepared.items()},
        repeats,
        [peer.name for peer in peers if peer.spins],
    )
    return Row(
        case=workload.case,
        variants={
            name: Measurement(
                samples=sample,
                seconds=Spread.quartiles(sample),
                share_of_floor=Spread.of_ratio(samples[Floor.name], sample),
                times_fastreg=Spread.of_ratio(sample, samples[Fastreg.name]),
                errors=found[name],
            )
            for name, sample in samples.items()
        },
        blanks=blanks,
    )


def _in_short(error: Exception) -> str:
    """An error in one line; frameworks put the cause into the second of theirs."""
    words = " ".join(str(error).split("\n")[:2]).split()
    return shorten(f"{type(error).__name__}: {' '.join(words)}", 200)


def _own(workload: Workload) -> tuple[Prepared, Errors]:
    checked = _checked(Fastreg(), workload)
    assert checked is not None  # fastreg does every case
    call, off = checked
    if (off.value or 0.0) > OWN_VALUE_TOLERANCE or (off.gradient or 0.0) > GRADIENT_TOLERANCE:
        raise RuntimeError(f"fastreg's result is wrong on {workload.case}: {off}")
    return call, off


def _checked(peer: Peer, workload: Workload) -> tuple[Prepared, Errors] | None:
    """A peer's call, and the errors of its first result."""
    workload.fill_gradients(START)
    prepared = peer.make(workload)
    if prepared is None:
        return None
    result = prepared.call()
    outputs = OUTPUTS[workload.case.outputs]
    return prepared, errors(
        workload.case,
        workload.tensors,
        prepared.value(result) if outputs.has_value else None,
        prepared.gradients() if outputs.mask & 6 else None,
    )
