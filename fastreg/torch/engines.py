"""Engines that take gradients away: whose parameters are updated from something else than `.grad`.

Contract
--------
- Nothing of an engine is imported.  Its parameters are known by the attributes that it gives them.
- Asked at each call: 0.5 us for any number of parameters where no such engine is loaded.  Then
  only the first and the last parameter are looked at, as an engine marks all that it trains.
- What only autograd reaches: an engine collects gradients in hooks while a backward pass runs.
  What is added to ``.grad`` afterwards is lost, so it is refused; a penalty in the loss is right.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch


class Owner(NamedTuple):
    """An engine that takes the gradients of a parameter."""

    engine: str
    place: int
    """Of the first such parameter."""
    has_elements: bool
    """Whether the parameter has its elements while no forward or backward pass needs them."""


def owner_of(parameters: Sequence[Any]) -> Owner | None:
    """Return the engine that takes the gradients of some of these parameters, or None.

    Parameters
    ----------
    parameters : sequence of torch.Tensor
        Of any kind.

    Returns
    -------
    Owner or None

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> owner_of([weight])  # None
    >>> weight.main_grad = torch.zeros(3)
    >>> owner_of([weight]).engine
    'Megatron'
    """
    if not parameters:
        return None
    if not _is_loaded() and not parameters[0].__dict__ and not parameters[-1].__dict__:
        return None
    # 26 ns for each, an eighth of what a call to the core takes for it.
    if not any(map(_attributes, parameters)):
        return None
    for place, parameter in enumerate(parameters):
        for mark, engine, has_elements in _MARKS:
            if mark in parameter.__dict__:
                return Owner(engine, place, has_elements)
    return None


def needs_autograd(parameters: Sequence[Any]) -> bool:
    """Return whether gradients must reach these parameters through autograd, not through `.grad`.

    So it is for parameters of an engine, for those with hooks of the user, and in every process of
    several: DistributedDataParallel writes what it has averaged over `.grad` when a backward pass
    ends, and nothing on a parameter says so.

    Examples
    --------
    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(3))
    >>> needs_autograd([weight])
    False
    >>> handle = weight.register_hook(print)
    >>> needs_autograd([weight])
    True
    """
    return (
        (torch.distributed.is_available() and torch.distributed.is_initialized())
        or owner_of(parameters) is not None
        or any(map(_hooks, parameters))
        or any(map(_late_hooks, parameters))
    )


def require_gradients(parameters: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse to add to the ``.grad`` of parameters whose engine would not read it.

    Raises
    ------
    RuntimeError
        With the name of the first, and the engine's.
    """
    owner = owner_of(parameters)
    if owner is None:
        return
    _require_elements(owner, names)
    raise RuntimeError(
        f"{owner.engine} takes the gradient of the parameter {names[owner.place]!r} away while "
        "backward() runs, and updates it from its own copy, so that a penalty added to .grad would "
        "be lost; add penalties.value() to the loss of each micro-batch instead"
    )


def require_elements(parameters: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse parameters whose elements are elsewhere between passes.

    Raises
    ------
    TypeError
        With the name of the first, and the engine's.
    """
    owner = owner_of(parameters)
    if owner is not None:
        _require_elements(owner, names)


def _require_elements(owner: Owner, names: Sequence[str]) -> None:
    if not owner.has_elements:
        raise TypeError(
            f"the parameter {names[owner.place]!r} is partitioned by {owner.engine}: between "
            "passes this process has none of its elements, and its penalty would be 0; use ZeRO "
            "stage 1 or 2 with penalties.value() in the loss, or fully_shard (FSDP2) instead"
        )


# Stage 3 first: it is the only one that takes elements away.
_MARKS = (
    ("ds_id", "DeepSpeed (ZeRO-3)", False),
    ("_hp_mapping", "DeepSpeed (ZeRO-1, ZeRO-2 or its bfloat16 optimizer)", True),
    ("main_grad", "Megatron", True),
)
_MODULES = ("deepspeed", "megatron")

_attributes = attrgetter("__dict__")
_hooks = attrgetter("_backward_hooks")
_late_hooks = attrgetter("_post_accumulate_grad_hooks")


def _is_loaded() -> bool:
    return any(name in sys.modules for name in _MODULES)
