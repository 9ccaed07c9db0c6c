"""Rules: regularizers by glob, matched against names, and callables as rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

from .. import regularizers
from .._base import errors
from ..regularizers.saved_forms import converted, warn_of_nothing
from . import callables
from .names import Names

Takes = Callable[[str, str], bool]
"""Whether the rule of a glob that matches a name takes it, given the name and the glob."""

Rule: TypeAlias = (
    regularizers.Regularizer
    | str
    | type[regularizers.Regularizer]
    | Callable[[Any], Any]
    | Mapping[str, str | Mapping[str, Any] | None]
    | None
)
"""What ``fastreg.regularizers.get`` takes; the mapping is a saved form."""

GivenRules: TypeAlias = Mapping[str, Rule] | Rule
"""Rules as users pass them: by glob, or one for all tensors."""


class Rules(NamedTuple):
    """Regularizers by glob or name; the first that matches a name wins."""

    by_glob: dict[str, Any]
    for_all: bool
    """Whether one regularizer was given for all tensors: then it may be without any."""
    allow_unmatched: bool = False
    """Whether a glob may match nothing; one that another takes everything from is refused."""


def checked_rules(rules: Any, argument: str = "rules") -> Rules:
    """Return the rules that a user passed as `argument`, which is their name in errors."""
    if not isinstance(rules, Mapping) or isinstance(rules.get("class_name"), str):
        return Rules({"*": checked_rule(rules, argument)}, True)
    checked: dict[str, Any] = {}
    for glob, rule in rules.items():
        if not isinstance(glob, str):
            raise TypeError(
                f"{argument} must have globs (str) as keys, not {errors.described(glob)}; for "
                'example {"*kernel": "l2"}'
            )
        checked[glob] = checked_rule(rule, f"{argument}[{glob!r}]")
    return Rules(checked, False)


def checked_rule(given: Any, label: str) -> Any:
    """Return the regularizer that a user's rule stands for, or None; errors begin with `label`."""
    with errors.prefixed(label):
        found = converted(regularizers.get(given))
    warn_of_nothing(given, found, label)
    return found


def matcher(glob: str, names: Names) -> Callable[[str], bool]:
    """Return the test of a name: a glob that is a name itself matches that one alone.

    >>> list(filter(matcher("w[01]", ["w0", "w1", "w2"]), ["w0", "w1", "w2"]))
    ['w0', 'w1']
    >>> list(filter(matcher("w[0]", ["w0", "w[0]"]), ["w0", "w[0]"]))
    ['w[0]']
    """
    return glob.__eq__ if glob in names else lambda name: fnmatchcase(name, glob)


def match(
    names: Names,
    rules: Rules,
    takes: Takes = lambda name, glob: True,
    aliases: Callable[[], Mapping[str, str]] = dict,
    argument: str = "rules",
    thing: str = "tensor",
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the rule of each matched name, and the glob that won it.

    `aliases` gives further names of tensors, each with the one that the tensor counts under.
    Errors say `argument` for the rules, and `thing` for what the names are of.
    """
    if rules.for_all:
        globs = dict.fromkeys(names, "*")
        return {name: rules.by_glob["*"] for name in names}, globs
    matchers = {glob: matcher(glob, names) for glob in rules.by_glob}
    globs = {}
    for name in names:
        for glob, matches in matchers.items():
            if matches(name) and takes(name, glob):
                globs[name] = glob
                break
    winners = set(globs.values())
    for glob, matches in matchers.items():
        if glob not in winners:
            matched = [name for name in names if matches(name) and takes(name, glob)]
            label = f"{argument}[{glob!r}]"
            known = aliases()
            if not rules.allow_unmatched or matched or any(map(matcher(glob, [*known]), known)):
                raise ValueError(_never_wins(label, glob, names, matched, globs, known, thing))
    return {name: rules.by_glob[glob] for name, glob in globs.items()}, globs


def _never_wins(
    label: str,
    glob: str,
    names: Names,
    shadowed: Names,
    globs: Mapping[str, str],
    aliases: Mapping[str, str],
    thing: str,
) -> str:
    if shadowed:
        earlier = list(dict.fromkeys(globs[name] for name in shadowed))
        return (
            f"{label} never wins: all it matches ({errors.listed(shadowed)}) is matched "
            f"by {errors.listed(earlier)} before it; put it first or remove it"
        )
    if not names:
        none = "tensors is empty" if thing == "tensor" else "there is none"
        return f"{label} matches no {thing}: {none}"
    matches = matcher(glob, [*aliases])
    tied = {name: first for name, first in aliases.items() if matches(name)}
    if tied:
        pairs = ", ".join(f"{name!r} to {first!r}" for name, first in tied.items())
        return (
            f"{label} matches only further names of tied tensors ({pairs}), which have one "
            f"penalty, under their first name; write {next(iter(tied.values()))!r} instead"
        )
    literal = glob.replace("[", "[[]")
    if any(fnmatchcase(name, literal) for name in names):
        return (
            f"{label} matches no {thing}: in a glob, brackets are a choice of characters; "
            f"write {literal!r}"
        )
    # A glob is near to a name when its letters are: "*" and "?" are no help in that.
    near = errors.suggestion(glob.strip("*?"), names) or errors.suggestion(glob, names)
    return (
        f"{label} matches no {thing}{near}; the names are {errors.listed(names)}, and a "
        "glob must match a whole name, as '*kernel' does"
    )


def same_rule(one: Any, other: Any) -> bool:
    """Return whether two rules are equal now; only regularizers are known to compare."""
    return isinstance(one, regularizers.Regularizer) and bool(one == other)


def rule_name(rule: Any) -> str:
    """Return what messages and reports call a rule."""
    return repr(rule) if isinstance(rule, regularizers.Regularizer) else errors.name_of(rule)


def called(rule: Any, name: str, weight: Any) -> float:
    """Call a rule that is a callable of one array."""
    return callables.number(rule(weight), callables.penalty_label(name))
