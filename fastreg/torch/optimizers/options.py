"""The options of a group of parameters, judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..._base import arguments, errors

OF_ALL_GROUPS = (
    *("rules", "mode", "scaled", "strength", "independent", "cautious"),
    *("max_norm", "clip", "on_nonfinite"),
)
"""Options that param_groups do not have."""


def number(value: Any, label: str, check: Any = arguments.strength) -> float:
    """Return a number of a group, which may be a tensor of one element."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{label} must be a number or a tensor of one element, not one of the shape "
                f"{tuple(value.shape)}"
            )
        value = value.item()
    elif callable(value):
        raise TypeError(
            f"{label} must be a number, not a function; use a scheduler, for example "
            "torch.optim.lr_scheduler.LambdaLR"
        )
    found: float = check(value, label)
    return found


def positive(value: Any, label: str) -> float:
    found = number(value, label)
    if found == 0.0:
        raise ValueError(f"{label} must be a number > 0, not {errors.described(value)}")
    return found


def require_known_ways(group: Mapping[str, Any], label: str) -> None:
    """Refuse what torch's optimizers can do and these cannot, and what is not of one group."""
    for name in OF_ALL_GROUPS:
        if name in group:
            raise ValueError(
                f"{label}[{name!r}] is no option of a group: it is for all parameters; pass "
                f"{name}= to the optimizer, and rules by name for what differs"
            )
    for name in ("capturable", "foreach", "fused"):
        if group.get(name) is not None:
            arguments.flag(group[name], f"{label}[{name!r}]")
    if group.get("differentiable"):
        raise ValueError(
            f"{label}['differentiable'] must be False: this step is not recorded by autograd; use "
            "torch.optim for it"
        )
    if group.get("decoupled_weight_decay") is False:
        raise ValueError(
            f"{label}['decoupled_weight_decay'] must be True: AdamW decays weights apart from the "
            "gradient"
        )
