"""The budgets of all commits as a chart: instructions of a cell, relative to its first budget.

    python tests/instructions/history.py docs/instructions_history.svg

It reads git's history of budget.json, so it needs all commits; instructions are no times.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECORD = "tests/instructions/budget.json"

Cells = dict[tuple[str, str, str], int]


def cells_of(record: str) -> Cells:
    """Return the count of each cell of x86-64, by instruction set, cell and size."""
    found = {}
    for name, one in json.loads(record).get("x86_64", {}).items():
        for cell, counts in one.get("instructions", {}).items():
            for size, count in counts.items():
                found[name, cell, size] = count
    return found


def history() -> list[tuple[str, Cells]]:
    """Return the commits that changed the record, the first one first, and what it then was."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    commits = git("log", "--reverse", "--format=%h %cs", "--", RECORD).splitlines()
    return [(line, cells_of(git("show", f"{line.split()[0]}:{RECORD}"))) for line in commits]


def lines_of(records: list[tuple[str, Cells]]) -> dict[str, list[float]]:
    """Return by instruction set and size the geometric mean of counts relative to their first."""
    first: Cells = {}
    lines: dict[str, list[float]] = {}
    for _, cells in records:
        logarithms: dict[str, list[float]] = {}
        for key, count in cells.items():
            ratio = math.log(count / first.setdefault(key, count))
            logarithms.setdefault(f"{key[0]}, {key[2]}", []).append(ratio)
        for name, all_ratios in logarithms.items():
            lines.setdefault(name, []).append(math.exp(sum(all_ratios) / len(all_ratios)))
    return {name: line for name, line in lines.items() if len(line) == len(records)}


def draw(records: list[tuple[str, Cells]], target: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastreg"  # the same bytes from the same history
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    axes.set_prop_cycle(color=plt.colormaps["tab20"].colors)
    for name, line in sorted(lines_of(records).items()):
        axes.plot(range(len(line)), line, marker="o", label=name)
    axes.set_xticks(range(len(records)), [commit for commit, _ in records], rotation=30, ha="right")
    axes.set_ylabel("instructions, of the first budget")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    figure.savefig(target, metadata={"Date": None})


def main(arguments: list[str]) -> None:
    (target,) = arguments
    records = history()
    draw(records, Path(target))
    for name, line in sorted(lines_of(records).items()):
        print(f"{name:32}", *(f"{ratio:.3f}" for ratio in line))


if __name__ == "__main__":
    main(sys.argv[1:])
