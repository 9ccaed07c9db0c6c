"""The rules of an optimizer: regularizers by glob, each with the mode in which it acts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

from .._base import arguments, errors, steps
from .._base.float_environment import products
from .._base.steps import Settings
from ..penalties.plan import STRENGTHS
from ..penalties.rules import Rule, Rules, checked_rules, rule_name
from ..regularizers.elementwise import Elementwise, is_fused

MODES = ("gradient", "proximal", "decoupled")
Mode: TypeAlias = Literal["gradient", "proximal", "decoupled"]
GivenModed: TypeAlias = Mapping[str, Rule | tuple[Rule, Mode]] | Rule | tuple[Rule, Mode]
"""Rules as users of an optimizer pass them."""


class Moded(NamedTuple):
    """Rules, and the mode of each by its glob."""

    rules: Rules
    modes: dict[str, str]


class Ruled(NamedTuple):
    """What acts on a tensor."""

    rule: Elementwise
    mode: str


def checked(rules: Any, mode: Any) -> Moded:
    """Return the rules that a user passed; a pair (regularizer, mode) has a mode of its own.

    >>> checked({"*kernel": ("l1", "gradient"), "*": "l2"}, "proximal").modes
    {'*kernel': 'gradient', '*': 'proximal'}
    """
    general = arguments.choice(mode, "mode", MODES)
    if not isinstance(rules, Mapping) or isinstance(rules.get("class_name"), str):
        rule, own = split(rules, general, "rules")
        return Moded(checked_rules(rule), {"*": own})
    pairs = {glob: split(rule, general, f"rules[{glob!r}]") for glob, rule in rules.items()}
    plain = checked_rules({glob: rule for glob, (rule, _) in pairs.items()})
    return Moded(plain, {glob: own for glob, (_, own) in pairs.items()})


def split(given: Any, mode: str, label: str) -> tuple[Any, str]:
    """Return a regularizer and its mode, of a pair or of one without a mode of its own."""
    if not isinstance(given, tuple):
        return given, mode
    if len(given) != 2:
        raise ValueError(
            f"{label} must be a regularizer or a pair (regularizer, mode), not a tuple of "
            f"{len(given)}"
        )
    return given[0], arguments.choice(given[1], f"the mode of {label}", MODES)


def acting(
    plain: Settings, one: Ruled, strength: float, factor: float, is_scaled: bool
) -> Settings:
    """Return the settings of tensors with a rule, given those of tensors without one.

    `factor` is that of decoupled strengths; `is_scaled` is about AdamW's proximal steps.
    """
    l1, l2 = products(STRENGTHS(one.rule), strength)
    is_scaled = is_scaled and plain.algorithm == steps.ADAMW
    modes = {
        "gradient": steps.GRADIENT,
        "proximal": steps.SCALED if is_scaled else steps.PROXIMAL,
        "decoupled": steps.DECOUPLED,
    }
    return plain._replace(mode=modes[one.mode], l1=l1, l2=l2, factor=factor)


def require_acting(
    modes: Collection[str], cautious: bool, independent: bool, unscaled: bool
) -> None:
    """Refuse options of a mode that no rule has: they would do nothing."""
    for option, is_given, mode in (
        ("cautious=True", cautious, "decoupled"),
        ("independent=True", independent, "decoupled"),
        ("scaled=False", unscaled, "proximal"),
    ):
        if is_given and mode not in modes:
            raise ValueError(
                f'{option} is for rules of the mode "{mode}", and no rule has it; leave it out, or '
                f'pass mode="{mode}" or a pair (regularizer, "{mode}")'
            )


def require_fused(rule: Any, name: str) -> None:
    """Refuse a rule that an optimizer's step cannot take in."""
    if not is_fused(rule):
        raise TypeError(
            f"the rule of tensors[{name!r}], {rule_name(rule)}, has no step of its own in an "
            "optimizer, which takes L1, L2 and L1L2; leave it out here, and before each step call "
            "fastreg.attach(tensors, rules).accumulate(grads) for it"
        )


def require_same(first: tuple[str, Ruled], second: tuple[str, Ruled]) -> None:
    """Refuse two modes for tensors that are tied."""
    if first[1].mode != second[1].mode:
        raise ValueError(
            f"tensors[{first[0]!r}] and tensors[{second[0]!r}] are tied (the same memory) but have "
            f"rules of different modes, {errors.listed((first[1].mode, second[1].mode))}; give "
            "both the same"
        )
