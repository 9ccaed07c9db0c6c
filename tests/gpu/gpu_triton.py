"""The penalty as an expert would write it with Triton: one kernel, float32, sums by blocks.

Its sums are float32's within a block, and their order is the compiler's: it is a peer in speed, not
in what it promises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.with_torch import sum_dtype

BLOCK = 4096


@triton.jit
def penalty_kernel(
    weights,
    gradients,
    sums,
    count,
    l1: tl.constexpr,
    l2: tl.constexpr,
    has_value: tl.constexpr,
    has_gradient: tl.constexpr,
    adds: tl.constexpr,
    is_double: tl.constexpr,
    block: tl.constexpr,
):
    real: tl.constexpr = tl.float64 if is_double else tl.float32
    start = tl.program_id(0).to(tl.int64) * block
    places = start + tl.arange(0, block)
    is_there = places < count
    w = tl.load(weights + places, mask=is_there, other=0.0).to(real)
    if has_value:
        tl.store(sums + tl.program_id(0), tl.sum(l1 * tl.abs(w) + l2 * w * w))
    if has_gradient:
        sign = tl.where(w > 0.0, 1.0, 0.0) - tl.where(w < 0.0, 1.0, 0.0)
        slope = l1 * sign.to(real) + (2.0 * l2) * w
        if adds:
            slope += tl.load(gradients + places, mask=is_there, other=0.0).to(real)
        tl.store(gradients + places, slope.to(gradients.dtype.element_ty), mask=is_there)


def call(workload: Any) -> Callable[[], Any]:
    """Return a call of the kernel for a workload of one tensor."""
    (w,), (g,) = workload.tensors.weights, workload.tensors.gradients
    l1, l2 = workload.case.strengths
    outputs = OUTPUTS[workload.case.outputs]
    blocks = triton.cdiv(w.numel(), BLOCK)
    is_double = w.dtype == torch.float64
    sums = torch.empty(blocks, dtype=sum_dtype(torch, [w]), device=w.device)

    def run() -> Any:
        penalty_kernel[(blocks,)](
            w, g, sums, w.numel(), l1, l2,
            outputs.has_value, bool(outputs.mask & 6), outputs.adds, is_double, BLOCK,
            num_warps=8,
        )  # fmt: skip
        return sums.sum() if outputs.has_value else None

    return run
