"""The port of DTensors: penalties of a whole tensor from its shards, differentiable.

Contract
--------
- A penalty is a plain 0-d tensor with the same bits in every process.  It can be added to a plain
  loss (FSDP2, DDP) and to one that is a DTensor (tensor parallel), as torch takes a plain 0-d
  tensor for a replicated one.
- Its gradient is a DTensor with the placements of the weight, from the local shard alone; only the
  value communicates (``torch_shards.summed``).
- Local shards are evaluated by the port of plain tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from ..._arrays.libraries import is_dtensor
from ..._arrays.torch_agreement import Terms
from ..._arrays.torch_shards import Together, is_pending, local_tensors, summed
from ..._base import errors
from ..._base.penalty import Strengths
from . import functions as _plain
from .functions import factor as factor
from .functions import product as product


def total(
    weights: Sequence[Any],
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    together: Together | None = None,
) -> torch.Tensor | None:
    """Return the penalty of all tensors, 0-d, as ``dispatch.Port`` says.

    `together` is what the processes of a module agree on; without it, shapes and strengths are.
    """
    if not weights:
        return None
    vector, dtype = _values(weights, strengths, which, scale, together)
    return vector.sum().to(dtype)


def values(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any
) -> list[torch.Tensor]:
    """Return the penalty of each tensor, 0-d each, as ``dispatch.Port`` says."""
    vector, dtype = _values(weights, strengths, which, scale)
    return list(vector.to(dtype).unbind())


def gradients(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, grad_scale: Any
) -> list[Any]:
    """Return the gradients, DTensors that lie as the weights do, as ``dispatch.Port`` says."""
    made = _plain.gradients([_local(w) for w in weights], strengths, which, scale, grad_scale)
    return [_placed(local, w) for w, local in zip(weights, made, strict=True)]


def proximal(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any, step: Any
) -> list[Any]:
    """Return the proximal steps, DTensors that lie as the weights do, as ``dispatch.Port`` says."""
    with torch.no_grad():
        made = _plain.proximal(local_tensors(list(weights)), strengths, which, scale, step)
        return [_placed(local, w) for w, local in zip(weights, made, strict=True)]


def _placed(local: torch.Tensor, like: Any) -> Any:
    """Return what was made of a local shard as a DTensor, if its weight is one."""
    from torch.distributed.tensor import DTensor

    if not is_dtensor(like):
        return local
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def orthogonal(w: Any, factor: Any, mode: str) -> torch.Tensor:
    """Return the penalty of ``OrthogonalRegularizer`` of a tensor that no mesh dimension shards."""
    if not all(placement.is_replicate() for placement in w.placements):
        raise errors.special_array_error(
            "w",
            f"a DTensor with the placements {w.placements}, and a penalty of angles between rows "
            "is no sum over shards",
            "pass w.full_tensor(), which gathers it in every process",
        )
    return cast(torch.Tensor, _plain.orthogonal(_local(w), factor, mode))


def _values(
    weights: Sequence[Any],
    strengths: Strengths,
    which: Sequence[int],
    scale: Any,
    together: Together | None = None,
) -> tuple[torch.Tensor, torch.dtype]:
    """Return the global penalties as a float64 vector, and the dtype that results have."""
    # A scale that is differentiable meets the global values: here it would have the gradient of
    # this process' shards alone.
    inner, outer = (1.0, scale) if isinstance(scale, torch.Tensor) else (scale, None)
    local = _plain.values([_local(weight) for weight in weights], strengths, which, inner)
    wide = torch.float64
    dtype = wide if any(value.dtype == wide for value in local) else torch.float32
    if together is None and not torch.compiler.is_compiling():
        together = _together(weights, strengths, which, inner)
    vector = summed(torch.stack([value.to(wide) for value in local]), weights, together)
    vector = _ToPlainGrad.apply(vector)
    return (vector if outer is None else vector * outer), dtype


def _together(
    weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: float
) -> Together:
    """Return what processes have to agree on of tensors that have no names."""
    shapes = tuple([weight.shape for weight in weights])

    def describe() -> dict[str, str]:
        return {
            f"tensors[{place}]": f"of the shape {tuple(shape)}, with l1={strengths[rule][0]}, "
            f"l2={strengths[rule][1]} and scale={scale}"
            for place, (shape, rule) in enumerate(zip(shapes, which, strict=True))
        }

    # Hashes of whole numbers are the same in all processes, those of strings are not.
    content = hash(shapes), tuple(map(tuple, strengths)), tuple(which), scale
    return Together(Terms(repr(content).encode(), describe), ())


def _local(weight: Any) -> Any:
    """Return the local shard, from which autograd goes on to the DTensor."""
    local = local_tensors([weight])[0]
    if not is_dtensor(weight) or not (weight.requires_grad and torch.is_grad_enabled()):
        return local
    recorded = weight.to_local()
    if not is_pending(recorded):
        return recorded
    # What was still on its way is there in `local`, which autograd does not know.
    return _WaitForCollective.apply(recorded, local)


class _WaitForCollective(torch.autograd.Function):  # type: ignore[misc]
    """Identity over a completed AsyncCollectiveTensor."""

    @staticmethod
    def forward(pending: torch.Tensor, arrived: torch.Tensor) -> torch.Tensor:
        return arrived.view_as(arrived)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class _ToPlainGrad(torch.autograd.Function):  # type: ignore[misc]
    """Identity whose backward converts a DTensor cotangent to a plain tensor."""

    @staticmethod
    def forward(values: torch.Tensor) -> torch.Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> torch.Tensor:
        # It is replicated, as the values are: there is nothing to gather.
        return cast(torch.Tensor, gradient.full_tensor() if is_dtensor(gradient) else gradient)
