"""What the documents say of whole calls over named arrays: the oracle of the state machines.

Written from docs/usage.md, docs/optimizers.md and docs/numerics.md, without a look at what the
package does.  Everything follows from what the arrays are before a call; the bits of an element
and of a sum are those of ``canonical`` and ``canonical_step``.  Arrays are NumPy's, so that another
library's are handed in as views.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from dataclasses import dataclass, field, replace

import canonical
import canonical_step
import numpy as np

SHORT = {dtype: name for name, dtype in canonical.NUMPY.items()}


class Refused(Exception):  # noqa: N818
    """What a call has to raise instead: one of these classes."""

    def __init__(self, *kinds):
        super().__init__(*kinds)
        self.kinds = kinds


# ---------------------------------------------------------------------------- arrays


def addresses(array):
    """Return the address of each element, in C order of the indices."""
    at = np.full(array.shape, array.__array_interface__["data"][0], np.int64)
    for place, stride in zip(np.indices(array.shape, np.int64), array.strides, strict=True):
        at += place * stride
    return at.reshape(-1)


def order(array):
    """Return the places in C order in the order in which the elements are summed."""
    axes = [k for k in range(array.ndim) if array.shape[k] != 1]
    inside = array.itemsize
    for k in sorted(axes, key=lambda k: array.strides[k]):
        if array.strides[k] != inside:
            return range(array.size)
        inside *= array.shape[k]
    return np.argsort(addresses(array)).tolist()


def elements(array):
    """Return the elements as floats, in the order in which they are summed."""
    flat = [float(x) for x in array.reshape(-1)]
    return [flat[i] for i in order(array)]


def is_floating(array):
    return array.dtype in SHORT


def short(array):
    """Return the dtype's short name; integers are converted to float64."""
    return SHORT.get(array.dtype, "f64")


def are_bits(array, wanted):
    """Return whether an array has elements, given in its order of summation; every NaN is one."""
    flat = [0.0] * len(wanted)
    for i, x in zip(order(array), wanted, strict=True):
        flat[i] = x
    wanted = canonical.array(flat, short(array)).reshape(array.shape)
    return np.array_equal(canonical.bits(array), canonical.bits(wanted))


def in_order_of(array, gradient):
    """Return the elements of a gradient in the order of its array."""
    flat = [float(x) for x in gradient.reshape(-1)]
    return [flat[i] for i in order(array)]


def same_elements(a, b):
    return (
        a.size > 0
        and a.dtype == b.dtype
        and np.array_equal(np.unique(addresses(a)), np.unique(addresses(b)))
    )


def overlaps_itself(array):
    return bool((np.diff(np.sort(addresses(array))) < array.itemsize).any())


def overlap(a, b):
    """Return whether two arrays have a byte in common."""
    if not (a.size and b.size):
        return False

    def touched(array):
        return np.add.outer(addresses(array), np.arange(array.itemsize))

    one, other = touched(a), touched(b)
    if one.max() < other.min() or other.max() < one.min():
        return False
    return bool(np.isin(one, other).any())


def first_names(arrays):
    """Return the first name of each array among those that are tied to it."""
    firsts = {}
    for name, array in arrays.items():
        firsts[name] = next(
            (one for one in firsts if same_elements(arrays[one], array)),
            name,
        )
    return {name: firsts[first] for name, first in firsts.items()}


# ---------------------------------------------------------------------------- rules


def strengths(regularizer):
    return getattr(regularizer, "l1", 0.0), getattr(regularizer, "l2", 0.0)


def winners(arrays, rules):
    """Return the rules of the names that have one, be it None; what none matches is left alone."""
    won, unused = {}, dict(rules)
    for name in arrays:
        for key, rule in rules.items():
            if key == name or (key not in arrays and fnmatch.fnmatchcase(name, key)):
                unused.pop(key, None)
                won[name] = rule
                break
    if unused:
        raise Refused(ValueError)
    for name, first in first_names({name: arrays[name] for name in won}).items():
        if won[name] != won[first]:
            raise Refused(ValueError)
    return won


def counting(arrays, rules):
    """Return the names that have a rule, each with the name that it counts under."""
    return first_names({name: arrays[name] for name in winners(arrays, rules)})


def penalised(arrays, rules):
    """Return the rules of the arrays that count, by name, in the order of the mapping."""
    won, firsts = winners(arrays, rules), counting(arrays, rules)
    return {name: won[name] for name in won if firsts[name] == name and won[name] is not None}


# ---------------------------------------------------------------------------- penalties


def penalty(array, rule, scale=1.0):
    return canonical.penalty(elements(array), *strengths(rule), scale)


def values(arrays, rules, scale=1.0):
    return {n: penalty(arrays[n], rule, scale) for n, rule in penalised(arrays, rules).items()}


def total(numbers):
    return canonical.canonical_sum(numbers)


def gradient(array, rule, scale, grad_scale, old=None):
    """Return the gradient, or its sum with `old`, in the order of the array."""
    old = None if old is None else in_order_of(array, old)
    return canonical.gradient(
        elements(array), short(array), *strengths(rule), scale, grad_scale, old
    )


def gradients(arrays, rules, scale=1.0, grad_scale=1.0):
    counted = penalised(arrays, rules)
    if not all(is_floating(arrays[name]) for name in counted):
        raise Refused(TypeError)
    return {n: gradient(arrays[n], rule, scale, grad_scale) for n, rule in counted.items()}


def sums(arrays, rules, grads, scale=1.0, grad_scale=1.0):
    """Return what ``accumulate`` makes of the gradients, by name."""
    counted = penalised(arrays, rules)
    given = {name: grads.get(name) for name in counted}
    targets = {name: target for name, target in given.items() if target is not None}
    wrong = [ValueError] if targets.keys() < given.keys() or grads.keys() - arrays.keys() else []
    wrong += [] if all(is_floating(arrays[name]) for name in given) else [TypeError]
    for name, target in targets.items():
        array = arrays[name]
        wrong += [ValueError] if target.shape != array.shape else []
        wrong += [TypeError, ValueError] if target.dtype != array.dtype else []
        wrong += [BufferError] if not target.flags.writeable else []
        wrong += [ValueError] if overlaps_itself(target) else []
    if not wrong and clash(targets, arrays):
        wrong.append(ValueError)
    if wrong:
        raise Refused(*wrong)
    return {
        name: gradient(arrays[name], rule, scale, grad_scale, targets[name])
        for name, rule in counted.items()
    }


def clash(targets, arrays):
    """Return whether what is written overlaps something else of the call."""
    for name, target in targets.items():
        for other, array in targets.items():
            if other != name and overlap(target, array):
                return True
            weight = arrays[other]
            itself = other == name and is_same(target, weight)
            if overlap(target, weight) and not itself:
                return True
    return False


def is_same(a, b):
    return a.dtype == b.dtype and np.array_equal(addresses(a), addresses(b))


@dataclass
class Prox:
    elements: dict
    penalty: float
    zeros: int
    size: int


def prox(arrays, rules, step, scale=1.0):
    counted = penalised(arrays, rules)
    require_writable({name: arrays[name] for name in counted})
    new = {
        name: canonical.prox(
            elements(arrays[name]), short(arrays[name]), *strengths(rule), step, scale
        )
        for name, rule in counted.items()
    }
    return Prox(
        new,
        total(canonical.penalty(new[n], *strengths(rule), scale) for n, rule in counted.items()),
        sum(x == 0 for one in new.values() for x in one),
        sum(map(len, new.values())),
    )


def require_writable(arrays, wrong=()):
    """Raise what a call does that cannot write all of the arrays, each by itself."""
    wrong = [*wrong]
    for array in arrays.values():
        wrong += [TypeError] if not is_floating(array) else []
        wrong += [BufferError] if not array.flags.writeable else []
        wrong += [ValueError] if overlaps_itself(array) else []
    if not wrong and any(overlap(a, b) for a, b in itertools.combinations(arrays.values(), 2)):
        wrong.append(ValueError)
    if wrong:
        raise Refused(*wrong)


# ---------------------------------------------------------------------------- norms


def once(arrays):
    """Return the arrays without those that are there under an earlier name."""
    firsts = first_names(arrays)
    return {name: array for name, array in arrays.items() if firsts[name] == name}


def norms(arrays):
    return canonical.norms([elements(array) for array in once(arrays).values()])


def clip(arrays, most, on_nonfinite):
    """Return the norm before, and the elements after, by name; none where nothing is written."""
    counted = once(arrays)
    require_writable(counted)
    found = norms(arrays)
    if on_nonfinite == "raise" and found[4]:
        raise Refused(ValueError)
    factor = canonical.clip_factor(found, most)
    if factor == 1.0:
        return found[1], {}
    return found[1], {
        name: canonical.clipped(elements(array), short(array), factor)
        for name, array in counted.items()
    }


# ---------------------------------------------------------------------------- optimizers


@dataclass
class Moments:
    """What an optimizer keeps of an array, in C order of the indices."""

    t: int = 0
    m: list | None = None
    v: list | None = None
    h: list | None = None


@dataclass
class Record:
    elements: dict
    penalty: float
    norm: float | None
    zeros: int
    skipped: bool
    size: int


@dataclass
class Optimizer:
    """An optimizer's options and what it has learned; a step returns what the arrays become."""

    options: canonical_step.Options
    rules: dict  # glob: None or (regularizer, mode)
    lr: object
    strength: float = 1.0
    initial_lr: float | None = None  # independent
    max_norm: float | None = None
    clip: str = "total"
    on_nonfinite: str | None = None
    steps: int = 0
    state: dict = field(default_factory=dict)

    def rate(self):
        return self.lr(self.steps) if callable(self.lr) else self.lr

    def options_of(self, rule, loss_scale):
        lr = self.rate()
        regularizer, mode = (None, None) if rule is None else rule
        l1, l2 = strengths(regularizer)
        return replace(
            self.options,
            lr=lr,
            mode=mode,
            l1=l1 * self.strength,
            l2=l2 * self.strength,
            factor=lr if self.initial_lr is None else lr / self.initial_lr,
            loss_scale=None if loss_scale == 1.0 else loss_scale,
            clip=None if self.max_norm is None else self.clip,
        )

    def taking_part(self, arrays, grads):
        """Return the rules of the arrays that step, or raise what the call does."""
        won, firsts = winners(arrays, self.rules), first_names(arrays)
        for name, first in firsts.items():  # a rule of any of its names is an array's
            won[first] = won.get(first) or won.get(name)
        if any(name not in arrays for name in grads):
            raise Refused(ValueError)
        for name, first in firsts.items():
            given = grads.get(name)
            if name != first:
                if given is not None and given is not grads.get(first):
                    raise Refused(ValueError)
            elif name not in grads and won[name] is not None:
                raise Refused(ValueError)
        return {
            name: won[name]
            for name in arrays
            if firsts[name] == name and grads.get(name) is not None
        }

    def step(self, arrays, grads, loss_scale=1.0, found_inf=False):
        rules = self.taking_part(arrays, grads)
        if not found_inf:
            fit = all(grads[name].shape == arrays[name].shape for name in rules)
            require_writable({name: arrays[name] for name in rules}, [] if fit else [ValueError])
        options = {name: self.options_of(rule, loss_scale) for name, rule in rules.items()}
        tensors = {name: self.tensor(name, arrays[name]) for name in rules}
        d = {name: in_order_of(arrays[name], grads[name]) for name in rules}
        looks = self.on_nonfinite or ("ignore" if self.max_norm is None else "raise")
        norm, factor, skips = None, 1.0, bool(found_inf)
        if not skips and (self.max_norm is not None or looks != "ignore"):
            lines = [canonical_step.clip_line(tensors[n], d[n], options[n]) for n in rules]
            found = canonical.norms(lines)
            norm = found[1]
            if found[4] and looks == "raise":
                raise Refused(ValueError)
            skips = looks == "skip" and found[4] > 0
            if self.max_norm is not None:
                factor = canonical.clip_factor(found, self.max_norm)
        counted = [name for name, rule in rules.items() if rule is not None]
        if skips:
            penalties = [
                canonical.penalty(tensors[n].w, options[n].l1, options[n].l2) for n in counted
            ]
            zeros = sum(x == 0 for n in counted for x in tensors[n].w)
            size = sum(len(tensors[n].w) for n in counted)
            return Record({}, total(penalties), norm, zeros, True, size)
        for name in rules:
            canonical_step.take(tensors[name], d[name], options[name], factor)
            self.keep(name, arrays[name], tensors[name])
        self.steps += 1
        return Record(
            {name: tensors[name].w for name in rules},
            total(tensors[n].penalty for n in counted),
            norm,
            sum(tensors[n].zeros for n in counted),
            False,
            sum(len(tensors[n].w) for n in counted),
        )

    def tensor(self, name, array):
        kept, places = self.state.get(name, Moments()), order(array)

        def ordered(flat):
            return None if flat is None else [flat[i] for i in places]

        lists = [ordered(one) for one in (kept.m, kept.v, kept.h)]
        return canonical_step.Tensor(elements(array), short(array), *lists, kept.t)

    def keep(self, name, array, tensor):
        places = order(array)

        def flat(ordered):
            if ordered is None:
                return None
            result = [0.0] * len(places)
            for i, x in zip(places, ordered, strict=True):
                result[i] = x
            return result

        self.state[name] = Moments(tensor.t, flat(tensor.m), flat(tensor.v), flat(tensor.h))


def same_number(a, b):
    return (a is None and b is None) or a == b or (math.isnan(a) and math.isnan(b))
