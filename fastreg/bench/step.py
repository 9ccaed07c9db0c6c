"""The share of a training step that the penalties take: with fastreg's layers, and by hand.

Contract: one step of a multilayer perceptron of ``fastreg.layers``, from the batch to the changed
weights, in three variants on the same numbers: without penalties; with L1L2 on the kernels and L1
on the activities as the layers' regularizers; and with the same penalties written out in NumPy.
A share is taken within each turn: what a variant needs beyond the bare step, over its own time.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from fastreg import regularizers
from fastreg.bench.cases import L1_STRENGTH, L2_STRENGTH
from fastreg.bench.frameworks.base import Setting, Variant
from fastreg.bench.row import Row, Work
from fastreg.bench.spread import Spread
from fastreg.bench.workloads import Array
from fastreg.layers import Dense
from fastreg.layers.initializers import GlorotUniform

WIDTHS = (784, 1024, 1024, 10)
BATCH = 64
LEARNING_RATE = 1e-3

TITLE = (
    f"training step: Dense {'-'.join(map(str, WIDTHS))}, batch {BATCH}, f32, "
    "L1L2 on kernels, L1 on activities"
)


class _Network:
    """One variant with weights of its own, the same ones as the others at the start."""

    def __init__(self, regularized: bool) -> None:
        kernel = regularizers.L1L2(L1_STRENGTH, L2_STRENGTH) if regularized else None
        activity = regularizers.L1(L1_STRENGTH) if regularized else None
        classes = WIDTHS[-1]
        self.layers = [
            Dense(
                units,
                "relu" if units != classes else None,
                kernel_initializer=GlorotUniform(seed=place),
                kernel_regularizer=kernel,
                activity_regularizer=activity if units != classes else None,
            )
            for place, units in enumerate(WIDTHS[1:])
        ]
        rng = np.random.default_rng(20260101)
        self.x = rng.random((BATCH, WIDTHS[0]), dtype=np.float32)
        self.labels = rng.integers(0, classes, BATCH)

    def step(self) -> float:
        """Do forward, cross-entropy, backward and update; return the penalty."""
        outputs = [self.x]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        slope = outputs[-1]
        slope -= slope.max(axis=1, keepdims=True)
        np.exp(slope, out=slope)
        slope /= slope.sum(axis=1, keepdims=True)
        slope[np.arange(BATCH), self.labels] -= 1
        slope /= BATCH
        penalty = 0.0
        for place in reversed(range(len(self.layers))):
            layer = self.layers[place]
            if place < len(self.layers) - 1:
                penalty += self.add_activity(outputs[place + 1], slope)
            dx: Any = layer.backward(slope, input_gradient=place > 0)
            slope = dx
            penalty += self.add_weights(layer)
        for layer in self.layers:
            for weight, gradient in zip(layer.weights, layer.gradients, strict=True):
                gradient *= LEARNING_RATE
                weight -= gradient
        return penalty

    def variant(self) -> Variant:
        """Return the steps of this network, which have to leave the usual penalty and weights."""
        penalty = [0.0]

        def call() -> None:
            penalty[0] = self.step()

        def outcome() -> list[Any]:
            return [penalty, *(weight for layer in self.layers for weight in layer.weights)]

        return Variant(lambda: call, lambda: None, outcome)

    def add_activity(self, h: Array, dh: Array) -> float:
        return 0.0

    def add_weights(self, layer: Dense) -> float:
        return layer.penalty


class _ByHand(_Network):
    """The penalties in plain NumPy, in place where it can be."""

    def __init__(self) -> None:
        super().__init__(regularized=False)

    def add_activity(self, h: Array, dh: Array) -> float:
        slope = np.sign(h)
        slope *= L1_STRENGTH / BATCH
        dh += slope
        return L1_STRENGTH / BATCH * float(np.abs(h).sum())

    def add_weights(self, layer: Dense) -> float:
        w, g = layer.kernel, layer.gradients[0]
        slope = np.sign(w)
        slope *= L1_STRENGTH
        g += slope
        g += (2 * L2_STRENGTH) * w
        return L1_STRENGTH * float(np.abs(w).sum()) + L2_STRENGTH * float(np.square(w).sum())


def setting() -> Setting:
    """Return the three variants; the usual way is by hand."""
    variants = {
        "no penalty": _Network(False).variant(),
        "fastreg": _Network(True).variant(),
        "by hand": _ByHand().variant(),
    }
    return Setting(Work("numpy", TITLE, usual="by hand", bare="no penalty"), variants)


def shares(row: Row) -> dict[str, Spread]:
    """Return the penalties' share of a step, by who computes them."""
    bare = row.samples["no penalty"]
    return {
        name: Spread.quartiles([(taken - b) / taken for taken, b in zip(sample, bare, strict=True)])
        for name, sample in row.samples.items()
        if name != "no penalty"
    }


def as_json(row: Row) -> dict[str, Any]:
    """Return what was measured, as a record has it."""
    return {
        "what": TITLE,
        "seconds": {name: asdict(row.seconds(name)) for name in row.samples},
        "share": {name: asdict(share) for name, share in shares(row).items()},
        "blanks": row.blanks,
    }
