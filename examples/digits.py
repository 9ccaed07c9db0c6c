"""Train a digit classifier with a NumPy loop written by hand; fastreg supplies the penalties.

The network is 64 pixels - hidden ReLU layer - 10 classes, trained with momentum on the
1,797 digits that come with scikit-learn. Three penalties join the data loss:

- L1 and L2 on both kernels, none on the biases: rules by name, one call for the whole model;
- L1 on the hidden activations, divided by the batch size.

The same training then runs with the penalties written out in NumPy, to compare weights and
costs, and once more with no penalty at all, to show what the penalties do to the weights.

    python examples/digits.py --epochs 40 --output digits.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

import fastreg
from fastreg import regularizers

# Strong enough to switch off nine weights in ten, weak enough to keep the accuracy.
KERNEL_L1 = 5e-4
KERNEL_L2 = 1e-4
ACTIVITY_L1 = 1e-3

BATCH = 32
LEARNING_RATE = 0.1  # at the start; it falls linearly to 0, so that the last epochs settle
MOMENTUM = 0.9
SMALL = 1e-3  # weights below this count as switched off

Arrays = dict[str, np.ndarray]


class Penalty(Protocol):
    """What the training loop asks of a penalty; both methods add to the gradient in place."""

    def add_activity(self, h: np.ndarray, dh: np.ndarray) -> float: ...

    def add_weights(self, grads: Arrays) -> float: ...

    def by_kernel(self) -> dict[str, float]: ...


class WithFastreg:
    """The penalties through fastreg: this class is all that a loop of your own needs."""

    def __init__(self, params: Arrays) -> None:
        kernel_rule = regularizers.L1L2(l1=KERNEL_L1, l2=KERNEL_L2)
        self.weights = fastreg.attach(params, {"*/kernel": kernel_rule, "*/bias": None})
        self.activity = regularizers.L1(ACTIVITY_L1)

    def add_activity(self, h: np.ndarray, dh: np.ndarray) -> float:
        return self.activity.accumulate(h, dh, scale=1 / len(h))

    def add_weights(self, grads: Arrays) -> float:
        return self.weights.accumulate(grads)

    def by_kernel(self) -> dict[str, float]:
        return {name: row.penalty for name, row in self.weights.report().items() if row.rule}


class ByHand:
    """The same penalties in plain NumPy: two passes and several temporaries per kernel."""

    def __init__(self, params: Arrays) -> None:
        self.kernels = {name: w for name, w in params.items() if name.endswith("/kernel")}

    def add_activity(self, h: np.ndarray, dh: np.ndarray) -> float:
        dh += ACTIVITY_L1 / len(h) * np.sign(h)
        return ACTIVITY_L1 / len(h) * float(np.abs(h).sum())

    def add_weights(self, grads: Arrays) -> float:
        for name, w in self.kernels.items():
            grads[name] += KERNEL_L1 * np.sign(w) + 2 * KERNEL_L2 * w
        return sum(self.by_kernel().values())

    def by_kernel(self) -> dict[str, float]:
        return {
            name: KERNEL_L1 * float(np.abs(w).sum()) + KERNEL_L2 * float(np.square(w).sum())
            for name, w in self.kernels.items()
        }


class NoPenalty:
    """Training on the data loss alone."""

    def __init__(self, params: Arrays) -> None:
        pass

    def add_activity(self, h: np.ndarray, dh: np.ndarray) -> float:
        return 0.0

    def add_weights(self, grads: Arrays) -> float:
        return 0.0

    def by_kernel(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True)
class Data:
    """Digits as float32 in 0..1, shape (samples, 64), and their labels, shape (samples,)."""

    x_train: np.ndarray
    x_test: np.ndarray
    y_train: np.ndarray
    y_test: np.ndarray

    @classmethod
    def load(cls, seed: int) -> Data:
        x: Any
        x, y = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32)
        parts: Any = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
        return cls(*parts)


@dataclass
class Epoch:
    """Means over the steps of one epoch, and the state of the weights at its end."""

    data_loss: float
    activity_penalty: float
    kernel_penalties: dict[str, float]
    train_accuracy: float
    test_accuracy: float
    small_share: float

    @property
    def penalty(self) -> float:
        return self.activity_penalty + sum(self.kernel_penalties.values())


@dataclass
class Run:
    """One training from start to end; times are seconds per step."""

    params: Arrays
    epochs: list[Epoch] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    penalty_seconds: list[float] = field(default_factory=list)

    def kernels(self) -> np.ndarray:
        """All kernel weights in one vector."""
        return np.concatenate([w.ravel() for name, w in self.params.items() if "kernel" in name])


def initial_parameters(rng: np.random.Generator, hidden: int) -> Arrays:
    """He initialisation in float32."""
    params: Arrays = {}
    for layer, (rows, columns) in {"hidden": (64, hidden), "output": (hidden, 10)}.items():
        kernel = rng.normal(0.0, np.sqrt(2 / rows), (rows, columns))
        params[f"{layer}/kernel"] = kernel.astype(np.float32)
        params[f"{layer}/bias"] = np.zeros(columns, np.float32)
    return params


def mini_batches(rng: np.random.Generator, samples: int) -> Iterator[np.ndarray]:
    """Indices of the samples in random order, BATCH at a time; the last batch may be short."""
    order = rng.permutation(samples)
    for start in range(0, samples, BATCH):
        yield order[start : start + BATCH]


def hidden_layer(params: Arrays, x: np.ndarray) -> np.ndarray:
    return np.maximum(x @ params["hidden/kernel"] + params["hidden/bias"], 0)


def output_layer(params: Arrays, h: np.ndarray) -> np.ndarray:
    """Class probabilities, shape (samples, 10)."""
    logits = h @ params["output/kernel"] + params["output/bias"]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def accuracy(params: Arrays, x: np.ndarray, y: np.ndarray) -> float:
    probabilities = output_layer(params, hidden_layer(params, x))
    return float((probabilities.argmax(axis=1) == y).mean())


def train(
    data: Data,
    make_penalty: Callable[[Arrays], Penalty],
    *,
    hidden: int,
    epochs: int,
    seed: int,
    after_epoch: Callable[[int, Epoch], None],
) -> Run:
    """Minimise cross-entropy plus penalties; the same seed gives the same batches."""
    rng = np.random.default_rng(seed)
    params = initial_parameters(rng, hidden)
    velocity = {name: np.zeros_like(w) for name, w in params.items()}
    penalty = make_penalty(params)
    run = Run(params)

    for epoch in range(1, epochs + 1):
        learning_rate = LEARNING_RATE * (1 - (epoch - 1) / epochs)
        losses: list[float] = []
        activity_penalties: list[float] = []
        for batch in mini_batches(rng, len(data.x_train)):
            start = perf_counter()
            x, y = data.x_train[batch], data.y_train[batch]
            samples = np.arange(len(batch))

            h = hidden_layer(params, x)
            probabilities = output_layer(params, h)
            losses.append(float(-np.log(probabilities[samples, y]).mean()))

            dlogits = probabilities
            dlogits[samples, y] -= 1
            dlogits /= len(batch)
            dh = dlogits @ params["output/kernel"].T

            activity_start = perf_counter()
            activity_penalties.append(penalty.add_activity(h, dh))
            activity_end = perf_counter()

            dh *= h > 0
            grads = {
                "hidden/kernel": x.T @ dh,
                "hidden/bias": dh.sum(axis=0),
                "output/kernel": h.T @ dlogits,
                "output/bias": dlogits.sum(axis=0),
            }

            weights_start = perf_counter()
            penalty.add_weights(grads)
            weights_end = perf_counter()

            for name, w in params.items():
                velocity[name] = MOMENTUM * velocity[name] + grads[name]
                w -= learning_rate * velocity[name]

            run.step_seconds.append(perf_counter() - start)
            run.penalty_seconds.append(
                (activity_end - activity_start) + (weights_end - weights_start)
            )

        run.epochs.append(
            Epoch(
                data_loss=float(np.mean(losses)),
                activity_penalty=float(np.mean(activity_penalties)),
                kernel_penalties=penalty.by_kernel(),
                train_accuracy=accuracy(params, data.x_train, data.y_train),
                test_accuracy=accuracy(params, data.x_test, data.y_test),
                small_share=float((np.abs(run.kernels()) < SMALL).mean()),
            )
        )
        after_epoch(epoch, run.epochs[-1])
    return run


HEADER = "epoch  data loss   hidden   output  activity  train acc  test acc  |w| < 1e-3"


def epoch_line(number: int, epoch: Epoch) -> str:
    """One line under HEADER: data loss, penalties, accuracies, share of small weights.

    "hidden" and "output" are the penalties on the kernels of these layers.
    """
    return (
        f"{number:5d}  {epoch.data_loss:9.4f}"
        f"  {epoch.kernel_penalties['hidden/kernel']:7.4f}"
        f"  {epoch.kernel_penalties['output/kernel']:7.4f}"
        f"  {epoch.activity_penalty:8.4f}"
        f"  {epoch.train_accuracy:9.1%}  {epoch.test_accuracy:8.1%}  {epoch.small_share:10.1%}"
    )


def comparison(fast: Run, by_hand: Run, without: Run) -> str:
    """What the runs have in common and where they differ, in words."""
    difference = max(
        float(np.abs(fast.params[name] - by_hand.params[name]).max()) for name in fast.params
    )
    bits = all(np.array_equal(fast.params[name], by_hand.params[name]) for name in fast.params)
    lines = [
        f"weights, fastreg against NumPy by hand after {len(fast.step_seconds):,} steps:",
        f"largest difference {difference:.1g}" + (" (the same bits)" if bits else ""),
        "",
        "penalties         per step  of the step  test acc  |w| < 1e-3",
    ]
    for label, run in {"fastreg": fast, "NumPy by hand": by_hand, "none": without}.items():
        cost = median(run.penalty_seconds)
        share = cost / median(run.step_seconds)
        last = run.epochs[-1]
        timing = (
            f"{'-':>10}  {'-':>11}" if run is without else f"{cost * 1e6:7.1f} us  {share:11.1%}"
        )
        lines.append(f"{label:14}  {timing}  {last.test_accuracy:8.1%}  {last.small_share:10.1%}")
    return "\n".join(lines)


def save_picture(path: Path, fast: Run, by_hand: Run, without: Run) -> None:
    """Accuracy and penalties over the epochs, and how the kernels' weights spread."""
    import matplotlib

    matplotlib.use("Agg")  # a file is written, no window opened
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    numbers = range(1, len(fast.epochs) + 1)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")

    left.set_title("Test accuracy")
    for label, run, style in (
        ("no penalty", without, {"color": "tab:gray"}),
        ("fastreg", fast, {"color": "tab:blue", "linewidth": 3, "alpha": 0.6}),
        ("NumPy by hand", by_hand, {"color": "black", "linestyle": ":"}),
    ):
        left.plot(numbers, [e.test_accuracy for e in run.epochs], label=label, **style)
    left.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
    left.set_xlabel("epoch")
    left.legend(loc="lower right")

    middle.set_title("Data loss and penalties (fastreg)")
    middle.plot(numbers, [e.data_loss for e in fast.epochs], color="tab:gray", label="data loss")
    for name in fast.epochs[0].kernel_penalties:
        middle.plot(numbers, [e.kernel_penalties[name] for e in fast.epochs], label=name)
    middle.plot(numbers, [e.activity_penalty for e in fast.epochs], label="hidden activity")
    middle.set_yscale("log")
    middle.set_xlabel("epoch")
    middle.legend()

    right.set_title("Weights of both kernels")
    edges = np.logspace(-8, 0.5, 60)
    for label, run, color in (
        ("no penalty", without, "tab:gray"),
        ("with penalties", fast, "tab:blue"),
    ):
        magnitudes = np.clip(np.abs(run.kernels()), edges[0], None)
        right.hist(magnitudes, edges, alpha=0.6, color=color, label=label)
    right.axvline(SMALL, color="black", linestyle="--", linewidth=1)
    right.set_xscale("log")
    right.set_xlabel("|weight|  (dashed: 1e-3)")
    right.set_ylabel("number of weights")
    right.legend(loc="upper left")

    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a digit classifier in NumPy with fastreg's penalties, compare them "
        "with the same penalties by hand and with none, and save a picture.",
    )
    parser.add_argument("--epochs", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--hidden", type=int, default=512, help="hidden units (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--output", type=Path, default=Path("digits.png"), help="picture file (%(default)s)"
    )
    parser.add_argument("--no-picture", action="store_true", help="write no picture")
    options = parser.parse_args(arguments)
    for name in ("epochs", "hidden"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} was {getattr(options, name)}; it must be 1 or more")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    data = Data.load(options.seed)
    console = Console(highlight=False, soft_wrap=True)
    runs: list[Run] = []
    penalties: dict[str, Callable[[Arrays], Penalty]] = {
        "fastreg": WithFastreg,
        "NumPy by hand": ByHand,
        "no penalty": NoPenalty,
    }

    console.print(HEADER)
    # matrices this small gain nothing from BLAS threads, which on a busy machine only wait
    with threadpool_limits(1, "blas"), Progress(console=console, transient=True) as progress:
        for label, make_penalty in penalties.items():
            task = progress.add_task(label, total=options.epochs)

            def after_epoch(
                number: int, epoch: Epoch, task: TaskID = task, shown: bool = not runs
            ) -> None:
                if shown:
                    console.print(epoch_line(number, epoch))
                progress.advance(task)

            runs.append(
                train(
                    data,
                    make_penalty,
                    hidden=options.hidden,
                    epochs=options.epochs,
                    seed=options.seed,
                    after_epoch=after_epoch,
                )
            )

    console.print(comparison(*runs))
    if not options.no_picture:
        save_picture(options.output, *runs)
        console.print(f"\npicture: {options.output}")


if __name__ == "__main__":
    main()
