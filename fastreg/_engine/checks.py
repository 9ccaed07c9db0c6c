"""Checks of whole calls: the arrays, what they have in common, and the coefficients.

Contract
--------
- Nothing is written by any function here, so a call that is refused has changed nothing.
- The core either runs a call or returns NotImplemented; error messages of calls come from here.
  Read-only memory is refused where views are made: ``_arrays/host_memory.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from .._arrays import host
from .._base import dtypes as _dtypes
from .._base import errors, memory, penalty
from .._base.arguments import multiplier, strength
from .._base.float_environment import products
from .._base.penalty import ADD, GRADIENT, PROX, Call, Strengths

Array = npt.NDArray[Any]
View = Callable[[Any, str, bool], tuple[Array, str]]


def checked_views(
    call: Call, view_of: View = host.host_view
) -> tuple[list[tuple[Array, str]], list[Array]]:
    """Return (view, dtype name) pairs and gradient views, or raise the error that a call deserves.

    `view_of` describes an array; nothing here reads the elements of what it gives.
    """
    scale, grad_scale = factors(call)
    views: list[tuple[Array, str]] = []
    seen: list[Seen] = []
    for index, weight in enumerate(call.weights):
        label = call.weight_label(index)
        views.append(view_of(weight, label, False))
        seen.append(Seen(label, views[-1], False))
    wants_gradient = bool(call.outputs & (GRADIENT | ADD))
    dtypes = [dtype for _, dtype in views]
    if call.outputs & PROX:
        check_thresholds(call.strengths, call.which, dtypes, scale, grad_scale)
    else:
        check_coefficients(call.strengths, call.which, dtypes, scale, grad_scale, wants_gradient)
    if not wants_gradient:
        require_current(seen)
        return views, []
    if call.gradients is None:  # not reachable through the public functions
        raise TypeError("gradients must be given when a gradient is asked for, not None")
    targets: list[Array] = []
    for index, ((view, dtype), gradient) in enumerate(zip(views, call.gradients, strict=True)):
        weight_name = call.weight_label(index)
        label = call.gradient_label(index)
        if dtype not in _dtypes.FLOATS:
            raise TypeError(
                f"{weight_name} has dtype {view.dtype}: there is no {call.written} for integer or "
                f"bool elements; pass for example {weight_name}.astype(numpy.float32)"
            )
        if gradient is None:
            raise ValueError(
                f"{label} is missing (None), but {weight_name} has a penalty; pass an array of "
                f"shape {view.shape}"
            )
        target, target_dtype = view_of(gradient, label, True)
        seen.append(Seen(label, (target, target_dtype), True))
        if target_dtype != dtype:
            raise TypeError(
                f"{label} has dtype {_dtypes.spoken(target_dtype)}, but {weight_name} has "
                f"{_dtypes.spoken(dtype)}; a {call.written} has the dtype of its weight"
            )
        if target.shape != view.shape:
            raise ValueError(
                f"{label} has shape {target.shape}, but {weight_name} has {view.shape}; a "
                f"{call.written} has the shape of its weight"
            )
        targets.append(target)
    require_current(seen)
    _check_overlaps(call, [view for view, _ in views], targets)
    return views, targets


def factors(call: Call) -> tuple[float, float]:
    """Return the factor of the penalty, and that of the gradient or the step, as floats."""
    if call.outputs & PROX:
        return strength(call.scale, "scale"), strength(call.grad_scale, "step")
    return multiplier(call.scale, "scale"), multiplier(call.grad_scale, "grad_scale")


class Seen:
    """A view, and its shape, strides and dtype when it was made: an ndarray is its own view."""

    def __init__(self, label: str, view: tuple[Array, str], writable: bool) -> None:
        self.label = label
        self.view = view
        self.is_written = writable
        self._form = self._form_now()

    def is_current(self) -> bool:
        """Return whether the view is as it was made, and still the memory of its array."""
        return self._form_now() == self._form and host.is_current(self.view)

    def _form_now(self) -> Any:
        array = self.view[0]
        writable = self.is_written and array.flags.writeable
        return array.shape, array.strides, array.dtype, writable


def require_current(seen: Sequence[Seen]) -> None:
    """Raise if an array was resized or freed since its view was made.

    Another array's ``__dlpack__`` may have done that.
    """
    for one in seen:
        if not one.is_current():
            raise errors.changed_error(one.label)


def check_coefficients(
    strengths: Strengths,
    which: Sequence[int],
    dtypes: Sequence[str],
    scale: float,
    grad_scale: float,
    wants_gradient: bool,
) -> tuple[float, ...]:
    """Return strengths times scale, l1 and l2 of each rule in turn."""
    numbers = [number for pair in strengths for number in pair]
    scaled = products(numbers, scale)
    _require_finite(scaled, numbers, scale)
    if not wants_gradient:
        return scaled
    for index, dtype in set(zip(which, dtypes, strict=True)):
        factors = penalty.coefficients(strengths[index], scale, grad_scale)
        for name, coefficient in zip(("l1", "2 * l2"), factors, strict=True):
            if not math.isfinite(penalty.rounded(coefficient, dtype)):
                raise ValueError(
                    f"{name} * scale * grad_scale must be finite in "
                    f"{'float64' if dtype == 'f64' else 'float32'}, the type of the gradient's "
                    f"arithmetic, not {coefficient!r}; use a smaller strength, scale or grad_scale"
                )
    return scaled


def check_thresholds(
    strengths: Strengths, which: Sequence[int], dtypes: Sequence[str], scale: float, step: float
) -> None:
    """Raise ValueError for strengths whose proximal step has a number that is not finite."""
    numbers = [number for pair in strengths for number in pair]
    _require_finite(products(numbers, scale), numbers, scale)
    for index, dtype in set(zip(which, dtypes, strict=True)):
        both = penalty.thresholds(strengths[index], scale, step)
        for name, number in zip(("step * l1", "1 + step * 2 * l2"), both, strict=True):
            if not math.isfinite(penalty.rounded(number, dtype)):
                raise ValueError(
                    f"{name}, of strengths times scale, must be finite in "
                    f"{'float64' if dtype == 'f64' else 'float32'}, the type of the arithmetic, "
                    f"not {number!r}; use a smaller strength, scale or step"
                )


def _require_finite(scaled: Sequence[float], numbers: Sequence[float], scale: float) -> None:
    if not all(map(math.isfinite, scaled)):
        place = list(map(math.isfinite, scaled)).index(False)
        raise ValueError(
            f"{('l1', 'l2')[place % 2]} * scale must be finite, not {numbers[place]!r} * "
            f"{scale!r}; use smaller values"
        )


def _check_overlaps(call: Call, weights: Sequence[Array], targets: Sequence[Array]) -> None:
    """Refuse every overlap that involves an output, but for "the gradient is the weight"."""
    spans: list[tuple[int, int, bool, int]] = []
    for index, (weight, target) in enumerate(zip(weights, targets, strict=True)):
        if weight.size == 0:
            continue
        if memory.overlaps_itself(target):
            raise ValueError(
                f"{call.gradient_label(index)} overlaps itself (strides "
                f"{target.strides} for shape {target.shape}): one element has several places; "
                "pass a copy"
            )
        spans.append((*memory.byte_bounds(weight), False, index))
        spans.append((*memory.byte_bounds(target), True, index))
    spans.sort()
    open_spans: list[tuple[int, int, bool, int]] = []
    for span in spans:
        low, _, written, index = span
        open_spans = [other for other in open_spans if other[1] > low]
        for _, _, other_written, other in open_spans:
            if not (written or other_written):
                continue
            mine = targets[index] if written else weights[index]
            others = targets[other] if other_written else weights[other]
            if index == other and memory.same_elements_in_order(mine, others):
                continue
            if not memory.share_memory(mine, others):
                continue
            label = call.gradient_label(index if written else other)
            partner_index = other if written else index
            partner = (
                call.gradient_label(partner_index)
                if written and other_written
                else call.weight_label(partner_index)
            )
            if memory.same_elements_in_order(mine, others):
                raise ValueError(
                    f"{label} overlaps {partner} in memory, being the same array; pass an array "
                    "of its own, a copy for example"
                )
            raise ValueError(
                f"{label} overlaps {partner} in memory without being the same array; pass a copy "
                "of one of them"
            )
        open_spans.append(span)
