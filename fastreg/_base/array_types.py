"""What public signatures call arrays and numbers, for type checkers: no framework is imported.

An overload takes NumPy's arrays, whose penalties are floats; the next those of frameworks, whose
results are of a class that the array itself names; the last what else holds numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from typing_extensions import Buffer, TypeVar

    Value = TypeVar("Value", default=Any)
    Made = TypeVar("Made", default=Any)
else:
    from typing import TypeVar

    Buffer = memoryview
    Value = TypeVar("Value")
    Made = TypeVar("Made")

Host = TypeVar("Host", bound="np.ndarray[Any, Any]")
Target = TypeVar("Target")
Made_co = TypeVar("Made_co", covariant=True)


class Framework(Protocol[Made_co]):
    """An array of a framework: torch.Tensor, jax.Array, cupy.ndarray.

    ``abs`` says what it makes: tensors, of a torch.nn.Parameter too.
    """

    @property
    def shape(self) -> Any: ...
    def __abs__(self) -> Made_co: ...


class HasParameters(Protocol):
    """A module of torch."""

    def named_parameters(self, *arguments: Any, **named: Any) -> Any: ...


class _Dlpack(Protocol):
    def __dlpack__(self, *arguments: Any, **named: Any) -> Any: ...


class _ArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> Any: ...


class _CudaArrayInterface(Protocol):
    @property
    def __cuda_array_interface__(self) -> Any: ...


class _Array(Protocol):
    def __array__(self, *arguments: Any, **named: Any) -> Any: ...


class _JaxArray(Protocol):
    def __jax_array__(self) -> Any: ...


Other: TypeAlias = _Dlpack | _ArrayInterface | _CudaArrayInterface | _Array | _JaxArray | Buffer
"""An array of any other kind: a buffer, one of an unknown library, a variable of Keras."""

AnyArray: TypeAlias = np.ndarray[Any, Any] | Framework[Any] | Other
"""An array of any kind."""

Real: TypeAlias = float | np.floating[Any] | np.integer[Any]
"""A number of the host."""

Factor: TypeAlias = Real | Framework[Any]
"""A number, which JAX may trace."""

Tensors: TypeAlias = Mapping[str, Any] | Sequence[Any]
"""Arrays by name, or in order."""
