"""Rules that are callables: gradients by autograd, and complex parameters."""

from __future__ import annotations

from typing import Any

import torch

from .._base import errors
from ..penalties import callables
from ..penalties.rules import rule_name


class ByAutograd:
    """A callable of one tensor that returns a 0-d tensor; autograd gives its gradient."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.__name__: str = rule_name(rule)

    def __call__(self, w: Any) -> Any:
        return self.rule(w)

    @property
    def prox(self) -> Any:
        """The rule's own ``prox(w, step)``; AttributeError where it has none."""
        return own_prox(self.rule)

    def gradient(self, w: Any) -> Any:
        """Return the gradient with respect to `w`."""
        leaf = w.detach().requires_grad_()
        with torch.enable_grad():
            penalty = self.rule(leaf)
        if not isinstance(penalty, torch.Tensor) or penalty.ndim != 0:
            raise TypeError(
                f"the rule {self.__name__} must give a 0-d tensor for its gradient to be taken by "
                f"autograd, not {errors.described(penalty)}; return a tensor, or offer gradient(w)"
            )
        if not penalty.requires_grad:
            raise TypeError(
                f"the rule {self.__name__} gives a tensor that autograd does not follow; leave out "
                "detach(), item() and no_grad(), or offer gradient(w)"
            )
        (slope,) = torch.autograd.grad(penalty, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if slope is None else slope


class OfComplex:
    """A callable of one complex tensor, for its real view: parts as last axis.

    The core adds gradients to that view.  The gradient of a real number with respect to a complex
    tensor is torch's: its parts are those with respect to the parts.
    """

    def __init__(self, differentiated: Any, rule: Any) -> None:
        self.rule = rule
        self._differentiated = differentiated
        self.__name__: str = rule_name(rule)

    def __call__(self, w: Any) -> Any:
        return self.rule(w if w.is_complex() else torch.view_as_complex(w))

    @property
    def prox(self) -> Any:
        """The rule's own ``prox(w, step)``, for the real view."""
        prox = own_prox(self.rule)
        return lambda w, step: torch.view_as_real(
            prox(torch.view_as_complex(w), step).resolve_conj().resolve_neg()
        )

    def gradient(self, w: Any) -> Any:
        """Return the gradient with respect to `w`, of its shape."""
        found = self._differentiated.gradient(torch.view_as_complex(w))
        if not isinstance(found, torch.Tensor) or not found.is_complex():
            raise TypeError(
                f"the gradient that the rule {self.__name__} gives must be a complex tensor, as "
                f"the parameter is, not {errors.described(found)}"
            )
        return torch.view_as_real(found.resolve_conj().resolve_neg())


def own_prox(rule: Any) -> Any:
    """Return the ``prox(w, step)`` that a rule offers of its own penalty."""
    if not callables.offers(rule, "prox"):
        raise AttributeError(f"{rule_name(rule)} offers no prox(w, step) of its own penalty")
    return rule.prox


def as_real(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return complex tensors as real views of their storage, with the parts as last axis."""
    return tuple(
        torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor for tensor in tensors
    )
