"""Proximal steps on the parameters of a module.

Contract
--------
- In place, and all parameters or none; the caller has autograd off.
- Each process takes the steps of its shards.  The record is that of the whole parameters, by one
  all-reduce, and has the same numbers in all processes.
"""

from __future__ import annotations

from typing import Any

from .._arrays import torch_shards
from .._autodiff.torch import engines
from .._engine import backend
from ..penalties import ProxRecord, proximal
from .by_autograd import as_real
from .module_penalties import ModulePenalties, local_shards


def take(penalties: ModulePenalties, step: Any, scale: Any) -> ProxRecord:
    """Take the proximal step of all parameters with a penalty."""
    plan, weights = penalties.current()
    engines.require_updated_in_place(weights, plan.names)
    proximal.require_prox(plan)
    local = local_shards(weights, plan)
    if plan.others:
        local = as_real(local)
    together = penalties.together(plan, scale, step)
    if together is None:
        return proximal.take(plan, local, step, scale)
    each = proximal.take_each(plan, local, step, scale)
    # Penalties and numbers of zeros in one all-reduce.
    count = len(weights)
    summed = torch_shards.summed([*each.penalties, *each.zeros], (*weights, *weights), together)
    return ProxRecord(
        backend.canonical_sum(summed[:count]),
        int(sum(summed[count:])),
        sum(weight.numel() for weight in weights),
    )
