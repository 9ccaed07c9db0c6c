"""Plans: the rule of each tensor, and the selection of arrays from a caller's collection.

Contract: a plan follows from names, rules and ties, and stays until one of them changes.  If the
names are unchanged, arrays are selected without a Python loop.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Mapping
from itertools import compress
from typing import Any

from .._arrays import cuda
from .._arrays.libraries import ALL_NUMPY, has_dtensors, is_dtensor, owner, port_of
from .._autodiff import dispatch
from .._base import errors, memory
from .._engine import backend, calls
from ..regularizers.elementwise import Elementwise, is_fused
from .names import Names, is_mapping, names_of, numbered, require_kept, require_strings
from .rules import Rules, match, same_rule

Arrays = tuple[Any, ...]
STRENGTHS = operator.attrgetter("_l1", "_l2")
"""Return the strengths (l1, l2) of a rule that the core evaluates."""


class Selection:
    """Pick some of the arrays of a mapping or sequence whose names are known, as a tuple."""

    __slots__ = ("_all_wanted", "_getter", "_mask", "names", "wanted")

    def __init__(self, names: Names, wanted: Names) -> None:
        self.names: Names = names
        self.wanted: Names = wanted
        # A dict's values come in the order of its names; where the wanted ones do too, they are
        # picked by position, which is several times faster than by name.
        chosen = set(wanted)
        in_order = [name for name in names if name in chosen] == wanted
        self._mask: tuple[bool, ...] | None = (
            tuple(name in chosen for name in names) if in_order else None
        )
        self._all_wanted = len(wanted) == len(names)
        self._getter = _by_names(wanted)

    def of_same_names(self, source: Any, argument: str) -> Arrays | None:
        """Pick the arrays of what a caller passed as `argument`; None where it has other names."""
        kind = type(source)
        if kind is dict:
            are_same = [*source] == self.names
        elif kind is list or kind is tuple:
            are_same = numbered(len(source)) == self.names
        else:
            are_same = names_of(source, argument) == self.names
        return self(source) if are_same else None

    def __call__(self, source: Any) -> Arrays:
        if type(source) is dict and self._mask is not None:
            arrays = source.values()
        elif is_mapping(source):
            return self._getter(source)
        else:
            arrays = source
            if self._mask is None:
                position = {name: index for index, name in enumerate(self.names)}
                return tuple(arrays[position[name]] for name in self.wanted)
        return tuple(arrays) if self._all_wanted else tuple(compress(arrays, self._mask))


def _by_names(names: Names) -> Callable[[Any], Arrays]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    return functools.partial(_few_by_name, names)  # unlike a lambda, it can be pickled


def _few_by_name(names: Names, source: Any) -> Arrays:
    return tuple(source[name] for name in names)


class Plan:
    """The tensors that have a penalty, their rules, and where to find their arrays."""

    __slots__ = (
        "_gradients",
        "_tied_rules",
        "_unique",
        "_untied",
        "fused",
        "names",
        "others",
        "rules",
        "source",
        "tied",
        "which",
    )

    def __init__(
        self,
        names: Names,
        rules: dict[str, Any],
        tied: tuple[tuple[str, str], ...],
        rule_of: Mapping[str, Any],
    ) -> None:
        wanted = [name for name in names if name in rules]
        self.names: tuple[str, ...] = tuple(wanted)
        """Tensors with a penalty, in mapping order."""
        self.rules: dict[str, Any] = rules
        self.tied: tuple[tuple[str, str], ...] = tied
        """Pairs of a tied tensor's name and the name it counts under."""
        self._tied_rules = [(rule_of[name], rule_of[first]) for name, first in tied]
        self.source: Selection = Selection(names, wanted)
        # A tensor with the rule None has no penalty, but must not come to be tied to one that has.
        folded = {name for name, _ in tied}
        untied = [name for name in names if name in rule_of and name not in folded]
        self._untied = None if untied == wanted else Selection(names, untied)
        self._gradients = self.source
        self.fused: tuple[bool, ...] = tuple(is_fused(rules[name]) for name in self.names)
        """Which of `names` the core evaluates."""
        self.others: bool = not all(self.fused)
        places: dict[int, int] = {}
        unique: list[Elementwise] = []
        which = []
        for name in compress(self.names, self.fused):
            rule = rules[name]
            place = places.setdefault(id(rule), len(unique))
            if place == len(unique):
                unique.append(rule)
            which.append(place)
        self._unique = tuple(unique)
        self.which: tuple[int, ...] = tuple(which)
        """For each tensor that the core evaluates, the index of its strengths."""

    def strengths(self) -> tuple[tuple[float, float], ...]:
        """Read the strengths of this moment."""
        return tuple(map(STRENGTHS, self._unique))

    def others_untied(self, source: Any) -> Arrays:
        """Pick the tensors that must not come to share memory, where any has no penalty."""
        return () if self._untied is None else self._untied(source)

    def still_tied(self, source: Any) -> bool:
        """Return whether what was tied still is, by rules that are still the same."""
        if not all(one is other or same_rule(one, other) for one, other in self._tied_rules):
            return False
        names = self.source.names
        pairs = Selection(names, [name for pair in self.tied for name in pair])(source)
        return all(
            len(ties({"first": pairs[place], "second": pairs[place + 1]})) == 1
            for place in range(0, len(pairs), 2)
        )

    def gradients(self, grads: Any) -> Arrays:
        """Pick the gradients to write of the penalised tensors, once names have shown to fit."""
        picked = self._gradients.of_same_names(grads, "grads")
        if picked is None:
            names = names_of(grads, "grads")
            self._require_fitting(names)
            # Not read again: another thread may have put one for another order there.
            self._gradients = selection = Selection(names, self.source.wanted)
            picked = selection(grads)
        if type(grads) is not dict:
            require_kept(grads, self.names, picked, "grads")
        return picked

    def _require_fitting(self, names: Names) -> None:
        """Refuse gradients of unknown names, and missing ones."""
        require_known(names, self.source.names)
        given = set(names)
        for name in self.names:
            if name not in given:
                raise ValueError(
                    f"grads[{name!r}] is missing, but tensors[{name!r}] has a penalty; pass "
                    "its gradient, zeros for example"
                )


def require_known(names: Names, tensors: Names) -> None:
    """Refuse gradients of unknown names."""
    require_strings(names, "grads")
    known = set(tensors)
    for name in names:
        if name not in known:
            raise ValueError(
                f"grads[{name!r}] is the gradient of no tensor{errors.suggestion(name, known)}; "
                f"the tensors are {errors.listed(tensors)}"
            )


class Planner:
    """Return the plan that fits names, ties and rules of each call; it is kept while they stay."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self._plan: Plan | None = None

    def matched(self, names: Names, source: Any) -> tuple[dict[str, Any], dict[str, str]]:
        """Return each name that has one its rule, and what messages call where the rule is from."""
        return match(names, self.rules)

    def ready(self, source: Any) -> tuple[Plan, Arrays]:
        """Return a plan that fits this moment, and the penalised arrays."""
        plan = self._plan
        weights = None if plan is None else plan.source.of_same_names(source, "tensors")
        if plan is None or weights is None:
            self._plan = plan = self._resolved(source)
            weights = plan.source(source)
        # New arrays can bring new ties or undo old ones, and new strengths make rules differ that
        # were equal: tests that are quick where nothing changed.
        if share_address(weights if plan._untied is None else plan._untied(source)) or (
            plan.tied and not plan.still_tied(source)
        ):
            fresh = self._resolved(source)
            if (fresh.names, fresh.tied) != (plan.names, plan.tied):
                self._plan = plan = fresh
                weights = plan.source(source)
        return plan, weights

    def forget(self) -> None:
        """Have rules matched again at the next call."""
        self._plan = None

    def _resolved(self, source: Any) -> Plan:
        names = names_of(source, "tensors")
        require_strings(names, "tensors")
        return resolve(names, source, *self.matched(names, source))


def resolve(
    names: Names, source: Any, rule_of: Mapping[str, Any], origins: Mapping[str, str]
) -> Plan:
    """Make a plan of rules by name, and fold tied tensors.

    `origins` says for each name where its rule is from, for messages.
    """
    ruled = [name for name in names if name in rule_of]
    arrays = dict(zip(ruled, Selection(names, ruled)(source), strict=True))
    tied = ties(
        {
            name: array
            for name, array in arrays.items()
            # What a callable or no rule takes need not be an array that fastreg can read.
            if isinstance(rule_of[name], Elementwise) or cuda.is_readable(array)
        }
    )
    for name, first in tied.items():
        if rule_of[name] is not rule_of[first] and not same_rule(rule_of[name], rule_of[first]):
            raise ValueError(
                f"tensors[{first!r}] and tensors[{name!r}] are tied (the same memory) but have "
                f"different rules, {origins[first]!r} and {origins[name]!r}; give both the same"
            )
    return make_plan(names, rule_of, tied)


def make_plan(
    names: Names, rule_of: Mapping[str, Any], tied: Mapping[str, str] = types.MappingProxyType({})
) -> Plan:
    """Make a plan of rules by name; `tied` has the name that a further one counts under."""
    return Plan(
        names,
        {name: rule for name, rule in rule_of.items() if name not in tied and rule is not None},
        tuple((name, first) for name, first in tied.items() if rule_of[first] is not None),
        rule_of,
    )


def share_address(weights: Arrays) -> bool:
    """Return whether two arrays start at one address; other objects are skipped."""
    if not ALL_NUMPY(map(type, weights)) and has_dtensors(weights):
        torch_shards = _sharding()
        if torch_shards.are_tied_while_empty(weights):
            return True
        weights = tuple(
            torch_shards.local_tensors((weight,))[0] if is_dtensor(weight) else weight
            for weight in weights
        )
    try:
        shared = backend.shares_address(weights)
        if shared is NotImplemented:
            shared = calls.shares_address(weights)
        return shared and calls.shares_address(_with_memory(weights))
    except (TypeError, ValueError, BufferError):
        # A callable may take it, and what nothing takes is refused by its name later.
        weights = _with_memory(weights)
        readable = tuple(filter(cuda.is_readable, weights))
        traced = [
            id(weight) for weight in weights if dispatch.port_for_gradient(weight) is not None
        ]
        return calls.shares_address(readable) or len(set(traced)) < len(traced)


def _with_memory(weights: Arrays) -> Arrays:
    """Return the arrays that can be tied: all but those of JAX, which are values."""
    return tuple(weight for weight in weights if port_of(type(weight)) != "jax")


def ties(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return each tensor that is the memory of an earlier one, and that one's name.

    Arrays of JAX are never: to a program that they are arguments of, one array twice is two.
    """
    seen: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, array in arrays.items():
        place: Any
        if is_dtensor(array):
            place = _sharding().identity(array, name)
        else:
            # No two devices have an address in common, nor have a device and the host.
            try:
                view, dtype = cuda.any_view(array, f"tensors[{name!r}]")
            except TypeError:
                if dispatch.port_for_gradient(array) is None:
                    raise
                place = id(array)  # what is traced has no address
            else:
                if view.size == 0:
                    continue
                place = dtype, memory.elements(view)
            library, held = owner(array)
            if library.name == "jax":
                if held is array:
                    continue
                place = id(array)  # a variable of Keras or flax, which may have two names
        if seen.setdefault(place, name) != name:
            tied[name] = seen[place]
    return tied


def _sharding() -> Any:
    from .._arrays import torch_shards  # only where there are DTensors

    return torch_shards
