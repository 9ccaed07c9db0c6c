"""What the compiler's report and the machine code say about the CUDA kernels, without a GPU.

    python tests/cuda/static_evidence.py [--nvcc NVCC] [--nvdisasm NVDISASM] [ARCHITECTURE ...]

Compiles csrc/cuda/backend.cu for each architecture, fails on a spill, a stack frame, more registers
than the planned occupancy allows, a fused multiply-add where the contract rounds twice, loads
narrower than planned or of unknown memory, and prints a table.  It says nothing about speed.
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

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
# As kernel.cuh plans: 32 warps a processor for sums alone, 24 where a gradient is written.
MOST_REGISTERS = {False: 64, True: 80}
# Element type -> bytes, the load that fetches one element, and how many a thread has under way.
ELEMENTS = {
    "F16": (2, "LDG.E.U16", 16),
    "BF16": (2, "LDG.E.U16", 16),
    "F32": (4, "LDG.E", 16),
    "F64": (8, "LDG.E.64", 8),
}
OUTPUTS = {1: "V", 2: "G", 3: "VG", 6: "GA", 7: "VGA"}


@dataclass
class Kernel:
    """One entry: what ptxas reports, and its instructions by name."""

    name: str
    registers: int = 0
    stack: int = 0
    spills: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    fused: Counter[str] = field(default_factory=Counter)

    @property
    def cell(self) -> tuple[str, int] | None:
        """Element type and outputs of a chunk kernel; None for the kernel of the values."""
        found = re.search(r"penalty_chunksINS_\d+(B?F\d+)ELj(\d)E", self.name)
        return (found[1], int(found[2])) if found else None


def find(tool: str) -> str | None:
    """A tool of CUDA's, in PATH or from the wheels under site-packages/nvidia."""
    wheels = Path(sysconfig.get_path("purelib")) / "nvidia"
    return shutil.which(tool) or next(map(str, sorted(wheels.glob(f"*/bin/{tool}"))), None)


def compile_for(architecture: str, nvcc: str, nvdisasm: str, folder: Path) -> list[Kernel]:
    """Compile the backend for one architecture and read what came out."""
    cubin = folder / f"sm_{architecture}.cubin"
    flags = f"-std=c++20 -arch=sm_{architecture} -fmad=false -Werror all-warnings -cubin -Xptxas -v"
    report = subprocess.run(
        [nvcc, *flags.split(), "-I", ROOT / "csrc", "-o", cubin, ROOT / "csrc/cuda/backend.cu"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    kernels: dict[str, Kernel] = {}
    name = ""
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels[name] = Kernel(name)
        if name in kernels:
            if found := re.search(r"(\d+) bytes stack frame", line):
                kernels[name].stack = int(found[1])
                kernels[name].spills = sum(map(int, re.findall(r"(\d+) bytes spill", line)))
            if found := re.search(r"Used (\d+) registers", line):
                kernels[name].registers = int(found[1])
    listing = subprocess.run(
        [nvdisasm, "-c", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    name = ""
    for line in listing.splitlines():
        if found := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            name = found[1]
        found = re.match(
            r"\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);", line
        )
        if found and name in kernels:
            kernels[name].instructions[found[1]] += 1
            # With zeros for factors it loads a constant.
            if re.match(r"[FDH]FMA", found[1]) and found[2].count("RZ") < 2:
                kernels[name].fused[found[1]] += 1
    return list(kernels.values())


def faults(kernel: Kernel) -> list[str]:
    """What is wrong with a kernel, in words."""
    found = []
    dtype, outputs = kernel.cell or ("", 0)
    if kernel.stack or kernel.spills:
        found.append(f"{kernel.stack} bytes of stack, {kernel.spills} of spills")
    most = MOST_REGISTERS[bool(outputs & 2)]
    if not 0 < kernel.registers <= most:
        found.append(f"{kernel.registers} registers, of at most {most}")
    for name in kernel.instructions:
        if name.split(".")[0] in ("LD", "ST", "LDL", "STL"):
            found.append(f"{name}: a thread's own memory, or memory of unknown kind")
    for name, count in kernel.fused.items():
        is_exact_square = name == "DFMA" and dtype in ("F16", "BF16", "F32") and outputs & 1
        if not is_exact_square:
            found.append(f"{count} {name}: fused where the contract rounds twice")
    if dtype:
        size, load, in_flight = ELEMENTS[dtype]
        # For each of the three combinations of terms: a whole chunk's and a short one's.
        wanted = 3 * in_flight * (2 if outputs & 4 else 1)
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
    parser.add_argument("--nvcc", default=find("nvcc"))
    parser.add_argument("--nvdisasm", default=find("nvdisasm"))
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES)
    options = parser.parse_args()
    for tool in ("nvcc", "nvdisasm"):
        if getattr(options, tool) is None:
            print(f"{tool} was not found: install the wheel nvidia-cuda-{tool}", file=sys.stderr)
            return 2
    wrong = 0
    registers: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in options.architectures:
            kernels = compile_for(architecture, options.nvcc, options.nvdisasm, Path(folder))
            if len(kernels) != len(ELEMENTS) * len(OUTPUTS) + 1:
                print(f"sm_{architecture}: {len(kernels)} kernels were found", file=sys.stderr)
                wrong += 1
            for kernel in kernels:
                label = f"{kernel.cell[0]} {OUTPUTS[kernel.cell[1]]}" if kernel.cell else "values"
                registers.setdefault(label, {})[architecture] = kernel.registers
                for fault in faults(kernel):
                    print(f"sm_{architecture} {label}: {fault}", file=sys.stderr)
                    wrong += 1
    print("| kernel | bytes per element | " + " | ".join(f"sm_{a}" for a in options.architectures))
    print("|---|---|" + "---|" * len(options.architectures))
    for label, counts in sorted(registers.items()):
        dtype, _, outputs = label.partition(" ")
        # Each array once: the weights, the old gradient, the new one. That is the floor.
        arrays = {"V": 1, "G": 2, "VG": 2, "GA": 3, "VGA": 3}.get(outputs)
        moved = str(ELEMENTS[dtype][0] * arrays) if arrays else ""
        row = " | ".join(str(counts[a]) for a in options.architectures)
        print(f"| {label} | {moved} | {row} |")
    print(f"{wrong} faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
