"""Penalties on what modules give: collected in forward(), added to the loss by the caller.

Contract
--------
- A forward hook evaluates the regularizer of each tensor that a module gives, differentiably, and
  keeps the term.  ``take()`` gives the sum for the loss, and forgets the terms.  The loss is the
  way in because what treats the loss treats the penalty: loss scaling, division by the number of
  micro-batches, DistributedDataParallel.
- A term that nobody takes would be lost without a sign: :meth:`require_taken` refuses to go on.
- Terms are collected while torch records gradients, in training and evaluation alike, as in Keras.
- Copies and pickles of a module carry hooks that do nothing; so do hooks that outlive their owner.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from .. import _checks, _errors
from ..penalties.rules import Rules, checked_rules, match

REDUCTIONS = ("mean", "sum")


class Activity:
    """The hooks on a module's submodules, and the terms that they have collected."""

    def __init__(self, module: Any, rules: Any, reduction: str) -> None:
        self.divides = _checks.choice(reduction, "activity_reduction", REDUCTIONS) == "mean"
        self.terms: list[Any] = []
        self.rules: Rules | None = None
        self._handles: list[Any] = []
        if rules is None:
            return
        if not isinstance(rules, Mapping):
            raise TypeError(
                "activity_regularizer must be a mapping of globs over module.named_modules() to "
                f"regularizers, not {_errors.described(rules)}; for example {{'*relu': 'l1'}}"
            )
        self.rules = checked_rules(rules)
        modules = dict(module.named_modules())
        rule_of, _ = match(list(modules), self.rules)
        for name, rule in rule_of.items():
            if rule is not None:
                hook = _Hook(weakref.ref(self), rule, name)
                self._handles.append(modules[name].register_forward_hook(hook))

    def take(self) -> Any:
        """Give the sum of the terms, 0-d, and forget them; 0.0 where there are none."""
        terms, self.terms = self.terms, []
        if not terms:
            return torch.zeros(())
        total = terms[0]
        for term in terms[1:]:
            # Modules on other devices, and penalties in float64 beside others in float32.
            total = total + term.to(total.device)
        return total

    def require_taken(self) -> None:
        """Refuse to go on with terms that are in no loss.

        Raises
        ------
        RuntimeError
            When terms were collected that nobody has taken.
        """
        if self.terms:
            count = len(self.terms)
            self.terms = []
            raise RuntimeError(
                f"{count} activity penalties were collected but are in no loss, so their gradients "
                "are missing from this step: add penalties.activity() to the loss before backward()"
                ", and run what is not trained on under torch.no_grad()"
            )

    def close(self) -> None:
        """Remove the hooks, and forget the terms."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.terms = []


class _Hook:
    """The forward hook of one module."""

    def __init__(self, owner: Callable[[], Activity | None], rule: Any, name: str) -> None:
        self._owner = owner
        self._rule = rule
        self._name = name
        self._has_collected = False

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        owner = self._owner()
        if owner is None or not torch.is_grad_enabled():
            return
        # Checkpointing runs forward() again during backward(), and needs all of it to be run.
        is_again = torch._C._current_graph_task_id() != -1
        if is_again and not self._has_collected:
            raise RuntimeError(
                f"module {self._name!r} with an activity regularizer runs in backward() only, "
                "where its penalty is too late: call checkpoint(..., use_reentrant=False)"
            )
        for tensor in _tensors(output):
            term = self._rule(tensor)
            if owner.divides and tensor.ndim:
                term = term / max(tensor.shape[0], 1)
            if not isinstance(term, torch.Tensor):
                term = torch.as_tensor(term, device=tensor.device)
            if not is_again:
                self._has_collected = True
                owner.terms.append(term)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (_nobody, None, self._name)

    def __deepcopy__(self, memo: Any) -> _Hook:
        return _Hook(_nobody, None, self._name)


def _nobody() -> None:
    """Stand for the owner of a hook that a copied module has."""


def _tensors(output: Any) -> Iterator[Any]:
    """Give the tensors in what a module gives: itself, or those of nested containers."""
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)
