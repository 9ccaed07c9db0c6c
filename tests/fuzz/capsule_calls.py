"""What fuzz_capsules.cpp has fastreg do with its capsules, and what has to come of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from fastreg._arrays import host_memory
from fastreg._base import dtypes, memory
from fastreg._base.core import core
from fastreg.regularizers import L1

RIGHT, REFUSED, NOT_TO_BE_READ, OF_OTHER_DTYPE = range(4)
BFLOAT = 4
warnings.simplefilter("error")


class Operand:
    """An array of another library, in host memory, with a capsule for each time it is asked."""

    def __init__(self, capsules: Iterator[Any]) -> None:
        self.capsules = capsules

    def __dlpack__(self, **_: Any) -> Any:
        return next(self.capsules)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def refusal(call: Any, *arguments: Any) -> str:
    """Return the words of the error that a call raises, or nothing."""
    try:
        call(*arguments)
    except (TypeError, ValueError, BufferError) as error:
        return str(error)
    return ""


def judge(
    found: int,
    capsules: tuple[Any, ...],
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    code: int,
    bits: int,
    has_version: int,
    is_writable: int,
    ones: int,
) -> None:
    """Raise AssertionError unless these capsules of one array are treated rightly."""
    operand = Operand(iter(capsules[1:]))
    if found != RIGHT:
        words = refusal(core().describe_capsule, capsules[0])
        assert found == NOT_TO_BE_READ or bool(words) == (found == REFUSED), words
        words = refusal(host_memory.of_dlpack, operand, "w", False)
        begin = "w has dtype " if found == OF_OTHER_DTYPE else "w "
        assert words.startswith(begin) or (found == NOT_TO_BE_READ and not words), words
        return
    described = (address, shape, strides, code, bits, 1, 1, 0), bool(has_version), bool(is_writable)
    assert core().describe_capsule(capsules[0]) == described
    if code == BFLOAT:
        assert "cannot import" in refusal(L1(1.0), operand)
        return
    dtype = np.dtype(dtypes.stored(dtypes.DLPACK[code, bits]))
    one = np.frombuffer(b"\1" + bytes(dtype.itemsize - 1), dtype)[0]
    assert L1(1.0)(operand) == ones * float(one)
    accumulate(operand, address, shape, strides, dtype, is_writable)


def accumulate(
    operand: Operand,
    address: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    dtype: np.dtype[Any],
    is_writable: int,
) -> None:
    """Write a gradient where that is allowed, and check the elements."""
    in_bytes = None if strides is None else [stride * dtype.itemsize for stride in strides]
    there = memory.at(address, shape, in_bytes, dtype)
    before = there.copy()
    may = is_writable and dtype.kind == "f" and not (there.size and memory.overlaps_itself(there))
    words = refusal(L1(1.0).accumulate, np.ones(shape, dtype), operand)
    assert bool(words) != bool(may), words
    expected = before + np.ones((), dtype) if may else before
    assert there.tobytes() == expected.tobytes()
