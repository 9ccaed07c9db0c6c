"""NumExpr: compiled expressions over blocks in the cache, on threads. It has no half precision.

Its own ``sum`` runs on one thread and adds one by one, so values are written to a buffer, which
NumPy sums pairwise.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.workloads import Array, Workload

VALUES = {"L1": "l1 * abs(w)", "L2": "l2 * w * w", "L1L2": "l1 * abs(w) + l2 * w * w"}
SLOPES = {"L1": "l1 * sign(w)", "L2": "two_l2 * w", "L1L2": "l1 * sign(w) + two_l2 * w"}
OPERANDS = ("g", "l1", "l2", "two_l2", "w")


class Numexpr(Peer):
    """Two expressions at most, compiled beforehand: the terms of the value, and the gradient."""

    name = "numexpr"
    modules: ClassVar[tuple[str, ...]] = ("numexpr",)
    pool = "numexpr"
    summary = "NumExpr (f32, f64)"

    def make(self, workload: Workload) -> Prepared | None:
        if workload.case.is_half:
            return None
        numexpr: Any = importlib.import_module("numexpr")
        tensors = workload.tensors
        outputs = OUTPUTS[workload.case.outputs]
        dtype = tensors.weights[0].dtype
        kind: Any = numexpr.necompiler.double if dtype == np.float64 else float  # its float32
        l1, l2 = (dtype.type(strength) for strength in workload.case.strengths)
        terms = workload.case.terms
        space = np.zeros(max(w.size for w in tensors.weights), dtype)

        def compiled(expression: str) -> Callable[[dict[str, Any], Array], None]:
            names = [name for name in OPERANDS if re.search(rf"\b{name}\b", expression)]
            run = numexpr.NumExpr(expression, [(name, kind) for name in names]).run

            def evaluate(operands: dict[str, Any], out: Array) -> None:
                arguments = [operands[name] for name in names]
                # its sign() of float32 is float64
                run(*arguments, out=out, casting="same_kind", ex_uses_vml=False)

            return evaluate

        value = compiled(VALUES[terms])
        slope = compiled(f"g + {SLOPES[terms]}" if outputs.adds else SLOPES[terms])
        work = [
            (
                dict(zip(OPERANDS, (g, l1, l2, 2 * l2, w), strict=True)),
                g,
                space[: w.size].reshape(w.shape),
            )
            for w, g in zip(tensors.weights, tensors.gradients, strict=True)
        ]

        def call() -> float:
            total = 0.0
            for operands, g, buffer in work:
                if outputs.has_value:
                    value(operands, buffer)
                    total += float(buffer.sum())
                if outputs.mask & 6:
                    slope(operands, g)
            return total

        return Prepared(call, lambda: tensors.gradients)
