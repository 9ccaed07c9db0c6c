"""What is measured: cells of the product dtype x terms x outputs, at a size or over a whole model.

Contract: a case declares the bytes which a perfect implementation moves between the processor and
memory, and the floor it is held against: the fastest of the bare loops that move the same bytes.

===============================  ============================================  ========
outputs                          declared bytes                                floor
===============================  ============================================  ========
value                            weights read                                  read
gradient, value+gradient         weights read, gradient written                copy
add, value+add                   weights and gradient read, gradient written   add
new-gradient, value+new-gradient weights read, gradient made and written       new copy
===============================  ============================================  ========
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from fastreg.bench.shapes import parameters

#: Strengths of the two terms wherever they are present. Large, because half precision would make
#: subnormal gradients of usual strengths, and those have a speed of their own on some processors.
L1_STRENGTH = 1e-3
L2_STRENGTH = 1e-2

#: dtype name -> bytes per element.
DTYPES = {"f16": 2, "bf16": 2, "f32": 4, "f64": 8}

#: terms -> (l1, l2).
TERMS = {
    "L1": (L1_STRENGTH, 0.0),
    "L2": (0.0, L2_STRENGTH),
    "L1L2": (L1_STRENGTH, L2_STRENGTH),
}


@dataclass(frozen=True)
class Outputs:
    """A set of outputs: its floor, its streams of memory, and the bit mask of the core."""

    floor: str
    streams: int
    mask: int

    @property
    def has_value(self) -> bool:
        return bool(self.mask & 1)

    @property
    def adds(self) -> bool:
        return bool(self.mask & 4)


OUTPUTS = {
    "value": Outputs("read", 1, 1),
    "gradient": Outputs("copy", 2, 2),
    "value+gradient": Outputs("copy", 2, 3),
    "add": Outputs("add", 3, 6),
    "value+add": Outputs("add", 3, 7),
}

#: Outputs in arrays that the call makes; they are measured where they are asked for.
NEW_OUTPUTS = {
    "new-gradient": Outputs("new copy", 2, 2),
    "value+new-gradient": Outputs("new copy", 2, 3),
}

#: Whose memory the arrays lie in; workloads.py says what each is.
MEMORIES = ("aligned", "numpy", "small-pages", "torch")

#: What runs just before each timed call, and is not timed.
BEFORE = ("nothing", "torch")


@dataclass(frozen=True)
class Case:
    """One cell at one size: a tensor, or with ``model`` all tensors of that one.

    ``threads`` is 0 where its run has one number of threads for all; older records have none of the
    last three.

    Examples
    --------
    >>> case = Case("f32", "L1L2", "value+add", 1000)
    >>> case.bytes, case.floor
    (12000, 'add')
    >>> print(Case("bf16", "L2", "value", parameters("gpt2"), "gpt2"))
    bf16 L2 value of gpt2
    """

    dtype: str
    terms: str
    outputs: str
    size: int
    model: str = ""
    memory: str = "aligned"
    before: str = "nothing"
    threads: int = 0

    @property
    def returns(self) -> Outputs:
        """What is computed, by its name in ``outputs``."""
        return OUTPUTS.get(self.outputs) or NEW_OUTPUTS[self.outputs]

    @property
    def makes_arrays(self) -> bool:
        return self.outputs in NEW_OUTPUTS

    @property
    def bytes(self) -> int:
        """Bytes moved at least: elements x bytes per element x streams."""
        return self.size * DTYPES[self.dtype] * self.returns.streams

    @property
    def floor(self) -> str:
        return self.returns.floor

    @property
    def strengths(self) -> tuple[float, float]:
        return TERMS[self.terms]

    @property
    def is_half(self) -> bool:
        return DTYPES[self.dtype] == 2

    @property
    def place(self) -> str:
        """Where the cell is measured: the model, or the number of elements."""
        return self.model or f"{self.size:,}"

    def __str__(self) -> str:
        preposition = "of" if self.model else "at"
        cell = f"{self.dtype} {self.terms} {self.outputs} {preposition} {self.place}"
        return ", ".join([cell, *self.setting])

    @property
    def setting(self) -> list[str]:
        """What is not as usual, in words: memory, what runs before, threads."""
        found = []
        if self.memory != MEMORIES[0]:
            found.append(f"memory {self.memory}")
        if self.before != BEFORE[0]:
            found.append(f"after {self.before}")
        if self.threads:
            found.append("1 thread" if self.threads == 1 else f"{self.threads} threads")
        return found


def cases(
    sizes: Sequence[int],
    models: Sequence[str],
    dtypes: Sequence[str],
    terms: Sequence[str],
    outputs: Sequence[str],
    memories: Sequence[str] = MEMORIES[:1],
    before: Sequence[str] = BEFORE[:1],
) -> list[Case]:
    """Return every case asked for; those that can share arrays follow each other.

    Examples
    --------
    >>> [str(case) for case in cases([64], ["resnet50"], ["f32"], ["L1"], ["value", "add"])]
    ... # doctest: +NORMALIZE_WHITESPACE
    ['f32 L1 value at 64', 'f32 L1 add at 64',
     'f32 L1 value of resnet50', 'f32 L1 add of resnet50']
    """
    places = [(size, "") for size in sizes] + [(parameters(model), model) for model in models]
    return [
        Case(dtype, term, output, size, model, memory, earlier)
        for (size, model), dtype, memory in product(places, dtypes, memories)
        for term, output, earlier in product(terms, outputs, before)
    ]
