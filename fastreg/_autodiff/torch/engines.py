"""Engines that update parameters from their own copies of gradients, not from ``.grad``.

Contract
--------
- Nothing of an engine is imported.  Its parameters are known by the attributes that it gives them.
- Asked at each call: 0.5 us for any number of parameters where no such engine is loaded.  Then
  only the first and the last parameter are looked at, as an engine marks all that it trains.
- Such an engine collects gradients in hooks while a backward pass runs.  What is added to
  ``.grad`` afterwards would be lost: it is refused, and the message says what works instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch


class Owner(NamedTuple):
    """An engine that takes the gradients of a parameter."""

    engine: str
    advice: str
    """How the penalty's gradient reaches it instead."""
    place: int
    """Of the first such parameter."""


def owner_of(parameters: Sequence[Any]) -> Owner | None:
    """Return the engine that takes the gradients of some of these parameters, or None."""
    if not _may_be_marked(parameters):
        return None
    for place, parameter in enumerate(parameters):
        for mark, (engine, advice) in _MARKS.items():
            if mark in parameter.__dict__:
                return Owner(engine, advice, place)
    return None


def needs_autograd(parameters: Sequence[Any]) -> bool:
    """Return whether gradients must reach these parameters through autograd, not through `.grad`.

    So it is for parameters of an engine, for those with hooks of the user, and in every process of
    several: DistributedDataParallel writes what it has averaged over `.grad` when a backward pass
    ends, and nothing on a parameter says so.
    """
    return (
        (torch.distributed.is_available() and torch.distributed.is_initialized())
        or owner_of(parameters) is not None
        or any(map(_hooks, parameters))
        or any([_read_gradients(hooks) for hooks in map(_late_hooks, parameters) if hooks])
    )


def _read_gradients(hooks: Mapping[int, Any]) -> bool:
    """Return whether any of the hooks is of others than ``before_step``, which only counts."""
    return not all([getattr(hook, "reads_no_gradient", False) for hook in hooks.values()])


def require_gradients(parameters: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse to add to the ``.grad`` of parameters whose engine would not read it."""
    owner = owner_of(parameters)
    if owner is not None:
        require_elements(parameters, parameter_label(names))
        raise RuntimeError(
            f"{owner.engine} takes the gradient of the parameter {names[owner.place]!r} away while "
            "backward() runs, and updates it from its own copy, so that a penalty added to .grad "
            f"would be lost; {owner.advice}"
        )


def require_updated_in_place(parameters: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse to write parameters that their engine makes anew from a copy that it updates."""
    owner = owner_of(parameters)
    if owner is not None:
        raise RuntimeError(
            f"{owner.engine} updates the parameter {names[owner.place]!r} from a copy of its own, "
            "so that what is written into it here would be lost at the next step; take the step "
            "rule.prox(copy, step, out=copy) on the copies of the optimizer instead"
        )


def parameter_label(names: Sequence[str]) -> Callable[[int], str]:
    """Return what calls the parameter at a place by its name."""
    return lambda place: f"the parameter {names[place]!r}"


def require_elements(parameters: Sequence[Any], label: Callable[[int], str]) -> None:
    """Refuse parameters whose elements are in other processes at this moment.

    `label` is what a message calls the parameter at a place.
    """
    if not _may_be_marked(parameters):
        return
    for place, parameter in enumerate(parameters):
        # Inside of a forward pass and of GatheredParameters it has its elements.
        marks = parameter.__dict__
        if "ds_id" in marks and parameter.numel() != marks["ds_numel"]:
            raise TypeError(
                f"{label(place)} is partitioned by {_MARKS['ds_id'][0]}, so that this process has "
                "none of its elements between forward and backward passes, and its penalty would "
                "be 0; evaluate the regularizer in the forward pass of its layer and add that to "
                "the loss, or use ZeRO stage 1 or 2 with penalties.value() in the loss"
            )


_IN_THE_LOSS = "add penalties.value() to the loss of each micro-batch instead"
_MARKS = {
    "ds_id": ("DeepSpeed (ZeRO-3)", _IN_THE_LOSS),
    "_hp_mapping": ("DeepSpeed (ZeRO-1, ZeRO-2 or its bfloat16 optimizer)", _IN_THE_LOSS),
    # Where it fuses the gradients of weights with their accumulation, its hook leaves out what
    # autograd gives beside them: a penalty in the loss.
    "main_grad": (
        "Megatron",
        "once gradients are reduced, call parameter.main_grad.add_(rule.gradient("
        "parameter.detach())) instead",
    ),
}


def _may_be_marked(parameters: Sequence[Any]) -> bool:
    if not parameters:
        return False
    if "deepspeed" not in sys.modules and "megatron" not in sys.modules:
        return bool(parameters[0].__dict__ or parameters[-1].__dict__)
    return any(map(_attributes, parameters))  # 26 ns for each


_attributes = attrgetter("__dict__")
_hooks = attrgetter("_backward_hooks")
_late_hooks = attrgetter("_post_accumulate_grad_hooks")
