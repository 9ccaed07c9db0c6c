"""Optimizers that take the penalty into their step: SGD and AdamW, in one pass over memory.

Contract
--------
- The bits of docs/numerics.md, 12: the same from every backend, instruction set and number of
  threads.
- Tensors are read from the mapping (or sequence) at every step and written in place.  Names, rules
  and ties are those of ``fastreg.attach``; every tensor that has a gradient steps, with a rule or
  without.
- All or nothing: a step that raises or is skipped changes no parameter, no state and no count.

A step goes from ``base`` through ``tensors`` and ``rules`` to ``_engine/steps.py``.
"""

from __future__ import annotations

from .adamw import AdamW
from .base import Optimizer
from .records import StepRecord
from .sgd import SGD

__all__ = ["SGD", "AdamW", "Optimizer", "StepRecord"]

# Pickles and messages name a class by its module: by this one, whichever file holds the class.
for _class in (AdamW, Optimizer, SGD, StepRecord):
    _class.__module__ = __name__
del _class
