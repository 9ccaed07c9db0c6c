"""Activity penalties: collected in forward hooks, added to the loss by the caller.

Contract
--------
- A forward hook evaluates the regularizer of a module's output, differentiably, and keeps the term;
  :mod:`.outputs` chooses the tensors and their batch sizes.  ``take()`` returns the sum for the
  loss, and forgets the terms.  They go through the loss because its treatment has to be theirs:
  loss scaling, division by the number of micro-batches, averaging over processes
  (:mod:`.replicas`).
- An uncollected term would be dropped silently: :meth:`Activity.require_taken` raises.
- Terms are collected while grad mode is enabled, in training and evaluation alike, as in Keras.
- Copied or pickled hooks, and those that outlive their owner, are no-ops.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .._base import arguments, errors
from .._base.warnings import warn
from ..penalties.rules import Rules, checked_rules, match
from . import outputs, replicas

REDUCTIONS = ("mean", "sum")


class _Term(NamedTuple):
    """A penalty, and over how many processes its gradient is averaged (None: not known)."""

    penalty: Any
    processes: float | None
    module: str


class Activity:
    """The hooks on submodules, and the terms that they have collected."""

    def __init__(
        self,
        module: Any,
        rules: Any,
        reduction: str,
        batch_axis: Any,
        allow_unmatched: bool = False,
    ) -> None:
        self.divides: bool = arguments.choice(reduction, "activity_reduction", REDUCTIONS) == "mean"
        self.terms: list[_Term] = []
        self.rules: Rules | None = None
        self._module = module
        self._handles: list[Any] = []
        self._hooked: dict[str, Any] = {}
        self._waiting = 0
        self.batch_axis: int
        by_glob, self.batch_axis = _checked_batch_axis(batch_axis)
        if rules is None:
            return
        if not isinstance(rules, Mapping):
            raise TypeError(
                "activity_regularizer must be a mapping of globs over module.named_modules() to "
                f"regularizers, not {errors.described(rules)}; for example {{'*relu': 'l1'}}"
            )
        self.rules = checked_rules(rules, "activity_regularizer")._replace(
            allow_unmatched=allow_unmatched
        )
        modules = dict(module.named_modules())
        rule_of, _ = match(
            list(modules), self.rules, argument="activity_regularizer", thing="module"
        )
        hooked = [name for name, rule in rule_of.items() if rule is not None]
        axes_of, _ = match(
            hooked,
            Rules(by_glob, False, allow_unmatched),
            argument=outputs.ARGUMENT,
            thing="module with a regularizer",
        )
        for name in hooked:
            hook = _Hook(weakref.ref(self), rule_of[name], name, axes_of.get(name))
            # A tensor-parallel layer makes plain tensors of its DTensors by a hook of its own.
            first = replicas.is_parallel(modules[name])
            self._hooked[name] = weakref.ref(modules[name])
            self._handles.append(modules[name].register_forward_hook(hook, prepend=first))

    def take(self, scale: Any) -> Any:
        """Return the sum of the terms, 0-d, and forget them; 0.0 where there are none."""
        if scale is not None:
            scale = arguments.multiplier(scale, "scale")
        self._warn_of_lost()
        total = None if self.terms else torch.zeros(())
        for penalty, processes, module in self.terms:
            factor = processes if scale is None else scale
            if factor is None:
                raise replicas.no_tell(module)
            term = penalty if factor == 1.0 else penalty * factor
            # Modules on other devices, and penalties in float64 beside others in float32.
            total = term if total is None else total + term.to(total.device)
        self.terms, self._waiting = [], 0
        return total

    def require_taken(self) -> None:
        """Raise RuntimeError if a collected term is in no loss."""
        self._warn_of_lost()
        if self.terms:
            raise self._lost(len(self.terms))

    def require_taken_since(self) -> None:
        """Raise RuntimeError if a term is in no loss since the last call of this."""
        self._warn_of_lost()
        if 0 < self._waiting < len(self.terms):
            raise self._lost(self._waiting)
        self._waiting = len(self.terms)

    def _warn_of_lost(self) -> None:
        """Warn, once, of modules with a regularizer that are no longer in the module."""
        moved = [name for name, one in self._hooked.items() if self.enclosing(name)[0] is not one()]
        if not moved:
            return
        names = {id(one): name for name, one in self._module.named_modules()}
        lost = []
        for name in moved:
            hooked = self._hooked.pop(name)
            now = names.get(id(hooked()))
            if now is None:
                lost.append(name)
            else:  # inside of a wrapper, for example
                self._hooked[now] = hooked
        if lost:
            warn(
                f"modules that had an activity regularizer are no longer in the module: "
                f"{errors.listed(lost)}; attach anew to give what is there a regularizer"
            )

    def _lost(self, count: int) -> RuntimeError:
        self.terms, self._waiting = [], 0
        stage = (
            "; a pipeline stage without the loss cannot have activity penalties, so put them on "
            "modules of the last one"
        )
        return RuntimeError(
            f"{count} activity penalties were collected but are in no loss, so their gradients "
            "are missing from this step: add penalties.activity() to the loss before backward()"
            ", and run what is not trained on under torch.no_grad()"
            f"{stage if replicas.are_many() else ''}"
        )

    def close(self) -> None:
        """Remove the hooks, and forget the terms."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._hooked = {}
        self.terms, self._waiting = [], 0

    def enclosing(self, name: str) -> list[Any]:
        """Return the named module and those around it, the innermost first."""
        found = [self._module]
        for part in filter(None, name.split(".")):
            child = getattr(found[-1], part, None)
            if not isinstance(child, torch.nn.Module):
                break  # it was moved since
            found.append(child)
        return found[::-1]


def _checked_batch_axis(batch_axis: Any) -> tuple[dict[str, Any], int]:
    """Return the batch axes by glob, and that of all other modules."""
    label = outputs.ARGUMENT
    if isinstance(batch_axis, Mapping):
        return {
            glob: outputs.checked_axes(axes, f"{label}[{glob!r}]")
            for glob, axes in batch_axis.items()
        }, 0
    if isinstance(batch_axis, bool) or not isinstance(batch_axis, int):
        raise TypeError(
            f"{label} must be an axis (int), or a mapping of globs over module.named_modules() to "
            f"axes, not {errors.described(batch_axis)}"
        )
    return {}, batch_axis


class _Hook:
    """The forward hook of one module."""

    def __init__(
        self, owner: Callable[[], Activity | None], rule: Any, name: str, axes: Any
    ) -> None:
        self._owner = owner
        self._rule = rule
        self._name = name
        self._axes = axes
        self._has_collected = False

    def __call__(self, module: Any, inputs: Any, output: Any) -> None:
        owner = self._owner()
        if owner is None or not torch.is_grad_enabled():
            return
        label = f"module {self._name!r}"
        # Checkpointing runs forward() again during backward(), and needs all of it to be run.
        is_again = torch._C._current_graph_task_id() != -1
        if is_again and not self._has_collected:
            raise RuntimeError(
                f"{label} with an activity regularizer runs in backward() only, "
                "where its penalty is too late: call checkpoint(..., use_reentrant=False)"
            )
        are_many = replicas.are_many()
        enclosing = owner.enclosing(self._name) if are_many else []
        processes: float | None = 1.0
        if are_many and not owner.divides:
            processes = replicas.averaged_over(enclosing)
        for tensor, batch_size in outputs.activations(
            module, output, self._axes, owner.batch_axis, label
        ):
            if are_many:
                tensor = replicas.whole(tensor, enclosing, label)
            term = self._rule(tensor)
            if owner.divides:
                term = term / batch_size
            if not isinstance(term, torch.Tensor):
                term = torch.as_tensor(term, device=tensor.device)
            if is_again:
                continue
            if are_many:
                term = replicas.as_output(term, enclosing)
            self._has_collected = True
            owner.terms.append(_Term(term, processes, label))

    def __reduce__(self) -> tuple[Any, ...]:  # of copies, too
        return _Hook, (_nobody, None, self._name, None)


def _nobody() -> None:
    """The owner of the hook of a copied module."""
