"""Input: the shape and dtype of a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._base import arguments
from . import precision
from .base import automatic_name, checked_name, refuse_others, shape_of


class InputLayer:
    """The shape and dtype of a model's input; made by :func:`Input`."""

    def __init__(
        self,
        shape: Sequence[int | None] | None = None,
        batch_size: int | None = None,
        dtype: Any = None,
        batch_shape: Sequence[int | None] | None = None,
        name: str | None = None,
        **others: Any,
    ) -> None:
        refuse_others(InputLayer, "Input", others)
        if (shape is None) == (batch_shape is None):
            raise ValueError("Input must have one of shape (without the batch) and batch_shape")
        if batch_shape is not None:
            self.batch_shape: tuple[int | None, ...] = shape_of(batch_shape, "batch_shape")
        else:
            size = (
                None if batch_size is None else arguments.positive_integer(batch_size, "batch_size")
            )
            self.batch_shape = (size, *shape_of(shape, "shape"))
        self.dtype: str = precision.get(dtype).name
        self.name: str = automatic_name(InputLayer) if name is None else checked_name(name)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this input, in Keras' form."""
        return {"batch_shape": self.batch_shape, "dtype": self.dtype, "name": self.name}


def Input(shape: Sequence[int | None], **others: Any) -> InputLayer:  # noqa: N802, as in Keras
    """Return the shape and dtype of a model's input, as ``keras.Input``.

    `shape` has the extents without the batch, None where one is unknown; `others` are `batch_size`,
    `name` and `dtype`.

    >>> from fastreg.layers import Dense, Sequential
    >>> Sequential([Input((4,)), Dense(2)]).count_params()
    10
    """
    return InputLayer(shape, **others)
