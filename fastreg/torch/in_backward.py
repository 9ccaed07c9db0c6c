"""A penalty in the loss whose gradients are added to ``.grad`` when the backward pass has finished.

Contract
--------
- What ``.grad`` holds when ``backward()`` returns is the gradient of ``loss + penalty``: whatever
  the loss is multiplied by (loss scaling, micro-batches) reaches the penalty, and whatever reads
  ``.grad`` afterwards (clipping, optimizers) reads the sum.  A backward pass that fails adds
  nothing.
- Instead of a new gradient for each parameter, which autograd would add, there is one native call
  that adds in place.  It runs after all other work of the pass, and what that queues for its end.
- This is for plain leaf tensors in host memory and an ordinary ``backward()``.  Wherever something
  could see the difference (hooks of parameters and of their nodes, processes that average
  gradients, ``create_graph``, ``torch.autograd.grad``, ``inputs=``, the search for NaN of
  ``detect_anomaly``), the gradients are returned to autograd.
- A parameter that was modified in place since is refused, as autograd refuses it.
- Several threads may run backward passes, but not at once over the same parameters.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import sys
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from .._arrays import torch_memory
from .._autodiff.torch import engines, functions, operators
from .._base.float_environment import products
from .._base.penalty import ADD, GRADIENT
from .._engine import backend, calls
from ..penalties.plan import Arrays, Plan

_private: Any = torch._C
_engine: Any = getattr(torch.autograd.Variable, "_execution_engine", None)

_attributes = attrgetter("__dict__")

with torch.inference_mode(False):
    # A private leaf: its AccumulateGrad node runs only in a plain `backward()`, not in
    # `autograd.grad` or `inputs=`.
    _ANCHOR = torch.zeros((), device="cpu", requires_grad=True)
    _ANCHOR_NODE = torch.autograd.graph.get_gradient_edge(_ANCHOR).node


class LastAdded:
    """Detects changes to a gradient after a backward pass has added the penalty."""

    def __init__(self) -> None:
        self._storage: Any = None
        self._version = -1

    def note(self, parameter: Any) -> None:
        """Remember the gradient that a penalty has just been added to."""
        gradient = parameter.grad
        if gradient is not None and gradient.layout is torch.strided:
            # Of the storage: torch swaps no tensor that has weak references.
            self._storage = StorageWeakRef(gradient.untyped_storage())
            self._version = gradient._version

    def is_unchanged(self, parameter: Any) -> bool:
        """Return whether the gradient of `parameter` is the one noted, and as it was."""
        if self._storage is None:
            return False
        gradient = parameter.grad
        return (
            gradient is not None
            and gradient.layout is torch.strided
            and bool(gradient._version == self._version)
            and bool(gradient.untyped_storage()._cdata == self._storage.cdata)
        )


class _Call(NamedTuple):
    """The arguments of the forward pass."""

    plan: Plan
    weights: Arrays
    versions: list[int]
    strengths: tuple[tuple[float, float], ...]
    scale: float
    last_added: LastAdded

    def numbers(self) -> tuple[float, ...]:
        """Return the scaled strengths, l1 and l2 of each rule in turn."""
        return products([number for pair in self.strengths for number in pair], self.scale)


def is_possible(weights: Arrays, scale: Any) -> bool:
    """Return whether :func:`value` can be used for these plain tensors.

    If not, the port for torch has to compute the penalty: ``_autodiff.torch.functions``.
    """
    return not (
        torch.compiler.is_compiling()
        or not weights
        or not weights[0].is_cpu
        or isinstance(scale, torch.Tensor)  # it may be what is differentiated
        or _private._len_torch_dispatch_stack()
        or _private._are_functorch_transforms_active()
        or _backward_is_compiled("compiled_autograd_enabled")
        or not _can_defer()
    )


def _backward_is_compiled(flag: str) -> bool:
    return getattr(sys.modules.get("torch._dynamo.compiled_autograd"), flag, False) is True


def value(
    plan: Plan, weights: Arrays, scale: float, penalty: float, last_added: LastAdded
) -> torch.Tensor:
    """Return the penalty of plain leaf tensors in host memory, 0-d, for a loss."""
    versions = [weight._version for weight in weights]
    call = _Call(plan, weights, versions, plan.strengths(), float(scale), last_added)
    result: torch.Tensor = _apply(_ANCHOR, call, penalty, *weights)
    return result


class _InBackward(torch.autograd.Function):  # type: ignore[misc]
    """A penalty whose number has been computed, as a function of the parameters."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, call: _Call, penalty: float, *_: torch.Tensor
    ) -> torch.Tensor:
        ctx.call = call
        ctx.save_for_backward(anchor)  # so that a second backward needs retain_graph
        # Made here: what is an argument comes out as a view, which refuses ``loss += ...``.
        return operators.as_value(penalty, operators.value_dtype(call.weights))

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        return _gradients(ctx, upstream)


def outside_of_graphs(function: Any) -> Any:
    """Return `function`, left alone by torch.compile where a whole step is compiled.

    Nothing is imported for it: where torch._dynamo is not loaded yet, nothing compiles.
    """
    untraced: Any = getattr(torch, "_disable_dynamo", lambda same: same)(function)

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        return (untraced if "torch._dynamo" in sys.modules else function)(*arguments)

    return run


@outside_of_graphs
def _gradients(ctx: Any, upstream: torch.Tensor) -> Any:
    """Return the gradients by the inputs, or None for each and add them at the end of the pass."""
    call: _Call = ctx.call
    _ = ctx.saved_tensors
    _require_unmodified(call)
    accumulates = _accumulates_into_all_leaves()
    if (
        accumulates
        and not torch.is_grad_enabled()
        and not (torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled())
        and not _are_watched(call.weights)
        and not _are_held(ctx.next_functions)
    ):
        factor = upstream.item()
        if math.isfinite(factor):
            _after_all_others(functools.partial(_add, call, factor))
            return (None,) * (3 + len(call.weights))
    if accumulates:
        _after_all_others(functools.partial(call.last_added.note, call.weights[0]))
    made = functions.vjp(call.weights, upstream, call.numbers(), call.plan.which)
    return (None, None, None, *made)


_apply: Any = _InBackward.apply


def _require_unmodified(call: _Call) -> None:
    """Refuse parameters that are not what the penalty is of."""
    if [weight._version for weight in call.weights] == call.versions:
        return
    for name, weight, version in zip(call.plan.names, call.weights, call.versions, strict=True):
        if weight._version != version:
            raise RuntimeError(
                f"the parameter {name!r} was modified by an in-place operation after value() had "
                f"computed its penalty (version {weight._version}, expected {version}), so its "
                "gradient would be that of another loss; call backward() before the parameters "
                "change, and value() again after that"
            )


def _are_watched(weights: Arrays) -> bool:
    """Return whether something gets the gradients of parameters before ``backward()`` returns."""
    if engines.needs_autograd(weights):
        return True
    # torch.distributed.optim: an optimizer for each parameter, called by a hook of its node.
    return any(["_in_backward_optimizers" in held for held in map(_attributes, weights) if held])


def _are_held(edges: Any) -> bool:
    """Return whether somebody keeps the node of a parameter in the graph, as its hooks need it.

    A node does not tell its hooks.  The first edge is that of the anchor, whose node is held once.
    """
    counts = list(map(sys.getrefcount, [node for node, _ in edges]))
    return max(counts[1:]) >= counts[0]


@outside_of_graphs
def _add(call: _Call, factor: float) -> None:
    plan, weights = call.plan, call.weights
    try:
        found = backend.accumulate_parameters(
            GRADIENT | ADD,
            plan.names,
            weights,
            (),
            (),
            call.strengths,
            plan.which,
            call.scale,
            factor,
            True,
        )
        if found is not NotImplemented:
            calls.finish_parameters(
                GRADIENT | ADD, found, weights, call.strengths, call.scale, factor
            )
    except (TypeError, ValueError):  # autograd takes gradients that the core does not
        found = NotImplemented
    if found is NotImplemented:
        _add_each(call, factor)
    call.last_added.note(weights[0])


def _add_each(call: _Call, factor: float) -> None:
    """Add where a gradient is missing, sparse or of another dtype, as autograd adds."""
    with torch.no_grad():
        upstream = torch.tensor(factor, dtype=torch.float64, device="cpu")
        made = operators.penalty_gradient(
            call.weights, upstream, call.numbers(), None, call.plan.which
        )
        present: list[torch.Tensor] = []
        added: list[torch.Tensor] = []
        new: list[tuple[torch.Tensor, torch.Tensor]] = []
        for name, weight, gradient in zip(call.plan.names, call.weights, made, strict=True):
            if not weight.requires_grad:  # frozen since
                continue
            if weight.grad is None:
                new.append((weight, gradient.to(gradient_dtype(weight))))
            elif weight.grad.layout is not torch.strided:
                new.append((weight, gradient + weight.grad))
            else:
                torch_memory.require_memory(torch, weight.grad, f"grads[{name!r}]", False)
                present.append(weight.grad)
                added.append(gradient)
        # A call each: what a Ctrl-C does comes before or after it.
        if present:
            torch._foreach_add_(present, added)
        collections.deque(itertools.starmap(_set_gradient, new), 0)


_set_gradient: Any = torch.Tensor.grad.__set__


def gradient_dtype(parameter: Any) -> torch.dtype:
    """Return the dtype of a new ``.grad``, which since torch 2.10 need not be the parameter's."""
    dtype: torch.dtype = getattr(parameter, "grad_dtype", None) or parameter.dtype
    return dtype


def _accumulates_into_all_leaves() -> bool:
    """Return whether this is ``backward()`` without ``inputs``, and not ``torch.autograd.grad``."""
    if _private._are_functorch_transforms_active():  # is_grads_batched
        return False
    if _backward_is_compiled("in_compiled_autograd_region"):
        return False
    try:
        return bool(_private._will_engine_execute_node(_ANCHOR_NODE))
    except RuntimeError:  # no engine runs
        return False


def _after_all_others(callback: Any) -> None:
    """Have `callback` called at the end of this backward pass.

    Those that are queued while it runs come first.
    """
    _engine.queue_callback(functools.partial(_engine.queue_callback, callback))


@functools.cache
def _can_defer() -> bool:
    """Return whether this torch has the private functions used here, and they work as expected.

    If the callback never ran, the penalty would be missing silently.
    """
    seen: list[Any] = []

    class Probe(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, anchor: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return w.detach().clone()

        @staticmethod
        def backward(ctx: Any, upstream: torch.Tensor) -> Any:
            seen.append(_accumulates_into_all_leaves())
            _after_all_others(lambda: seen.append(None if w.grad is None else w.grad.item()))
            return None, upstream

    with torch.inference_mode(False), torch.enable_grad():
        w = torch.ones((), device="cpu", requires_grad=True)
        apply: Any = Probe.apply
        try:
            apply(_ANCHOR, w).backward()
            apply(_ANCHOR, w).backward(inputs=[w])
            torch.autograd.grad(apply(_ANCHOR, w), [w])
            _ = w._backward_hooks, w._post_accumulate_grad_hooks
        except (AttributeError, RuntimeError, TypeError):
            return False
    return seen == [True, 1.0, False, 2.0, False, 2.0]
