"""Conv1D, Conv2D, Conv3D: one implementation for any number of spatial axes, channels last.

im2col: a position of the output is one row of a matrix, its window of the input with all channels;
the convolution is the product of these rows with the kernel, by BLAS.  They are copied block by
block, so that memory stays bounded and the matrix in the cache.  Backward adds the gradients of the
windows by a loop over the taps of the kernel (27 for 3 x 3 x 3), never over positions.  "same" pads
as Keras does: where the padding is odd, the additional zero is at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .._base import arguments, errors
from .._base.dtypes import Array
from .base import Shape, shape_of
from .kernel import KernelLayer

PADDINGS = ("valid", "same")

#: Bytes of the matrix of windows at a time: a few fit the cache of one core, and every block is
#: large enough for BLAS.
BLOCK_BYTES = 4 << 20

_AXES = {1: "steps", 2: "height, width", 3: "depth, height, width"}


class Conv(KernelLayer):
    """A convolution over ``rank`` spatial axes; use :class:`Conv1D` to :class:`Conv3D`."""

    rank: ClassVar[int]

    _own_arguments = (
        *("filters", "kernel_size", "strides", "padding"),
        *("data_format", "dilation_rate", "groups"),
    )
    _always_saves_activity = True

    data_format = "channels_last"
    groups = 1

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        **others: Any,
    ) -> None:
        self.filters: int = arguments.positive_integer(filters, "filters")
        self.kernel_size: tuple[int, ...] = self._extents(kernel_size, "kernel_size")
        self.strides: tuple[int, ...] = self._extents(strides, "strides")
        self.dilation_rate: tuple[int, ...] = self._extents(dilation_rate, "dilation_rate")
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ValueError(
                f"strides and dilation_rate must not both be above 1, as in Keras; they were "
                f"{self.strides} and {self.dilation_rate}"
            )
        lowered = padding.lower() if isinstance(padding, str) else padding
        self.padding: str = arguments.choice(lowered, "padding", PADDINGS)
        super().__init__(
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            data_format=data_format,
            groups=groups,
            **others,
        )

    def _extents(self, value: Any, name: str) -> tuple[int, ...]:
        """Return one integer per spatial axis."""
        if isinstance(value, (int, np.integer)):
            return (arguments.positive_integer(value, name),) * self.rank
        wanted = f"{name} must be a positive integer or {self.rank} of them"
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{wanted}, not {errors.described(value)}")
        if len(value) != self.rank:
            raise ValueError(f"{wanted}, not {tuple(value)}")
        return tuple(arguments.positive_integer(extent, name) for extent in value)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Return the shape of the output.

        >>> Conv2D(8, 3, strides=2).compute_output_shape((None, 28, 28, 1))
        (None, 13, 13, 8)
        >>> Conv2D(8, 3, strides=2, padding="same").compute_output_shape((None, 28, 28, 1))
        (None, 14, 14, 8)
        """
        shape = shape_of(input_shape, "input_shape")
        if len(shape) != self.rank + 2:
            raise ValueError(
                f"the input of {self._label()} must have {self.rank + 2} axes, (batch, "
                f"{_AXES[self.rank]}, channels), not shape {shape}"
            )
        self._check_channels(shape)
        extents: list[int | None] = []
        for extent, reach, stride in zip(shape[1:-1], self._reach(), self.strides, strict=True):
            if extent is None:
                extents.append(None)
            elif extent == 0 or (self.padding == "valid" and extent < reach):
                raise ValueError(
                    f"the kernel of {self._label()} is larger than its input: it reaches over "
                    f"{self._reach()}, and the input has shape {shape}; use larger inputs or "
                    'padding="same"'
                )
            else:
                room = extent - 1 if self.padding == "same" else extent - reach
                extents.append(room // stride + 1)
        return shape[0], *extents, self.filters

    def _reach(self) -> tuple[int, ...]:
        """Return the extent of a window along each axis, dilation included."""
        return tuple(
            (taps - 1) * dilation + 1
            for taps, dilation in zip(self.kernel_size, self.dilation_rate, strict=True)
        )

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        return *self.kernel_size, channels, self.filters

    def _margins(self, extents: Sequence[int]) -> list[tuple[int, int]]:
        """Return the zeros before and after each spatial axis."""
        if self.padding == "valid":
            return [(0, 0)] * self.rank
        margins = []
        for extent, reach, stride in zip(extents, self._reach(), self.strides, strict=True):
            missing = max(0, (-(-extent // stride) - 1) * stride + reach - extent)
            margins.append((missing // 2, missing - missing // 2))
        return margins

    def _padded(self, x: Array) -> Array:
        margins = self._margins(x.shape[1:-1])
        if not any(map(any, margins)):
            return x
        shape = [
            extent + sum(margin) for extent, margin in zip(x.shape[1:-1], margins, strict=True)
        ]
        padded = np.zeros((len(x), *shape, x.shape[-1]), x.dtype)
        padded[self._inner(x.shape)] = x
        return padded

    def _inner(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Return where an input of this shape lies in the padded one."""
        return (
            slice(None),
            *(
                slice(before, before + extent)
                for (before, _), extent in zip(self._margins(shape[1:-1]), shape[1:-1], strict=True)
            ),
        )

    def _windows(self, padded: Array) -> Array:
        """Return a view of the windows: (batch, *positions, *taps, channels)."""
        axes = tuple(range(1, self.rank + 1))
        view = sliding_window_view(padded, self._reach(), axis=axes)
        # it has the axes (batch, *positions, channels, *window)
        steps = (slice(None), *(slice(None, None, stride) for stride in self.strides), slice(None))
        taps = tuple(slice(None, None, dilation) for dilation in self.dilation_rate)
        window_axes = range(self.rank + 2, 2 * self.rank + 2)
        return view[steps + taps].transpose(0, *axes, *window_axes, self.rank + 1)

    def _blocks(self, windows: Array) -> Iterator[tuple[slice, slice]]:
        """Yield blocks of limited size: samples, and lines of the first spatial axis."""
        samples, lines = windows.shape[:2]
        line = windows.itemsize * math.prod(windows.shape[2:])
        at_once = max(1, BLOCK_BYTES // (line * lines)) if samples else 1
        if line * lines <= BLOCK_BYTES:
            for start in range(0, samples, at_once):
                yield slice(start, min(start + at_once, samples)), slice(0, lines)
            return
        lines_at_once = max(1, BLOCK_BYTES // line)
        for sample, start in product(range(samples), range(0, lines, lines_at_once)):
            yield slice(sample, sample + 1), slice(start, min(start + lines_at_once, lines))

    def _map(self, x: Array, kernel: Array) -> Array:
        windows = self._windows(self._padded(x))
        matrix = kernel.reshape(-1, self.filters)
        z = np.empty((*windows.shape[: self.rank + 1], self.filters), x.dtype)
        for block in self._blocks(windows):
            # one or all lines of some samples follow each other, so this is a view of z
            rows = z[block].reshape(-1, self.filters)
            np.matmul(windows[block].reshape(-1, len(matrix)), matrix, out=rows)
        return z

    def _map_gradients(
        self, x: Array, kernel: Array, dz: Array, wants: tuple[bool, bool]
    ) -> tuple[Array | None, Array | None]:
        padded = self._padded(x)
        windows = self._windows(padded)
        matrix = kernel.reshape(-1, self.filters)
        dmatrix = np.zeros_like(matrix) if wants[1] else None
        dpadded = np.zeros_like(padded) if wants[0] else None
        for block in self._blocks(windows):
            rows = dz[block].reshape(-1, self.filters)
            if dmatrix is not None:
                dmatrix += windows[block].reshape(-1, len(matrix)).T @ rows
            if dpadded is not None:
                shape = dz[block].shape[:-1]
                dwindows = (rows @ matrix.T).reshape(*shape, *kernel.shape[:-1])
                self._add_windows(dpadded[block[0]], dwindows, block[1].start)
        return (
            None if dpadded is None else np.ascontiguousarray(dpadded[self._inner(x.shape)]),
            None if dmatrix is None else dmatrix.reshape(kernel.shape),
        )

    def _add_windows(self, target: Array, dwindows: Array, first_line: int) -> None:
        """Add the gradients of windows to those of the elements in them."""
        positions = dwindows.shape[1 : self.rank + 1]
        firsts = (first_line, *(0,) * (self.rank - 1))
        for taps in product(*map(range, self.kernel_size)):
            place = tuple(
                slice(
                    start := first * stride + tap * dilation,
                    start + (count - 1) * stride + 1,
                    stride,
                )
                for first, stride, tap, dilation, count in zip(
                    firsts, self.strides, taps, self.dilation_rate, positions, strict=True
                )
            )
            seen: Any = (..., *taps, slice(None))
            target[(slice(None), *place)] += dwindows[seen]


class Conv1D(Conv):
    """A convolution over one axis, as ``keras.layers.Conv1D``.

    Inputs ``(batch, steps, channels)``; kernel ``(kernel_size, channels, filters)``.

    Parameters
    ----------
    filters : int
        Channels of the output.
    kernel_size, strides, dilation_rate : int or sequence of int
        Per spatial axis, or one for all; strides and dilation are not combined, as in Keras.
    padding : {"valid", "same"}, optional
        None, or zeros at both ends so that each window starts inside; as Keras pads.
    **others
        As for :class:`~fastreg.layers.Dense`.

    Examples
    --------
    >>> layer = Conv1D(1, 2, kernel_initializer="ones")
    >>> layer(np.array([[[1.0], [2.0], [4.0]]])).ravel()
    array([3., 6.], dtype=float32)
    >>> layer.backward(np.ones((1, 2, 1))).ravel()
    array([1., 2., 1.], dtype=float32)
    """

    rank = 1


class Conv2D(Conv):
    """A convolution over two axes, as ``keras.layers.Conv2D``; arguments as :class:`Conv1D`.

    Inputs ``(batch, height, width, channels)``; kernel ``(*kernel_size, channels, filters)``.

    >>> layer = Conv2D(4, (3, 3), padding="same", activation="relu")
    >>> layer(np.zeros((2, 8, 8, 1))).shape
    (2, 8, 8, 4)
    """

    rank = 2


class Conv3D(Conv):
    """A convolution over three axes, as ``keras.layers.Conv3D``; arguments as :class:`Conv1D`.

    Inputs ``(batch, depth, height, width, channels)``; kernel as for :class:`Conv2D`.

    >>> Conv3D(4, 2, strides=2)(np.zeros((2, 4, 6, 8, 1))).shape
    (2, 2, 3, 4, 4)
    """

    rank = 3
