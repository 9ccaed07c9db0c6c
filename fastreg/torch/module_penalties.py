"""Evaluate a module's penalties and accumulate their gradients into ``.grad``.

Contract
--------
- All or nothing: everything is checked before anything is written, and a gradient that is missing
  appears when all are added.
- Plain tensors that have gradients are one call of the core, which asks them for ``.grad`` itself.
  All others go a longer way, to the same bits.
- Each process adds what its shards need.  Their penalties are summed over the processes when
  somebody asks for the sum (:func:`summed`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from .._arrays import results, torch_agreement, torch_shards
from .._arrays.libraries import has_dtensors, is_dtensor
from .._arrays.torch_agreement import Terms
from .._autodiff.torch import dtensors, engines
from .._base import errors
from .._base.penalty import ADD, GRADIENT, VALUE, VALUE_AND_ADD
from .._engine import backend, calls
from .._engine.recording import claim, unclaimed
from ..penalties import Report, evaluation
from ..penalties.names import is_mapping
from ..penalties.plan import Arrays, Plan
from ..penalties.report import make_report, shares_of_zeros
from ..penalties.rules import rule_name
from . import in_backward
from .by_autograd import ByAutograd, OfComplex, as_real
from .parameters import ParameterPlanner, Parameters
from .steps import StepHandle

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))


class _PlainCall(NamedTuple):
    """Arguments of one native call for parameters that are all plain torch tensors."""

    plan: Plan
    weights: Arrays
    others: Arrays
    """Those with the rule None: they must not come to share memory with a penalised one."""
    frozen: Arrays


class _Sharded(NamedTuple):
    """The penalties of local shards, and their parameters."""

    penalties: list[float]
    parameters: Arrays
    together: torch_shards.Together


class ModulePenalties:
    """The penalties on the parameters of a module, as these are at each call."""

    def __init__(self, module: Any, rules: Any, allow_unmatched: bool = False) -> None:
        self.parameters: Parameters = Parameters(module)
        self.planner: ParameterPlanner = ParameterPlanner(rules, self.parameters, allow_unmatched)
        self.step: StepHandle | None = None
        """The handle of ``before_step``; its optimizer has to hold the parameters."""
        self.last_added: in_backward.LastAdded = in_backward.LastAdded()
        self._trained: list[bool] = []
        self._plain: _PlainCall | None = None
        self._groups: list[tuple[Any, str]] | None = None
        """The process groups that shard any parameter; None where none is a DTensor."""
        self._settled: tuple[Plan, int] | None = None
        """What processes have to agree on of a plan, but for its strengths."""
        self.current()

    def current(self) -> tuple[Plan, Arrays]:
        """Return a plan that fits the module as it is now, and the parameters with a penalty."""
        changed = self.parameters.read()
        by_name = self.parameters.by_name
        trained = [parameter.requires_grad for parameter in by_name.values()]
        if changed:
            everything = list(by_name.values())
            is_sharded = has_dtensors(everything)
            self._groups = torch_shards.process_groups(everything) if is_sharded else None
        if changed or trained != self._trained:
            self.planner.forget()
            self._plain = None
            self._trained = trained
        plan, weights = self.planner.ready(by_name)
        # The short way does not check whether an optimizer holds the parameters.
        if self.step is not None and self.step.is_active and not self.step.holds(weights):
            self._plain = None
        elif self._plain is None or self._plain.plan is not plan:
            self._plain = self._as_plain(plan, weights)
        engines.require_elements(weights, engines.parameter_label(plan.names))
        return plan, weights

    def _as_plain(self, plan: Plan, weights: Arrays) -> _PlainCall | None:
        by_name = self.parameters.by_name
        if self._groups is not None:
            return None
        frozen = tuple(by_name[name] for name in self.planner.frozen)
        penalised = set(map(id, weights))
        others = tuple(one for one in plan.others_untied(by_name) if id(one) not in penalised)
        if plan.others or plan.tied or not _PLAIN.issuperset(map(type, weights + others + frozen)):
            return None
        if not all(weight.is_leaf for weight in weights):  # of functional_call, for example
            return None
        torch_shards.local_tensors(weights, plan.names)  # refuses the parameters of FSDP1
        return _PlainCall(plan, weights, others, frozen)

    def value(self, scale: Any, tensors: Any = None) -> Any:
        """Return the penalty, differentiable while torch records gradients.

        `tensors` by name are instead of the parameters that have a penalty.
        """
        if tensors is None and torch.is_grad_enabled():
            term = self._in_loss(scale)
            if term is not None:
                return term
        plan, weights = self.current()
        if tensors is not None:
            return evaluation.value(plan, _given(plan, tensors), scale)
        together = None if torch.compiler.is_compiling() else self.together(plan, scale)
        if together is None:
            return evaluation.value(plan, weights, scale)
        local = local_shards(weights, plan)
        if not torch.is_grad_enabled():
            return summed(_Sharded(evaluation.values(plan, local, scale), weights, together))
        if any(plan.fused):
            port = types.SimpleNamespace(
                total=functools.partial(dtensors.total, together=together), factor=dtensors.factor
            )
            return evaluation.differentiable_value(port, plan, weights, scale)
        torch_shards.summed((), (), together)  # nothing to sum here, but others may have something
        return evaluation.value(plan, weights, scale)

    def _in_loss(self, scale: Any) -> Any:
        """Return the penalty with gradients that need no autograd; None where they need it."""
        if self._plain is None or not in_backward.is_possible(self._plain.weights, scale):
            return None
        penalty = self._quick(VALUE, scale, 1.0, True)
        if penalty is NotImplemented:
            plan, weights = self.current()
            try:
                penalty = evaluation.total(VALUE, plan, weights, None, scale, 1.0)
            except (TypeError, ValueError):  # the long way says it of tensors
                return None
            if self._plain is None or type(penalty) is not float:  # on a device
                return None
        plan, weights = self._plain.plan, self._plain.weights
        return in_backward.value(plan, weights, scale, penalty, self.last_added)

    def together(
        self, plan: Plan, scale: Any, grad_scale: Any = 1.0
    ) -> torch_shards.Together | None:
        """Return what the processes have to agree on; None where nothing is sharded."""
        if self._groups is None:
            return None
        return torch_shards.Together(self.terms(plan, scale, grad_scale), self._groups)

    def terms(
        self,
        plan: Plan,
        scale: Any,
        grad_scale: Any,
        values: Mapping[str, float] = types.MappingProxyType({}),
    ) -> Terms:
        """Return the names, rules, strengths, factors and parameters that make a penalty."""
        if self._settled is None or self._settled[0] is not plan:
            settled = self._described(plan, lambda rule: type(rule).__qualname__)
            self._settled = plan, torch_agreement.digest(repr((settled, plan.which)).encode())
        strengths = plan.strengths()
        content = repr((self._settled[1], strengths, scale, grad_scale, dict(values)))

        def describe() -> dict[str, str]:
            return {
                **self._described(plan, rule_name),
                "scale": str(scale),
                "grad_scale": str(grad_scale),
                **{f"the penalty of {name!r}": repr(value) for name, value in values.items()},
            }

        return Terms(content.encode(), describe)

    def check(self, group: Any) -> None:
        """Raise unless terms are equal in all processes of a group."""
        failed: Exception | None = None
        try:
            plan, weights = self.current()
            terms = self.terms(plan, 1.0, 1.0, self._values_of_replicas(plan, weights))
        except (TypeError, ValueError, RuntimeError) as error:
            failed = error  # the others wait for this process
            text = str(error)
            terms = Terms(text.encode(), lambda: {"attach": f"refused ({text})"})
        try:
            torch_agreement.require(terms, group)
        except RuntimeError as error:
            raise error from failed
        if failed is not None:
            raise failed

    def _values_of_replicas(self, plan: Plan, weights: Arrays) -> dict[str, float]:
        """Return penalties that have the same bits wherever the weights have."""
        if plan.others:  # what callables give need not have
            return {}
        local = local_shards(weights, plan)
        with torch.no_grad():
            values = evaluation.values(plan, local, 1.0)
        return {
            name: float(value)
            for name, value, weight in zip(plan.names, values, weights, strict=True)
            if torch_shards.is_whole(weight)
        }

    def _described(self, plan: Plan, name_of: Callable[[Any], str]) -> dict[str, str]:
        """Return what each parameter is, and its rule."""
        described = {}
        for name, parameter in self.parameters.by_name.items():
            rule = plan.rules.get(name)
            words = [
                "without a penalty" if rule is None else name_of(rule),
                *(() if parameter.requires_grad else ("frozen",)),
                f"of the shape {tuple(parameter.shape)} in {parameter.dtype}",
            ]
            described[repr(name)] = ", ".join(words)
        return described

    def is_in_gradients(self) -> bool:
        """Return whether a backward pass has added the penalty, and nothing happened since."""
        weights = () if self._plain is None else self._plain.weights
        return bool(weights) and self.last_added.is_unchanged(weights[0])

    def report(self, scale: Any) -> Report:
        """Return each parameter's penalty, share of zeros and rule."""
        plan, weights = self.current()
        everything = self.parameters.by_name
        local = local_shards(weights, plan)
        with torch.no_grad():
            values = evaluation.values(plan, local, scale)
        parameters = tuple(everything.values())
        parts = torch_shards.local_tensors(parameters)
        zeros = shares_of_zeros(plan, dict(zip(everything, parts, strict=True)))
        together = self.together(plan, scale)
        if together is not None:
            values = torch_shards.summed(values, weights, together)
            counts = [share * part.numel() for share, part in zip(zeros, parts, strict=True)]
            zeros = [
                count / max(parameter.numel(), 1)
                for count, parameter in zip(
                    torch_shards.summed(counts, parameters, together), parameters, strict=True
                )
            ]
        report = make_report(plan, values, zeros)
        for name, row in report.items():
            if isinstance(row.rule, (ByAutograd, OfComplex)):
                report[name] = row._replace(rule=row.rule.rule)
        return report

    def add(self, scale: Any, grad_scale: Any, value: bool, may_be_recorded: bool) -> Any:
        """Add the gradients, and return the penalty or what :func:`summed` makes it of."""
        outputs = VALUE_AND_ADD if value else GRADIENT | ADD
        found = self._quick(outputs, scale, grad_scale, may_be_recorded)
        if found is not NotImplemented:
            return found
        return self._add_to_any(outputs, scale, grad_scale, may_be_recorded)

    def _quick(self, outputs: int, scale: Any, grad_scale: Any, may_be_recorded: bool) -> Any:
        """Make one native call for parameters that are all plain, and those of the last call.

        NotImplemented, with nothing done, where they are not, or an argument is not right.
        """
        plain = self._plain
        if plain is None or not self.parameters.are_same():
            return NotImplemented
        plan = plain.plan
        if outputs & GRADIENT:
            engines.require_gradients(plain.weights, plan.names)
        else:
            engines.require_elements(plain.weights, engines.parameter_label(plan.names))
        strengths = plan.strengths()
        try:
            found = backend.accumulate_parameters(
                outputs,
                plan.names,
                plain.weights,
                plain.others,
                plain.frozen,
                strengths,
                plan.which,
                scale,
                grad_scale,
                may_be_recorded,
            )
            if type(found) is tuple:
                found = calls.finish_parameters(
                    outputs, found, plain.weights, strengths, scale, grad_scale
                )
        except (TypeError, ValueError):  # the long way says it of parameters
            return NotImplemented
        if found is not NotImplemented and unclaimed:
            claim(plan.strengths)
        return found

    def _add_to_any(self, outputs: int, scale: Any, grad_scale: Any, may_be_recorded: bool) -> Any:
        """Do it for parameters of every kind, and for missing gradients."""
        plan, weights = self.current()
        engines.require_gradients(weights, plan.names)
        if self.step is not None and self.step.is_active:
            self.step.require_held(plan.names, weights)
        made: list[tuple[Any, Any]] = []
        gradients = []
        for name, parameter in zip(plan.names, weights, strict=True):
            if not parameter.is_leaf:
                raise RuntimeError(
                    f"the parameter {name!r} is computed from other tensors (no leaf of the graph: "
                    "torch.func.functional_call puts such in, for example), so a gradient added "
                    "to its .grad would reach none of them; put penalties.value() into the loss"
                )
            gradient = parameter.grad
            if gradient is None:
                gradient = _new_gradient(parameter)
                made.append((parameter, gradient))
            elif gradient.layout is not torch.strided:
                raise TypeError(
                    f"the gradient of the parameter {name!r} is sparse, but that of a penalty has "
                    "no zeros; make the module with sparse=False, or give it no rule"
                )
            gradients.append(gradient)
        local = local_shards(weights, plan)
        together = self.together(plan, scale, grad_scale)
        targets = tuple(gradients)
        if together is not None:
            targets = torch_shards.local_gradients(targets, weights, plan.names)
        if not may_be_recorded:
            results.check_targets(targets, plan.names)
        if plan.others:
            local, targets = as_real(local), as_real(targets)
        try:
            # Before all are written, which is one call: after it, an interrupt could come between.
            for parameter, gradient in made:
                parameter.grad = gradient
            found: Any
            if together is not None:
                found = evaluation.total(outputs, plan, local, targets, scale, grad_scale, True)
                found = found if found is None else _Sharded(found, weights, together)
            else:
                found = evaluation.total(outputs, plan, local, targets, scale, grad_scale)
        except BaseException:
            _take_away(made)
            raise
        results.all_written(targets)
        return found


def _given(plan: Plan, tensors: Any) -> Arrays:
    """Return the tensors of the parameters that have a penalty, from a mapping by name."""
    if not is_mapping(tensors):
        raise TypeError(
            "tensors must be a mapping of tensors by the names of the parameters, not "
            f"{errors.described(tensors)}; pass dict(module.named_parameters()) for example"
        )
    missing = [name for name in plan.names if name not in tensors]
    if missing:
        raise ValueError(
            f"tensors has no {errors.listed(missing)}, which have a penalty; its names must be "
            "those of module.named_parameters()"
        )
    return tuple(tensors[name] for name in plan.names)


def _take_away(made: list[tuple[Any, Any]]) -> None:
    """Remove the gradients that were made for a call that has written nothing."""
    for parameter, gradient in made:
        local = gradient._local_tensor if is_dtensor(gradient) else gradient
        has_elements = type(local) is torch.Tensor and not local.is_meta  # fake ones have none
        if not (has_elements and local.any()):
            parameter.grad = None


def local_shards(parameters: Arrays, plan: Plan) -> Arrays:
    """Return the shards that this process holds."""
    evaluation.require_whole(plan, parameters)
    return torch_shards.local_tensors(parameters, plan.names)


def summed(found: Any) -> Any:
    """Return a penalty, summed over the processes where it is of sharded parameters."""
    if not isinstance(found, _Sharded):
        return found
    return backend.canonical_sum(
        torch_shards.summed(found.penalties, found.parameters, found.together)
    )


def _new_gradient(parameter: Any) -> Any:
    """Make a gradient of zeros, laid out as torch's own would be."""
    with torch.no_grad():
        dtype = in_backward.gradient_dtype(parameter)
        gradient = torch.zeros_like(parameter, dtype=dtype)
        if gradient.stride() != parameter.stride():  # its elements do not lie close together
            gradient = torch.zeros_like(
                parameter, dtype=dtype, memory_format=torch.contiguous_format
            )
    return gradient.detach()
