"""Flatten: all axes but the batch in one, between a convolution and a Dense layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._base.dtypes import Array
from .base import Call, Layer, Shape, shape_of


class Flatten(Layer):
    """Put all axes but the batch into one, as ``keras.layers.Flatten``.

    >>> Flatten()(np.zeros((2, 3, 4))).shape
    (2, 12)
    """

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Return the shape of the output.

        >>> Flatten().compute_output_shape((None, 3, 4))
        (None, 12)
        """
        shape = shape_of(input_shape, "input_shape")
        if not shape:
            raise ValueError(f"the input of {self._label()} must have a batch axis, not shape ()")
        known = [extent for extent in shape[1:] if extent is not None]
        return shape[0], math.prod(known) if len(known) == len(shape) - 1 else None

    def _forward(self, x: Array) -> tuple[Array, Any]:
        return x.reshape(len(x), math.prod(x.shape[1:])), x.shape

    def _backward(
        self, call: Call, dy: Array, grad_scale: float, input_gradient: bool
    ) -> tuple[Array | None, list[Array], list[float]]:
        # a copy: the result of backward must not alias its argument
        return np.array(dy, order="C").reshape(call.kept) if input_gradient else None, [], []

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": "channels_last"}
