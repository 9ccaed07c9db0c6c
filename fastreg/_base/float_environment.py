"""Arithmetic in Python and NumPy under the contract's floating point environment.

Inside :class:`Default` numbers are rounded to nearest and subnormal ones are kept, whatever the
thread has set: a rounding mode, flush to zero (``torch.set_flush_denormal(True)``, or a library
that was linked with ``-ffast-math``).  At exit that is restored.  Without ``fesetenv`` of the C
library it is a no-op.  No code of a caller runs inside.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

_ONE = 1.0
_HALF_A_PLACE = 2.0**-53
_MOST_OF_A_PLACE = 1.5 * 2.0**-53
(_LEAST,) = struct.unpack("<d", (1).to_bytes(8, "little"))  # a literal may be read as 0 here


def is_default() -> bool:
    """Return whether this thread rounds to nearest and keeps subnormal numbers."""
    return (
        _ONE + _HALF_A_PLACE == _ONE
        and _ONE + _MOST_OF_A_PLACE != _ONE
        and bool(_LEAST * _ONE != 0.0)
    )


@cache
def _library() -> tuple[Any, Any] | None:
    """Return the C library and its default environment; None where it has none."""
    try:
        import ctypes

        library = ctypes.PyDLL(None)
        library.fegetenv, library.fesetenv  # noqa: B018
    except (ImportError, OSError, AttributeError):
        return None
    try:
        return library, ctypes.byref(ctypes.c_char.in_dll(library, "_FE_DFL_ENV"))  # macOS
    except ValueError:
        return library, ctypes.c_void_p(-1)


class Default:
    """A context in which the environment is the default one."""

    __slots__ = ("_saved",)

    def __enter__(self) -> None:
        self._saved: Any = None
        found = None if is_default() else _library()
        if found is not None:
            import ctypes

            library, default = found
            saved = ctypes.create_string_buffer(512)  # more than any system's fenv_t
            if library.fegetenv(saved) == 0:
                library.fesetenv(default)
                self._saved = saved

    def __exit__(self, *_: object) -> None:
        found = None if self._saved is None else _library()
        if found is not None:
            found[0].fesetenv(self._saved)


def product(first: float, *others: float) -> float:
    """Return the product from left to right, rounded to nearest after each factor.

    Traced factors are multiplied by their framework, in its own environment.

    >>> product(0.1, 3.0, 2.0)
    0.6000000000000001
    """
    if not is_default():
        with Default():
            return _multiplied(first, others)
    return _multiplied(first, others)


def products(numbers: Sequence[float], factor: float) -> tuple[float, ...]:
    """Return each number times a factor, rounded to nearest.

    >>> products((1.0, 3.0), 0.1)
    (0.1, 0.30000000000000004)
    """
    if not is_default():
        with Default():
            return tuple([number * factor for number in numbers])
    return tuple([number * factor for number in numbers])


def _multiplied(number: float, factors: tuple[float, ...]) -> float:
    for factor in factors:
        number = number * factor
    return number
