"""Regularizers of Keras, for arrays: L1, L2, L1L2, OrthogonalRegularizer, get and (de)serialize.

Contract
--------
- Names, defaults and saved forms are those of ``keras.regularizers`` (Keras 3): what Keras saved
  loads here, and what :func:`serialize` returns loads in Keras.
- Better than Keras on purpose: the value is float64 arithmetic whatever the input's dtype, so
  half precision is right; integer arrays are right; strengths are Python floats and NumPy numbers
  are welcome; ``get("l1_l2")`` is L1L2(0.01, 0.01), as Keras documents; an unknown string is an
  error in :func:`deserialize` too; ``OrthogonalRegularizer(mode="columns")`` is right.
- Strengths may be set between calls (``regularizer.l1 = 1e-4``): they are checked then and read
  at every call.
- Regularizers are compared by class and configuration and can change, so like lists they have no
  hash: a key made of one would go stale.

>>> import numpy
>>> from fastreg import regularizers
>>> regularizer = regularizers.get("l1_l2")
>>> regularizer.l2 = 0.5
>>> regularizer(numpy.array([3.0, -4.0]))
12.57
>>> regularizers.deserialize(regularizers.serialize(regularizer)) == regularizer
True
"""

from __future__ import annotations

from .base import Regularizer
from .elementwise import L1, L1L2, L2
from .orthogonal import OrthogonalRegularizer
from .saved_forms import deserialize, get, serialize

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "OrthogonalRegularizer",
    "Regularizer",
    "deserialize",
    "get",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "serialize",
]

l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal_regularizer = OrthogonalRegularizer

# Pickles and messages name a class by its module: by this one, whichever file holds the class.
for _class in (Regularizer, L1, L2, L1L2, OrthogonalRegularizer):
    _class.__module__ = __name__
del _class
