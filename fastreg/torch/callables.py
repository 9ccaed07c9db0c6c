"""Rules that are callables without a gradient of their own: autograd gives it."""

from __future__ import annotations

from typing import Any

import torch

from .. import _errors
from ..penalties.rules import rule_name


class ByAutograd:
    """A callable of one tensor that gives a 0-d tensor, with ``gradient(w)`` by autograd."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule
        self.__name__ = rule_name(rule)

    def __call__(self, w: Any) -> Any:
        return self.rule(w)

    def gradient(self, w: Any) -> Any:
        """Give the gradient of what the callable gives for `w`.

        Raises
        ------
        TypeError
            When it gives no 0-d tensor that depends on `w` by differentiable operations.
        """
        leaf = w.detach().requires_grad_()
        with torch.enable_grad():
            penalty = self.rule(leaf)
        if not isinstance(penalty, torch.Tensor) or penalty.ndim != 0:
            raise TypeError(
                f"the rule {self.__name__} must give a 0-d tensor for its gradient to be taken by "
                f"autograd, not {_errors.described(penalty)}; return a tensor, or offer gradient(w)"
            )
        if not penalty.requires_grad:
            raise TypeError(
                f"the rule {self.__name__} gives a tensor that autograd does not follow; leave out "
                "detach(), item() and no_grad(), or offer gradient(w)"
            )
        (slope,) = torch.autograd.grad(penalty, leaf, allow_unused=True)
        return torch.zeros_like(leaf) if slope is None else slope
