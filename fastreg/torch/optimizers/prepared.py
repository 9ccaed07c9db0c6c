"""What a step takes of its parameters, kept from step to step while nothing has changed.

Contract
--------
- Parameters, their gradients and their state are looked at anew at every step, by identity: some
  0.2 us for each.  What was replaced is seen.
- New state is put into the optimizer's once a step was taken with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, compress
from operator import is_, itemgetter
from typing import Any, NamedTuple

from ..._arrays import torch_shards
from ..._arrays.libraries import has_dtensors
from ..._engine.steps import Step
from ...optimizers.base import state_error
from ...optimizers.rules import Ruled
from . import state
from .state import STEP

Tensors = tuple[Any, ...]

_PARAMS = itemgetter("params")
_STEP = itemgetter(STEP)


_PLACE = "param_groups["


def unnamed(group: int, count: int) -> list[str]:
    """Return what parameters without names are called."""
    return [f"{_PLACE}{group}]['params'][{place}]" for place in range(count)]


def label_of(name: str) -> str:
    """Return what messages call a parameter."""
    return name if name.startswith(_PLACE) else f"the parameter {name!r}"


class NamedStep(Step):
    """A step whose tensors are parameters of torch."""

    __slots__ = ()

    def label(self, place: int) -> str:
        return label_of(self.names[place])

    def gradient_label(self, place: int) -> str:
        return f"the gradient of {label_of(self.names[place])}"


class Roster:
    """The parameters of all groups, and what acts on each."""

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        names: Sequence[Sequence[str]],
        ruled: Sequence[Sequence[Ruled | None]],
    ) -> None:
        self._counts = [len(group["params"]) for group in groups]
        if self._counts != [*map(len, names)]:
            raise ValueError(
                f"param_groups have {self._counts} parameters, but {[*map(len, names)]} when they "
                "were given to the optimizer, and which rule each has is known by its place; make "
                "a new optimizer, or use add_param_group()"
            )
        self.parameters: tuple[Any, ...] = tuple(chain.from_iterable(map(_PARAMS, groups)))
        self.names: tuple[str, ...] = tuple(chain.from_iterable(names))
        self.has_dtensors: bool = has_dtensors(self.parameters)
        places: dict[Any, int] = {}
        acting: list[tuple[int, Ruled | None]] = []
        which = []
        for group, rules in enumerate(ruled):
            for one in rules:
                key = group, None if one is None else (id(one.rule), one.mode)
                place = places.setdefault(key, len(acting))
                if place == len(acting):
                    acting.append((group, one))
                which.append(place)
        self.acting: tuple[tuple[int, Ruled | None], ...] = tuple(acting)
        """Each pair of a group and what acts on some of its parameters, once."""
        self.which: tuple[int, ...] = tuple(which)
        """For each parameter, the index of its pair."""
        self.is_ruled: tuple[bool, ...] = tuple([acting[place][1] is not None for place in which])

    def is_of(self, groups: Sequence[dict[str, Any]]) -> bool:
        """Return whether these are the parameters of the groups."""
        lists = [*map(_PARAMS, groups)]
        return self._counts == [*map(len, lists)] and all(
            map(is_, chain.from_iterable(lists), self.parameters)
        )


class _Kept(NamedTuple):
    """The tensors of one kind, and the dicts of the state that they are in."""

    get: Callable[[dict[str, Any]], Any]
    dicts: list[dict[str, Any]]
    tensors: list[Any]

    @classmethod
    def of(cls, kind: str, dicts: Sequence[dict[str, Any]], tensors: Sequence[Any]) -> _Kept:
        """Make one of what is kept of some parameters, None for others."""
        is_there = [x is not None for x in tensors]
        return cls(itemgetter(kind), [*compress(dicts, is_there)], [*compress(tensors, is_there)])

    def is_current(self) -> bool:
        try:
            return all(map(is_, map(self.get, self.dicts), self.tensors))
        except KeyError:
            return False


class Prepared:
    """The parameters that have a gradient, with their state."""

    def __init__(
        self,
        roster: Roster,
        there: tuple[bool, ...] | None,
        kept: dict[Any, dict[str, Any]],
        kinds: Sequence[str],
        needs: tuple[tuple[bool, ...], ...],
        counts_steps: bool,
        may_add: bool,
    ) -> None:
        self.there = there
        """Which parameters of the roster these are; None for all."""
        self.needs = needs
        """What is kept of the parameters of each index of `which`."""
        self.parameters: Tensors = self.picked(roster.parameters)
        self.names: Tensors = self.picked(roster.names)
        self.which: Tensors = self.picked(roster.which)
        self.is_ruled: Tensors = self.picked(roster.is_ruled)
        self._counts_steps = counts_steps
        self._may_add = may_add
        self._kinds = kinds
        self._missing: list[tuple[dict[str, Any], str, Any]] = []
        self._added: list[Any] = []
        self._dicts = [kept.get(one) or self._new() for one in self.parameters]
        self._whole = [*kept.values()]
        if counts_steps:
            self.taken: tuple[int, ...] = self._steps()
        else:  # a momentum that is not there yet is one that holds nothing
            self.taken = tuple([int(one.get(kinds[0]) is not None) for one in self._dicts])
        given = [self._tensors(number) for number in range(len(kinds))]
        self._kept = [
            _Kept.of(kind, self._dicts, tensors) for kind, tensors in zip(kinds, given, strict=True)
        ]
        self.local_parameters: tuple[Any, ...] = torch_shards.local_tensors(
            self.parameters, self.names
        )
        first, second, largest = [*map(_local, given), None, None][:3]
        self.states: tuple[Tensors | None, Tensors | None, Tensors | None] = first, second, largest

    def size(self) -> int:
        """Return how many elements the parameters with a rule have now."""
        return sum([one.numel() for one in compress(self.parameters, self.is_ruled)])

    def picked(self, values: Tensors) -> Tensors:
        """Return those of the roster's values that are of parameters with a gradient."""
        return values if self.there is None else tuple(compress(values, self.there))

    def _new(self) -> dict[str, Any]:
        return {STEP: 0} if self._counts_steps else {}

    def _steps(self) -> tuple[int, ...]:
        taken = tuple(map(_STEP, self._dicts))
        if {int}.issuperset(map(type, taken)):
            return taken
        return tuple(map(state.count, taken, map(label_of, self.names)))

    def _tensors(self, number: int) -> list[Any]:
        kind = self._kinds[number]
        found = []
        for place, one in enumerate(self._dicts):
            x = None
            if self.needs[self.which[place]][number]:
                x = one.get(kind)
                if x is None:
                    self._require_new(place, number)
                    if not self._may_add:  # each replay of a graph would set it to zeros
                        raise state_error(label_of(self.names[place]))
                    x = state.new(self.parameters[place])
                    self._missing.append((one, kind, x))
            found.append(x)
        return found

    def _require_new(self, place: int, number: int) -> None:
        """Refuse a moment that should be there; the largest one can be begun at any step."""
        if self._counts_steps and self.taken[place] and number < 2:
            raise ValueError(
                f"the {self._kinds[number]} of {label_of(self.names[place])} is missing, but it "
                f"took {self.taken[place]} steps; load a state that has it"
            )

    def is_current(
        self,
        there: tuple[bool, ...] | None,
        kept: dict[Any, dict[str, Any]],
        needs: tuple[tuple[bool, ...], ...],
    ) -> bool:
        """Return whether all of it is as it was, but for the counts of steps, which are read."""
        if (
            there != self.there
            or needs != self.needs
            or len(kept) != len(self._whole)
            or self._missing
            or not all(map(is_, kept.values(), self._whole))
            or not all([one.is_current() for one in self._kept])
        ):
            return False
        if self._counts_steps:
            self.taken = self._steps()
        return True

    def count(self, kept: dict[Any, dict[str, Any]], is_taken: bool) -> None:
        """Keep what is new and count the step; or take that back, where it was not taken."""
        if self._counts_steps:
            more = int(is_taken)
            for one, taken in zip(self._dicts, self.taken, strict=True):
                one[STEP] = taken + more
        if is_taken:
            for one, kind, x in self._missing:
                one[kind] = x
            for parameter, one in zip(self.parameters, self._dicts, strict=True):
                if one and kept.get(parameter) is not one:
                    kept[parameter] = one
                    self._added.append(parameter)
            return
        for one, kind, _ in self._missing:
            one.pop(kind, None)
        for parameter in self._added:
            del kept[parameter]
        self._added = []

    def was_taken(self, kept: dict[Any, dict[str, Any]]) -> None:
        """Go on from a step that was counted."""
        self._added = []
        if self._missing:
            self._missing = []
            self._whole = [*kept.values()]
            if not self._counts_steps:
                self.taken = tuple([int(bool(one)) for one in self._dicts])


def _local(tensors: list[Any]) -> Tensors | None:
    """Return what this process has of what is kept; None where nothing is."""
    there = [x for x in tensors if x is not None]
    if not there:
        return None
    if not has_dtensors(there):
        return tuple(tensors)
    local = iter(torch_shards.local_tensors(there))
    return tuple([None if x is None else next(local) for x in tensors])
