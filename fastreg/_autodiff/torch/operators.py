"""The two operators of torch that reach the core: penalties of a list of tensors, and gradients.

Contract
--------
- Strengths are numbers, l1 and l2 of each rule in turn, scaled already; or, in a compiled graph,
  where numbers are constants, a float64 tensor of them in host memory.  `which` has the index of a
  rule for each weight.
- The operators know nothing of autograd and of ``torch.func``: ``functions`` does.
- Fake (meta) kernels infer shape and dtype only.  Tensors that torch hands to a kernel for all
  other devices and layouts are refused by the core, as anywhere.
- On a CUDA device nothing is copied to the host, and nothing waits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from ..._base.penalty import GRADIENT, VALUE, Call, Strengths
from ..._engine import backend, calls, cuda
from ..._engine.recording import claim, unclaimed

_PLAIN = frozenset((torch.Tensor, torch.nn.Parameter))
_IS_CPU, _IS_CUDA, _DTYPE = map(attrgetter, ("is_cpu", "is_cuda", "dtype"))
_HALF = (torch.float16, torch.bfloat16)
_LARGEST = torch.finfo(torch.float32).max

_torch_library: Any = torch.library  # which has no types
_library = _torch_library.Library("fastreg", "DEF")  # what it defines lives as long as this object
_library.define(
    "penalty(Tensor[] weights, float[] numbers, Tensor? strengths, int[] which, bool per_tensor)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "penalty_gradient(Tensor[] weights, Tensor upstream, float[] numbers, Tensor? strengths,"
    " int[] which) -> Tensor[]",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def value_dtype(weights: Sequence[torch.Tensor]) -> torch.dtype:
    """Return the dtype of a penalty."""
    return torch.float64 if torch.float64 in [w.dtype for w in weights] else torch.float32


def penalty(
    weights: Sequence[torch.Tensor],
    numbers: Sequence[float],
    strengths: torch.Tensor | None,
    which: Sequence[int],
    per_tensor: bool,
) -> torch.Tensor:
    """Return the canonical sum of the penalties, 0-d, or `per_tensor` each, of shape (n,)."""
    run = _penalty_of if are_plain(weights) else torch.ops.fastreg.penalty.default
    return run(weights, numbers, strengths, which, per_tensor)


def value(
    weights: Sequence[torch.Tensor],
    strengths: Strengths,
    which: Sequence[int],
    scale: float,
    per_tensor: bool,
) -> torch.Tensor:
    """Return what :func:`penalty` does of plain tensors, by pairs of strengths as they are."""
    first = weights[0]
    dtype = torch.float64 if torch.float64 in map(_DTYPE, weights) else torch.float32
    into = None
    if per_tensor and first.is_cuda:
        into = torch.empty(len(weights), dtype=torch.float64, device=first.device)
    found = _evaluate(VALUE, weights, None, strengths, which, scale, 1.0, per_tensor, into)
    if type(found) is float:
        return as_value(found, dtype)
    if isinstance(found, torch.Tensor):  # on a device
        return found.to(dtype)
    return torch.tensor(found, dtype=dtype, device=first.device)


def penalty_gradient(
    weights: Sequence[torch.Tensor],
    upstream: torch.Tensor,
    numbers: Sequence[float],
    strengths: torch.Tensor | None,
    which: Sequence[int],
) -> list[torch.Tensor]:
    """Return each weight's gradient, times the upstream gradient, 0-d for all or of shape (n,)."""
    run = _gradients_of if are_plain(weights) else torch.ops.fastreg.penalty_gradient.default
    return run(weights, upstream, numbers, strengths, which)


def as_value(penalty: float, dtype: torch.dtype) -> torch.Tensor:
    """Return a penalty as a 0-d tensor in host memory."""
    # Three times as fast, but it refuses what becomes an infinity.
    make = torch.scalar_tensor if abs(penalty) <= _LARGEST else torch.tensor
    return make(penalty, dtype=dtype, device="cpu")


def are_plain(weights: Sequence[torch.Tensor]) -> bool:
    """Return whether torch would do no more than call the kernel, which takes it 5 us."""
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    if not _PLAIN.issuperset(map(type, weights)):
        return False
    return all(map(_IS_CPU, weights)) or all(map(_IS_CUDA, weights))


def _penalty_of(
    weights: Sequence[torch.Tensor],
    numbers: Sequence[float],
    strengths: torch.Tensor | None,
    which: Sequence[int],
    per_tensor: bool,
) -> torch.Tensor:
    return value(weights, _pairs(numbers, strengths), which, 1.0, per_tensor)


def _gradients_of(
    weights: Sequence[torch.Tensor],
    upstream: torch.Tensor,
    numbers: Sequence[float],
    strengths: torch.Tensor | None,
    which: Sequence[int],
) -> list[torch.Tensor]:
    pairs = _pairs(numbers, strengths)
    if upstream.is_cpu:
        factors = upstream.tolist()
        if isinstance(factors, list):
            rules = [pairs[rule] for rule in which]
            products = [(l1 * f, l2 * f) for (l1, l2), f in zip(rules, factors, strict=True)]
        else:
            products = [(l1 * factors, l2 * factors) for l1, l2 in pairs]
        # What does not fit the arithmetic of a gradient makes infinities and NaN, as for any
        # operator of torch, which a GradScaler looks for.
        if all([abs(l1) <= _LARGEST and abs(l2) <= 0.5 * _LARGEST for l1, l2 in products]):
            if isinstance(factors, list):
                return _new_gradients(weights, products, range(len(weights)), 1.0)
            return _new_gradients(weights, pairs, which, factors)
    wide = [w.float() if w.dtype in _HALF else w for w in weights]
    gradients = _new_gradients(wide, pairs, which, 1.0)
    return [
        gradient.mul_(factor).to(w.dtype)
        for w, gradient, factor in zip(
            weights, gradients, upstream.expand(len(weights)).unbind(), strict=True
        )
    ]


def _new_gradients(
    weights: Sequence[torch.Tensor], pairs: Strengths, which: Sequence[int], grad_scale: float
) -> list[torch.Tensor]:
    gradients = [torch.empty_like(w) for w in weights]
    _evaluate(GRADIENT, weights, gradients, pairs, which, 1.0, grad_scale)
    return gradients


def _evaluate(
    outputs: int,
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor] | None,
    pairs: Strengths,
    which: Sequence[int],
    scale: float,
    grad_scale: float,
    per_tensor: bool = False,
    into: torch.Tensor | None = None,
) -> Any:
    """Call the core; the values of a list stay on the device in `into`."""
    if into is not None:
        names = _names(len(weights))
        call = Call(outputs, names, weights, None, pairs, which, scale, grad_scale, per_tensor)
        value = cuda.evaluate_many(call, into=into)
    elif len(weights) == 1:  # for the messages, which then call it "w"
        gradient = None if gradients is None else gradients[0]
        l1, l2 = pairs[which[0]]
        value = backend.evaluate_one(outputs, weights[0], gradient, l1, l2, scale, grad_scale)
        if value is NotImplemented:
            value = calls.complete_one(outputs, weights[0], gradient, l1, l2, scale, grad_scale)
        value = [value] if per_tensor else value
    else:
        value = calls.evaluate_many(
            outputs,
            _names(len(weights)),
            tuple(weights),
            None if gradients is None else tuple(gradients),
            tuple(pairs),
            tuple(which),
            scale,
            grad_scale,
            per_tensor,
        )
    if unclaimed:  # captured into a CUDA graph: no regularizer is known here, so strengths stay
        claim(None)
    return value


def _pairs(
    numbers: Sequence[float], strengths: torch.Tensor | None
) -> tuple[tuple[float, float], ...]:
    if strengths is not None:
        numbers = strengths.tolist()
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


@functools.lru_cache(maxsize=16)
def _names(count: int) -> tuple[str, ...]:
    """Return what messages call the tensors of a list."""
    return tuple(map(str, range(count)))


def _fake_penalty(
    weights: Sequence[torch.Tensor],
    numbers: Sequence[float],
    strengths: torch.Tensor | None,
    which: Sequence[int],
    per_tensor: bool,
) -> torch.Tensor:
    _require_one_device(weights)
    shape = (len(weights),) if per_tensor else ()
    return weights[0].new_empty(shape, dtype=value_dtype(weights))


def _fake_gradients(
    weights: Sequence[torch.Tensor],
    upstream: torch.Tensor,
    numbers: Sequence[float],
    strengths: torch.Tensor | None,
    which: Sequence[int],
) -> list[torch.Tensor]:
    _require_one_device(weights)
    return [torch.empty_like(w) for w in weights]


def _require_one_device(weights: Sequence[torch.Tensor]) -> None:
    """Refuse a list of which some have no elements: what comes of the others would have none."""
    on_meta = [w.is_meta for w in weights]
    if any(on_meta) and not all(on_meta):
        raise TypeError(
            f"tensors[{on_meta.index(True)}] is on the meta device and has no elements, but others "
            "have; move the whole module to one device (offloaded parameters have their elements "
            "in the forward pass alone), or freeze or leave out those on meta"
        )


for _name, _kernel, _fake in (
    ("penalty", _penalty_of, _fake_penalty),
    ("penalty_gradient", _gradients_of, _fake_gradients),
):
    _torch_library.impl(_library, _name, "CompositeExplicitAutograd")(_kernel)
    _torch_library.register_fake(f"fastreg::{_name}", lib=_library)(_fake)
