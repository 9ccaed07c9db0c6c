"""From a workload to a row: check that the variants agree, then time them.

Contract: nothing is timed that does not compute the same. Each variant runs once from the same
gradient; its value and a sample of its gradient must equal fastreg's within what its arithmetic
(float32 sums, one rounding more) explains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fastreg.bench.cases import OUTPUTS, Array, Case, Workload
from fastreg.bench.measure import Spread, interleave
from fastreg.bench.peers import Call, Fastreg, Floor, Peer

#: BLAS in float32 loses up to about 0.3 % on large sums; a wrong formula is off by far more.
VALUE_TOLERANCE = 1e-2
#: Gradients differ by roundings of the narrowest dtype (bf16 has 8 bits).
GRADIENT_TOLERANCE = 2e-2


@dataclass(frozen=True)
class Row:
    """One case measured: seconds per call of each variant, and what follows from them.

    ``share_of_floor`` is the floor's time over fastreg's (1.0: as fast as the bare loop);
    ``ratio_to_peer`` is the peer's time over fastreg's (10.0: ten times faster than the peer).
    """

    case: Case
    seconds: dict[str, Spread]
    share_of_floor: Spread
    ratio_to_peer: dict[str, Spread]

    @property
    def gb_per_s(self) -> float:
        """Declared bytes over fastreg's median time, in 10^9 bytes per second."""
        return self.case.bytes / self.seconds[Fastreg.name].median / 1e9


def measure(workload: Workload, peers: Iterable[Peer], repeats: int) -> Row:
    """Check and time one case.

    Raises
    ------
    RuntimeError
        A peer's result differs from fastreg's.
    """
    fastreg, floor = Fastreg().make(workload), Floor().make(workload)
    compared = {p.name: call for p in peers if (call := p.make(workload)) is not None}
    _check(workload, fastreg, compared)
    workload.gradient.fill(0)
    samples = interleave({Fastreg.name: fastreg, Floor.name: floor, **compared}, repeats)
    own = samples[Fastreg.name]
    return Row(
        case=workload.case,
        seconds={name: Spread.of(sample) for name, sample in samples.items()},
        share_of_floor=Spread.of_ratio(samples[Floor.name], own),
        ratio_to_peer={name: Spread.of_ratio(samples[name], own) for name in compared},
    )


def _check(workload: Workload, fastreg: Call, compared: Mapping[str, Call]) -> None:
    expected_value, expected_gradient = _result(workload, fastreg)
    for name, call in compared.items():
        value, gradient = _result(workload, call)
        same_value = np.isclose(value, expected_value, rtol=VALUE_TOLERANCE, atol=0)
        same_gradient = np.allclose(
            gradient, expected_gradient, rtol=GRADIENT_TOLERANCE, atol=1e-12
        )
        if not (same_value and same_gradient):
            raise RuntimeError(
                f"{name} and fastreg disagree on {workload.case}: "
                f"values {value!r} and {expected_value!r}; nothing was timed"
            )


def _result(workload: Workload, call: Call) -> tuple[float, Array]:
    """The value (0.0 without one) and up to a few thousand elements of the gradient, as float64."""
    gradient = workload.gradient
    # as large as the penalty's gradient, so that half precision shows both
    gradient.fill(2**-10)
    result = call()
    if isinstance(result, tuple):
        result = result[0]
    outputs = OUTPUTS[workload.case.outputs]
    value = float(result) if outputs.has_value and isinstance(result, (float, int)) else 0.0
    return value, gradient[:: max(1, gradient.size // 4096)].astype(np.float64)
