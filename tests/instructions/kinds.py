"""Return what kinds of instructions a kernel's loops are made of, as a table in Markdown.

    python tests/instructions/kinds.py avx512 'f32 L1L2 V' 'f32 L1L2 VGA'

fastreg_instructions runs the cell on 4,096 elements, one chunk, and says how often each instruction
ran; objdump says what each of them is. Those of the loops are those that ran at least 60 times.
Needs x86-64, Linux, binutils, and a processor that has the instruction set.

For AVX-512 it also gives a bound: an Intel core computes on 512 bits at two ports, and here is how
many cycles both are busy at the least. What an instruction takes of them was measured on a Xeon
of model 207 (Emerald Rapids), by loops of one instruction, alone and in turn with additions.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from budget import HERE, CannotCountError, run

ELEMENTS = 4096
ROW = 32
IN_A_LOOP = 60

KINDS = (
    ("load", r"v?mov(?!nt)"),
    ("store", r"v?mov"),
    ("prefetch", r"prefetch"),
    ("conversion", r"vcvt|vpmovzx|vpacku"),
    ("float64 add, fma", r"v(add|fmadd\d+)pd"),
    ("float32 arithmetic", r"v(add|sub|mul|fmadd\d+)ps"),
    ("bits, order, copies", r"v"),
    ("loop and addresses", r""),
)
"""What an instruction is called after: the first pattern that its name begins with."""


def kind(name: str, operands: str) -> str:
    """Return the kind of one instruction, in the notation of objdump.

    >>> kind("vmovups", "(%rax),%zmm0"), kind("vmovups", "%zmm0,0x40(%rax)")
    ('load', 'store')
    >>> kind("vcvtps2pd", "(%rax),%zmm0"), kind("vpord", "%zmm1,%zmm2,%zmm3"), kind("inc", "%rax")
    ('conversion', 'bits, order, copies', 'loop and addresses')
    """
    for title, pattern in KINDS:
        if not re.match(pattern, name):
            continue
        if title in ("load", "store") and not is_vector_move(name, operands):
            continue
        if title == "load" and operands.endswith(")"):
            continue
        return title
    raise AssertionError(name)


def is_vector_move(name: str, operands: str) -> bool:
    return re.match(r"vmov(?!sk|d\b|q\b)", name) is not None and "(" in operands


PORTS = 2
SLOTS = {"vcvtps2pd": 2, "vcvtph2ps": 2, "vcvtps2ph": 2, "vpermw": 2, "vpermt2w": 3}
"""How often an instruction on 512 bits needs one of the two ports, where it is not once."""


def slots(name: str, operands: str) -> int:
    """Return how often an instruction needs one of the ports that compute on 512 bits.

    Loads, stores and moves between registers do not.

    >>> slots("vaddpd", "%zmm1,%zmm2,%zmm3"), slots("vcvtps2ph", "$0x8,%zmm0,%ymm0")
    (1, 2)
    >>> slots("vmovups", "(%rax),%zmm0"), slots("add", "$0x40,%rax")
    (0, 0)
    """
    if "%zmm" not in operands or name.startswith("vmov"):
        return 0
    return SLOTS.get(name, 1)


def disassemble(program: Path) -> dict[int, tuple[str, str]]:
    """Return name and operands of every instruction by its address."""
    text = run(["objdump", "-d", "--no-show-raw-insn", str(program)])
    lines = re.findall(r"^\s*([0-9a-f]+):\t(\S+)[ \t]*([^#<\n]*)", text, re.MULTILINE)
    return {int(address, 16): (name, operands.strip()) for address, name, operands in lines}


@dataclass(frozen=True)
class Profile:
    """One chunk of a cell: what its loops are made of, and all instructions of the call."""

    kinds: Counter[str]
    wide: int
    slots: int
    total: int


def profile(program: Path, code: Mapping[int, tuple[str, str]], count: str) -> Profile:
    first, *visits = run([str(program), "--visits", count]).splitlines()
    kinds: Counter[str] = Counter()
    wide = busy = 0
    for line in visits:
        address, times = int(line.split()[0], 16), int(line.split()[1])
        if times < IN_A_LOOP or address not in code:
            continue
        kinds[kind(*code[address])] += times
        wide += times * (slots(*code[address]) > 0)
        busy += times * slots(*code[address])
    return Profile(kinds, wide, busy, int(first.rpartition(" ")[2]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("instruction_set", help="avx512, avx2 or portable")
    parser.add_argument("cells", nargs="+", help="dtype, terms and outputs: 'f32 L1L2 VGA'")
    parser.add_argument("--build", type=Path, default=HERE.parents[1] / "build/release")
    options = parser.parse_args()
    program = options.build / "tests/instructions/fastreg_instructions"
    try:
        code = disassemble(program)
        profiles = [
            profile(program, code, f"{options.instruction_set}/{cell}/{ELEMENTS} elements")
            for cell in options.cells
        ]
    except CannotCountError as error:
        print(f"cannot count: {error}", file=sys.stderr)
        return 2

    def row(title: str, counts: Iterable[float]) -> None:
        print(f"| {title} |", " | ".join(f"{count * ROW / ELEMENTS:.1f}" for count in counts), "|")

    print(f"| {options.instruction_set}, for {ROW} elements |", " | ".join(options.cells), "|")
    print("|---|" + "---:|" * len(profiles))
    for title, _ in KINDS:
        row(title, (one.kinds[title] for one in profiles))
    row("**in the loops**", (one.kinds.total() for one in profiles))
    row("all, the call included", (one.total for one in profiles))
    if any(one.wide for one in profiles):
        row("computing on 512 bits", (one.wide for one in profiles))
        row("needs of the two ports", (one.slots for one in profiles))
        row("**cycles at the least**", (one.slots / PORTS for one in profiles))
    return 0


if __name__ == "__main__":
    sys.exit(main())
