"""Layers for training loops in NumPy: Dense, Conv1D, Conv2D, Conv3D, Flatten, Sequential.

The layers of Keras with their three regularizer keywords; the loop, the loss and the optimizer are
yours.  ``layer(x)`` and ``layer.backward(dy)`` leave ``layer.gradients``, penalties included;
``layer.losses`` lists the penalties as Keras does.

>>> import numpy
>>> from fastreg import regularizers
>>> from fastreg.layers import Dense
>>> layer = Dense(64, kernel_regularizer=regularizers.l2(0.01),
...               activity_regularizer=regularizers.l1(0.01))
>>> y = layer(numpy.ones((32, 64), numpy.float32))
>>> len(layer.losses)
2
>>> dx = layer.backward(numpy.zeros_like(y))
>>> [gradient.shape for gradient in layer.gradients]
[(64, 64), (64,)]

``activations`` and ``initializers`` are modules with those that Keras has under the same names.
"""

from .base import Layer
from .convolution import Conv1D, Conv2D, Conv3D
from .dense import Dense
from .flatten import Flatten
from .inputs import Input, InputLayer
from .sequential import Sequential

__all__ = [
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Dense",
    "Flatten",
    "Input",
    "InputLayer",
    "Layer",
    "Sequential",
]
