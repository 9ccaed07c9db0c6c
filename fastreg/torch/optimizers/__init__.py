"""Optimizers of torch that take penalties, clip and guard into their step."""

from __future__ import annotations

from .adamw import AdamW
from .sgd import SGD

__all__ = ["SGD", "AdamW"]
