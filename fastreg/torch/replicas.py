"""Activity penalties where several processes train one model: factors, and whole outputs.

Contract
--------
- Gradients of a loss are averaged over the processes of data parallelism; a penalty that is a sum
  over samples is multiplied by their number, so that it stays one.
- A tensor that may be a part of a module's output is refused: its penalty would be this process's
  part.
- An activity penalty gets the backward hook of its FSDP2 modules' outputs, so that the parameters
  are unsharded before its backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import distributed

from .._arrays.libraries import is_dtensor


def are_many() -> bool:
    """Return whether this is one of several processes of torch."""
    return bool(
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def averaged_over(enclosing: Sequence[Any]) -> float | None:
    """Return the number of processes whose gradients are averaged, None if it is not known.

    `enclosing` are the modules around the one that runs, the innermost first.
    """
    from torch.nn.parallel import DistributedDataParallel

    for state in _units(enclosing):
        for group in _parameter_groups(state):
            factor = getattr(group, "gradient_divide_factor", None)
            if factor is not None:
                return float(factor)
            mesh = group.mesh_info
            return float(
                getattr(mesh, "shard_mesh_size", 1) * getattr(mesh, "replicate_mesh_size", 1)
            )
    for module in enclosing:
        if isinstance(module, DistributedDataParallel):
            return float(module.process_group.size())
    active = getattr(DistributedDataParallel, "_active_ddp_module", None)
    return None if active is None else float(active.process_group.size())


def as_output(term: Any, enclosing: Sequence[Any]) -> Any:
    """Return a term as an output of the FSDP2 units around: backward gathers parameters."""
    for state in _units(enclosing):
        register = getattr(state, "_register_pre_backward_hook", None)
        if register is not None:
            register(term)
    return term


def whole(tensor: Any, enclosing: Sequence[Any], label: str) -> Any:
    """Return the whole output of a module; TypeError where a tensor may be a part of it."""
    if is_dtensor(tensor):
        from torch.distributed.tensor import Replicate

        placements = tuple(
            Replicate() if placement.is_partial() else placement for placement in tensor.placements
        )
        return tensor if placements == tensor.placements else tensor.redistribute(None, placements)
    if _is_tensor_parallel(enclosing):
        raise TypeError(
            f"{label} is part of a tensor-parallel module and gives a plain tensor, which may be "
            "this process's part of its activations; put the activity regularizer on the parallel "
            "layer itself and attach after parallelize_module(), or let the layers before it give "
            "DTensors (use_local_output=False)"
        )
    return tensor


def is_parallel(module: Any) -> bool:
    """Return whether a module holds parameters that are DTensors."""
    return any(is_dtensor(parameter) for parameter in module.parameters(recurse=False))


def _is_tensor_parallel(enclosing: Sequence[Any]) -> bool:
    """Return whether the nearest module with parameters has DTensors, while it runs.

    Those of FSDP2 are plain then, except in units that do not run.
    """
    for module in enclosing:
        parameters = list(_running_parameters(module))
        if parameters:
            return any(map(is_dtensor, parameters))
    return False


def _running_parameters(module: Any) -> Iterator[Any]:
    yield from module.parameters(recurse=False)
    for child in module.children():
        if not hasattr(child, "_get_fsdp_state"):
            yield from _running_parameters(child)


def _units(enclosing: Sequence[Any]) -> Iterator[Any]:
    """Yield the states of the FSDP2 units among modules."""
    for module in enclosing:
        if hasattr(module, "_get_fsdp_state"):
            yield module._get_fsdp_state()


def _parameter_groups(state: Any) -> list[Any]:
    """Return the groups of parameters of a unit: one in older versions of torch."""
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        groups = [getattr(state, "_fsdp_param_group", None)]
    return [group for group in groups if group is not None]


def no_tell(label: str) -> RuntimeError:
    """Build the error for a sum whose factor is not known."""
    return RuntimeError(
        f"{label} has an activity penalty that is a sum over samples (activity_reduction='sum') in "
        f"one of {distributed.get_world_size()} processes, and nothing tells over how many of them "
        "gradients are averaged; attach the model that is wrapped (DistributedDataParallel, "
        "fully_shard), or pass their number, activity(scale=...), 1.0 where none are averaged"
    )
