"""Names of the arrays of a mapping or sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .._base import errors

Names = list[str]  # compared at every call: a list of a dict's names is made fastest


def is_mapping(source: Any) -> bool:
    """Return whether arrays are picked by name; objects that only act like mappings count."""
    return isinstance(source, Mapping) or (
        hasattr(source, "keys") and hasattr(source, "__getitem__")
    )


def names_of(source: Any, argument: str) -> Names:
    """Return the names of a mapping's or sequence's arrays."""
    if type(source) is dict:
        return [*source]
    if type(source) is list or type(source) is tuple:
        return numbered(len(source))
    if is_mapping(source):
        return [*source.keys()]
    if isinstance(source, Iterator):
        raise TypeError(
            f"{argument} must be a mapping or sequence of arrays, not "
            f"{errors.described(source)}, which can be read only once; pass dict(...) or "
            "list(...) of it"
        )
    if (
        isinstance(source, (str, bytes))
        or hasattr(source, "dtype")
        or not (hasattr(source, "__len__") and hasattr(source, "__getitem__"))
    ):
        raise TypeError(
            f"{argument} must be a mapping or sequence of arrays, not {errors.described(source)}; "
            + (errors.holder_remedy(source) or 'pass for example {"kernel": w}')
        )
    return numbered(len(source))


_numbers: Names = []


def numbered(count: int) -> Names:
    """Return "0", "1", ..., the same strings at every call: comparing them is then quick."""
    global _numbers
    numbers = _numbers  # read once: another thread may put a shorter list there
    if len(numbers) < count:
        _numbers = numbers = [str(index) for index in range(count)]
    return numbers[:count]


def counted(names: Iterable[str], count: int, things: str) -> str:
    """Return how many of `count` things these are, and which, for a ``repr``."""
    names = list(names)
    colon = ": " if names else ""
    return f"{len(names)} of {count} {things}{colon}{errors.listed(names, 4)}"


def require_strings(names: Names, argument: str) -> None:
    """Refuse keys that are not strings."""
    for name in names:
        if not isinstance(name, str):
            raise TypeError(
                f"{argument} must have names (str) as keys, not {errors.described(name)}"
            )


def require_kept(source: Any, names: Iterable[str], arrays: Iterable[Any], argument: str) -> None:
    """Refuse a mapping that makes its arrays when it is asked: what is written would be lost.

    `arrays` are those that it has given by these names.
    """
    if type(source) in (dict, list, tuple) or not is_mapping(source):
        return
    for name, array in zip(names, arrays, strict=True):
        if type(array) is not np.ndarray or array.size == 0:
            continue
        if not np.may_share_memory(array, source[name]):
            raise TypeError(
                f"{argument}[{name!r}] is another array at every look-up, so that what is written "
                f"to it would be lost; pass dict({argument}), and keep it"
            )
