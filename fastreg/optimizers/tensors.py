"""The tensors that an optimizer steps: names, ties and rules, and the gradients that go with them.

Contract: what follows from names, rules and ties stays until one of them changes.  If it does not,
arrays are selected without a Python loop.
"""

from __future__ import annotations

from typing import Any

from .._arrays import cuda
from .._base import memory
from ..penalties.names import Names, is_mapping, names_of, require_kept, require_strings
from ..penalties.plan import Arrays, Selection, require_known, resolve, share_address, ties
from ..penalties.rules import match
from .rules import Moded, Ruled, require_fused, require_same


class Roster:
    """The tensors by the names that they step under, with their rules."""

    def __init__(self, names: Names, tied: dict[str, str], ruled: dict[str, Ruled]) -> None:
        self.all_names = names
        self.tied = tied
        """Each further name of a tied tensor, and the first one."""
        self.names: tuple[str, ...] = tuple(name for name in names if name not in tied)
        """Each tensor's first name."""
        self.source: Selection = Selection(names, [*self.names])
        places: dict[Any, int] = {}
        rules: list[Ruled | None] = []
        which = []
        for name in self.names:
            one = ruled.get(name)
            key = None if one is None else (id(one.rule), one.mode)
            place = places.setdefault(key, len(rules))
            if place == len(rules):
                rules.append(one)
            which.append(place)
        self.rules: tuple[Ruled | None, ...] = tuple(rules)
        """What acts on the tensors, each once; None stands for nothing."""
        self.which: tuple[int, ...] = tuple(which)
        """For each tensor, the index of what acts on it."""
        self.is_ruled: tuple[bool, ...] = tuple(name in ruled for name in self.names)

    def still_tied(self, source: Any) -> bool:
        """Return whether what was tied still is."""
        pairs = Selection(self.all_names, [name for pair in self.tied.items() for name in pair])
        arrays = pairs(source)
        return all(
            len(ties({"first": arrays[place], "second": arrays[place + 1]})) == 1
            for place in range(0, len(arrays), 2)
        )

    def gradients(self, grads: Any) -> Arrays:
        """Return the gradient of each tensor, None for one that is to stay as it is."""
        picked = None if self.tied else self.source.of_same_names(grads, "grads")
        if picked is not None:
            return picked
        names = names_of(grads, "grads")
        require_known(names, self.all_names)
        given = grads if is_mapping(grads) else dict(zip(names, grads, strict=True))
        known = {name: given[name] for name in names}
        for name, is_ruled in zip(self.names, self.is_ruled, strict=True):
            if is_ruled and name not in known:
                raise ValueError(
                    f"grads[{name!r}] is missing, but tensors[{name!r}] has a penalty; pass its "
                    "gradient, or None to leave the tensor as it is"
                )
        for name, first in self.tied.items():
            _require_no_other(known, name, first)
        return tuple(map(known.get, self.names))


def _require_no_other(grads: dict[str, Any], name: str, first: str) -> None:
    """Refuse a gradient under a further name of a tied tensor that is not the one it steps by."""
    other, one = grads.get(name), grads.get(first)
    if other is None or other is one:
        return
    if one is not None:
        views = (
            cuda.any_view(one, f"grads[{first!r}]"),
            cuda.any_view(other, f"grads[{name!r}]"),
        )
        if memory.same_elements_in_order(views[0][0], views[1][0]):
            return
    raise ValueError(
        f"grads[{name!r}] is another array than grads[{first!r}], but tensors[{name!r}] and "
        f"tensors[{first!r}] are tied (the same memory) and step once; pass the sum of both as "
        f"grads[{first!r}], and None for the other"
    )


class Tensors:
    """A mapping or sequence of tensors, as it is at each step."""

    def __init__(self, source: Any, rules: Moded) -> None:
        self._source = source
        self._rules = rules
        self._roster: Roster | None = None
        self.ready()

    def ready(self) -> tuple[Roster, Arrays]:
        """Return the roster of this moment and the arrays of its names."""
        roster, source = self._roster, self._source
        arrays = None if roster is None else roster.source.of_same_names(source, "tensors")
        if (
            roster is None
            or arrays is None
            or share_address(arrays)
            or (roster.tied and not roster.still_tied(source))
        ):
            self._roster = roster = self._resolved()
            arrays = roster.source(source)
        return roster, arrays

    def _resolved(self) -> Roster:
        source = self._source
        names = names_of(source, "tensors")
        require_strings(names, "tensors")
        rule_of, globs = match(names, self._rules.rules)
        resolve(names, source, rule_of, globs)  # refuses different rules of tied tensors
        arrays = dict(zip(names, Selection(names, names)(source), strict=True))
        require_kept(source, names, arrays.values(), "tensors")
        tied = ties(arrays)
        ruled: dict[str, Ruled] = {}
        first_ruled: dict[str, str] = {}
        for name in names:
            if rule_of.get(name) is None:
                continue
            require_fused(rule_of[name], name)
            one = Ruled(rule_of[name], self._rules.modes[globs[name]])
            first = tied.get(name, name)
            other = first_ruled.setdefault(first, name)
            require_same((other, ruled.setdefault(first, one)), (name, one))
        return Roster(names, tied, ruled)
