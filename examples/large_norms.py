"""How wrong the sums behind a penalty become on large arrays, library by library.

Each line is a way to write the sum of |w| or of w**2 over standard normal numbers, and its error
relative to the same sum in float64, with blocks summed exactly. float32 sums that run along the
array in one accumulator, or in a few, lose what is small beside them; half precision overflows.
Libraries that are not installed are left out. 1e8 elements take about 2 GB.

    python examples/large_norms.py --sizes 1e6,1e7,1e8
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fastreg.regularizers import L1, L2

BLOCK = 1 << 16
LIBRARIES = ("numpy", "torch", "jax", "keras")

#: What is summed -> (library, expression, the sum of an array of that library).
Way = tuple[str, str, Callable[[Any], Any]]
Ways = dict[str, list[Way]]


def of_numpy() -> Ways:
    magnitudes = [
        ("numpy", "np.abs(w).sum()", lambda w: np.abs(w).sum()),
        ("numpy", "np.linalg.norm(w, 1)", lambda w: np.linalg.norm(w, 1)),
        (
            "numpy",
            "np.abs(w).reshape(-1, 10).sum(axis=0), then sum()",
            lambda w: np.abs(w).reshape(-1, 10).sum(axis=0).sum(),
        ),
    ]
    squares = [
        ("numpy", "np.square(w).sum()", lambda w: np.square(w).sum()),
        ("numpy", "np.dot(w, w)", lambda w: np.dot(w, w)),
        ("numpy", "np.linalg.norm(w) ** 2", lambda w: np.linalg.norm(w) ** 2),
    ]
    half = [("numpy", "np.abs(w).sum()", lambda w: np.abs(w).sum())]
    return {"|w|, float32": magnitudes, "w**2, float32": squares, "|w|, float16": half}


def of_torch() -> Ways:
    torch: Any = importlib.import_module("torch")
    norm = torch.linalg.vector_norm

    def on_one_thread(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(w: Any) -> Any:
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return function(w)
            finally:
                torch.set_num_threads(before)

        return call

    def tensors(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda w: function(torch.from_numpy(w))

    threads = f"{torch.get_num_threads()} threads"
    magnitudes = [
        ("torch", "torch.linalg.vector_norm(w, 1), 1 thread", on_one_thread(lambda w: norm(w, 1))),
        ("torch", f"torch.linalg.vector_norm(w, 1), {threads}", lambda w: norm(w, 1)),
        ("torch", "w.abs().sum()", lambda w: w.abs().sum()),
    ]
    squares = [
        ("torch", "torch.linalg.vector_norm(w) ** 2", lambda w: norm(w) ** 2),
        ("torch", "torch.dot(w, w), 1 thread", on_one_thread(lambda w: torch.dot(w, w))),
        ("torch", "w.square().sum()", lambda w: w.square().sum()),
    ]
    half = [("torch", "w.abs().sum()", lambda w: w.abs().sum())]
    ways = {"|w|, float32": magnitudes, "w**2, float32": squares, "|w|, float16": half}
    return {
        what: [(library, expression, tensors(call)) for library, expression, call in lines]
        for what, lines in ways.items()
    }


def of_jax() -> Ways:
    jnp: Any = importlib.import_module("jax.numpy")
    magnitudes = [("jax", "jnp.abs(w).sum()", lambda w: jnp.abs(jnp.asarray(w)).sum())]
    squares = [
        ("jax", "jnp.square(w).sum()", lambda w: jnp.square(jnp.asarray(w)).sum()),
        ("jax", "jnp.vdot(w, w)", lambda w: jnp.vdot(jnp.asarray(w), jnp.asarray(w))),
    ]
    return {"|w|, float32": magnitudes, "w**2, float32": squares, "|w|, float16": magnitudes}


def of_keras() -> Ways:
    if "KERAS_BACKEND" not in os.environ:
        os.environ["KERAS_BACKEND"] = "torch" if find_spec("torch") else "jax"
    keras: Any = importlib.import_module("keras")
    backend = keras.backend.backend()

    def call(regularizer: Any) -> Callable[[Any], Any]:
        return lambda w: regularizer(keras.ops.convert_to_tensor(w))

    magnitudes = [("keras", f"L1(1.0)(w), on {backend}", call(keras.regularizers.L1(1.0)))]
    squares = [("keras", f"L2(1.0)(w), on {backend}", call(keras.regularizers.L2(1.0)))]
    return {"|w|, float32": magnitudes, "w**2, float32": squares, "|w|, float16": magnitudes}


def of_fastreg() -> Ways:
    magnitudes: list[Way] = [("fastreg", "L1(1.0)(w)", L1(1.0))]
    return {
        "|w|, float32": magnitudes,
        "w**2, float32": [("fastreg", "L2(1.0)(w)", L2(1.0))],
        "|w|, float16": magnitudes,
    }


def all_ways() -> Ways:
    """Everything that can run here, by what is summed; fastreg last."""
    makers = {"numpy": of_numpy, "torch": of_torch, "jax": of_jax, "keras": of_keras}
    found = [make() for name, make in makers.items() if find_spec(name)]
    found.append(of_fastreg())
    return {what: [way for ways in found for way in ways[what]] for what in found[0]}


def blocks(w: np.ndarray) -> Iterator[np.ndarray]:
    """The array as float64, a piece at a time."""
    for start in range(0, w.size, BLOCK):
        yield w[start : start + BLOCK].astype(np.float64)


def exact(what: str, w: np.ndarray) -> float:
    function = np.abs if what.startswith("|w|") else np.square
    return math.fsum(float(function(block).sum()) for block in blocks(w))


def error(found: float, expected: float) -> str:
    """The relative error with its sign, in percent where it can be seen."""
    if not math.isfinite(found):
        return "overflow"
    relative = (found - expected) / expected
    if relative == 0:
        return "0"
    return f"{100 * relative:.2g} %" if abs(relative) >= 1e-4 else f"{relative:.1e}"


def table(sizes: list[int], ways: Ways, seed: int, console: Console) -> Table:
    """One line per way, one column per size."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES if find_spec(name))
    result = Table(title=f"errors of sums over N(0, 1), against float64; {versions}")
    for heading in ("sum of", "by", "written as"):
        result.add_column(heading)
    cells: dict[tuple[str, str], list[str]] = {}
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("summing", total=len(sizes) * sum(map(len, ways.values())))
        for size in sizes:
            result.add_column(f"{size:,}", justify="right")
            weights = np.random.default_rng(seed).standard_normal(size, dtype=np.float32)
            for what, lines in ways.items():
                w = weights.astype(np.float16) if what.endswith("16") else weights
                expected = exact(what, w)
                for _, expression, call in lines:
                    with np.errstate(over="ignore"):
                        found = float(call(w))
                    cells.setdefault((what, expression), []).append(error(found, expected))
                    progress.advance(task)
    for what, lines in ways.items():
        for number, (library, expression, _) in enumerate(lines, start=1):
            errors = cells[what, expression]
            label = what if number == 1 else ""
            last = number == len(lines)
            result.add_row(label, library, expression, *errors, end_section=last)
    return result


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare ways to sum |w| and w**2 over large arrays with float64.",
    )
    parser.add_argument(
        "--sizes", default="1e6,1e7,1e8", help="elements, multiples of 10 (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        sizes = [float(size) for size in options.sizes.split(",")]
    except ValueError:
        sizes = [0.0]
    if not all(size >= 10 and size % 10 == 0 for size in sizes):
        parser.error(
            f"--sizes was {options.sizes}; it must be multiples of 10, with commas between"
        )
    options.sizes = [int(size) for size in sizes]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(table(options.sizes, all_ways(), options.seed, console))


if __name__ == "__main__":
    main()
