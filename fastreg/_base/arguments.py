"""Checks of arguments that are numbers or choices: each returns what it lets through.

The native core decides only "certainly fine" or "not sure"; in the second case these functions
decide, so that an error has one text, whichever backend found it.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from .errors import described, listed, suggestion
from .float_environment import Default

Value = TypeVar("Value")


def _real(value: object, name: str, wanted: str) -> float:
    if isinstance(value, (bool, int, float, np.integer, np.floating, np.bool_)) or (
        # ml_dtypes' bfloat16 and its relatives are NumPy scalars outside NumPy's class tree.
        isinstance(value, np.generic) and type(value).__module__.startswith("ml_dtypes")
    ):
        try:
            with Default():
                return float(value)
        except OverflowError:
            raise ValueError(
                f"{name} must be {wanted}, not {described(value)}: it does not fit a float"
            ) from None
    raise TypeError(
        f"{name} must be {wanted}, not {described(value)}; "
        + (
            _remedy_for_tracers(name)
            if any(kind.__name__ == "Tracer" for kind in type(value).__mro__)
            else f"pass a Python or NumPy number, for example {name}=float(x)"
        )
    )


def _remedy_for_tracers(name: str) -> str:
    if name in ("scale", "grad_scale", "step"):
        return (
            "a factor that JAX traces takes arrays of JAX, jax.numpy.asarray(w), and calls that "
            "write into nothing"
        )
    return "strengths that JAX traces go into fastreg.jax.penalty(w, l1=..., l2=...)"


def strength(value: object, name: str) -> float:
    """Return a penalty strength as a Python float: finite and not negative."""
    wanted = "a finite number >= 0"
    if type(value) is np.ndarray and value.ndim == 0:
        value = value[()]
    number = _real(value, name, wanted)
    if not 0.0 <= number < math.inf:
        raise ValueError(f"{name} must be {wanted}, not {described(value)}")
    return number


def multiplier(value: object, name: str) -> float:
    """Return ``scale`` or ``grad_scale`` as a Python float: finite, any sign."""
    wanted = "a finite number"
    number = _real(value, name, wanted)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be {wanted}, not {described(value)}")
    return number


def bound(value: object, name: str) -> float:
    """Return an upper bound as a Python float: not negative, and possibly infinite."""
    wanted = "a number >= 0"
    number = _real(value, name, wanted)
    if not number >= 0.0:
        raise ValueError(f"{name} must be {wanted}, not {described(value)}")
    return number


#: As in csrc/cpu/pool.h.
MOST_THREADS = 1024


def positive_integer(value: object, name: str, most: int = sys.maxsize) -> int:
    """Return a size or a number of things as an int of at least 1 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a positive integer, not {described(value)}")
    if not 1 <= value <= most:
        limit = f" up to {most}" if value > 0 else ""
        raise ValueError(f"{name} must be a positive integer{limit}, not {described(value)}")
    return int(value)


def thread_count(value: object, name: str) -> int:
    """Return a number of threads as an int that the core takes."""
    return positive_integer(value, name, MOST_THREADS)


def choice(value: object, name: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of `choices`."""
    what = f"{name} must be one of {listed(choices, limit=len(choices))}"
    if not isinstance(value, str):
        raise TypeError(f"{what}, not {described(value)}")
    if value not in choices:
        raise ValueError(f"{what}, not {value!r}{suggestion(value, choices)}")
    return value


def flag(value: Any, name: str) -> bool:
    """Return a bool argument."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, not {described(value)}")
    return bool(value)


def snake_case(name: str) -> str:
    """Return the name of a class as Keras writes it in small letters.

    >>> snake_case("GlorotUniform"), snake_case("Conv2D"), snake_case("L1L2")
    ('glorot_uniform', 'conv2d', 'l1l2')
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


class Checked(Generic[Value]):
    """A property that is checked when it is set, and kept under its name with "_" before it."""

    def __init__(self, check: Callable[[Any, str], Value], doc: str) -> None:
        self._check, self.__doc__ = check, doc

    def __set_name__(self, owner: type, name: str) -> None:
        place, check = f"_{name}", self._check

        def set_checked(instance: object, value: Value) -> None:
            setattr(instance, place, check(value, name))

        made: Any = property(attrgetter(place), set_checked, doc=self.__doc__)
        # A class body does this; errors of Python name the property by it.
        made.__set_name__(owner, name)
        setattr(owner, name, made)

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type) -> Value: ...
        def __set__(
            self, instance: object, value: Value | np.floating[Any] | np.integer[Any]
        ) -> None: ...
