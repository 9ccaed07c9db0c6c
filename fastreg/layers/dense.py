"""Dense: a matrix product along the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._base import arguments
from .._base.dtypes import Array
from .base import Shape, shape_of
from .kernel import KernelLayer


class Dense(KernelLayer):
    """``activation(x @ kernel + bias)`` along the last axis, as ``keras.layers.Dense``.

    Inputs have two axes or more; kernel ``(channels, units)``, bias ``(units,)``.

    Parameters
    ----------
    units : int
        Channels of the output.
    **others
        Those of all layers with a kernel, :class:`~fastreg.layers.kernel.KernelLayer`, and of all
        layers, :class:`~fastreg.layers.Layer`; TypeError or ValueError where one does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from fastreg import regularizers
    >>> layer = Dense(1, kernel_regularizer=regularizers.L1(0.5), kernel_initializer="ones")
    >>> x = np.array([[1.0, 2.0]], np.float32)
    >>> layer(x)
    array([[3.]], dtype=float32)
    >>> layer.losses
    [1.0]
    >>> layer.backward(np.ones((1, 1)))
    array([[1., 1.]], dtype=float32)
    >>> layer.gradients[0].ravel()
    array([1.5, 2.5], dtype=float32)
    """

    _own_arguments = ("units",)

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        **others: Any,
    ) -> None:
        self.units: int = arguments.positive_integer(units, "units")
        super().__init__(
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            **others,
        )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Return the shape of the output: that of the input with `units` at its end.

        >>> Dense(3).compute_output_shape((None, 8))
        (None, 3)
        """
        shape = shape_of(input_shape, "input_shape")
        if len(shape) < 2:
            raise ValueError(
                f"the input of {self._label()} must have 2 axes or more, (batch, ..., channels), "
                f"not shape {shape}"
            )
        self._check_channels(shape)
        return *shape[:-1], self.units

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        return channels, self.units

    def _map(self, x: Array, kernel: Array) -> Array:
        return (_rows(x) @ kernel).reshape(*x.shape[:-1], self.units)

    def _map_gradients(
        self, x: Array, kernel: Array, dz: Array, wants: tuple[bool, bool]
    ) -> tuple[Array | None, Array | None]:
        slopes = _rows(dz)
        return (
            (slopes @ kernel.T).reshape(x.shape) if wants[0] else None,
            _rows(x).T @ slopes if wants[1] else None,
        )


def _rows(x: Array) -> Array:
    """Return an array as a matrix: its positions are the rows."""
    return x.reshape(-1, x.shape[-1])
