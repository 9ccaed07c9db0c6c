"""From a workload to a row: check what each variant computes, then time them in turn.

Contract: nothing is timed that does not compute the case. Each variant runs once from the same
gradients, and its value and gradients are held against float64. A peer that is off by more than
its arithmetic (float32 sums, a rounding to half precision) explains, or that fails, leaves a blank
with its reason; fastreg itself must not.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from fastreg.bench.accuracy import START, Errors, errors
from fastreg.bench.measure import Call, InTurns, interleave, straight_after
from fastreg.bench.peers import Fastreg, Floor, Peer, Prepared
from fastreg.bench.row import ONE_TENSOR, OWN, Row, in_short
from fastreg.bench.workloads import Workload

#: Gradients differ by roundings of the narrowest dtype (bf16 has 8 bits).
GRADIENT_TOLERANCE = 2e-2

HOST_OWN = Fastreg()
HOST_FLOORS = (Floor(),)


def measure(
    workload: Workload,
    peers: Iterable[Peer],
    repeats: int,
    own: Peer = HOST_OWN,
    floors: Sequence[Peer] = HOST_FLOORS,
    in_turns: InTurns = interleave,
) -> Row:
    """Check and time one case; ``in_turns`` is for those before which nothing runs.

    Raises
    ------
    RuntimeError
        fastreg's own result is wrong.
    """
    peers = list(peers)
    prepared, found = {}, {}
    prepared[OWN], found[OWN] = _own(own, workload)
    for floor in floors:
        call = floor.make(workload)
        if call is not None:
            prepared[floor.name], found[floor.name] = call, Errors(None, None)
    if workload.case.model:
        prepared[ONE_TENSOR], found[ONE_TENSOR] = _own(own, workload.one_tensor())
    blanks = {}
    for peer in peers if not workload.case.makes_arrays else ():  # they fill given ones
        try:
            checked = _checked(peer, workload)
        except Exception as error:  # whatever a framework raises: the run goes on without it
            blanks[peer.name] = in_short(error)
            continue
        if checked is None:
            continue
        call, off = checked
        if (off.value or 0.0) > _tolerance(peer, workload):
            blanks[peer.name] = f"its value is off by {off.value:.1%}"
        elif (off.gradient or 0.0) > GRADIENT_TOLERANCE:
            blanks[peer.name] = f"its gradient is off by {off.gradient:.1%}"
        else:
            prepared[peer.name], found[peer.name] = call, off
    workload.fill_gradients(0.0)
    calls = {name: call.call for name, call in prepared.items()}
    spinning = [one.name for one in (*floors, *peers) if one.spins]
    before = {name: call.before for name, call in prepared.items() if call.before is not None}
    if workload.case.before == "torch":
        timer = straight_after(parallel_operation())
        samples = interleave(calls, repeats, timer=timer, before=before)
    elif before:
        samples = interleave(calls, repeats, spinning, before=before)
    else:
        samples = in_turns(calls, repeats, spinning)
    return Row(workload.case, samples, blanks, found)


def _own(own: Peer, workload: Workload) -> tuple[Prepared, Errors]:
    checked = _checked(own, workload)
    assert checked is not None  # fastreg does every case
    call, off = checked
    if (off.value or 0.0) > _tolerance(own, workload) or (off.gradient or 0.0) > GRADIENT_TOLERANCE:
        raise RuntimeError(f"fastreg's result is wrong on {workload.case}: {off}")
    return call, off


def _tolerance(peer: Peer, workload: Workload) -> float:
    """Return how far a value may be off; of torch it is float32 where the weights are no wider."""
    narrow = workload.case.memory == "torch" and workload.case.dtype != "f64"
    return max(peer.value_tolerance, 2.0**-23) if narrow else peer.value_tolerance


def _checked(peer: Peer, workload: Workload) -> tuple[Prepared, Errors] | None:
    """Return a peer's call, and the errors of its first result."""
    workload.fill_gradients(START)
    prepared = peer.make(workload)
    if prepared is None:
        return None
    result = prepared.call()
    outputs = workload.case.returns
    return prepared, errors(
        workload.case,
        workload.tensors,
        prepared.value(result) if outputs.has_value else None,
        prepared.gradients() if outputs.mask & 6 else None,
    )


#: Elements of an operation of torch that takes all threads and leaves most of the caches alone.
PARALLEL = 262_144


@cache
def parallel_operation() -> Call:
    """Return a short operation of torch that runs on all its threads."""
    torch: Any = importlib.import_module("torch")
    total, term = torch.zeros(PARALLEL), torch.ones(PARALLEL)
    return lambda: total.add_(term)
