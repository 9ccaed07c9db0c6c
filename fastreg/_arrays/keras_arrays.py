"""Keras' rows: variables, which hold another library's array, and symbolic tensors."""

from __future__ import annotations

from typing import Any

from .._base import errors
from .host_memory import HostView
from .library import Library


class Variables(Library):
    """Variables of Keras, which hold an array of its backend."""

    port = "value"


class Symbolic(Library):
    """Symbolic tensors, of which Keras builds models."""

    def needs_port(self, x: Any, records: bool) -> bool:
        return True

    def host_view(self, x: Any, name: str, writable: bool) -> HostView:
        raise errors.special_array_error(
            name, "a symbolic KerasTensor, which has no elements yet", "pass the array itself"
        )


def library_of(keras: Any, kind: type) -> Library | None:
    """Return the row of a class of Keras, or None for another class."""
    if issubclass(kind, getattr(keras, "Variable", ())):
        return Variables()
    return Symbolic() if issubclass(kind, getattr(keras, "KerasTensor", ())) else None
