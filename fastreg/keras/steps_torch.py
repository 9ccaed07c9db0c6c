"""Fused penalties on PyTorch: their gradients are added after backward, in one call.

In a training step of Keras' own the penalties are outside the autograd graph, and their gradients
are added in-place to those for the optimizer, before it clips, accumulates or averages them; such a
step has one entry for all fused penalties.  That is so where the gradient of the loss with respect
to a penalty is known to be 1 and the core can write: with Keras' ``train_step`` and
``compute_loss``, without loss scaling and ``torch.compile``, for weights in host memory.  In all
other cases the penalties are part of the graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast

from .._arrays import results
from .._autodiff.dispatch import Port
from .._base.penalty import ADD, GRADIENT, PROXIMAL, VALUE
from .._engine import calls
from ._framework import keras
from .strengths import Pair, strengths_of

torch: Any = import_module("torch")
_port: Port = cast(Any, import_module("fastreg._autodiff.torch.functions"))


class _Step:
    """The running step of Keras: its model, and the penalties whose gradients it needs."""

    def __init__(self, model: Any, outside_of_graph: bool) -> None:
        self.model = model
        self.outside_of_graph = outside_of_graph
        self.variables: Sequence[Any] = ()
        self.weights: tuple[Any, ...] = ()
        self.pairs: tuple[Pair, ...] = ()

    def loss(self, variables: Sequence[Any], pairs: tuple[Pair, ...]) -> Any:
        """Return the sum of the penalties."""
        weights = tuple(variable.value for variable in variables)
        which = tuple(range(len(weights)))
        if not (self.outside_of_graph and all(map(_is_writable, weights))):
            return _port.total(weights, pairs, which, 1.0)
        self.variables, self.weights, self.pairs = variables, weights, pairs
        names = tuple(variable.path for variable in variables)
        value = calls.evaluate_many(VALUE, names, weights, None, pairs, which, 1.0, 1.0, False)
        return results.wrap_value(value, weights[0])

    def add_gradients(self, gradients: list[Any], variables: Sequence[Any]) -> None:
        """Add the gradients of the penalties to those of the loss, in-place."""
        if not self.variables:
            return
        places = {id(variable): place for place, variable in enumerate(variables)}
        chosen = [places[id(variable)] for variable in self.variables]
        for place, weight in zip(chosen, self.weights, strict=True):
            if gradients[place] is None:  # no part of the loss but of its penalty
                gradients[place] = torch.zeros_like(weight)
        names = tuple(variable.path for variable in self.variables)
        targets = tuple(gradients[place] for place in chosen)
        which = tuple(range(len(chosen)))
        calls.evaluate_many(
            GRADIENT | ADD, names, self.weights, targets, self.pairs, which, 1.0, 1.0, False
        )
        results.all_written(targets)


_now = threading.local()


def make(model: Any, which: str, original: Callable[..., Any]) -> None:
    """Have Keras make a function of the model's step, and run the step with fused penalties."""
    original(force=True)
    if model.jit_compile or not _is_left_to_keras(model, which):
        return
    name = f"{which}_function"
    function = getattr(model, name)

    def in_step(data: Any) -> Any:
        before = getattr(_now, "step", None)
        optimizer = model.optimizer
        apart = which == "train" and _leaves_losses_unscaled(optimizer)
        _now.step = step = _Step(model, apart)
        if not apart:
            try:
                return function(data)
            finally:
                _now.step = before
        apply = optimizer.apply
        replaced = vars(optimizer).get("apply")

        def apply_with_penalties(gradients: Any, variables: Any = None) -> Any:
            gradients = list(gradients)
            step.add_gradients(gradients, variables)
            return apply(gradients, variables)

        vars(optimizer)["apply"] = apply_with_penalties
        try:
            return function(data)
        finally:
            _now.step = before
            if replaced is None:
                del vars(optimizer)["apply"]
            else:
                vars(optimizer)["apply"] = replaced

    setattr(model, name, in_step)


def losses(model: Any, variables: Sequence[Any], pairs: tuple[Pair, ...]) -> Sequence[Any]:
    """Return each variable's penalty from one call; their sum alone in a step of Keras' own."""
    step: _Step | None = getattr(_now, "step", None)
    if step is not None and step.model is model:
        return [step.loss(variables, pairs)]
    weights = [variable.value for variable in variables]
    return _port.values(weights, pairs, tuple(range(len(weights))), 1.0)


def take_proximal(chosen: Sequence[tuple[Any, Any]], learning_rate: Any, scale: Any) -> None:
    """Take the proximal step of each variable by its rule, in place and in one call if it can be.

    While torch compiles the step of Keras its numbers are tensors; else they are the host's.
    """
    is_compiling = torch.compiler.is_compiling()
    number = keras.ops.convert_to_tensor if is_compiling else _on_host
    step, scale = number(learning_rate), number(scale)
    with torch.no_grad():
        fused = []
        for variable, rule in chosen:
            pair, weight = strengths_of(rule), variable.value
            if pair is None:
                variable.assign(rule.prox(weight.detach(), step * scale))
            elif is_compiling or not _is_writable(weight):
                variable.assign(_port.proximal((weight,), (pair,), (0,), scale, step)[0])
            else:
                fused.append((variable.path, weight, pair))
        if fused:
            names, weights, pairs = zip(*fused, strict=True)
            which = tuple(range(len(fused)))
            calls.evaluate_many(PROXIMAL, names, weights, weights, pairs, which, scale, step, False)
            results.all_written(weights)


def _on_host(number: Any) -> float:
    return float(number.value if isinstance(number, keras.Variable) else number)


def _is_left_to_keras(model: Any, which: str) -> bool:
    """Return whether nothing but Keras' sum reads the losses in a step of the model."""
    names = (f"{which}_step", "compute_loss", "_compute_loss", "_aggregate_additional_loss")
    return all(
        getattr(getattr(model, name), "__func__", None) is getattr(keras.Model, name)
        for name in names
    )


def _leaves_losses_unscaled(optimizer: Any) -> bool:
    return (
        optimizer is not None
        and type(optimizer).scale_loss is keras.optimizers.Optimizer.scale_loss
        and optimizer.loss_scale_factor is None
    )


def _is_writable(weight: Any) -> bool:
    """Return whether the core can write such tensors: on the CPU, no shard or subclass."""
    return type(weight) is torch.nn.Parameter and weight.device.type == "cpu"
