"""Every refusal of the package, its type and its words, in one place.

Contract
--------
- ``TypeError`` for a wrong kind, ``ValueError`` for a wrong value, ``BufferError`` for memory that
  may not be written.  Each message names the argument, says what it was and what would do.
- Nothing is written by any function here, so a call that is refused has changed nothing.
- The native core decides only "certainly fine" or "not sure" and asks :func:`check_call` in the
  second case: an error has one text, whichever backend found it.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _arrays

VALUE, GRADIENT, ADD = 1, 2, 4

Array = npt.NDArray[Any]


def described(value: object, limit: int = 60) -> str:
    """Say what an argument was: its type, and its value where that is short."""
    kind = type(value)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    if value is None:
        return "None"
    if isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        try:
            text = repr(value)
        except ValueError:  # Python refuses to print integers of thousands of digits
            return f"a very large {name}"
        return f"{name} {text if len(text) <= limit else text[: limit - 3] + '...'}"
    return f"a {name}"


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def listed(words: Iterable[str], limit: int = 8) -> str:
    """Join names for a message and cut long lists."""
    names = [repr(word) for word in words]
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


# --------------------------------------------------------------------------- numbers


def _real(value: object, name: str, wanted: str) -> float:
    if isinstance(value, (bool, int, float, np.integer, np.floating, np.bool_)) or (
        # ml_dtypes' bfloat16 and its relatives are NumPy scalars outside NumPy's class tree.
        isinstance(value, np.generic) and type(value).__module__.startswith("ml_dtypes")
    ):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(
                f"{name} must be {wanted}, not {described(value)}: it does not fit a float"
            ) from None
    raise TypeError(
        f"{name} must be {wanted}, not {described(value)}; pass a Python or NumPy number, "
        f"for example {name}=float(x)"
    )


def strength(value: object, name: str) -> float:
    """Return a penalty strength as a Python float: finite and not negative."""
    wanted = "a finite number >= 0"
    number = _real(value, name, wanted)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be {wanted}, not {described(value)}")
    return number


def multiplier(value: object, name: str) -> float:
    """Return ``scale`` or ``grad_scale`` as a Python float: finite, any sign."""
    wanted = "a finite number"
    number = _real(value, name, wanted)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {wanted}, not {described(value)}")
    return number


def positive_integer(value: object, name: str) -> int:
    """Return a number of threads as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a positive integer, not {described(value)}")
    if value < 1:
        raise ValueError(f"{name} must be a positive integer, not {described(value)}")
    return int(value)


def choice(value: object, name: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {listed(choices)}, not {described(value)}")
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {listed(choices)}, not {value!r}{suggestion(value, choices)}"
        )
    return value


def environment_choice(name: str, choices: Sequence[str]) -> str | None:
    """Read an environment variable which takes one of `choices`; unset or empty gives None."""
    value = os.environ.get(name)
    return choice(value, f"the environment variable {name}", choices) if value else None


def environment_positive_integer(name: str) -> int | None:
    """Read an environment variable which takes a positive integer; unset or empty gives None."""
    value = os.environ.get(name)
    if not value:
        return None
    if not (value.isascii() and value.isdigit()) or int(value) < 1:
        raise ValueError(
            f"the environment variable {name} must be a positive integer, not {value!r}"
        )
    return int(value)


# ---------------------------------------------------------------- foreign arrays, by kind


def kind_error(x: object, name: str) -> TypeError:
    """Build the error for an object that is no array fastreg can read without copying."""
    kind = type(x)
    package = kind.__module__.partition(".")[0]
    if x is None:
        remedy = "pass an array"
    elif isinstance(x, (list, tuple)):
        remedy = f"pass numpy.asarray({name}), or fastreg.attach for many arrays"
    elif isinstance(x, (int, float, complex)):
        remedy = f"pass numpy.asarray({name})"
    elif isinstance(x, (str, bytes, bytearray)):
        remedy = f"pass an array of numbers, for example numpy.frombuffer({name}, dtype=...)"
    elif isinstance(x, dict):
        remedy = "pass one array, or use fastreg.attach for a mapping of arrays (not nested)"
    elif package == "scipy":
        remedy = f"pass {name}.data (zeros add nothing to a penalty) or {name}.toarray()"
    elif package in ("pandas", "polars", "pyarrow"):
        remedy = f"pass {name}.to_numpy()"
    elif hasattr(kind, "__array__"):
        remedy = f"pass numpy.asarray({name}), which may copy"
    else:
        remedy = "pass a NumPy array or another array in host memory"
    return TypeError(f"{name} must be an array, not {described(x)}; {remedy}")


def dtype_error(name: str, dtype: object, remedy: str = "") -> TypeError:
    """Build the error for an element type that has no penalty."""
    return TypeError(
        f"{name} has dtype {dtype}; its elements must be float16, bfloat16, float32, float64, "
        "or an integer type of up to 64 bits or bool for a value"
        + (f"; {remedy}" if remedy else f"; pass for example {name}.astype(numpy.float32)")
    )


def byte_order_error(name: str, dtype: object) -> TypeError:
    """Build the error for an array in the other byte order."""
    return TypeError(
        f"{name} has dtype {dtype}, which is not in this machine's byte order; pass "
        f'{name}.astype({name}.dtype.newbyteorder("="))'
    )


def device_error(name: str, device: str) -> TypeError:
    """Build the error for an array outside host memory."""
    if device.startswith("cuda"):
        return TypeError(
            f"{name} is on CUDA ({device}); this build has no CUDA support, pass a copy in host "
            "memory"
        )
    return TypeError(f"{name} is on the device {device!r}; pass a copy in host memory")


def special_array_error(name: str, what: str, remedy: str) -> TypeError:
    """Build the error for an array whose elements do not simply lie in memory."""
    return TypeError(f"{name} is {what}; {remedy}")


def read_only_error(name: str, why: str = "a read-only array", remedy: str = "") -> BufferError:
    """Build the error for memory which may not be written."""
    return BufferError(f"{name} is {why}; {remedy or 'pass a writable array or a copy'}")


def number_error(value: object, name: str) -> TypeError:
    """Build the error for a callable that gave something other than one number."""
    shape = getattr(value, "shape", None)
    what = described(value) + (f" of shape {tuple(shape)}" if shape else "")
    return TypeError(f"{name} must be one number, not {what}; sum it")


def needs_gradient_error(name: str) -> TypeError:
    """Build the error for a torch tensor whose gradient a plain number would lose."""
    return TypeError(
        f"{name} is a torch tensor that requires a gradient, which the penalty as a plain number "
        "would silently lose; use accumulate(...) on the gradients after backward(), "
        "gradient(...), or call this under torch.no_grad()"
    )


# ------------------------------------------------------------------------ whole calls


def _weight_label(names: Sequence[str] | None, index: int) -> str:
    return "w" if names is None else f"tensors[{names[index]!r}]"


def _gradient_label(outputs: int, names: Sequence[str] | None, index: int) -> str:
    if names is None:
        return "grad" if outputs & ADD else "out"
    return f"grads[{names[index]!r}]"


def check_call(
    outputs: int,
    names: Sequence[str] | None,
    weights: Sequence[Any],
    gradients: Sequence[Any] | None,
    strengths: Sequence[tuple[float, float]],
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
) -> None:
    """Raise the error that a call deserves, or return when it is legal after all.

    The arguments are those of ``evaluate_many``; `names` is None for ``evaluate_one``, whose
    arguments are called "w" and "grad" or "out" in messages.
    """
    checked_views(outputs, names, weights, gradients, strengths, which, scale, grad_scale)


def checked_views(
    outputs: int,
    names: Sequence[str] | None,
    weights: Sequence[Any],
    gradients: Sequence[Any] | None,
    strengths: Sequence[tuple[float, float]],
    which: Sequence[int],
    scale: Any,
    grad_scale: Any,
) -> tuple[list[tuple[Array, str]], list[Array]]:
    """Do what :func:`check_call` does; return (view, dtype name) pairs and gradient views."""
    scale = multiplier(scale, "scale")
    grad_scale = multiplier(grad_scale, "grad_scale")
    views = [
        _arrays.host_view(weight, _weight_label(names, index), False)
        for index, weight in enumerate(weights)
    ]
    wants_gradient = bool(outputs & (GRADIENT | ADD))
    _check_coefficients(strengths, which, views, scale, grad_scale, wants_gradient)
    if not wants_gradient:
        return views, []
    if gradients is None:  # not reachable through the public functions
        raise TypeError("gradients must be given when a gradient is asked for, not None")
    targets: list[Array] = []
    for index, ((view, dtype), gradient) in enumerate(zip(views, gradients, strict=True)):
        weight_label = _weight_label(names, index)
        label = _gradient_label(outputs, names, index)
        if dtype not in _arrays.FLOATS:
            raise TypeError(
                f"{weight_label} has dtype {view.dtype}: there is no gradient for integer or bool "
                f"elements; pass for example {weight_label}.astype(numpy.float32)"
            )
        if gradient is None:
            raise ValueError(
                f"{label} is missing (None), but {weight_label} has a penalty; pass an array of "
                f"shape {view.shape}"
            )
        target, target_dtype = _arrays.host_view(gradient, label, True)
        if target_dtype != dtype:
            raise TypeError(
                f"{label} has dtype {_arrays.spoken(target_dtype)}, but {weight_label} has "
                f"{_arrays.spoken(dtype)}; a gradient has the dtype of its weight"
            )
        if target.shape != view.shape:
            raise ValueError(
                f"{label} has shape {target.shape}, but {weight_label} has {view.shape}; a "
                "gradient has the shape of its weight"
            )
        targets.append(target)
    _check_overlaps(outputs, names, [view for view, _ in views], targets)
    return views, targets


def _check_coefficients(
    strengths: Sequence[tuple[float, float]],
    which: Sequence[int],
    views: Sequence[tuple[Array, str]],
    scale: float,
    grad_scale: float,
    wants_gradient: bool,
) -> None:
    """Refuse coefficients that are not finite in the type they are used in."""
    for pair in strengths:
        for name, number in zip(("l1", "l2"), pair, strict=True):
            if not math.isfinite(number * scale):
                raise ValueError(
                    f"{name} * scale must be finite, not {number!r} * {scale!r}; use smaller values"
                )
    if not wants_gradient:
        return
    for index, dtype in {(index, view[1]) for index, view in zip(which, views, strict=True)}:
        for name, coefficient in zip(
            ("l1", "2 * l2"), coefficients(strengths[index], scale, grad_scale), strict=True
        ):
            if not math.isfinite(rounded(coefficient, dtype)):
                raise ValueError(
                    f"{name} * scale * grad_scale must be finite in "
                    f"{'float64' if dtype == 'f64' else 'float32'}, the type of the gradient's "
                    f"arithmetic, not {coefficient!r}; use a smaller strength, scale or grad_scale"
                )


def coefficients(pair: tuple[float, float], scale: float, grad_scale: float) -> tuple[float, float]:
    """Return the factors of sign(w) and w in a gradient, in float64."""
    l1, l2 = pair
    return (l1 * scale) * grad_scale, 2.0 * ((l2 * scale) * grad_scale)


def rounded(coefficient: float, dtype: str) -> float:
    """Round a gradient's factor once to the type of the gradient's arithmetic."""
    if dtype == "f64":
        return coefficient
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(coefficient))


# --------------------------------------------------------------------------- overlaps


def byte_bounds(view: Array) -> tuple[int, int]:
    """Return the first byte of an array that is not empty and the one after its last."""
    low = high = int(view.ctypes.data)
    for extent, stride in zip(view.shape, view.strides, strict=True):
        if stride < 0:
            low += (extent - 1) * stride
        else:
            high += (extent - 1) * stride
    return low, high + view.itemsize


def same_elements_in_order(first: Array, second: Array) -> bool:
    """Say whether two arrays are the same memory with the same layout."""
    return (
        first.ctypes.data == second.ctypes.data
        and first.dtype == second.dtype
        and first.shape == second.shape
        and all(
            extent == 1 or one == other
            for extent, one, other in zip(first.shape, first.strides, second.strides, strict=True)
        )
    )


def _overlaps_itself(view: Array) -> bool:
    axes = sorted(
        (abs(stride), extent)
        for stride, extent in zip(view.strides, view.shape, strict=True)
        if extent > 1
    )
    reach = view.itemsize
    for stride, extent in axes:
        if stride < reach:
            break
        reach = stride * (extent - 1) + reach
    else:
        return False
    if axes[0][0] == 0:
        return True
    # Interleaved axes, which only a hand-made stride can give: look at every address.
    offsets = np.zeros((1,), np.int64)
    for stride, extent in axes:
        offsets = (offsets[:, None] + np.arange(extent, dtype=np.int64) * stride).reshape(-1)
    offsets.sort()
    return bool((np.diff(offsets) < view.itemsize).any())


def _share_memory(first: Array, second: Array) -> bool:
    shares_memory: Any = np.shares_memory  # its stub does not know how to bound the work
    try:
        return bool(shares_memory(first, second, max_work=1_000_000))
    except RuntimeError:  # NumPy's TooHardError: refuse what cannot be shown to be disjoint
        return True


def _check_overlaps(
    outputs: int, names: Sequence[str] | None, weights: Sequence[Array], targets: Sequence[Array]
) -> None:
    """Refuse every overlap that involves an output, but for "the gradient is the weight"."""
    spans: list[tuple[int, int, bool, int]] = []
    for index, (weight, target) in enumerate(zip(weights, targets, strict=True)):
        if weight.size == 0:
            continue
        if _overlaps_itself(target):
            raise ValueError(
                f"{_gradient_label(outputs, names, index)} overlaps itself (strides "
                f"{target.strides} for shape {target.shape}): one element has several places; "
                "pass a copy"
            )
        spans.append((*byte_bounds(weight), False, index))
        spans.append((*byte_bounds(target), True, index))
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
            if index == other and same_elements_in_order(mine, others):
                continue
            if not _share_memory(mine, others):
                continue
            label = _gradient_label(outputs, names, index if written else other)
            partner_index = other if written else index
            partner = (
                _gradient_label(outputs, names, partner_index)
                if written and other_written
                else _weight_label(names, partner_index)
            )
            raise ValueError(
                f"{label} overlaps {partner} in memory without being the same array; pass a copy "
                "of one of them"
            )
        open_spans.append(span)
