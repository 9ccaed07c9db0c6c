"""Clipping by the global norm, in place: torch's formula in float64 (docs/numerics.md, 11)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, overload

import numpy as np

from .._arrays.libraries import library_of, owner
from .._arrays.library import loaded
from .._arrays.results import all_written, check_targets
from .._base import arguments, dtypes, errors, memory
from .._base.array_types import HasParameters, Real, Tensors
from .._base.float_environment import Default
from .._engine.totals import clip_factor, nonfinite_message
from ..penalties.names import require_kept
from .measured import Arrays, Selected, is_module, parameters_of, selected
from .measuring import measure, stays_on_device

_CHOICES = ("raise", "ignore")
_FOR_PARAMETERS = (
    "for the parameters of a module the module itself, or [p.grad for p in module.parameters()]"
)


@overload
def clip_by_global_norm(
    tensors: Mapping[str, np.ndarray[Any, Any] | None] | Sequence[np.ndarray[Any, Any] | None],
    max_norm: Real,
    *,
    on_nonfinite: Literal["raise", "ignore"] = "raise",
) -> float: ...
@overload
def clip_by_global_norm(
    tensors: Tensors | HasParameters, max_norm: Real, *, on_nonfinite: Literal["raise"] = "raise"
) -> float: ...
@overload
def clip_by_global_norm(
    tensors: Tensors | HasParameters, max_norm: Real, *, on_nonfinite: Literal["raise", "ignore"]
) -> Any: ...
def clip_by_global_norm(tensors: Any, max_norm: Any, *, on_nonfinite: str = "raise") -> Any:
    """Scale arrays in place so that the norm of all of them together is at most `max_norm`.

    The factor is that of ``torch.nn.utils.clip_grad_norm_``, ``min(1, max_norm / (norm + 1e-6))``,
    and the norm is that of :func:`norms`: right for half precision and at every magnitude, where
    torch's is infinite and zeroes all gradients.  A factor of 1 writes nothing.

    Parameters
    ----------
    tensors
        A mapping of names to arrays, or a sequence of them, usually gradients: writable, of floats,
        all in host memory or on one CUDA device; dtypes may be mixed.  None stands for a gradient
        that is missing.  A module of torch stands for the gradients of its parameters; parameters
        themselves are refused, for their weights would be scaled.  An array that is there under two
        names is counted and scaled once.  DTensors (a module of FSDP2) are clipped by the norm of
        the whole tensors; every process of their mesh has to call this.
    max_norm
        At least 0; infinity scales nothing.
    on_nonfinite
        "raise": an error if an element is infinite or NaN.  "ignore": the formula decides, by which
        an infinity scales finite elements to 0, and a NaN makes every element NaN.  On a device
        "raise" waits once, and cannot be captured into a graph; "ignore" waits for nothing.

    Returns
    -------
    float
        The norm before; of arrays on a device with "ignore" 0-d there, float64, in the kind of the
        first (of DTensors a float).

    Raises
    ------
    ValueError
        For an element that is not finite, with the name of the first such array; for a `max_norm`
        that is negative or NaN; for arrays that overlap without being the same.
    TypeError, BufferError
        For an array that cannot be written: of integers, of JAX, read-only, a parameter of torch,
        or a tensor that autograd follows.
    RuntimeError
        In every process that shares DTensors, where they have different tensors, or one of them has
        refused its arrays.

    Notes
    -----
    After any error all arrays are as they were.

    Examples
    --------
    >>> import numpy, fastreg
    >>> grads = {"kernel": numpy.array([3.0, -4.0]), "bias": numpy.zeros(2)}
    >>> fastreg.clip_by_global_norm(grads, 1.0)
    5.0
    >>> grads["kernel"].round(4)
    array([ 0.6, -0.8])
    """
    most = arguments.bound(max_norm, "max_norm")
    arguments.choice(on_nonfinite, "on_nonfinite", _CHOICES)
    if isinstance(tensors, Iterator):
        raise TypeError(
            f"tensors must be a mapping or sequence of gradients, not {errors.described(tensors)}, "
            f"which can be read only once; pass a list of gradients, or {_FOR_PARAMETERS}"
        )
    source = _gradients(tensors) if is_module(tensors) else tensors
    chosen = selected(source)
    _require_mutable(chosen)
    require_kept(source, *chosen, "tensors")
    if on_nonfinite == "ignore" and stays_on_device(chosen):
        return _clipped_there(chosen, most)
    question = f"a clip to {most} with on_nonfinite={on_nonfinite!r}"
    measured = measure(chosen, True, question, partial(_require_apart, chosen))
    first = measured.first_nonfinite()
    if first is not None and on_nonfinite == "raise":
        place, count = first
        remedy = 'clipped; skip this step, or pass on_nonfinite="ignore"'
        raise ValueError(nonfinite_message(chosen.label(place), count, remedy))
    with Default():
        total = measured.total()
        norm, factor = total.l2, clip_factor(total, most)
    if factor != 1.0:
        written = measured.engine.scale_tensors(measured.targets, factor, measured.is_checked)
        if written is NotImplemented:  # another thread has changed an array since
            raise errors.changed_error()
        all_written([owner(array)[1] for array in measured.written(chosen.arrays)])
    return norm


def _clipped_there(chosen: Selected, most: float) -> Any:
    """Clip arrays on a device, and wait for nothing."""
    arrays = Arrays(chosen)
    norm = arrays.ask(
        lambda _: arrays.engine.clip_tensors(arrays.targets, chosen.arrays[0], most),
        True,
        partial(_require_apart, chosen),
    )
    all_written([owner(array)[1] for array in arrays.written(chosen.arrays)])
    return norm


def _gradients(module: Any) -> dict[str, Any]:
    return {name: parameter.grad for name, parameter in parameters_of(module).items()}


def _require_mutable(chosen: Selected) -> None:
    _require_no_parameters(chosen)
    check_targets(chosen.arrays, chosen.names, "tensors")
    for kind in set(map(type, chosen.arrays)):
        if library_of(kind).name == "jax":
            place = [*map(type, chosen.arrays)].index(kind)
            raise errors.read_only_error(
                chosen.label(place),
                "a JAX array, which is immutable",
                "multiply by min(1, max_norm / (fastreg.norms(tensors).total.l2 + 1e-6)), or use "
                "optax.clip_by_global_norm",
            )


def _require_no_parameters(chosen: Selected) -> None:
    """Refuse parameters of torch, whose gradients ``clip_grad_norm_`` would clip."""
    torch = loaded("torch")
    if torch is None:
        return
    others = set(map(type, chosen.arrays)) - {np.ndarray, torch.Tensor}
    for place, array in enumerate(chosen.arrays if others else ()):
        if type(array) in others and isinstance(array, torch.nn.Parameter):
            raise errors.special_array_error(
                chosen.label(place),
                "a parameter of torch, whose weights would be scaled",
                f"pass its gradient, and {_FOR_PARAMETERS}",
            )


def _require_apart(chosen: Selected, measured: Arrays) -> None:
    """Refuse integers, and arrays that overlap themselves or others without being the same."""
    spans = []
    for place in measured.counted:
        view, dtype = measured.view(place)
        label = chosen.label(place)
        if dtype not in dtypes.FLOATS:
            raise TypeError(
                f"{label} has dtype {dtypes.spoken(dtype)}, whose elements cannot be scaled; pass "
                f"for example {label}.astype(numpy.float32)"
            )
        if view.size == 0:
            continue
        if memory.overlaps_itself(view):
            raise ValueError(
                f"{label} overlaps itself (strides {view.strides} for shape {view.shape}): one "
                "element has several places; pass a copy"
            )
        spans.append((*memory.byte_bounds(view), place))
    spans.sort()
    open_spans: list[tuple[int, int, int]] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        for other in open_spans:
            if memory.share_memory(measured.view(span[2])[0], measured.view(other[2])[0]):
                first, second = sorted((other[2], span[2]))
                raise ValueError(
                    f"{chosen.label(second)} overlaps {chosen.label(first)} in memory without "
                    "being the same array; pass a copy of one of them"
                )
        open_spans.append(span)
