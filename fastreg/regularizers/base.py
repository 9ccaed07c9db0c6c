"""The base class of regularizers, and what those of this package share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


class Regularizer:
    """Base class of regularizers, as in Keras: a callable of one array that returns a number.

    Subclasses define ``__call__(self, w)`` and, to be saved, ``get_config()``.  With a method
    ``gradient(w)``, which returns an array of the shape of `w`, they work in
    ``Penalties.accumulate`` too.

    Examples
    --------
    >>> import numpy
    >>> class Largest(Regularizer):
    ...     def __call__(self, w):
    ...         return float(numpy.abs(w).max())
    >>> Largest()(numpy.array([1.0, -3.0]))
    3.0
    """

    # Slots, so that a misspelt strength (``regularizer.L1 = 0.5``) is an AttributeError.
    __slots__ = ("__weakref__",)

    def __call__(self, w: Any) -> Any:
        """Return the penalty of `w`; 0.0 in the base class."""
        return 0.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return a regularizer with the arguments that :meth:`get_config` returned.

        >>> from fastreg.regularizers import L1
        >>> L1.from_config({"l1": 0.5})
        L1(l1=0.5)
        """
        return cls(**config)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as plain Python objects; NotImplementedError unless redefined."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_config()")


class Configured(Regularizer):
    """Base class of this package's regularizers; an argument is kept in "_" and its name."""

    __slots__ = ()

    #: The names of the arguments.
    _arguments: ClassVar[tuple[str, ...]]

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this regularizer, by name: ``{"l1": 0.01}`` for an L1."""
        return {name: getattr(self, f"_{name}") for name in self._arguments}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.get_config() == other.get_config()


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"Regularizer": Regularizer}
