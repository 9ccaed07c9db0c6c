"""What an L1 penalty does to one weight, as a gradient, as a proximal step, and decoupled.

The loss is (w - 0.02)**2 / 2 and the penalty 0.05 * |w|, so that their sum is least at w = 0.
The picture shows |w| over the steps of SGD and AdamW.  The penalty's gradient comes near 0 and
swings around it; a proximal step of enough strength ends at exactly 0.  With momentum m the same
number is 1 / (1 - m) times stronger as a gradient than as a proximal step.

    python examples/one_weight.py --output one_weight.png
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastreg.optimizers import SGD, AdamW
from fastreg.regularizers import L1

TARGET, STRENGTH, START = 0.02, 0.05, 1.0
SGD_09 = partial(SGD, lr=0.02, momentum=0.9)
ADAMW = partial(AdamW, lr=0.02, weight_decay=0.0)

# By optimizer: what is drawn, with which mode and L1.
COURSES: dict[str, dict[str, tuple[Any, float]]] = {
    "SGD, momentum 0.9": {
        "gradient, L1 0.05": (partial(SGD_09, mode="gradient"), STRENGTH),
        "proximal, L1 0.05": (partial(SGD_09, mode="proximal"), STRENGTH),
        "proximal, L1 0.5": (partial(SGD_09, mode="proximal"), STRENGTH / (1 - 0.9)),
    },
    "AdamW": {
        "gradient, L1 0.05": (partial(ADAMW, mode="gradient"), STRENGTH),
        "proximal, L1 0.05": (partial(ADAMW, mode="proximal"), STRENGTH),
        "decoupled, L1 0.05": (partial(ADAMW, mode="decoupled"), STRENGTH),
        "decoupled, L1 1.5": (partial(ADAMW, mode="decoupled"), 30 * STRENGTH),
    },
}


def course(optimizer_of: Any, l1: float, steps: int) -> np.ndarray:
    """Return the weight after each step."""
    params = {"w": np.array([START])}
    optimizer = optimizer_of(params, rules=L1(l1))
    weights = np.empty(steps)
    for step in range(steps):
        optimizer.step({"w": params["w"] - TARGET})
        weights[step] = params["w"][0]
    return weights


def first_zero(weights: np.ndarray) -> str:
    """Return in words from which step on a weight is exactly 0."""
    later = np.flatnonzero(weights)
    first = later[-1] + 1 if len(later) else 0
    return f"exactly 0 from step {first + 1} on" if first < len(weights) else "never 0 for good"


def save_picture(path: Path, courses: dict[str, dict[str, np.ndarray]]) -> None:
    import matplotlib

    matplotlib.use("Agg")  # a file is written, no window opened
    from matplotlib import pyplot as plt

    lowest = 1e-6
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained", sharey=True)
    for axis, (title, of_ways) in zip(axes, courses.items(), strict=True):
        axis.set_title(title)
        for label, weights in of_ways.items():
            axis.plot(np.maximum(np.abs(weights), lowest), label=label)
        axis.set_yscale("log")
        axis.set_xlabel("step")
        axis.legend()
        axis.axhline(lowest, color="black", linewidth=0.5)
    axes[0].set_ylabel("|w|  (bottom line: exactly 0)")

    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Show what an L1 penalty does to one weight in the three modes of fastreg's "
        "optimizers, and save a picture.",
    )
    parser.add_argument("--steps", type=int, default=400, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("one_weight.png"), help="picture file (%(default)s)"
    )
    parser.add_argument("--no-picture", action="store_true", help="write no picture")
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps was {options.steps}; it must be 1 or more")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    courses = {
        title: {label: course(*way, options.steps) for label, way in ways.items()}
        for title, ways in COURSES.items()
    }
    for title, of_ways in courses.items():
        for label, weights in of_ways.items():
            rest = np.abs(weights[-20:]).max()
            print(f"{title:18}  {label:18}  last {rest:7.2g}  {first_zero(weights)}")
    if not options.no_picture:
        save_picture(options.output, courses)
        print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main()
