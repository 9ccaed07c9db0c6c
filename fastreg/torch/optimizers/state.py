"""What is kept of each parameter, in torch's layout: moments, and how many steps it took.

Contract
--------
- Moments lie under torch's names in ``optimizer.state``, tensors like their parameter, but in
  float32 for half precision.  ``step`` is an int there, as float32 stops at 2**24, and torch's
  float32 tensor in what ``state_dict`` returns.
- What is loaded is brought to that dtype from what was saved: torch's ``load_state_dict`` would
  round it to the parameter's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..._base import errors

STEP = "step"


def compute_dtype(parameter: Any) -> torch.dtype:
    """Return the type of the arithmetic and of the state."""
    return torch.float64 if parameter.dtype == torch.float64 else torch.float32


def new(parameter: Any) -> Any:
    """Return zeros like a parameter, to be kept."""
    with torch.no_grad():
        return torch.zeros_like(
            parameter, dtype=compute_dtype(parameter), memory_format=torch.preserve_format
        )


def saved(state: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a state with every count of steps as torch has it."""
    return {key: _with_tensor(one) if isinstance(one, dict) else one for key, one in state.items()}


def _with_tensor(one: dict[str, Any]) -> dict[str, Any]:
    if type(one.get(STEP)) is not int:
        return one
    return {**one, STEP: torch.tensor(float(one[STEP]), dtype=torch.float32)}


class _Held:
    """A tensor that torch's ``load_state_dict`` leaves as it is."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def hold(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict whose tensors torch does not round."""
    state = {
        key: {name: _Held(x) if isinstance(x, torch.Tensor) else x for name, x in one.items()}
        if isinstance(one, dict)
        else one
        for key, one in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def loaded(
    parameter: Any, label: str, one: Mapping[str, Any], counts_steps: bool
) -> dict[str, Any]:
    """Return the state of a parameter from what was saved of it; AdamW counts steps, not SGD."""
    other = "momentum_buffer" if counts_steps else "exp_avg"
    if other in one:
        raise ValueError(
            f"the state of {label} is that of another algorithm, for it has {other!r}; load what "
            "an optimizer of the same name has saved"
        )
    if counts_steps and one and STEP not in one:
        raise ValueError(
            f"the state of {label} lacks {STEP!r}, the number of its steps; load what state_dict() "
            "returned"
        )
    found: dict[str, Any] = {}
    for name, value in one.items():
        x = value.tensor if isinstance(value, _Held) else value
        if name == STEP:
            found[name] = count(x, label)
        elif isinstance(x, torch.Tensor):
            found[name] = _like(parameter, x, f"the {name} of {label}")
        elif x is not None:  # torch once wrote None for a momentum that there is not yet
            found[name] = x
    return found


def count(step: Any, label: str) -> int:
    number = step.item() if isinstance(step, torch.Tensor) and step.numel() == 1 else step
    if not isinstance(number, (int, float)) or not (number >= 0 and number % 1 == 0):
        raise ValueError(
            f"the step of {label} must be a number of steps, not {errors.described(step)}"
        )
    return int(number)


def _like(parameter: Any, x: Any, label: str) -> Any:
    if x.shape != parameter.shape:
        raise ValueError(
            f"{label} has the shape {tuple(x.shape)}, but its parameter has "
            f"{tuple(parameter.shape)}; load what was saved of the same module"
        )
    found = x.detach().to(device=parameter.device, dtype=compute_dtype(parameter))
    if found.stride() != parameter.stride():
        found = new(parameter).copy_(found)
    return found
