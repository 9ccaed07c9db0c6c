"""Penalties that torch can differentiate, compile and transform; a ``dispatch.Port``.

Contract
--------
- A penalty is float32, or float64 for float64 tensors, on the device of its tensor.  A list of
  tensors is one call of the core forward, and one backward for all gradients that are needed.
- A gradient has the weight's dtype and the bits of ``Regularizer.gradient`` with the upstream
  gradient as `grad_scale`.  It can be differentiated again, as often as wanted.
- ``_Traced`` and ``_Gradient`` use ``setup_context`` and wrap the custom ops (no
  ``register_autograd``), so that torch.compile can trace and torch.func transform them.
  ``_Penalty``, the eager fast path, takes `ctx` in forward.
- Nothing here may branch on a strength or scale while torch compiles: they are symbols then.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, TypeAlias

import torch

from ..._arrays import torch_memory
from ..._arrays.libraries import library_of, owner
from ..._base import arguments, errors, float_environment
from ..._base.dtypes import SHORT
from ..._base.float_environment import products
from ..._base.penalty import Strengths
from ..._engine import checks
from .. import orthogonal as _orthogonal
from . import engines, operators

_ATTRIBUTES = attrgetter("__dict__")
_Numbers: TypeAlias = tuple[float, ...] | torch.Tensor
"""Strengths as the operators take them: numbers, or a tensor of them while torch compiles."""


def total(weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any) -> Any:
    """Return the penalty of all tensors, 0-d, by a canonical sum; None for an empty list."""
    return _penalty(weights, strengths, which, scale, False) if weights else None


def values(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any
) -> list[Any]:
    """Return the penalty of each tensor, 0-d each, from one pass over all."""
    if not weights:
        return []
    each = _penalty(weights, strengths, which, scale, True).unbind()
    return [
        value.to(operators.value_dtype((_tensor(weight),)))
        for value, weight in zip(each, weights, strict=True)
    ]


def gradients(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, grad_scale: Any
) -> Sequence[Any]:
    """Return ``scale * grad_scale * (l1 * sign(w) + 2 * l2 * w)`` of each, as new tensors."""
    scale, upstream = factor(scale, "scale"), factor(grad_scale, "grad_scale")
    if not isinstance(upstream, torch.Tensor):
        upstream = float64((upstream,))[0]
    scaled = [(product(l1, scale), product(l2, scale)) for l1, l2 in strengths]
    tensors = [_tensor(weight) for weight in weights]
    made: Sequence[Any] = _apply_gradient(upstream, _scaled(scaled, 1.0), tuple(which), *tensors)
    return made


def proximal(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, step: Any
) -> list[torch.Tensor]:
    """Return the proximal step of each by operators of torch, as new tensors of no graph.

    They have the core's bits where torch's operators round once, as on CPUs.
    """
    tensors = [_tensor(weight) for weight in weights]
    for tensor in tensors:
        if tensor.dtype not in _FLOATING:
            raise errors.dtype_error("w", tensor.dtype, "pass w.float()")
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            _require_undifferentiated(tensor)
        scale, step = arguments.strength(scale, "scale"), arguments.strength(step, "step")
        names = [str(tensor.dtype).removeprefix("torch.") for tensor in tensors]
        checks.check_thresholds(strengths, which, [SHORT[name] for name in names], scale, step)
    made = []
    for tensor, rule in zip(tensors, which, strict=True):
        l1, l2 = (float64((product(number, scale),))[0] for number in strengths[rule])
        # Without a branch on numbers: while torch compiles they are symbols.
        t1, t2 = step * l1, 1.0 + step * (2.0 * l2)
        made.append(_shrunk(tensor.detach(), l1 != 0.0, t1, t2))
    return made


def _require_undifferentiated(tensor: torch.Tensor) -> None:
    """Refuse what torch.func differentiates: of no graph, its derivative would be 0, unsaid."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_gradtrackingtensor(tensor):
            raise errors.special_array_error(
                "w",
                "a tensor that torch.func differentiates, and a proximal step is in no graph",
                "call prox outside of torch.func.grad and its like",
            )
        tensor = functorch.get_unwrapped(tensor)


_FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def _shrunk(
    w: torch.Tensor, has_l1: torch.Tensor, t1: torch.Tensor, t2: torch.Tensor
) -> torch.Tensor:
    compute = torch.float64 if w.dtype == torch.float64 else torch.float32
    has_l1, t1, t2 = (number.to(w.device) for number in (has_l1, t1.to(compute), t2.to(compute)))
    wide = w.to(compute)
    left = wide.abs() - t1
    kept = torch.where(left > 0, torch.copysign(left, wide), torch.where(left.isnan(), left, 0.0))
    return (torch.where(has_l1, kept, wide) / t2).to(w.dtype)


def vjp(
    weights: Sequence[torch.Tensor],
    upstream: torch.Tensor,
    strengths: _Numbers,
    which: tuple[int, ...],
) -> Sequence[torch.Tensor]:
    """Return each tensor's gradient in a backward pass, times the upstream gradient.

    `strengths` are scaled, l1 and l2 of each rule in turn.
    """
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        recorded: Sequence[torch.Tensor] = _apply_gradient(upstream, strengths, which, *weights)
        return recorded
    if not torch._C._has_storage(upstream):  # is_grads_batched
        one = torch.ones((), dtype=upstream.dtype, device=upstream.device)
        slopes = operators.penalty_gradient(weights, one, *_as_arguments(strengths), which)
        factors = upstream.expand(len(weights)).unbind()
        return [(f * slope).to(slope.dtype) for f, slope in zip(factors, slopes, strict=True)]
    return operators.penalty_gradient(weights, upstream, *_as_arguments(strengths), which)


def orthogonal(w: Any, factor: Any, mode: str) -> Any:
    """Return the penalty of ``OrthogonalRegularizer``, 0-d: `factor` times the mean of abs(cos).

    It is computed in float64, by operators of torch.
    """
    w = _tensor(w)
    if w.dim() != 2:  # which lazy parameters refuse with torch's advice, unlike their shape
        raise errors.matrix_error(tuple(w.shape))
    if w.dtype.is_complex:
        raise errors.dtype_error("w", w.dtype, "pass w.abs() or torch.view_as_real")
    if not torch.compiler.is_compiling() and operators.are_plain((w,)):
        torch_memory.require_memory(torch, w, "w", False)
    if not isinstance(factor, torch.Tensor):
        if not torch.compiler.is_compiling():
            factor = arguments.multiplier(factor, "factor")
        factor = float64((factor,)).to(w.device)[0]
    angles = _orthogonal.evaluate(
        torch, w.to(torch.float64), factor, mode, _off_diagonal, torch.Tensor.detach
    )
    value: torch.Tensor = angles.value
    return value.to(operators.value_dtype((w,)))


def _off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    rows = matrix.shape[0]
    return matrix.masked_fill(torch.eye(rows, dtype=torch.bool, device=matrix.device), 0.0)


def _penalty(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, per_tensor: bool
) -> Any:
    outer = None
    is_eager = not torch.compiler.is_compiling()
    if is_eager and isinstance(scale, torch.Tensor):
        scale, outer = 1.0, scale  # it may be what is differentiated
    if is_eager and operators.are_plain(weights):
        if any(map(_ATTRIBUTES, weights)):  # an engine's marks, maybe
            engines.require_elements(weights, _label)
        if type(scale) is not float:
            scale = arguments.multiplier(scale, "scale")
        penalty = _Penalty.apply(strengths, scale, tuple(which), per_tensor, *weights)
    else:
        tensors = [_tensor(weight) for weight in weights]
        if is_eager:
            engines.require_elements(tensors, _label)
        penalty = _apply(_scaled(strengths, scale), tuple(which), per_tensor, *tensors)
    return penalty if outer is None else penalty * outer


def _tensor(weight: Any) -> torch.Tensor:
    """Return the tensor that a keras.Variable wraps, or the tensor itself."""
    tensor: torch.Tensor = weight if isinstance(weight, torch.Tensor) else owner(weight)[1]
    if tensor.layout is not torch.strided or tensor.is_nested:
        library_of(type(tensor)).host_view(tensor, "w", False)  # refuses it by its name
    return tensor


def _label(place: int) -> str:
    return f"tensors[{place}]" if place else "w"


def _scaled(strengths: Strengths, scale: Any) -> _Numbers:
    if torch.compiler.is_compiling():
        return torch.stack([product(number, scale) for pair in strengths for number in pair])
    scale = arguments.multiplier(scale, "scale")
    return checks.check_coefficients(strengths, (), (), scale, 1.0, False)


def factor(number: Any, name: str) -> Any:
    """Return a scale as ``dispatch.Port`` says; a tensor may be what is differentiated."""
    if torch.compiler.is_compiling() or isinstance(number, torch.Tensor):
        return number
    return arguments.multiplier(number, name)


def product(first: Any, *others: Any) -> Any:
    """Return the product of strengths and scales; a 0-d tensor where they are symbols.

    torch.compile makes one graph for all values of a number that only multiplies a tensor; any
    other use, before torch 2.12 a product with another number too, makes it a constant, and each
    value a compilation.
    """
    if not torch.compiler.is_compiling():
        return float_environment.product(first, *others)
    result = torch.ones((), dtype=torch.float64, device="cpu") * first
    for other in others:
        result = result * other
    return result


def float64(numbers: Sequence[Any]) -> torch.Tensor:
    """Return numbers as a tensor in host memory, by operators where they are symbols."""
    if not torch.compiler.is_compiling():
        return torch.tensor(numbers, dtype=torch.float64, device="cpu")
    return torch.stack([product(number) for number in numbers])


def _apply(
    strengths: _Numbers, which: tuple[int, ...], per_tensor: bool, *weights: torch.Tensor
) -> Any:
    """Apply :class:`_Traced`: for torch.compile one node, which it traces for autograd later.

    Left to itself it would trace the function to the operator, and forget that this has a gradient
    where torch.func transforms it.
    """
    kind: Any = _Traced
    return kind.apply(strengths, which, per_tensor, *weights)


def _apply_gradient(
    upstream: torch.Tensor, strengths: _Numbers, which: tuple[int, ...], *weights: torch.Tensor
) -> Any:
    """Apply :class:`_Gradient`, as :func:`_apply` does."""
    kind: Any = _Gradient
    return kind.apply(upstream, strengths, which, *weights)


_one_node: Any = torch.compiler.allow_in_graph
_one_node(_apply)
_one_node(_apply_gradient)


def _keep(
    ctx: Any, tensors: Sequence[torch.Tensor], strengths: _Numbers, which: tuple[int, ...]
) -> None:
    """Keep for the backward pass what it needs, each tensor as autograd wants it kept."""
    ctx.which = which
    if isinstance(strengths, torch.Tensor):
        ctx.numbers = None
        ctx.save_for_backward(*tensors, strengths)
    else:
        ctx.numbers = strengths
        ctx.save_for_backward(*tensors)


def _kept(ctx: Any) -> tuple[Sequence[torch.Tensor], _Numbers]:
    """Return the tensors and strengths of :func:`_keep`."""
    kept = ctx.saved_tensors
    return (kept[:-1], kept[-1]) if ctx.numbers is None else (kept, ctx.numbers)


def _needed(
    weights: Sequence[torch.Tensor],
    upstream: torch.Tensor,
    strengths: _Numbers,
    which: tuple[int, ...],
    needs: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """Return what :func:`vjp` does for the weights that need it, None for the others."""
    if all(needs):
        return tuple(vjp(weights, upstream, strengths, which))
    needed = [place for place, need in enumerate(needs) if need]
    made = iter(
        vjp(
            [weights[place] for place in needed],
            upstream[needed] if upstream.dim() else upstream,
            strengths,
            tuple([which[place] for place in needed]),
        )
    )
    return tuple([next(made) if need else None for need in needs])


def _as_arguments(strengths: _Numbers) -> tuple[tuple[float, ...], torch.Tensor | None]:
    return ((), strengths) if isinstance(strengths, torch.Tensor) else (strengths, None)


class _Penalty(torch.autograd.Function):  # type: ignore[misc]
    """The penalty of plain tensors; backward computes gradients from the saved weights.

    ``forward`` takes `ctx`, which torch.func does not support: with ``setup_context`` torch
    inspects the signature at every call, which takes longer than all the rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        strengths: Strengths,
        scale: float,
        which: tuple[int, ...],
        per_tensor: bool,
        *weights: torch.Tensor,
    ) -> Any:
        ctx.rules = strengths, scale, which
        ctx.save_for_backward(*weights)
        return operators.value(weights, strengths, which, scale, per_tensor)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        strengths, scale, which = ctx.rules
        numbers = products([number for pair in strengths for number in pair], scale)
        needs = ctx.needs_input_grad[4:]
        return (None,) * 4 + _needed(ctx.saved_tensors, upstream, numbers, which, needs)


class _Traced(torch.autograd.Function):  # type: ignore[misc]
    """``operators.penalty`` under torch.compile and torch.func."""

    @staticmethod
    def forward(
        strengths: _Numbers, which: tuple[int, ...], per_tensor: bool, *weights: torch.Tensor
    ) -> Any:
        return operators.penalty(weights, *_as_arguments(strengths), which, per_tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        strengths, which, _, *weights = inputs
        _keep(ctx, weights, strengths, which)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        weights, strengths = _kept(ctx)
        needs = ctx.needs_input_grad[3:]
        return (None,) * 3 + _needed(weights, upstream, strengths, ctx.which, needs)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        strengths: _Numbers,
        which: tuple[int, ...],
        per_tensor: bool,
        *weights: torch.Tensor,
    ) -> Any:
        size = info.batch_size
        samples = _samples(size, weights, in_dims[3:])
        if not per_tensor and len(weights) > 1:
            return torch.stack([_apply(strengths, which, False, *each) for each in samples]), 0
        # The total of a list of one is its only value, so that all samples are one call.
        flat = [weight for each in samples for weight in each]
        values = _apply(strengths, which * size, True, *flat)
        return values.reshape((size, len(weights)) if per_tensor else (size,)), 0


class _Gradient(torch.autograd.Function):  # type: ignore[misc]
    """``operators.penalty_gradient``, to be differentiated again."""

    @staticmethod
    def forward(
        upstream: torch.Tensor, strengths: _Numbers, which: tuple[int, ...], *weights: torch.Tensor
    ) -> Any:
        numbers = _as_arguments(strengths)
        return tuple(operators.penalty_gradient(weights, upstream, *numbers, which))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        upstream, strengths, which, *weights = inputs
        _keep(ctx, (upstream, *weights), strengths, which)

    @staticmethod
    def backward(ctx: Any, *seeds: torch.Tensor) -> Any:
        (upstream, *weights), strengths = _kept(ctx)
        factors = upstream.expand(len(weights)).unbind()
        by_weights = [
            (seed * (2.0 * strengths[2 * i + 1] * factor)).to(w.dtype)
            for seed, i, factor, w in zip(seeds, ctx.which, factors, weights, strict=True)
        ]
        if not ctx.needs_input_grad[0]:
            return (None, None, None, *by_weights)
        kind = upstream.dtype
        one = torch.ones((), dtype=kind, device=upstream.device)
        slopes = _apply_gradient(one, strengths, ctx.which, *weights)
        by_upstream = torch.stack(
            [
                (seed.to(kind) * slope.to(kind)).sum()
                for seed, slope in zip(seeds, slopes, strict=True)
            ]
        )
        return (by_upstream if upstream.dim() else by_upstream.sum(), None, None, *by_weights)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        upstream: torch.Tensor,
        strengths: _Numbers,
        which: tuple[int, ...],
        *weights: torch.Tensor,
    ) -> Any:
        size, count = info.batch_size, len(weights)
        flat = [weight for each in _samples(size, weights, in_dims[3:]) for weight in each]
        factors = [each.expand(count) for (each,) in _samples(size, (upstream,), in_dims[:1])]
        made = _apply_gradient(torch.cat(factors), strengths, which * size, *flat)
        return tuple([torch.stack(made[i::count]) for i in range(count)]), (0,) * count


def _samples(
    size: int, tensors: Sequence[torch.Tensor], dims: Sequence[int | None]
) -> list[tuple[torch.Tensor, ...]]:
    """Return the tensors of each sample of a batch."""
    unbound = [
        (tensor,) * size if dim is None else tensor.unbind(dim)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    return list(zip(*unbound, strict=True))
