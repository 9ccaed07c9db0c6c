"""Keras 3: a training step of a model by ``train_on_batch``, on the backend of this process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastreg import regularizers
from fastreg.bench.frameworks.base import Setting, Settings, Variant
from fastreg.bench.frameworks.sizes import L1_STRENGTH, L2_STRENGTH, LEARNING_RATE, Sizes
from fastreg.bench.row import Work


def settings(sizes: Sizes) -> Settings:
    """Yield the setting of Keras."""
    yield step(importlib.import_module("keras"), sizes)


def step(keras: Any, sizes: Sizes) -> Setting:
    """Return forward, backward and update, with the penalties of all kernels."""
    own: Any = importlib.import_module("fastreg.keras")
    rng = np.random.default_rng(20260101)
    width, strengths = sizes.keras_width, {"l1": L1_STRENGTH, "l2": L2_STRENGTH}
    x, y = rng.standard_normal((2, sizes.batch, width), dtype=np.float32)
    shapes = [(width, width), (width,)] * sizes.keras_layers
    numbers = [rng.standard_normal(shape, dtype=np.float32) / width for shape in shapes]

    def variant(
        regularizer: Callable[[], Any], prepare: Callable[[Any], Any] = lambda model: model
    ) -> Variant:
        model = keras.Sequential([keras.Input((width,))])
        for _ in range(sizes.keras_layers):
            layer = keras.layers.Dense(width, "relu", kernel_regularizer=regularizer())
            model.add(layer)
        latest: list[Any] = []

        def make() -> Callable[[], object]:
            prepare(model).compile(keras.optimizers.SGD(LEARNING_RATE), "mse")

            def call() -> None:
                latest[:] = [float(model.train_on_batch(x, y))]

            return call

        def outcome() -> list[Any]:
            return [*latest, *model.get_weights()]

        return Variant(make, lambda: model.set_weights(numbers), outcome)

    backend = keras.backend.backend()
    work = Work(
        f"keras-{backend}",
        f"train_on_batch of {sizes.keras_layers} x Dense({width}), batch {sizes.batch}",
        usual="keras L1L2",
        bare="no penalty",
    )
    return Setting(
        work,
        {
            "no penalty": variant(lambda: None),
            "keras L1L2": variant(lambda: keras.regularizers.L1L2(**strengths)),
            "fastreg, per tensor": variant(lambda: regularizers.L1L2(**strengths)),
            "fastreg.keras, fused": variant(lambda: own.L1L2(**strengths), own.fuse),
        },
    )
