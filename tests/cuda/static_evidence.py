"""What the compiler's report and the machine code say about the CUDA kernels, without a GPU.

    python tests/cuda/static_evidence.py LIBRARY [--architectures 75,80,...]

Reads what the build has put into libfastreg_cuda.so, fails where it lacks an architecture, on a
spill, a stack frame, more registers than the planned occupancy allows, a fused multiply-add where
the contract rounds twice, loads narrower than planned or of unknown memory, and prints a table.  It
says nothing about speed.  The tools are of the wheels nvidia-cuda-cuobjdump and -nvdisasm.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
# Blocks of 256 threads that a multiprocessor runs at once, of a kernel with so many registers.
MOST_REGISTERS = {4: 64, 3: 80, 2: 128, 1: 255}
# The loads of chunk sums that a thread of the kernel of the values has under way: 8 of each sum.
CHUNK_SUM_LOADS = 16
# Element type -> bytes, the load that fetches one element, and how many a thread has under way.
ELEMENTS = {
    "F16": (2, "LDG.E.U16", 16),
    "BF16": (2, "LDG.E.U16", 16),
    "F32": (4, "LDG.E", 16),
    "F64": (8, "LDG.E.64", 8),
}
# P: a proximal step.
OUTPUTS = {1: "V", 2: "G", 3: "VG", 6: "GA", 7: "VGA", 10: "P", 11: "VP"}
# Fused operations that a correctly rounded division takes: of each, and in the one function that
# all call where numbers are very large or small.
DIVISION = {"F32": {"FFMA": (5, 12)}, "F64": {"DFMA": (7, 10), "FFMA": (1, 0)}}
# What strided tensors and integers compute as.
STRIDED = ("F32", "F64")
# Kernels of norms, with what messages call them; those of no element type have a name alone.
NORMS = {
    "norm_chunks": "norms",
    "scale_chunks": "scaling",
    "strided_norm_chunks": "strided norms",
    "strided_scale_chunks": "strided scaling",
    "norm_values": "norm values",
}
NORM_KERNELS = 2 * len(ELEMENTS) + 1 + len(STRIDED) + 1
# Kernels of optimizers' steps, likewise; those of one block have no element type.
STEPS = {
    "step_chunks": "steps",
    "strided_step_chunks": "strided steps",
    "step_norm_chunks": "norms of steps",
    "strided_step_norm_chunks": "strided norms of steps",
    "step_rules": "rules of steps",
    "step_outcome": "outcome of steps",
}
ALGORITHMS = {"0": "SGD", "1": "AdamW"}
STEP_KERNELS = 3 * (len(ELEMENTS) + len(STRIDED)) + 2
# Divisions and square roots of an element's step, in each of its modes.
STEP_QUOTIENTS = {"0": 1, "1": 7}
# Of the numbers of a step: they are found in float64.
RULES_OF_STEPS = {"DFMA": 60, "FFMA": 6}
# Fused operations of the square root, and of the division, by which a clip's factor is found.
CLIP_FACTOR = {"DFMA": 40, "FFMA": 2}


@dataclass
class Kernel:
    """One entry: what ptxas reports, in registers and bytes, and its instructions by name."""

    name: str
    registers: int
    stack: int
    local: int  # memory of a thread's own, which is where spills go
    instructions: Counter[str] = field(default_factory=Counter)
    fused: Counter[str] = field(default_factory=Counter)
    first_loads: int = 0
    """Loads of what other blocks have written before the first store to shared memory."""

    @property
    def cell(self) -> tuple[str, int] | None:
        """Element type and outputs of a chunk kernel; None for the kernel of the values."""
        found = re.search(r"_chunksINS_\d+(B?F\d+)ELj(\d+)E", self.name)
        return (found[1], int(found[2])) if found else None

    @property
    def of_norms(self) -> tuple[str, str]:
        """Name and element type of a kernel of norms; both empty for another."""
        found = re.search(r"\d((?:strided_)?(?:norm|scale)_\w+?)(?:INS_\d+(B?F\d+)EE|E)", self.name)
        return (found[1], found[2] or "") if found else ("", "")

    @property
    def of_steps(self) -> tuple[str, str, str]:
        """Name, element type and algorithm of a kernel of steps; all empty for another."""
        found = re.search(
            r"\d((?:strided_)?step_\w+?)(?:INS_\d+(B?F\d+)E(?:LNS_\d+AlgorithmE(\d)E)?E|E)",
            self.name,
        )
        return (found[1], found[2] or "", found[3] or "") if found else ("", "", "")

    @property
    def is_strided(self) -> bool:
        return "strided_" in self.name

    @property
    def planned_blocks(self) -> int:
        """Blocks per multiprocessor that kernel.cuh plans: fewer where gradients need registers.

        A gradient that is added without a value needs no more than sums do, but of float64.
        """
        step, step_dtype, algorithm = self.of_steps
        if step:
            if step in ("step_rules", "step_outcome") or (step_dtype, algorithm) == ("F64", "1"):
                return 1
            return 2 if algorithm else 3
        if self.cell is None:
            return 3 if self.is_strided or self.of_norms[0] == "norm_values" else 4
        dtype, outputs = self.cell
        adds_alone = outputs == 6 and dtype != "F64"
        return 3 if self.is_strided or (outputs & 2 and not adds_alone) else 4

    @property
    def is_proximal(self) -> bool:
        return self.cell is not None and bool(self.cell[1] & 8)

    def divides(self) -> dict[str, int]:
        """Return how many fused operations its divisions may have, by name.

        Two of the four combinations of terms divide: each element of a whole batch, and of a rest.
        """
        if self.of_norms[0] == "norm_values":
            return CLIP_FACTOR
        if self.of_steps[0]:
            return self._quotients_of_steps()
        if self.cell is None or not self.is_proximal:
            return {}
        dtype = self.cell[0]
        elements = 4 if self.is_strided else ELEMENTS[dtype][2] + 4
        allowed = DIVISION["F64" if dtype == "F64" else "F32"]
        return {name: 2 * elements * each + once for name, (each, once) in allowed.items()}

    def _quotients_of_steps(self) -> dict[str, int]:
        name, dtype, algorithm = self.of_steps
        if name == "step_rules":
            return RULES_OF_STEPS
        if not algorithm:
            return {}
        # Dtypes of the gradient times elements: of a whole batch, and of the rest.
        elements = {"F32": 10, "F64": 2} if self.is_strided else {"F32": 5, "F64": 5}
        count = elements.get(dtype, 10) * STEP_QUOTIENTS[algorithm]
        each = {"DFMA": (9, 30), "FFMA": (2, 2)} if dtype == "F64" else {"FFMA": (6, 40)}
        return {one: count * most + once for one, (most, once) in each.items()}

    @property
    def label(self) -> str:
        if self.of_steps[0]:
            step, dtype, algorithm = self.of_steps
            words = (STEPS[step], ALGORITHMS.get(algorithm, ""), dtype)
            return " ".join(filter(None, words))
        name, of = self.of_norms
        if name:
            return f"{NORMS[name]} {of}".strip()
        if self.cell is None:
            return "values and zeros" if "Lb1E" in self.name else "values"
        return f"{'strided ' * self.is_strided}{self.cell[0]} {OUTPUTS[self.cell[1]]}"


def tool(name: str) -> str:
    """Find a tool of CUDA's, in PATH or among the wheels under site-packages/nvidia."""
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    found = shutil.which(name) or next(map(str, sorted(wheels.glob(f"*/bin/{name}"))), None)
    if found is None:
        raise SystemExit(f"{name} was not found: install the wheel nvidia-cuda-{name}")
    return found


def output_of(*command: str | Path, folder: str | Path | None = None) -> str:
    """Run a tool, which must succeed, and return what it prints."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout


def read_library(library: Path) -> dict[str, list[Kernel]]:
    """Return the kernels of each architecture that the library has machine code for."""
    with tempfile.TemporaryDirectory() as folder:
        output_of(tool("cuobjdump"), "-xelf", "all", library.resolve(), folder=folder)
        return {
            found[1]: read_cubin(cubin)
            for cubin in sorted(Path(folder).glob("*.cubin"))
            if (found := re.search(r"\.sm_(\w+)\.cubin$", cubin.name))
        }


def read_cubin(cubin: Path) -> list[Kernel]:
    """Read what ptxas has noted of each kernel, and its instructions."""
    kernels: dict[str, Kernel] = {}
    name = ""
    for line in output_of(tool("cuobjdump"), "-res-usage", cubin).splitlines():
        if found := re.match(r"\s*Function (\w+):", line):
            name = found[1]
        elif name and (found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line)):
            used, stack, local = map(int, found.groups())
            kernels[name] = Kernel(name, used, stack, local)
    name = ""
    for line in output_of(tool("nvdisasm"), "-c", cubin).splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            name = found[1]
        found = re.match(
            r"\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line
        )
        if found and name in kernels:
            kernel = kernels[name]
            if re.match(r"LDG.*\.STRONG", found[1]) and not is_storing(kernel):
                kernel.first_loads += 1
            kernel.instructions[found[1]] += 1
            # With zeros for factors it loads a constant.
            if re.match(r"[FDH]FMA", found[1]) and found[2].count("RZ") < 2:
                kernel.fused[found[1]] += 1
    return list(kernels.values())


def is_storing(kernel: Kernel) -> bool:
    """Return whether a store to shared memory has been read."""
    return any(name.startswith("STS") for name in kernel.instructions)


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = []
    of_norms, norm_dtype = kernel.of_norms
    # Norms are values of both terms.
    dtype, outputs = kernel.cell or (norm_dtype, 1 if "norm" in of_norms else 2)
    step, step_dtype, algorithm = kernel.of_steps
    if algorithm:  # with the squares of the penalty
        dtype, outputs = step_dtype, 1
    if kernel.stack or kernel.local:
        found.append(f"{kernel.stack} bytes of stack, {kernel.local} of local memory: spills")
    most = MOST_REGISTERS[kernel.planned_blocks]
    if not 0 < kernel.registers <= most:
        found.append(f"{kernel.registers} registers, of at most {most}")
    for name in kernel.instructions:
        if name.split(".")[0] in ("LD", "ST", "LDL", "STL"):
            found.append(f"{name}: a thread's own memory, or memory of unknown kind")
    fused: Counter[str] = Counter()
    for name, count in kernel.fused.items():
        fused[name.split(".")[0]] += count
    for name, count in fused.items():
        is_exact_square = name == "DFMA" and dtype in ("F16", "BF16", "F32") and outputs & 1
        if not is_exact_square and count > kernel.divides().get(name, 0):
            found.append(f"{count} {name}: fused where the contract rounds twice")
    if step:
        return found
    if not dtype and not kernel.is_strided and kernel.first_loads != CHUNK_SUM_LOADS:
        found.append(
            f"{kernel.first_loads} loads of chunk sums before the first store, not the "
            f"{CHUNK_SUM_LOADS} planned"
        )
    if dtype and not kernel.is_strided:
        size, load, in_flight = ELEMENTS[dtype]
        # For each of the combinations of terms, of which a copy is one to a proximal step: a whole
        # batch's, and those of a remainder.
        cells = 1 if of_norms else 4 if kernel.is_proximal else 3
        wanted = cells * in_flight * (2 if outputs & 4 else 1)
        have = sum(n for name, n in kernel.instructions.items() if matches(name, load))
        if have < wanted:
            found.append(f"{have} loads of {size} bytes, not the {wanted} planned")
        for name in kernel.instructions:
            if name.startswith("LDG.E.U8") or (size > 2 and name.startswith("LDG.E.U16")):
                found.append(f"{name}: narrower than an element")
    return found


def matches(name: str, load: str) -> bool:
    """Whether an instruction is the load, whatever it says of caches; LDG.E alone is 32 bits."""
    if not name.startswith(load):
        return False
    return load != "LDG.E" or not re.match(r"LDG\.E\.(U8|S8|U16|S16|64|128)", name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", type=Path)
    parser.add_argument("--architectures", default=ARCHITECTURES, type=lambda text: text.split(","))
    options = parser.parse_args()
    wrong = 0
    registers: dict[str, dict[str, int]] = {}
    compiled = read_library(options.library)
    for architecture in options.architectures:
        kernels = compiled.get(architecture, [])
        if (
            len(kernels)
            != (len(ELEMENTS) + len(STRIDED)) * len(OUTPUTS) + 2 + NORM_KERNELS + STEP_KERNELS
        ):
            print(f"sm_{architecture}: {len(kernels)} kernels were found", file=sys.stderr)
            wrong += 1
        for kernel in kernels:
            label = kernel.label
            registers.setdefault(label, {})[architecture] = kernel.registers
            for fault in faults(kernel):
                print(f"sm_{architecture} {label}: {fault}", file=sys.stderr)
                wrong += 1
    print(
        "| kernel | bytes per element | "
        + " | ".join(f"sm_{a}" for a in options.architectures)
        + " |"
    )
    print("|---|---|" + "---|" * len(options.architectures))
    for label, counts in sorted(registers.items()):
        dtype, _, outputs = label.partition(" ")
        # Each array once: the weights, the old gradient, the new one. That is the floor.
        arrays = {"V": 1, "G": 2, "VG": 2, "GA": 3, "VGA": 3, "P": 2, "VP": 2}.get(outputs)
        moved = str(ELEMENTS[dtype][0] * arrays) if arrays else ""
        row = " | ".join(str(counts.get(a, "")) for a in options.architectures)
        print(f"| {label} | {moved} | {row} |")
    print(f"{wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
