"""What a check found, in fewer than 100 lines of at most 100 characters, headlines last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpu_commands import shortened

LINES = 96
OUTPUTS = ("value", "gradient", "value+gradient", "add", "value+add")


def line(name: str, part: dict[str, Any]) -> str:
    """Return a part's state as one line.

    >>> line("bare", {"state": "passed", "reason": "", "seconds": 12.3, "figures": {"passed": 7}})
    'bare         12 s  passed (7 passed)'
    """
    figures = part["figures"]
    counts = [
        f"{figures[key]} {key}" for key in ("passed", "failed", "skipped") if figures.get(key)
    ]
    told = f"{name:11} {part['seconds']:3.0f} s  {part['state']}"
    if counts:
        told += f" ({', '.join(counts)})"
    return shortened(f"{told}: {part['reason']}" if part["reason"] else told)


def summary(result: dict[str, Any], output: Path) -> str:
    """Return the whole of a result as text."""
    lines = list(_lines(result, output))
    if len(lines) > LINES:
        left_out = len(lines) - LINES + 1
        lines[20 : 20 + left_out] = [f"... {left_out} lines are left out: see check.json"]
    return "\n".join(shortened(text) for text in lines)


def _lines(result: dict[str, Any], output: Path) -> Iterator[str]:
    machine, parts = result["machine"], result["parts"]
    yield "\n== summary"
    yield f"written to {output}: check.json has everything, log.txt what the commands printed"
    for device in machine["devices"]:
        capability = ".".join(map(str, device["capability"]))
        yield f"{device['name']}, capability {capability}, driver {machine['driver']}"
    yield f"sources {machine['sources']}, commit {machine['commit'] or 'unknown'}"
    packages = machine["packages"].items()
    yield "packages " + ", ".join(f"{name} {version}" for name, version in packages if version)
    if not result["on_gpu"]:
        yield f"--device {result['device']}: this says nothing about a GPU"
    if result["interrupted"]:
        yield f"INTERRUPTED by {result['interrupted']}"
    for name, part in parts.items():
        yield line(name, part)
    for name, part in parts.items():
        for test in (
            *part["figures"].get("failures", ()),
            *part["figures"].get("ended_the_process", ()),
        ):
            yield f"FAILED {name}: {test}"
    stages = [part["figures"] for part in parts.values() if "rows" in part["figures"]]
    for stage in stages:
        yield from (f"FAILED {text}" for text in stage["failures"])
    rows = [row for stage in stages for row in stage["rows"]]
    yield from headlines(rows)
    for stage in stages:
        yield from others(stage)


def headlines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of L1L2: GB/s, and the share of the device's own copy, by size and outputs."""
    shown = [row for row in rows if row["terms"] == "L1L2" and row["dtype"] in ("f32", "bf16")]
    if not shown:
        return
    yield "L1L2: GB/s (share of the copy in %), by outputs"
    yield f"{'elements':>13} {'':4}" + "".join(f"{outputs:>16}" for outputs in OUTPUTS)
    cells = {(row["size"], row["dtype"], row["outputs"]): row for row in shown}
    for size, dtype in dict.fromkeys((size, dtype) for size, dtype, _ in sorted(cells)):
        told = ""
        for outputs in OUTPUTS:
            row = cells.get((size, dtype, outputs))
            share = "-"
            if row:
                own = row["variants"]["fastreg"]
                share = f"{own['gb_per_s']:.0f} ({own['share_of_copy']['median']:.0%})"
            told += f"{share:>16}"
        yield f"{size:>13,} {dtype:4}{told}"
    largest = max(row["size"] for row in shown)
    for row in shown:
        if row["size"] == largest and row["outputs"] == "value+add":
            yield f"{largest:,} {row['dtype']} value+add, {ratios(row)}"


def others(stage: dict[str, Any]) -> Iterator[str]:
    """Yield what a stage of the benchmark has measured beside cells."""
    yield from many(stage["many_tensors"])
    yield from steps(stage["steps"])
    yield from launches(stage["launches"])


def many(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each list of tensors."""
    for row in rows:
        wall = medians(row)["fastreg"] * 1e6
        yield f"{row['model']} {row['dtype']}: {wall:.0f} us; {ratios(row)}"


def medians(row: dict[str, Any]) -> dict[str, float]:
    """Return a row's times in seconds, by variant."""
    return {name: found["seconds"]["median"] for name, found in row["variants"].items()}


def ratios(row: dict[str, Any]) -> str:
    """Return how many times fastreg's time the other variants of a row take."""
    told = (
        f"{name} {found['times_fastreg']['median']:.2f}"
        for name, found in row["variants"].items()
        if name != "fastreg"
    )
    return f"times as fast as: {', '.join(told)}"


def steps(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each training step."""
    for row in rows:
        added = (
            f"{name} {found['added']['median']:+.1%}"
            for name, found in row["variants"].items()
            if found["added"]
        )
        yield f"{row['what']}: {medians(row)[row['bare']] * 1e3:.2f} ms; {', '.join(added)}"


def launches(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the host's cost of a call."""
    for row in rows:
        told = ", ".join(f"{name} {cost * 1e6:.1f}" for name, cost in medians(row).items())
        yield f"host, us per call, {row['outputs']}: {told}"
