"""The parameters of a module as they are at each call, and their rules.

Contract
--------
- Names are those of ``named_parameters()``; a tied parameter counts under its first name.
- A parameter may be replaced, moved, frozen or tied between calls.  The check that nothing has
  changed takes 5 us for 200 layers.
- A parameter with ``requires_grad=False`` keeps its rule but has no penalty.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, Protocol, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from .. import regularizers
from .._base import errors
from .._base.warnings import warn
from .._engine import backend
from ..penalties import callables
from ..penalties.names import Names
from ..penalties.plan import Planner
from ..penalties.rules import (
    GivenRules,
    Rule,
    checked_rule,
    checked_rules,
    match,
    matcher,
    rule_name,
)
from ..regularizers.elementwise import is_fused
from .by_autograd import ByAutograd, OfComplex
from .kinds import Kernels, kinds

Predicate = Callable[[str, Any], Any]

ModuleRules: TypeAlias = (
    Kernels | Mapping[str, Rule | Kernels] | Callable[[str, torch.nn.Parameter], Any] | GivenRules
)
"""Rules as users of a module pass them."""


class Parameters:
    """The named parameters of a module, read again when its modules have changed."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self.by_name: dict[str, Any] = {}
        self.are_same: Callable[[], bool] = bool
        """Whether the module has the parameters that :meth:`read` found last."""

    def aliases(self) -> dict[str, str]:
        """Return the further names of tied parameters, each with its first name."""
        first = {id(parameter): name for name, parameter in self.by_name.items()}
        return {
            name: first[id(parameter)]
            for name, parameter in self._module.named_parameters(remove_duplicate=False)
            if first.get(id(parameter), name) != name
        }

    def kinds(self) -> dict[str, str]:
        """Return the kind of each parameter by name; see :mod:`fastreg.torch.kinds`."""
        by_id = kinds(self._module)
        return {name: by_id[id(parameter)] for name, parameter in self.by_name.items()}

    def read(self) -> bool:
        """Read the parameters; return whether they may have changed."""
        if self.are_same():
            return False
        # All that named_parameters() goes through: a change is a change of one of these dicts.
        dicts = [
            members
            for module in self._module.modules()
            for members in (module._parameters, module._modules)
        ]
        self.by_name = dict(self._module.named_parameters())
        self.are_same = self._test_of(tuple(dicts))
        return True

    def _test_of(self, dicts: tuple[dict[str, Any], ...]) -> Callable[[], bool]:
        """Return the quickest test of whether the parameters are those in these dicts of now."""
        if not all(isinstance(members, dict) for members in dicts):
            return bool  # TorchScript keeps its parameters elsewhere: they are read at each call
        members = tuple(member for members in dicts for member in members.values())
        have_members = functools.partial(backend.have_members, dicts, members)
        # A lazy parameter stays the same object when it gets its shape.
        lazy = tuple(filter(is_lazy, self.by_name.values()))
        # The end of pruning gives a parameter its old name back, in its place.
        is_pruned = any(name.endswith("_orig") for name in self.by_name)
        if not lazy and not is_pruned:
            return have_members
        keys = [*chain.from_iterable(dicts)]
        return lambda: (
            have_members()
            and all(map(is_lazy, lazy))
            and (not is_pruned or keys == [*chain.from_iterable(dicts)])
        )


class Described(Protocol):
    """What rules ask of parameters beside their names."""

    def aliases(self) -> dict[str, str]: ...
    def kinds(self) -> dict[str, str]: ...


class ParameterPlanner(Planner):
    """Matches rules with parameters; rules may be a predicate."""

    def __init__(self, rules: Any, parameters: Described, allow_unmatched: bool = False) -> None:
        self._parameters = parameters
        self._predicate: Predicate | None = rules if is_predicate(rules) else None
        self._kernels: dict[str, Kernels] = {}
        """The rules of :func:`fastreg.torch.kernels`, by glob."""
        if self._predicate is not None:
            rules = {}
        elif isinstance(rules, Kernels):
            rules = {"*": rules}
        if isinstance(rules, Mapping):
            self._kernels = {
                glob: rule for glob, rule in rules.items() if isinstance(rule, Kernels)
            }
        if self._kernels:
            rules = {**rules, **{glob: rule.regularizer for glob, rule in self._kernels.items()}}
        super().__init__(checked_rules(rules)._replace(allow_unmatched=allow_unmatched))
        self.unmatched: list[str] = []
        """Globs that match no parameter, where ``allow_unmatched``."""
        self.frozen: list[str] = []
        """Names of parameters that have a rule and ``requires_grad=False``."""
        self._wrapped: dict[tuple[int, bool], ByAutograd | OfComplex] = {}
        self._ruled: dict[str, Any] = {}
        """The parameters that had a rule when they were last matched."""

    def matched(self, names: Names, source: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """As in the base class, for parameters that require grad."""
        rule_of, origins = self.rule_by_name(names, source)
        before = self._ruled
        self._ruled = {name: source[name] for name, rule in rule_of.items() if rule is not None}
        self.frozen = [name for name, one in self._ruled.items() if not one.requires_grad]
        gone = {name: one for name, one in before.items() if name not in source}
        if gone:
            self._warn_of_lost(gone, source)
        trained = {
            name: self._with_gradient(rule, name, source[name].is_complex())
            for name, rule in rule_of.items()
            if source[name].requires_grad
        }
        return trained, origins

    def rule_by_name(self, names: Names, source: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the rule of each matched parameter, frozen ones too, and where it is from."""
        if self._predicate is None:
            return self._matched_by_glob(names, source)
        rule_of = _asked(self._predicate, names, source, self.rules.allow_unmatched)
        return rule_of, {name: rule_name(rule) for name, rule in rule_of.items()}

    def _matched_by_glob(self, names: Names, source: Any) -> tuple[dict[str, Any], dict[str, str]]:
        kind_of = self._parameters.kinds() if self._kernels else {}

        def takes(name: str, glob: str) -> bool:
            rule = self._kernels.get(glob)
            return rule is None or rule.takes(kind_of[name])

        for glob, rule in self._kernels.items():
            candidates = [*filter(matcher(glob, names), names)]
            if (
                candidates
                and not self.rules.allow_unmatched
                and not any(rule.takes(kind_of[name]) for name in candidates)
            ):
                raise ValueError(
                    f"rules[{glob!r}], which is for kernels, matches none: "
                    f"{errors.listed(candidates)} are no weights that multiply activations, as "
                    "fastreg.torch.kernels tells; give the glob the regularizer itself"
                )
        rule_of, globs = match(names, self.rules, takes, self._parameters.aliases)
        winners = set(globs.values())
        self.unmatched = [glob for glob in self.rules.by_glob if glob not in winners]
        if self._kernels:  # their lazy parameters have the rule once they have a shape
            rule_of = {
                name: rule
                for name, rule in rule_of.items()
                if globs[name] not in self._kernels or not is_lazy(source[name])
            }
        return rule_of, globs

    def _warn_of_lost(self, gone: dict[str, Any], source: Any) -> None:
        """Warn of names with a rule that are gone, where what replaced them has none."""
        tied_to = self._parameters.aliases()
        lost = []
        for name, parameter in gone.items():
            heirs = [tied_to[name]] if name in tied_to else _heirs(name, parameter, source)
            if not any(heir in self._ruled for heir in heirs):
                became = f" (now {errors.listed(heirs)}, without a rule)" if heirs else ""
                lost.append(f"{name!r}{became}")
        if lost:
            warn(
                f"parameters that had a penalty are no longer in the module: {', '.join(lost)}; "
                "attach anew with rules that take what is there, as fastreg.torch.kernels(...) "
                "does where layers are pruned or parametrized"
            )

    def _with_gradient(self, rule: Any, name: str, is_complex: bool) -> Any:
        if is_complex and is_fused(rule):
            raise TypeError(
                f"the parameter {name!r} is complex, and {rule_name(rule)} is for real ones; give "
                "it a function as its rule, lambda w: regularizer(torch.view_as_real(w)) for "
                "example, or None"
            )
        if rule is None or (callables.has_gradient(rule) and not is_complex):
            return rule
        found = self._wrapped.get((id(rule), is_complex))
        if found is None:
            found = rule if callables.has_gradient(rule) else ByAutograd(rule)
            found = OfComplex(found, rule) if is_complex else found
            self._wrapped[id(rule), is_complex] = found
        return found


def _heirs(name: str, parameter: Any, source: Mapping[str, Any]) -> list[str]:
    """Return the names of what a parameter was renamed to or is computed from."""
    same = [other for other, one in source.items() if one is parameter]
    if same:
        return same
    path, dot, last = name.rpartition(".")
    made_of = f"{path}{dot}parametrizations.{last}."
    renamed = {f"{name}_orig", f"{name}_g", f"{name}_v"}
    return [other for other in source if other in renamed or other.startswith(made_of)]


def is_predicate(rules: Any) -> bool:
    """Return whether `rules` is a function of name and parameter, not a regularizer."""
    if isinstance(rules, (Mapping, str, regularizers.Regularizer)) or not callable(rules):
        return False
    try:
        parameters = inspect.signature(rules).parameters.values()
    except (TypeError, ValueError):  # built-in functions of some kinds
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [
        one for one in parameters if one.kind in places and one.default is inspect.Parameter.empty
    ]
    return len(required) == 2


def _asked(predicate: Predicate, names: Names, source: Any, allow_none: bool) -> dict[str, Any]:
    """Return the rule that a predicate has for each parameter; it must have one for some."""
    found: dict[str, Any] = {}
    for name in names:
        if is_lazy(source[name]):
            continue  # it is asked for once it has a shape
        rule = checked_rule(predicate(name, source[name]), f"rules({name!r}, parameter)")
        if rule is not None:
            found[name] = rule
    if names and not found and not allow_none and not any(map(is_lazy, source.values())):
        raise ValueError(
            "rules(name, parameter) gave None for all parameters, so nothing would have a penalty; "
            f"the names are {errors.listed(names)}"
        )
    return found


def require_module(module: Any) -> None:
    """Raise TypeError for an object that is not a module."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module, not {errors.described(module)}; for a mapping or "
            "sequence of tensors use fastreg.attach"
        )
