"""What a user of Keras has of the types; checked, and run."""

# pyright: reportUnknownMemberType=false
# Keras itself has no types.

import keras  # type: ignore[import-untyped]
import numpy as np
from typing_extensions import assert_type

import fastreg.keras
from fastreg import regularizers

reg = fastreg.keras.L1L2(l1=1e-5, l2=1e-4)
assert_type(reg, fastreg.keras.L1L2)
fastreg_one: regularizers.L1L2 = reg
layer = keras.layers.Dense(4, kernel_regularizer=reg)
model = keras.Sequential([keras.Input((8,)), layer])
fused: keras.Sequential = fastreg.keras.fuse(model)
assert_type(reg.gradient(np.ones(3)), np.ndarray[tuple[int], np.dtype[np.float64]])
assert_type(reg.l1, float)

optimizer = fastreg.keras.Proximal("sgd", {"*kernel": fastreg.keras.L1(0.01)})
found = fastreg.keras.zeros(model, "*kernel")
assert_type(found, fastreg.keras.Zeros)
assert_type(found.total.share, float)
logger = fastreg.keras.ZerosLogger(names=["*kernel"])
