"""Train a small convolutional network on digits: layers of fastreg, the trainer written by hand.

The network is Conv2D - Conv2D - Dense on the 1,797 digits of 8 x 8 pixels that come with
scikit-learn.  The layers own weights, penalties and gradients; the loss, the batches and the
momentum are in this file, in NumPy:

- L1 and L2 on all kernels, none on the biases;
- L1 on the outputs of the first convolution, divided by the batch size;
- on the last kernel a penalty that is a function of one's own, which autograd differentiates.

The same network then trains without penalties, to show what they do to the weights.

    python examples/digits_conv.py --epochs 15
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from fastreg import backend as K  # noqa: N812, as Keras users import it
from fastreg import regularizers
from fastreg.layers import Conv2D, Dense, Flatten, Sequential
from fastreg.layers.initializers import HeNormal

KERNEL_L1 = 1e-3
KERNEL_L2 = 1e-4
ACTIVITY_L1 = 1e-4
COLUMN_STRENGTH = 1e-2

BATCH = 32
LEARNING_RATE = 0.05  # at the start; it falls linearly to 0, so that the last epochs settle
MOMENTUM = 0.9
SMALL = 1e-3  # weights below this count as switched off

Arrays = dict[str, np.ndarray]


def column_lengths(kernel: np.ndarray) -> float:
    """The sum of the Euclidean lengths of a kernel's columns: a group lasso."""
    return COLUMN_STRENGTH * K.sum(K.sqrt(K.sum(K.square(kernel), axis=0) + K.epsilon()))


def make_model(seed: int, penalties: bool) -> Sequential:
    """Conv2D - Conv2D - Dense; the same weights for the same seed, with penalties or without."""
    kernel = regularizers.l1_l2(l1=KERNEL_L1, l2=KERNEL_L2) if penalties else None
    activity = regularizers.l1(ACTIVITY_L1) if penalties else None
    model = Sequential(name="digits")
    model.add(
        Conv2D(
            16,
            (3, 3),
            activation="relu",
            padding="same",
            input_shape=(8, 8, 1),
            kernel_initializer=HeNormal(seed),
            kernel_regularizer=kernel,
            activity_regularizer=activity,
            name="first",
        )
    )
    model.add(
        Conv2D(
            32,
            (3, 3),
            strides=2,
            activation="relu",
            kernel_initializer=HeNormal(seed + 1),
            kernel_regularizer=kernel,
            name="second",
        )
    )
    model.add(Flatten(name="flatten"))
    model.add(
        Dense(
            10,
            activation="softmax",
            kernel_initializer=HeNormal(seed + 2),
            kernel_regularizer=column_lengths if penalties else None,
            name="classes",
        )
    )
    return model


def accuracy(model: Sequential, x: np.ndarray, y: np.ndarray) -> float:
    return float((model(x, training=False).argmax(axis=1) == y).mean())


def small_share(model: Sequential) -> float:
    kernels = [w.ravel() for name, w in model.weights.items() if name.endswith("kernel")]
    return float((np.abs(np.concatenate(kernels)) < SMALL).mean())


def train(model: Sequential, data: list[np.ndarray], epochs: int, seed: int) -> None:
    """Minimise cross-entropy plus the penalties of the layers, and print a line per epoch."""
    x_train, x_test, y_train, y_test = data
    rng = np.random.default_rng(seed)
    velocity = {name: np.zeros_like(w) for name, w in model.trainable_weights.items()}
    for epoch in range(1, epochs + 1):
        learning_rate = LEARNING_RATE * (1 - (epoch - 1) / epochs)
        order = rng.permutation(len(x_train))
        losses: list[float] = []
        penalties: list[float] = []
        start = perf_counter()
        for place in range(0, len(order), BATCH):
            batch = order[place : place + BATCH]
            labels = y_train[batch]
            samples = np.arange(len(batch))

            probabilities = model(x_train[batch])
            chosen = np.maximum(probabilities[samples, labels], 1e-7)
            losses.append(float(-np.log(chosen).mean()))

            dprobabilities = np.zeros_like(probabilities)
            dprobabilities[samples, labels] = -1 / (chosen * len(batch))
            model.backward(dprobabilities, input_gradient=False)
            penalties.append(model.penalty)  # what backward added up, without another pass

            for name, w in model.trainable_weights.items():
                velocity[name] = MOMENTUM * velocity[name] + model.gradients[name]
                w -= learning_rate * velocity[name]
        seconds = perf_counter() - start
        print(
            f"{epoch:5d}  {np.mean(losses):9.4f}  {np.mean(penalties):7.4f}"
            f"  {accuracy(model, x_test, y_test):8.1%}  {small_share(model):10.1%}"
            f"  {seconds / len(losses) * 1e3:7.2f} ms"
        )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a convolutional network on digits with fastreg's layers, with penalties "
        "and without."
    )
    parser.add_argument("--epochs", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--save", type=Path, metavar="FILE.json", help="write the regularized model"
    )
    options = parser.parse_args(arguments)
    if options.epochs < 1:
        parser.error(f"--epochs was {options.epochs}; it must be 1 or more")
    if options.seed < 0:
        parser.error(f"--seed was {options.seed}; it must be 0 or more")
    if options.save is not None and options.save.suffix != ".json":
        parser.error(f"--save was {options.save}; it must end in .json")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    x: Any
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    data: Any = train_test_split(x, y, test_size=0.3, random_state=options.seed, stratify=y)

    # matrices this small gain nothing from BLAS threads, which on a busy machine only wait
    with threadpool_limits(1, "blas"):
        for penalties in (True, False):
            model = make_model(options.seed, penalties)
            if penalties:
                model.summary()
            print("\nwith penalties" if penalties else "\nwithout penalties")
            print("epoch  data loss  penalty  test acc  |w| < 1e-3  per step")
            train(model, data, options.epochs, options.seed)
            if penalties and options.save is not None:
                model.save(options.save)
                print(f"saved {options.save}")


if __name__ == "__main__":
    main()
