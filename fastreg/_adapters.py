"""Which arrays a framework follows, so that its adapter has to compute what is asked of them.

Contract
--------
- Autograd, a trace and a sharded array see only what goes through their framework.  For an array
  that one of them follows, :func:`following` gives the adapter, and the regularizers and penalties
  hand the call over; for all others it gives None, and the core reads their elements.
- An adapter is imported at the first array that needs it: only where its framework is loaded.
- Each is a module with the functions of :class:`Adapter`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from ._frameworks import framework


class Adapter(Protocol):
    """What a framework's adapter offers; tensors and strengths are as for ``evaluate_many``.

    A strength or scale may be what the framework follows, too, where it can.  Results are what the
    framework can differentiate: float64 for float64 tensors, else float32.
    """

    def total(
        self,
        weights: Sequence[Any],
        strengths: Sequence[tuple[Any, Any]],
        which: Sequence[int],
        scale: Any,
    ) -> Any:
        """Give the penalty of all tensors, 0-d."""

    def values(
        self,
        weights: Sequence[Any],
        strengths: Sequence[tuple[Any, Any]],
        which: Sequence[int],
        scale: Any,
    ) -> Sequence[Any]:
        """Give the penalty of each tensor, 0-d each, from one pass over all."""

    def gradient(self, w: Any, l1: Any, l2: Any, factor: Any) -> Any:
        """Give ``factor * (l1 * sign(w) + 2 * l2 * w)`` as a new array."""

    def orthogonal(self, w: Any, factor: Any, mode: str) -> Any:
        """Give the penalty of ``OrthogonalRegularizer``, 0-d."""


def following(x: Any) -> Adapter | None:
    """Give the adapter that has to compute what is asked of `x`; None where the core can."""
    kind, module, x = framework(x)
    if kind == "torch" and _is_followed_by_torch(module, x):
        return cast(Adapter, import_module("fastreg.torch.differentiable"))
    if kind == "jax" and isinstance(x, module.core.Tracer):
        return cast(Adapter, import_module("fastreg.jax.traced"))
    return None


def _is_followed_by_torch(torch: Any, x: Any) -> bool:
    return bool(x.requires_grad and torch.is_grad_enabled())
