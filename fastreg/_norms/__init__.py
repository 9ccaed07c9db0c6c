"""Norms of many tensors in one pass, and clipping by the global norm."""

from __future__ import annotations

from .clipping import clip_by_global_norm
from .measuring import norms
from .records import Norm, Norms

__all__ = ["Norm", "Norms", "clip_by_global_norm", "norms"]
