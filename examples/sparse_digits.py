"""Train a digit classifier to exact zeros, and keep what is left: a smaller network.

The network is 64 pixels - 300 - 100 - 10 with ReLU, written in NumPy; its kernels have an L1
penalty, its biases none.  It is trained on the 1,797 digits that come with scikit-learn:

- without a penalty;
- with the penalty's gradient, as an addition to the loss has it: weights end near zero, none at it;
- with proximal steps (`mode="proximal"`): weights end at zero, exactly; and ten times stronger;
- with AdamW, scaled proximal steps and decoupled ones.

Then hidden units that nothing reaches, or that reach nothing, are removed, and the network is
saved: it gives the same answers from a smaller file.

    python examples/sparse_digits.py --seeds 5 --output sparse_digits.png
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from fastreg.optimizers import SGD, AdamW
from fastreg.regularizers import L1

SIZES = (64, 300, 100, 10)
BATCH = 64
LAYERS = range(1, len(SIZES))
STRONG = "SGD, prox. x 10"
SMALL = 1e-3  # what weights are taken for zero at, where none is

Arrays = dict[str, np.ndarray]
Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Data:
    """Digits, standardised by the training part: float32 (samples, 64), and labels (samples,)."""

    x_train: np.ndarray
    x_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray

    @classmethod
    def load(cls) -> Data:
        x, y = load_digits(return_X_y=True)
        parts: Any = train_test_split(x, y, test_size=0.2, random_state=0, stratify=y)
        x_train, x_test, y_train, y_test = parts
        scaler: Any = StandardScaler().fit(x_train)
        x_train, x_test = (scaler.transform(part).astype(np.float32) for part in (x_train, x_test))
        return cls(x_train, x_test, y_train, y_test)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained: an optimizer of its parameters, with a learning rate."""

    label: str
    make: partial[Any]
    learning_rate: float


def recipes(sgd_l1: float, adamw_l1: float, decoupled_l1: float) -> list[Recipe]:
    """Return the ways of training that are compared; each strength is that of its own."""

    def kernels(l1: float) -> dict[str, Any]:
        return {"*/kernel": L1(l1)}

    sgd = partial(SGD, momentum=0.9)
    adamw = partial(AdamW, weight_decay=0.0)
    return [
        Recipe("SGD, no penalty", sgd, 0.1),
        # Momentum multiplies what is in the gradient by 1 / (1 - 0.9), and no proximal step.
        Recipe("SGD, gradient", partial(sgd, rules=kernels(sgd_l1 / 10), mode="gradient"), 0.1),
        Recipe("SGD, proximal", partial(sgd, rules=kernels(sgd_l1), mode="proximal"), 0.1),
        Recipe(STRONG, partial(sgd, rules=kernels(10 * sgd_l1), mode="proximal"), 0.1),
        Recipe("AdamW, no penalty", adamw, 1e-3),
        Recipe("AdamW, scaled", partial(adamw, rules=kernels(adamw_l1), mode="proximal"), 1e-3),
        Recipe(
            "AdamW, decoupled", partial(adamw, rules=kernels(decoupled_l1), mode="decoupled"), 1e-3
        ),
    ]


@dataclass
class Run:
    """One network, trained: its parameters, and the course of its epochs."""

    params: Arrays
    accuracies: list[float] = field(default_factory=list)
    zeros: list[float] = field(default_factory=list)

    def kernels(self) -> np.ndarray:
        """All kernel weights in one vector."""
        return np.concatenate([self.params[f"{layer}/kernel"].ravel() for layer in LAYERS])

    @property
    def small_share(self) -> float:
        return float((np.abs(self.kernels()) < SMALL).mean())


def initial_parameters(rng: np.random.Generator) -> Arrays:
    """Initialisation as torch.nn.Linear has it, but for biases of 0; float32."""
    params = {}
    for layer in LAYERS:
        rows, columns = SIZES[layer - 1], SIZES[layer]
        kernel = rng.uniform(-(rows**-0.5), rows**-0.5, (rows, columns))
        params[f"{layer}/kernel"] = kernel.astype(np.float32)
        params[f"{layer}/bias"] = np.zeros(columns, np.float32)
    return params


def forward(params: Arrays, x: np.ndarray) -> list[np.ndarray]:
    """Return what each layer gives, the input first; the last are logits."""
    outputs = [x]
    for layer in LAYERS:
        sums = outputs[-1] @ params[f"{layer}/kernel"] + params[f"{layer}/bias"]
        outputs.append(np.maximum(sums, 0) if layer < LAYERS[-1] else sums)
    return outputs


def gradients(params: Arrays, x: np.ndarray, y: np.ndarray) -> Arrays:
    """Return the gradients of the mean cross-entropy."""
    *inputs, logits = forward(params, x)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    slope = exponentials / exponentials.sum(axis=1, keepdims=True)
    slope[np.arange(len(y)), y] -= 1
    slope /= len(y)
    grads = {}
    for layer in reversed(LAYERS):
        grads[f"{layer}/kernel"] = inputs[layer - 1].T @ slope
        grads[f"{layer}/bias"] = slope.sum(axis=0)
        slope = (slope @ params[f"{layer}/kernel"].T) * (inputs[layer - 1] > 0)
    return grads


def accuracy(params: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    return float((forward(params, x)[-1].argmax(axis=1) == y).mean())


def train(
    data: Data, recipe: Recipe, epochs: int, seed: int, after_epoch: Callable[[], None]
) -> Run:
    """Train one network; the same seed gives the same weights at the start and the same batches."""
    rng = np.random.default_rng(seed)
    run = Run(initial_parameters(rng))
    batches = -(-len(data.x_train) // BATCH)

    def linear_decay(step: int) -> float:
        return recipe.learning_rate * (1 - step / (epochs * batches))

    optimizer = recipe.make(run.params, linear_decay)
    for _ in range(epochs):
        order = rng.permutation(len(data.x_train))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            optimizer.step(gradients(run.params, data.x_train[batch], data.y_train[batch]))
        run.accuracies.append(accuracy(run.params, data.x_test, data.y_test))
        run.zeros.append(float((run.kernels() == 0).mean()))
        after_epoch()
    return run


def without_dead_units(params: Arrays) -> Arrays:
    """Return the same function with the hidden units removed that add nothing to it.

    A unit whose incoming weights are all 0 gives relu(bias) for every input: that goes into the
    biases of the next layer.  One whose outgoing weights are all 0 is not heard.  Removing one can
    leave others without a connection, so that it is done again until nothing changes.
    """
    kept = dict(params)
    changed = True
    while changed:
        changed = False
        for layer in LAYERS[:-1]:
            kernel, bias = kept[f"{layer}/kernel"], kept[f"{layer}/bias"]
            following = kept[f"{layer + 1}/kernel"]
            is_constant = ~kernel.any(axis=0)
            is_dead = is_constant | ~following.any(axis=1)
            if is_dead.any():
                constant = np.where(is_constant, np.maximum(bias, 0), 0)
                kept[f"{layer + 1}/bias"] = kept[f"{layer + 1}/bias"] + constant @ following
                kept[f"{layer}/kernel"] = kernel[:, ~is_dead]
                kept[f"{layer}/bias"] = bias[~is_dead]
                kept[f"{layer + 1}/kernel"] = following[~is_dead]
                changed = True
    return kept


def saved_size(params: Arrays, save: Callable[..., None]) -> int:
    """Return how many bytes the network takes in a file."""
    file = io.BytesIO()
    save(file, **params)
    return file.getbuffer().nbytes


def units(params: Arrays) -> str:
    return "-".join(str(len(params[f"{layer}/bias"])) for layer in LAYERS[:-1])


HEADER = "training           L1      test acc         zeros  |w| < 1e-3  hidden    file"


def line(recipe: Recipe, runs: list[Run]) -> str:
    """Return one line under HEADER: means over the seeds; the last two columns are of the first."""
    accuracies = [run.accuracies[-1] for run in runs]
    rules = recipe.make.keywords.get("rules")
    strength = f"{rules['*/kernel'].l1:g}" if rules else "-"
    smaller = without_dead_units(runs[0].params)
    return (
        f"{recipe.label:17}  {strength:6}  {np.mean(accuracies):6.2%} +-{np.std(accuracies):5.2%}"
        f"  {np.mean([run.zeros[-1] for run in runs]):6.1%}"
        f"  {np.mean([run.small_share for run in runs]):10.1%}"
        f"  {units(smaller):>7}  {saved_size(smaller, np.savez_compressed) / 1e3:3.0f} kB"
    )


def what_is_kept(run: Run, data: Data) -> str:
    """Return in words what the removal of dead units leaves."""
    smaller = without_dead_units(run.params)
    same = np.array_equal(
        forward(run.params, data.x_test)[-1].argmax(axis=1),
        forward(smaller, data.x_test)[-1].argmax(axis=1),
    )
    answers = "the same answers" if same else "OTHER ANSWERS"
    before, after = saved_size(run.params, np.savez), saved_size(smaller, np.savez_compressed)
    return (
        f"{STRONG}, hidden units without the dead: {units(run.params)} -> {units(smaller)},\n"
        f"{answers} on the test digits; saved: {before / 1e3:.0f} kB (numpy.savez) before,\n"
        f"{after / 1e3:.0f} kB (numpy.savez_compressed) after"
    )


def save_picture(path: Path, results: dict[str, list[Run]]) -> None:
    """Exact zeros against accuracy, zeros over the epochs, and how weights spread."""
    import matplotlib

    matplotlib.use("Agg")  # a file is written, no window opened
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    percent = ticker.PercentFormatter(1.0)
    left.set_title("Exact zeros and accuracy, a point per seed")
    middle.set_title("Exact zeros over the epochs")
    for number, (label, runs) in enumerate(results.items()):
        color = f"C{number}"
        zeros = [run.zeros[-1] for run in runs]
        left.scatter(zeros, [run.accuracies[-1] for run in runs], color=color, label=label)
        middle.plot(np.mean([run.zeros for run in runs], axis=0), color=color, label=label)
    left.set_xlabel("kernel weights that are exactly 0")
    left.set_ylabel("test accuracy")
    middle.set_xlabel("epoch")
    left.set_ylim(0.9, 1.0)
    for axis in (left.xaxis, left.yaxis, middle.yaxis):
        axis.set_major_formatter(percent)
    left.legend(fontsize="small", loc="lower center")

    right.set_title("Kernel weights, first seed")
    edges = np.logspace(-9, 0.5, 60)
    for label in ("SGD, no penalty", "SGD, gradient", "SGD, proximal", STRONG):
        magnitudes = np.abs(results[label][0].kernels())
        color = f"C{list(results).index(label)}"
        right.hist(
            np.clip(magnitudes, edges[0], None), edges, histtype="step", color=color, label=label
        )
    right.set_xscale("log")
    right.set_xlabel("|weight|  (leftmost bar: exact zeros)")
    right.set_ylabel("number of weights")
    right.legend(fontsize="small", loc="upper center")

    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a digit classifier to exact zeros with fastreg's optimizers, compare it "
        "with the penalty's gradient, remove dead units, and save a picture.",
    )
    parser.add_argument("--epochs", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="networks each way (%(default)s)")
    parser.add_argument("--sgd-l1", type=float, default=1e-3, help="default: %(default)s")
    parser.add_argument("--adamw-l1", type=float, default=1e-4, help="default: %(default)s")
    parser.add_argument("--decoupled-l1", type=float, default=1e-1, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("sparse_digits.png"), help="picture file (%(default)s)"
    )
    parser.add_argument("--no-picture", action="store_true", help="write no picture")
    options = parser.parse_args(arguments)
    for name in ("epochs", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} was {getattr(options, name)}; it must be 1 or more")
    for name in ("sgd_l1", "adamw_l1", "decoupled_l1"):
        if not getattr(options, name) >= 0:
            parser.error(
                f"--{name.replace('_', '-')} was {getattr(options, name)}; it must be >= 0"
            )
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    data = Data.load()
    console = Console(highlight=False, soft_wrap=True)
    results: dict[str, list[Run]] = {}

    console.print(HEADER)
    # matrices this small gain nothing from BLAS threads, which on a busy machine only wait
    with threadpool_limits(1, "blas"), Progress(console=console, transient=True) as progress:
        for recipe in recipes(options.sgd_l1, options.adamw_l1, options.decoupled_l1):
            task = progress.add_task(recipe.label, total=options.epochs * options.seeds)
            results[recipe.label] = [
                train(data, recipe, options.epochs, seed, lambda task=task: progress.advance(task))
                for seed in range(options.seeds)
            ]
            console.print(line(recipe, results[recipe.label]))

    console.print(what_is_kept(results[STRONG][0], data))
    if not options.no_picture:
        save_picture(options.output, results)
        console.print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main()
