"""The share of a training step that the penalties take: with fastreg's layers, and by hand.

Contract: one step of a multilayer perceptron of ``fastreg.layers``, from the batch to the changed
weights, in three variants on the same numbers: without penalties; with L1L2 on the kernels and L1
on the activities as the layers' regularizers; and with the same penalties written out in NumPy.
The variants take turns, and a share is taken within each turn: what a variant needs beyond the bare
step, over its own time. Nothing is timed before the penalties of both have shown to agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastreg import regularizers
from fastreg.bench.cases import L1_STRENGTH, L2_STRENGTH
from fastreg.bench.measure import interleave
from fastreg.bench.spread import Spread
from fastreg.bench.workloads import Array
from fastreg.layers import Dense
from fastreg.layers.initializers import GlorotUniform

WIDTHS = (784, 1024, 1024, 10)
BATCH = 64
LEARNING_RATE = 1e-3
PENALTY_TOLERANCE = 1e-3

TITLE = (
    f"training step: Dense {'-'.join(map(str, WIDTHS))}, batch {BATCH}, f32, "
    "L1L2 on kernels, L1 on activities"
)


@dataclass(frozen=True)
class StepRow:
    """Seconds per step by variant, and the penalties' share of a step by who computes them."""

    seconds: dict[str, Spread]
    share: dict[str, Spread]


class _Network:
    """One variant with weights of its own, the same ones as the others at the start."""

    def __init__(self, regularized: bool) -> None:
        kernel = regularizers.L1L2(L1_STRENGTH, L2_STRENGTH) if regularized else None
        activity = regularizers.L1(L1_STRENGTH) if regularized else None
        *hidden, classes = WIDTHS[1:]
        self.layers = [
            Dense(
                units,
                "relu",
                kernel_initializer=GlorotUniform(seed=place),
                kernel_regularizer=kernel,
                activity_regularizer=activity,
            )
            for place, units in enumerate(hidden)
        ]
        self.layers.append(
            Dense(
                classes,
                kernel_initializer=GlorotUniform(seed=len(hidden)),
                kernel_regularizer=kernel,
            )
        )
        rng = np.random.default_rng(20260101)
        self.x = rng.random((BATCH, WIDTHS[0]), dtype=np.float32)
        self.labels = rng.integers(0, classes, BATCH)

    def step(self) -> float:
        """Forward, cross-entropy, backward, update; the penalty."""
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


def measure(repeats: int) -> StepRow:
    """Check and time the three variants.

    Raises
    ------
    RuntimeError
        The penalties of the two variants that have them differ.
    """
    bare, fused, by_hand = _Network(False), _Network(True), _ByHand()
    expected, found = fused.step(), by_hand.step()
    if abs(expected - found) > PENALTY_TOLERANCE * abs(expected):
        raise RuntimeError(f"by hand and fastreg disagree on a step's penalty: {found}, {expected}")
    calls: dict[str, Callable[[], object]] = {
        "no penalty": bare.step,
        "fastreg": fused.step,
        "by hand": by_hand.step,
    }
    samples = interleave(calls, repeats)
    return StepRow(
        seconds={name: Spread.quartiles(sample) for name, sample in samples.items()},
        share={
            name: Spread.quartiles(
                [
                    (with_penalty - without) / with_penalty
                    for with_penalty, without in zip(
                        samples[name], samples["no penalty"], strict=True
                    )
                ]
            )
            for name in ("fastreg", "by hand")
        },
    )
