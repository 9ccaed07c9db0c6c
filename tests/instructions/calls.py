"""The calls of the core that budget.py counts from Python, each three times: the last one counts.

Run by Valgrind, with the instruction set and the path of marks.so as arguments.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

ELEMENTS = 64
TENSORS = 400
VALUE, VALUE_AND_ADD = 1, 7


def calls(core: Any) -> dict[str, Callable[[], object]]:
    """Return what is called, by name. What it needs is made before: only the core is counted."""
    weights = tuple(np.full(ELEMENTS, 0.5, np.float32) for _ in range(TENSORS))
    gradients = tuple(np.zeros(ELEMENTS, np.float32) for _ in range(TENSORS))
    names = tuple(f"layer{i}" for i in range(TENSORS))
    strengths, which = ((1e-4, 1e-3),), (0,) * TENSORS

    def one(outputs: int) -> Callable[[], object]:
        return lambda: core.evaluate_one(outputs, weights[0], gradients[0], *strengths[0], 1.0, 1.0)

    def many(outputs: int) -> Callable[[], object]:
        return lambda: core.evaluate_many(
            outputs, names, weights, gradients, strengths, which, 1.0, 1.0, False
        )

    return {
        f"evaluate_one V/{ELEMENTS} elements": one(VALUE),
        f"evaluate_one VGA/{ELEMENTS} elements": one(VALUE_AND_ADD),
        f"evaluate_many V/{TENSORS} tensors": many(VALUE),
        f"evaluate_many VGA/{TENSORS} tensors": many(VALUE_AND_ADD),
    }


def main(instruction_set: str, marks: str) -> None:
    from fastreg import _core

    _core.set_instruction_set(instruction_set)
    _core.set_policy("far")  # as count.cpp
    callgrind = ctypes.CDLL(marks)
    everything = calls(_core)
    callgrind.start_instrumentation()
    for name, call in everything.items():
        for _ in range(3):
            call()
            callgrind.dump(name.encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
