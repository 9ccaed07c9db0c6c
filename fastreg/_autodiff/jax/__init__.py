"""Penalties that JAX traces, differentiates and maps."""

from . import require

__all__ = ["require"]
