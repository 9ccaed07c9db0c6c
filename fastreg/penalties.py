"""Penalties of a whole model: many tensors, rules by name, one native call.

Contract
--------
- Tensors are read from the mapping (or sequence) at every call; strengths too.
- Rules are globs over names (``fnmatch.fnmatchcase``).  The first that matches wins, what none
  matches is left alone, and a rule that never wins is an error.
- Tied tensors (same device, lowest address, dtype and set of elements, so a transpose as well)
  count once, under the first name.
- All or nothing: everything is checked, and every callable has run, before anything is written.
- The total is the canonical sum of the tensors' penalties in mapping order.  A tensor without a
  rule takes no place in it; one whose strengths are 0 does, so that a schedule through 0 does not
  change the order of the sum.

The usual path, where all penalties are L1, L2 or L1L2 and no names changed, has no Python loop
over tensors: names are compared as one tuple, arrays are picked by a prepared selection, and one
call to the core does the rest.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import compress
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _backend, _checks, regularizers
from ._checks import ADD, GRADIENT, VALUE
from .regularizers import _Elementwise

__all__ = ["Penalties", "Report", "ReportRow", "attach"]

_VALUE_AND_GRADIENT = VALUE | GRADIENT
_ACCUMULATE = VALUE | GRADIENT | ADD

_ONLY_NUMPY = frozenset((np.ndarray,))

Names = list[str]  # compared at every call: a list of a dict's names is made fastest
Arrays = tuple[Any, ...]


def attach(tensors: Any, rules: Any) -> Penalties:
    """Put penalties on the tensors of a model, by name.

    Parameters
    ----------
    tensors : mapping or sequence of arrays
        The model's tensors by name; in a sequence the names are "0", "1", ....  It is kept and
        read at every call, so ``params[name] = ...`` between calls is seen.
    rules : mapping, or what ``fastreg.regularizers.get`` takes
        Globs over names, each with a regularizer, or None for "no penalty".  The first glob that
        matches a name wins; a name that none matches has no penalty.  One regularizer instead of
        a mapping is for all tensors.  (A dict with the key "class_name" is a saved regularizer.)

    Returns
    -------
    Penalties

    Raises
    ------
    TypeError
        When `tensors` is no mapping or sequence, or a rule is no regularizer.
    ValueError
        When a rule never wins, or tied tensors have different rules.

    Examples
    --------
    >>> import numpy, fastreg
    >>> params = {"dense/kernel": numpy.array([1.0, -2.0]), "dense/bias": numpy.array([3.0])}
    >>> penalties = fastreg.attach(params, {"*kernel": fastreg.regularizers.L1(0.5)})
    >>> grads = {"dense/kernel": numpy.zeros(2), "dense/bias": numpy.zeros(1)}
    >>> penalties.accumulate(grads)
    1.5
    >>> grads["dense/kernel"]
    array([ 0.5, -0.5])
    """
    return Penalties(tensors, rules)


class ReportRow(NamedTuple):
    """What a report says of one tensor."""

    penalty: float
    """The penalty; 0.0 without a rule, and for a tied tensor that counts under another name."""
    zeros: float
    """Share of elements that are 0, from 0 to 1; 0.0 for an empty tensor."""
    rule: Any
    """The regularizer, or None."""
    tied_to: str | None
    """The name under which a tied tensor counts, else None."""


class Report(dict[str, ReportRow]):
    """Penalties by name: a dict for programs, an aligned plain-text table as ``str``."""

    total: float
    """The penalty of all tensors, as :meth:`Penalties.value` gives it."""

    def __init__(self, rows: Mapping[str, ReportRow], total: float) -> None:
        super().__init__(rows)
        self.total = total

    def __str__(self) -> str:
        cells = [("tensor", "penalty", "zeros", "rule")]
        for name, row in self.items():
            rule = "-" if row.rule is None else _rule_name(row.rule)
            if row.tied_to is not None:
                rule = f"tied to {row.tied_to}"
            cells.append((name, f"{row.penalty:.6g}", f"{row.zeros:.1%}", rule))
        cells.append(("total", f"{self.total:.6g}", "", ""))
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {penalty:>{widths[1]}}  {zeros:>{widths[2]}}  {rule}".rstrip()
            for name, penalty, zeros, rule in cells
        )


class Penalties:
    """Penalties on many tensors; made by :func:`attach`.

    Every method takes `tensors` for those whose arrays are immutable or elsewhere this time: it is
    used instead of the attached ones for that call.  `scale` multiplies penalties and gradients,
    `grad_scale` gradients alone.

    A rule may be any callable of one array that gives a number.  It is called with the array as
    it is, alone; where a gradient is asked for, it must offer ``gradient(w)``, which gives an
    array of the shape of `w`.  Scales are applied to what it gives.
    """

    def __init__(self, tensors: Any, rules: Any) -> None:
        self._tensors = tensors
        self._rules, self._for_all = _checked_rules(rules)
        self._plan: _Plan | None = None
        self._grads: _Selection | None = None
        names = _names(tensors, "tensors")
        self._plan = self._resolved(names, tensors)

    @property
    def rules(self) -> dict[str, Any]:
        """The regularizers by glob; set their strengths to change penalties."""
        return dict(self._rules)

    def __repr__(self) -> str:
        names = _names(self._tensors, "tensors")
        plan, _ = self._ready(self._tensors)
        return f"<Penalties on {len(plan.names)} of {len(names)} tensors>"

    def value(self, *, tensors: Any = None, scale: float = 1.0) -> float:
        """Give the penalty of all tensors.

        Parameters
        ----------
        tensors : mapping or sequence of arrays, optional
            Instead of the attached ones.
        scale : float, optional
            A factor.

        Returns
        -------
        float
            The canonical sum of the tensors' penalties.

        Raises
        ------
        TypeError
            For a torch tensor that requires a gradient while torch records gradients, and for
            what is no array.
        ValueError
            When a strength times `scale` is not finite, or names and rules do not fit.

        Examples
        --------
        >>> import numpy
        >>> attach([numpy.ones(4), numpy.ones(2)], "l2").value(scale=0.5)
        0.03
        """
        plan, weights = self._ready(tensors)
        if _arrays.torch_is_loaded() and not _ONLY_NUMPY.issuperset(map(type, weights)):
            for name, weight in zip(plan.names, weights, strict=True):
                _arrays.refuse_lost_gradient(weight, f"tensors[{name!r}]")
        if plan.others:
            return _backend.canonical_sum(self._values(plan, weights, scale))
        total: float = _backend.evaluate_many(
            VALUE, plan.names, weights, None, plan.strengths(), plan.which, scale, 1.0, False
        )
        return total

    def gradient(
        self, *, tensors: Any = None, scale: float = 1.0, grad_scale: float = 1.0
    ) -> dict[str, Any]:
        """Give the gradients of the penalised tensors, as new arrays by name.

        Parameters
        ----------
        tensors : mapping or sequence of arrays, optional
            Instead of the attached ones.
        scale, grad_scale : float, optional
            Factors.

        Returns
        -------
        dict
            A new array of the kind, shape, dtype and layout of each tensor that has a penalty
            (the first name of tied ones).

        Raises
        ------
        TypeError
            For integer tensors and for callables that offer no gradient.
        ValueError
            When a coefficient is not finite, or names and rules do not fit.

        Examples
        --------
        >>> import numpy
        >>> params = {"kernel": numpy.ones(2), "bias": numpy.ones(1)}
        >>> attach(params, {"kernel": "l2"}).gradient(grad_scale=50.0)
        {'kernel': array([1., 1.])}
        """
        return self._new_gradients(GRADIENT, tensors, scale, grad_scale)[1]

    def value_and_grad(
        self, *, tensors: Any = None, scale: float = 1.0, grad_scale: float = 1.0
    ) -> tuple[float, dict[str, Any]]:
        """Give what :meth:`value` and :meth:`gradient` give, in one pass.

        Torch tensors that require a gradient are accepted: their gradients are given.

        Examples
        --------
        >>> import numpy
        >>> attach([numpy.ones(2)], regularizers.L2(0.5)).value_and_grad()
        (1.0, {'0': array([1., 1.])})
        """
        return self._new_gradients(_VALUE_AND_GRADIENT, tensors, scale, grad_scale)

    def accumulate(
        self, grads: Any, *, tensors: Any = None, scale: float = 1.0, grad_scale: float = 1.0
    ) -> float:
        """Add the gradients of all penalties to `grads` in place, and give the penalty.

        Parameters
        ----------
        grads : mapping or sequence of arrays
            Writable arrays by the names of the tensors, with their shapes and dtypes.  Gradients
            of tensors without penalty may be there (or None) and are not touched.
        tensors : mapping or sequence of arrays, optional
            Instead of the attached ones.
        scale, grad_scale : float, optional
            Factors.

        Returns
        -------
        float
            The canonical sum of the tensors' penalties.

        Raises
        ------
        TypeError
            For a callable that offers no gradient, and for what is no array.
        ValueError
            For a missing gradient, one of an unknown name, or one that does not fit its tensor.
        BufferError
            For a gradient that may not be written.

        Examples
        --------
        >>> import numpy
        >>> grads = [numpy.zeros(2)]
        >>> attach([numpy.ones(2)], regularizers.L2(0.5)).accumulate(grads)
        1.0
        >>> grads
        [array([1., 1.])]
        """
        plan, weights = self._ready(tensors)
        gradients = self._gradients(plan, grads)
        if plan.others:
            return self._accumulate_others(plan, weights, gradients, scale, grad_scale)
        total: float = _backend.evaluate_many(
            _ACCUMULATE,
            plan.names,
            weights,
            gradients,
            plan.strengths(),
            plan.which,
            scale,
            grad_scale,
            False,
        )
        return total

    def report(self, *, tensors: Any = None, scale: float = 1.0) -> Report:
        """Give each tensor's penalty, share of zeros and rule.

        Returns
        -------
        Report
            A dict of :class:`ReportRow` by name; ``print(report)`` shows a table.

        Examples
        --------
        >>> import numpy
        >>> params = {"kernel": numpy.array([0.0, 1.0]), "bias": numpy.array([3.0])}
        >>> print(attach(params, {"kernel": "l2"}).report())
        tensor  penalty  zeros  rule
        kernel     0.01  50.0%  L2(l2=0.01)
        bias          0   0.0%  -
        total      0.01
        """
        plan, weights = self._ready(tensors)
        source = self._tensors if tensors is None else tensors
        values = self._values(plan, weights, scale)
        penalties = dict(zip(plan.names, values, strict=True))
        tied = dict(plan.tied)
        rows = {
            name: ReportRow(
                penalties.get(name, 0.0),
                _arrays.share_of_zeros(array, f"tensors[{name!r}]"),
                plan.rules.get(tied.get(name, name)),
                tied.get(name),
            )
            for name, array in zip(
                plan.source.names,
                _Selection(plan.source.names, plan.source.names)(source),
                strict=True,
            )
        }
        return Report(rows, _backend.canonical_sum(values))

    # ------------------------------------------------------------------- plans

    def _ready(self, tensors: Any) -> tuple[_Plan, Arrays]:
        """Give a plan that fits the names and ties of this moment, and the penalised arrays."""
        source = self._tensors if tensors is None else tensors
        plan = self._plan
        names = _names(source, "tensors")
        if plan is None or plan.source.names != names:
            plan = self._resolved(names, source)
            self._plan = plan
        weights = plan.source(source)
        # New arrays can bring new ties or undo old ones: two tests, quick where nothing changed.
        if _share_address(weights) or (plan.tied and not plan.still_tied(source)):
            fresh = self._resolved(names, source)
            if fresh.names != plan.names:
                self._plan = plan = fresh
                weights = plan.source(source)
        return plan, weights

    def _resolved(self, names: Names, source: Any) -> _Plan:
        """Match rules against names, and fold tied tensors."""
        _require_strings(names, "tensors")
        rule_of, globs = _match(names, self._rules, self._for_all)
        ruled = [name for name in names if name in rule_of]
        arrays = dict(zip(ruled, _Selection(names, ruled)(source), strict=True))
        tied = _ties(
            {
                name: array
                for name, array in arrays.items()
                # What a callable or no rule takes need not be an array that fastreg can read.
                if isinstance(rule_of[name], _Elementwise) or _arrays.is_readable(array)
            }
        )
        for name, first in tied.items():
            if rule_of[name] is not rule_of[first] and not _same_rule(
                rule_of[name], rule_of[first]
            ):
                raise ValueError(
                    f"tensors[{first!r}] and tensors[{name!r}] are tied (the same memory) but have "
                    f"different rules, {globs[first]!r} and {globs[name]!r}; give both the same"
                )
        return _Plan(
            names,
            {name: rule for name, rule in rule_of.items() if name not in tied and rule is not None},
            tuple((name, first) for name, first in tied.items() if rule_of[first] is not None),
        )

    def _gradients(self, plan: _Plan, grads: Any) -> Arrays:
        """Pick the gradients of the penalised tensors, once names have shown to fit."""
        selection = self._grads
        names = _names(grads, "grads")
        if selection is None or selection.names != names or selection.plan is not plan:
            _require_strings(names, "grads")
            known = set(plan.source.names)
            for name in names:
                if name not in known:
                    raise ValueError(
                        f"grads[{name!r}] is the gradient of no tensor"
                        f"{_checks.suggestion(name, known)}; the tensors are "
                        f"{_checks.listed(plan.source.names)}"
                    )
            given = set(names)
            for name in plan.names:
                if name not in given:
                    raise ValueError(
                        f"grads[{name!r}] is missing, but tensors[{name!r}] has a penalty; pass "
                        "its gradient, zeros for example"
                    )
            self._grads = selection = _Selection(names, plan.source.wanted, plan)
        return selection(grads)

    # ------------------------------------------------------------------ results

    def _values(self, plan: _Plan, weights: Arrays, scale: float) -> list[float]:
        """Give each tensor's penalty; callables run where the plan has them."""
        factor = _checks.multiplier(scale, "scale")
        fused = plan.fused
        values: list[float] = _backend.evaluate_many(
            VALUE,
            tuple(compress(plan.names, fused)),
            tuple(compress(weights, fused)),
            None,
            plan.strengths(),
            plan.which,
            scale,
            1.0,
            True,
        )
        if not plan.others:
            return values
        merged = iter(values)
        return [
            next(merged) if is_fused else _called(plan.rules[name], name, weight) * factor
            for name, weight, is_fused in zip(plan.names, weights, fused, strict=True)
        ]

    def _new_gradients(
        self, outputs: int, tensors: Any, scale: float, grad_scale: float
    ) -> tuple[float, dict[str, Any]]:
        plan, weights = self._ready(tensors)
        _require_gradients(plan)
        gradients = tuple(
            np.empty_like(weight)
            if type(weight) is np.ndarray
            else _arrays.empty_like(weight, f"tensors[{name!r}]")
            for name, weight in zip(plan.names, weights, strict=True)
        )
        if plan.others:
            total = self._accumulate_others(plan, weights, gradients, scale, grad_scale, outputs)
        else:
            total = _backend.evaluate_many(
                outputs,
                plan.names,
                weights,
                gradients,
                plan.strengths(),
                plan.which,
                scale,
                grad_scale,
                False,
            )
        return total, {
            name: gradient
            if type(weight) is np.ndarray
            else _arrays.wrap_gradient(gradient, weight)
            for name, weight, gradient in zip(plan.names, weights, gradients, strict=True)
        }

    def _accumulate_others(
        self,
        plan: _Plan,
        weights: Arrays,
        gradients: Arrays,
        scale: float,
        grad_scale: float,
        outputs: int = _ACCUMULATE,
    ) -> float:
        """Do what one call to the core does, for a plan that has callables."""
        _require_gradients(plan)
        # Strengths of 0 stand for the callables here: this is the check of all arrays at once.
        strengths = plan.strengths()
        which = iter(plan.which)
        _checks.check_call(
            outputs,
            plan.names,
            weights,
            gradients,
            (*strengths, (0.0, 0.0)),
            tuple(next(which) if is_fused else len(strengths) for is_fused in plan.fused),
            scale,
            grad_scale,
        )
        value_factor = float(scale)
        factor = value_factor * float(grad_scale)
        called: dict[str, tuple[float, Any]] = {}
        for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True):
            if not is_fused:
                rule = plan.rules[name]
                value = _called(rule, name, weight) if outputs & VALUE else 0.0
                slope = _arrays.slope_of(rule.gradient(weight), weight, name)
                with np.errstate(all="ignore"):
                    called[name] = value * value_factor, slope * factor
        fused_values = _backend.evaluate_many(
            outputs,
            tuple(compress(plan.names, plan.fused)),
            tuple(compress(weights, plan.fused)),
            tuple(compress(gradients, plan.fused)),
            strengths,
            plan.which,
            scale,
            grad_scale,
            True,
        )
        for name, gradient in zip(plan.names, gradients, strict=True):
            if name in called:
                _arrays.assign(gradient, called[name][1], name, add=bool(outputs & ADD))
        if not outputs & VALUE:
            return 0.0
        merged = iter(fused_values)
        return _backend.canonical_sum(
            [called[name][0] if name in called else next(merged) for name in plan.names]
        )


class _Selection:
    """Pick some of the arrays of a mapping or sequence whose names are known, as a tuple."""

    __slots__ = ("_getter", "_mask", "names", "plan", "wanted")

    def __init__(self, names: Names, wanted: Names, plan: _Plan | None = None) -> None:
        self.plan = plan
        self.names = names
        self.wanted = wanted
        # A dict's values come in the order of its names; where the wanted ones do too, they are
        # picked by position, which is several times faster than by name.
        chosen = set(wanted)
        in_order = [name for name in names if name in chosen] == wanted
        self._mask: tuple[bool, ...] | None = (
            tuple(name in chosen for name in names) if in_order else None
        )
        self._getter = _by_names(wanted)

    def __call__(self, source: Any) -> Arrays:
        if type(source) is dict and self._mask is not None:
            arrays = source.values()
        elif _is_mapping(source):
            return self._getter(source)
        else:
            arrays = source
            if self._mask is None:
                position = {name: index for index, name in enumerate(self.names)}
                return tuple(arrays[position[name]] for name in self.wanted)
        if len(self.wanted) == len(self.names):
            return tuple([*arrays])
        return tuple(compress(arrays, self._mask))


def _by_names(names: Names) -> Callable[[Any], Arrays]:
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda source: tuple(source[name] for name in names)


class _Plan:
    """What follows from names, rules and ties; it stays as it is until one of them changes."""

    __slots__ = ("_unique", "fused", "names", "others", "rules", "source", "tied", "which")

    def __init__(
        self, names: Names, rules: dict[str, Any], tied: tuple[tuple[str, str], ...]
    ) -> None:
        wanted = [name for name in names if name in rules]
        self.names = tuple(wanted)
        """Tensors with a penalty, in mapping order."""
        self.rules = rules
        self.tied = tied
        """Pairs of a tied tensor's name and the name it counts under."""
        self.source = _Selection(names, wanted)
        self.fused = tuple(_is_fused(rules[name]) for name in self.names)
        """Which of `names` the core evaluates."""
        self.others = not all(self.fused)
        places: dict[int, int] = {}
        unique: list[_Elementwise] = []
        which = []
        for name in compress(self.names, self.fused):
            rule = rules[name]
            place = places.setdefault(id(rule), len(unique))
            if place == len(unique):
                unique.append(rule)
            which.append(place)
        self._unique = tuple(unique)
        self.which = tuple(which)
        """For each tensor that the core evaluates, the index of its strengths."""

    def strengths(self) -> tuple[tuple[float, float], ...]:
        """Read the strengths of this moment."""
        return tuple([(rule._l1, rule._l2) for rule in self._unique])

    def still_tied(self, source: Any) -> bool:
        names = self.source.names
        pairs = _Selection(names, [name for pair in self.tied for name in pair])(source)
        return all(
            len(_ties({"first": pairs[place], "second": pairs[place + 1]})) == 1
            for place in range(0, len(pairs), 2)
        )


# --------------------------------------------------------------------------------- rules


def _checked_rules(rules: Any) -> tuple[dict[str, Any], bool]:
    """Give the regularizers by glob, and whether one was given for all tensors."""
    if not isinstance(rules, Mapping) or isinstance(rules.get("class_name"), str):
        return {"*": regularizers.get(rules)}, True
    checked: dict[str, Any] = {}
    for glob, rule in rules.items():
        if not isinstance(glob, str):
            raise TypeError(
                f"rules must have globs (str) as keys, not {_checks.described(glob)}; for example "
                '{"*kernel": "l2"}'
            )
        try:
            checked[glob] = regularizers.get(rule)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"rules[{glob!r}]: {error}") from error
    return checked, False


def _match(
    names: Names, rules: Mapping[str, Any], for_all: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Give each matched name its rule, and the glob that won it."""
    globs: dict[str, str] = {}
    for name in names:
        for glob in rules:
            if fnmatchcase(name, glob):
                globs[name] = glob
                break
    if not for_all:
        winners = set(globs.values())
        for glob in rules:
            if glob not in winners:
                raise ValueError(_never_wins(glob, names, globs))
    return {name: rules[glob] for name, glob in globs.items()}, globs


def _never_wins(glob: str, names: Names, globs: Mapping[str, str]) -> str:
    shadowed = [name for name in names if fnmatchcase(name, glob)]
    if shadowed:
        earlier = list(dict.fromkeys(globs[name] for name in shadowed))
        return (
            f"rules[{glob!r}] never wins: all it matches ({_checks.listed(shadowed)}) is matched "
            f"by {_checks.listed(earlier)} before it; put it first or remove it"
        )
    if not names:
        return f"rules[{glob!r}] matches no tensor: tensors is empty"
    # A glob is near to a name when its letters are: "*" and "?" are no help in that.
    near = _checks.suggestion(glob.strip("*?"), names) or _checks.suggestion(glob, names)
    return (
        f"rules[{glob!r}] matches no tensor{near}; the names are {_checks.listed(names)}, and a "
        "glob must match a whole name, as '*kernel' does"
    )


def _same_rule(one: Any, other: Any) -> bool:
    """Say whether two rules are equal now; only this module's classes are known to compare."""
    return isinstance(one, regularizers.Regularizer) and bool(one == other)


def _is_fused(rule: Any) -> bool:
    """Say whether the core can evaluate a rule: it must not be a subclass with its own penalty."""
    kind = type(rule)
    return (
        isinstance(rule, _Elementwise)
        and kind.__call__ is _Elementwise.__call__
        and kind.gradient is _Elementwise.gradient
    )


def _rule_name(rule: Any) -> str:
    if isinstance(rule, regularizers.Regularizer):
        return repr(rule)
    return str(getattr(rule, "__name__", None) or type(rule).__name__)


def _called(rule: Any, name: str, weight: Any) -> float:
    """Call a rule that is a callable of one array."""
    return _arrays.number(rule(weight), f"the penalty that the rule of tensors[{name!r}] gives")


def _require_gradients(plan: _Plan) -> None:
    for name, is_fused in zip(plan.names, plan.fused, strict=True):
        rule = plan.rules[name]
        if not is_fused and not callable(getattr(rule, "gradient", None)):
            raise TypeError(
                f"the rule of tensors[{name!r}], {_rule_name(rule)}, offers no gradient(w); add "
                "that method, or ask for value() only"
            )


# --------------------------------------------------------------------------------- tensors


def _is_mapping(source: Any) -> bool:
    return isinstance(source, Mapping) or (
        hasattr(source, "keys") and hasattr(source, "__getitem__")
    )


def _names(source: Any, argument: str) -> Names:
    """Give the names of a mapping's or sequence's arrays.

    Raises
    ------
    TypeError
        For another kind, and for names that are not strings.
    """
    if type(source) is dict:
        return [*source]
    if type(source) is list or type(source) is tuple:
        return _numbered(len(source))
    if _is_mapping(source):
        return [*source.keys()]
    if isinstance(source, Iterator):
        raise TypeError(
            f"{argument} must be a mapping or sequence of arrays, not {_checks.described(source)}, "
            "which can be read only once; pass dict(...) or list(...) of it"
        )
    if (
        isinstance(source, (str, bytes))
        or hasattr(source, "dtype")
        or not (hasattr(source, "__len__") and hasattr(source, "__getitem__"))
    ):
        raise TypeError(
            f"{argument} must be a mapping or sequence of arrays, not {_checks.described(source)}; "
            'pass for example {"kernel": w}'
        )
    return _numbered(len(source))


_numbers: Names = []


def _numbered(count: int) -> Names:
    """Give "0", "1", ..., the same strings at every call: comparing them is then quick."""
    global _numbers
    if len(_numbers) < count:
        _numbers = [str(index) for index in range(count)]
    return _numbers[:count]


def _require_strings(names: Names, argument: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"{argument} must have names (str) as keys, not {_checks.described(name)}"
            )


def _share_address(weights: Arrays) -> bool:
    """Say whether two arrays start at one address; what is no array does not count."""
    try:
        return _backend.shares_address(weights)
    except (TypeError, ValueError, BufferError):
        # A callable may take it, and what nothing takes is refused by its name later.
        return _backend.shares_address(tuple(filter(_arrays.is_readable, weights)))


def _ties(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Give each tensor that is the memory of an earlier one, and that one's name."""
    seen: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, array in arrays.items():
        place = _arrays.memory(array, f"tensors[{name!r}]")
        if place is not None and seen.setdefault(place, name) != name:
            tied[name] = seen[place]
    return tied
