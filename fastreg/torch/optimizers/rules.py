"""The rule of each parameter of an optimizer, and the mode in which it acts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch.nn.parameter import is_lazy

from ..._base import arguments, errors
from ...optimizers.rules import MODES, Mode, Ruled, split
from ...penalties.rules import Rule, rule_name
from ...regularizers.elementwise import is_fused
from ..kinds import Kernels
from ..parameters import ModuleRules, ParameterPlanner, is_predicate

Parameters: TypeAlias = (
    torch.nn.Module
    | Iterable[torch.Tensor]
    | Iterable[tuple[str, torch.Tensor]]
    | Iterable[dict[str, Any]]
)
"""What torch's optimizers take, or a module."""

_Moded: TypeAlias = tuple[Rule | Kernels, Mode]
ModedRules: TypeAlias = Mapping[str, Rule | Kernels | _Moded] | ModuleRules | _Moded
"""Rules as users of an optimizer pass them."""


class ParameterRules:
    """Rules that are matched with parameters by name.

    Each is what ``fastreg.torch.attach`` takes, or a pair of that and a mode of its own.
    """

    def __init__(self, rules: Any, mode: Any, kinds: Mapping[int, str] | None) -> None:
        self._mode: str = arguments.choice(mode, "mode", MODES)
        self._modes: dict[str, str] = {}
        """The mode by glob; of a function, by name."""
        self._parameters = _Named(kinds)
        self.are_by_name: bool = isinstance(rules, Mapping) or is_predicate(rules)
        """Whether parameters need names."""
        self._planner = ParameterPlanner(self._without_modes(rules), self._parameters)
        self._asks = is_predicate(rules)

    @property
    def modes(self) -> Collection[str]:
        """The modes that rules have; of a function, those that it has given."""
        return self._modes.values()

    def _without_modes(self, rules: Any) -> Any:
        if is_predicate(rules):
            return _Asking(rules, self._mode, self._modes)
        if isinstance(rules, Mapping) and not isinstance(rules.get("class_name"), str):
            pairs = {
                glob: split(rule, self._mode, f"rules[{glob!r}]") for glob, rule in rules.items()
            }
            self._modes = {glob: mode for glob, (_, mode) in pairs.items()}
            return {glob: rule for glob, (rule, _) in pairs.items()}
        rule, self._modes["*"] = split(rules, self._mode, "rules")
        return rule

    def of(self, parameters: Mapping[str, Any], aliases: Mapping[str, str]) -> dict[str, Ruled]:
        """Return what acts on each parameter that has a rule.

        `aliases` are further names of tied parameters, each with the first one.
        """
        self._parameters.by_name, self._parameters.further = parameters, aliases
        lazy = [name for name, one in parameters.items() if is_lazy(one)]
        if lazy:
            raise TypeError(
                f"the parameters {errors.listed(lazy)} are lazy: what they are is not known yet, "
                "nor whether they have a rule; run the module once before its optimizer is made"
            )
        rule_of, origins = self._planner.rule_by_name([*parameters], parameters)
        found = {}
        for name, rule in rule_of.items():
            if rule is None:
                continue
            _require_fused(rule, name)
            found[name] = Ruled(rule, self._modes[name if self._asks else origins[name]])
        return found


class _Asking:
    """A function of name and parameter without the modes, which it keeps; it can be pickled."""

    def __init__(self, rules: Callable[[str, Any], Any], mode: str, modes: dict[str, str]) -> None:
        self._rules = rules
        self._mode = mode
        self._modes = modes

    def __call__(self, name: str, parameter: Any) -> Any:
        label = f"rules({name!r}, parameter)"
        rule, self._modes[name] = split(self._rules(name, parameter), self._mode, label)
        return rule


class _Named:
    """What the rules ask of parameters: their kinds, and their further names."""

    def __init__(self, kinds: Mapping[int, str] | None) -> None:
        self._kinds = kinds
        self.by_name: Mapping[str, Any] = {}
        self.further: Mapping[str, str] = {}

    def aliases(self) -> dict[str, str]:
        return dict(self.further)

    def kinds(self) -> dict[str, str]:
        if self._kinds is None:
            raise TypeError(
                "rules has fastreg.torch.kernels(...), which tells weights by the modules that "
                "hold them; pass the module itself as params, or write globs"
            )
        try:
            return {name: self._kinds[id(one)] for name, one in self.by_name.items()}
        except KeyError:
            unknown = [name for name, one in self.by_name.items() if id(one) not in self._kinds]
            raise ValueError(
                f"the parameters {errors.listed(unknown)} were not in the module when this "
                "optimizer was made, and fastreg.torch.kernels(...) tells weights by it; make a "
                "new optimizer of the module"
            ) from None


def needs_kinds(rules: Any) -> bool:
    """Return whether rules ask what parameters are to the modules that hold them."""
    each = rules.values() if isinstance(rules, Mapping) else [rules]
    return any(
        isinstance(one[0] if isinstance(one, tuple) and one else one, Kernels) for one in each
    )


def _require_fused(rule: Any, name: str) -> None:
    if not is_fused(rule):
        raise TypeError(
            f"the rule of the parameter {name!r}, {rule_name(rule)}, has no step of its own in an "
            "optimizer, which takes L1, L2 and L1L2; leave it out here, and add it to the loss: "
            "loss + fastreg.torch.attach(module, rules).value()"
        )
