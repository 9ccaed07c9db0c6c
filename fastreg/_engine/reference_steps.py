"""The steps of optimizers in NumPy: the core's functions for them, as fallback and oracle.

Contract
--------
- The same bits as the native core for every dtype, layout, option and call: docs/numerics.md, 12.
- Tensors come as pairs of a view and the name of its dtype, and have been judged.
- All of a call is written or none: everything is computed beside what is there, then written at
  once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._base import steps
from .._base.float_environment import Default
from .._base.steps import Numbers, Settings
from . import canonical, elements

Array = npt.NDArray[Any]
View = tuple[Array, str]


def measure_step(
    parameters: Sequence[Any],
    gradients: Sequence[Any],
    settings: Sequence[Any],
    which: Sequence[int],
    loss_scale: float,
    clip: int,
    exponent: int,
) -> Any:
    """Return squares, maximum and nonfinite of what a step clips; see ``_core.pyi``."""
    if not _are_views(parameters, gradients):
        return NotImplemented
    found = []
    with Default(), np.errstate(all="ignore"):
        for (view, dtype), gradient, place in zip(parameters, gradients, which, strict=True):
            one = Settings(*settings[place])
            numbers = steps.numbers(one, 0, loss_scale, 1.0, dtype)
            flat, flat_gradient = canonical.flattened(view, gradient[0])
            sums = canonical.Measured(exponent)
            for part in canonical.slabs(view.size):
                maths = _Maths(one, numbers, dtype, loss_scale, clip)
                d = maths.first(elements.widened(flat_gradient[part], gradient[1]))
                if clip == steps.CLIP_TOTAL:
                    d = maths.penalized(d, flat[part])
                sums.add(d.astype(np.float64))
            _, squares, maximum, _, nonfinite = sums.found()
            found.append((squares, maximum, nonfinite))
    return found


def take_step(
    parameters: Sequence[Any],
    gradients: Sequence[Any],
    first: Sequence[Any] | None,
    second: Sequence[Any] | None,
    largest: Sequence[Any] | None,
    taken: Sequence[int],
    settings: Sequence[Any],
    which: Sequence[int],
    loss_scale: float,
    clip: int,
    factor: float,
    checked: bool,
) -> Any:
    """Take the step of all tensors in place, or of none; see ``_core.pyi``."""
    states = [one or [None] * len(parameters) for one in (first, second, largest)]
    if not (checked and _are_views(parameters, gradients, *states)):
        return NotImplemented
    targets: list[Array] = []
    results: list[Array] = []
    penalties, zeros = [], []
    with Default(), np.errstate(all="ignore"):
        for place, parameter in enumerate(parameters):
            one = Settings(*settings[which[place]])
            numbers = steps.numbers(one, taken[place], loss_scale, factor, parameter[1])
            maths = _Maths(one, numbers, parameter[1], loss_scale, clip)
            state = [None if kept[place] is None else kept[place][0] for kept in states]
            made = _stepped(maths, parameter, gradients[place], state, taken[place] == 0)
            penalties.append(made.penalty)
            zeros.append(made.zeros)
            for target, result in zip((parameter[0], *state), made.written, strict=True):
                if target is not None and result is not None:
                    targets.append(target)
                    results.append(result)
    canonical.write(targets, results)
    return penalties, zeros


def _are_views(*tensors: Sequence[Any]) -> bool:
    return all(type(one) is tuple for row in tensors for one in row if one is not None)


class _Made(NamedTuple):
    """What one tensor comes to; nothing of it has been written."""

    penalty: float
    zeros: int
    written: tuple[Any, ...]
    """The new parameter, first and second moment and largest of those; None for what is not."""


def _stepped(
    maths: _Maths, parameter: View, gradient: View, state: Sequence[Any], is_first: bool
) -> _Made:
    view, dtype = parameter
    one = maths.settings
    new = [np.empty_like(view), *(None if kept is None else np.empty_like(kept) for kept in state)]
    arrays = [view, gradient[0], *state, *new]
    there = [place for place, array in enumerate(arrays) if array is not None]
    flat: list[Any] = [None] * len(arrays)
    for place, found in zip(there, canonical.flattened(*[arrays[i] for i in there]), strict=True):
        flat[place] = found
    old_state, new_state = flat[2:5], flat[6:]
    counts = one.mode != steps.NONE
    sums = canonical.Sums((one.l1, one.l2), dtype)
    zeros = 0
    for part in canonical.slabs(view.size):
        stored = flat[0][part]
        w = elements.widened(stored, dtype)
        if one.mode == steps.GRADIENT:
            sums.add(stored)
        d = maths.clipped(maths.first(elements.widened(flat[1][part], gradient[1])), stored)
        kept = [None if array is None else array[part] for array in old_state]
        u, made = maths.moved(w, d, kept, is_first)
        for array, numbers in zip(new_state, made, strict=True):
            if array is not None:
                array[part] = numbers
        stored = canonical.stored(u, dtype)
        flat[5][part] = stored
        if counts:
            zeros += stored.size - int(np.count_nonzero(elements.widened(stored, dtype)))
            if one.mode != steps.GRADIENT:
                sums.add(stored)
    return _Made(sums.penalty() if counts else 0.0, zeros, tuple(new))


class _Maths:
    """The arithmetic of a step on elements of one tensor, each operation rounded."""

    def __init__(
        self, settings: Settings, numbers: Numbers, dtype: str, loss_scale: float, clip: int
    ) -> None:
        self.settings = settings
        compute: Any = np.float64 if dtype == "f64" else np.float32
        self._compute = compute
        self._numbers = Numbers(*map(compute, numbers))
        self._dtype = dtype
        self._is_scaled = loss_scale != 1.0
        self._clip = clip

    def first(self, gradient: Array) -> Array:
        """Return d of the first line: the data's gradient, unscaled and to be minimised."""
        d = gradient.astype(self._compute)
        if self._is_scaled:
            d *= self._numbers.inverse_scale
        return np.negative(d) if self.settings.flags & steps.MAXIMIZE else d

    def penalized(self, d: Array, stored: Array) -> Array:
        """Return d with the penalty's gradient in it, where it belongs there."""
        one, numbers = self.settings, self._numbers
        if one.mode != steps.GRADIENT or not (one.l1 or one.l2):
            return d
        factors = float(numbers.l1), float(numbers.double_l2)
        slope = elements.gradient(stored, None, self._dtype, factors, one.l1 != 0.0, one.l2 != 0.0)
        return np.add(d, slope)

    def clipped(self, d: Array, stored: Array) -> Array:
        """Return d before the weight decay of SGD."""
        if self._clip == steps.CLIP_DATA:
            d = d * self._numbers.clip
        d = self.penalized(d, stored)
        return np.multiply(d, self._numbers.clip) if self._clip == steps.CLIP_TOTAL else d

    def moved(
        self, w: Array, d: Array, state: Sequence[Any], is_first: bool
    ) -> tuple[Array, tuple[Any, ...]]:
        """Return the new elements, not yet rounded to their dtype, and the new state."""
        if self.settings.algorithm == steps.ADAMW:
            return self._adamw(w, d, *state)
        e, first = self._momentum(w, d, state[0], is_first)
        return self._shrunk(w, w, self._numbers.lr * e, None), (first, None, None)

    def _momentum(self, w: Array, d: Array, m: Any, is_first: bool) -> tuple[Array, Any]:
        one, numbers = self.settings, self._numbers
        if one.weight_decay:
            d = d + numbers.weight_decay * w
        if not one.momentum:
            return d, None
        m = d if is_first else numbers.momentum * m + numbers.undamped * d
        return (d + numbers.momentum * m if one.flags & steps.NESTEROV else m), m

    def _adamw(
        self, w: Array, d: Array, m: Array, v: Array, h: Any
    ) -> tuple[Array, tuple[Any, ...]]:
        numbers = self._numbers
        m = numbers.beta1 * m + numbers.one_minus_beta1 * d
        v = numbers.beta2 * v + (numbers.one_minus_beta2 * d) * d
        if h is not None:
            h = np.where((h > v) | np.isnan(h), h, v)  # np.maximum of two zeros is either
        q = np.sqrt(v if h is None else h) / numbers.correction + numbers.eps
        s = numbers.size * (m / q)
        decayed = w * numbers.shrink if self.settings.weight_decay else w
        return self._shrunk(w, decayed, s, q), (m, v, h)

    def _shrunk(self, old: Array, w: Array, s: Array, q: Any) -> Array:
        """Return ``w - s`` after what the penalty does outside of the gradient."""
        one, numbers = self.settings, self._numbers
        thresholds: tuple[Any, Any] = (numbers.lr_l1, numbers.divisor)
        has_l1, has_l2 = one.l1 != 0.0, one.l2 != 0.0
        if one.mode == steps.DECOUPLED:
            return self._decoupled(old, w, s)
        u = np.subtract(w, s)
        if one.mode not in (steps.PROXIMAL, steps.SCALED) or not (has_l1 or has_l2):
            return u
        if one.mode == steps.SCALED:
            thresholds = numbers.lr_l1 / q, self._compute(1.0) + numbers.lr_double_l2 / q
        return elements.shrunk(u, thresholds, has_l1, has_l2)

    def _decoupled(self, old: Array, w: Array, s: Array) -> Array:
        one, numbers = self.settings, self._numbers
        decayed = w * numbers.decoupled_shrink if one.l2 else w
        u = np.subtract(decayed, s)
        if one.l1:
            u = elements.shrunk(u, (numbers.decoupled_l1, numbers.divisor), True, False)
        if not one.flags & steps.CAUTIOUS:
            return u
        is_left_out = ((s > 0) & (old < 0)) | ((s < 0) & (old > 0))
        return np.where(is_left_out, np.subtract(w, s), u)
