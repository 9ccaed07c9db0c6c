"""Fused penalties on JAX: strengths that may be set between the steps of a compiled function.

Keras compiles a step once, with Python numbers as constants.  Here the strengths of the weight
penalties are arguments of the compiled step: a schedule sets them without a recompilation.  Other
strengths, those of activity regularizers above all, are static: each new value compiles again.
Which variables have which regularizer is read when Keras makes its function: after ``compile``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, cast

import numpy as np

from .._autodiff.dispatch import Port
from ._framework import keras
from .strengths import Pair, snapshot, strengths_of

_port: Port = cast(Any, import_module("fastreg._autodiff.jax.functions"))
_tracing = threading.local()


class Batch:
    """A pytree of the batch and the strengths, in place of the batch; `constants` is static."""

    def __init__(self, data: Any, strengths: Any, constants: Any) -> None:
        self.data = data
        self.strengths = strengths
        self.constants = constants


def make(model: Any, which: str, original: Callable[..., Any]) -> None:
    """Have Keras make a function of the model's step, which gets the strengths at each call."""
    # Flax' modules look the step up in the class, where it cannot be replaced for one model.
    if keras.config.is_nnx_enabled():
        original(force=True)
        return
    weights = [(v, v.regularizer) for v in model.trainable_weights if v.regularizer is not None]
    layers = model._flatten_layers()
    activities = [layer.activity_regularizer for layer in layers if layer.activity_regularizer]
    step = getattr(model, f"{which}_step")

    def step_with_strengths(variables: Any, batch: Batch) -> Any:
        fused = [(v, rule) for v, rule in weights if strengths_of(rule) is not None]
        pairs = [(pair[0], pair[1]) for pair in batch.strengths]
        _tracing.strengths = {
            id(v): (rule, pair) for (v, rule), pair in zip(fused, pairs, strict=True)
        }
        try:
            return step(variables, batch.data)
        finally:
            _tracing.strengths = {}

    def with_strengths(batches: Iterator[Any]) -> Iterator[Batch]:
        for data in batches:
            pairs = [strengths_of(rule) for _, rule in weights]
            constants = [
                "fused" if pair is not None else snapshot(rule)
                for (_, rule), pair in zip(weights, pairs, strict=True)
            ]
            constants += map(snapshot, activities)
            fused = [pair for pair in pairs if pair is not None]
            strengths = np.array(fused, np.float64).reshape(-1, 2)
            yield Batch(data, strengths, tuple(constants))

    # Keras compiles what it finds under this name, and keeps that.
    vars(model)[f"{which}_step"] = step_with_strengths
    try:
        original(force=True)
    finally:
        del vars(model)[f"{which}_step"]
    name = f"{which}_function"
    function = getattr(model, name)
    setattr(model, name, lambda variables, batches: function(variables, with_strengths(batches)))


def losses(model: Any, variables: Sequence[Any], pairs: Sequence[Pair]) -> Sequence[Any]:
    """Return the penalty of each variable, from one call."""
    arguments = getattr(_tracing, "strengths", {})
    strengths = []
    for variable, pair in zip(variables, pairs, strict=True):
        rule, argument = arguments.get(id(variable), (None, None))
        strengths.append(argument if rule is variable.regularizer else pair)
    weights = [variable.value for variable in variables]
    return _port.values(weights, tuple(strengths), tuple(range(len(weights))), 1.0)


def take_proximal(chosen: Sequence[tuple[Any, Any]], learning_rate: Any, scale: Any) -> None:
    """Take the proximal step of each variable by its rule; the step is traced in a program."""
    step = keras.ops.convert_to_tensor(learning_rate)
    if not isinstance(scale, float):
        scale = keras.ops.convert_to_tensor(scale)
    for variable, rule in chosen:
        pair = strengths_of(rule)
        if pair is None:
            variable.assign(rule.prox(variable.value, step * scale))
        else:
            variable.assign(_port.proximal((variable.value,), (pair,), (0,), scale, step)[0])


import_module("jax").tree_util.register_pytree_node(
    Batch,
    lambda batch: ((batch.data, batch.strengths), batch.constants),
    lambda constants, children: Batch(children[0], children[1], constants),
)
