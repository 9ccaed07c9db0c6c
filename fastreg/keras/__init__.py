"""Keras 3 on PyTorch or JAX: regularizers for its layers, and all penalties of a model in one call.

>>> import keras
>>> import fastreg.keras
>>> kernel = fastreg.keras.L1L2(l1=1e-5, l2=1e-4)
>>> layers = [keras.layers.Dense(8, kernel_regularizer=kernel) for _ in range(3)]
>>> model = fastreg.keras.fuse(keras.Sequential([keras.Input((8,)), *layers]))
>>> len(model.losses)
3

``docs/keras.md`` has its cost, and when Keras' own regularizers do as well.
"""

from __future__ import annotations

from . import expression  # noqa: F401 (it registers the class that saved symbolic models name)
from .fused import FusedPenalties, fuse
from .proximal import Proximal
from .regularizers import L1, L1L2, L2, OrthogonalRegularizer
from .zeros import Zeros, ZerosLogger, ZerosRow, zeros

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "FusedPenalties",
    "OrthogonalRegularizer",
    "Proximal",
    "Zeros",
    "ZerosLogger",
    "ZerosRow",
    "fuse",
    "l1",
    "l1_l2",
    "l2",
    "orthogonal_regularizer",
    "zeros",
]

l1 = L1
l2 = L2
l1_l2 = L1L2
orthogonal_regularizer = OrthogonalRegularizer
