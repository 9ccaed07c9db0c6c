"""The state of an optimizer as a mapping of arrays and numbers, written and read back.

Contract: it is flat, so that ``numpy.savez`` and pickle keep it as it is.  It is judged as a whole
before anything is taken over; arrays are copied in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._arrays import cuda
from .._base import errors
from ..penalties.names import is_mapping

Arrays = dict[str, npt.NDArray[Any]]

_ALGORITHM, _STEPS, _STEP = "algorithm", "steps", "step"


class State(NamedTuple):
    """What an optimizer has learned."""

    steps: int
    """How many steps it took; a skipped one does not count."""
    taken: dict[str, int]
    """How many steps each tensor took."""
    arrays: dict[str, Arrays]
    """By what they are ("momentum_buffer"), the arrays by the tensors' names."""


def written(algorithm: str, state: State, names: Sequence[str]) -> dict[str, Any]:
    """Return the state as a flat mapping."""
    saved: dict[str, Any] = {_ALGORITHM: algorithm, _STEPS: state.steps}
    for name in names:
        saved[f"{_STEP}/{name}"] = state.taken.get(name, 0)
    for kind, arrays in state.arrays.items():
        there = [name for name in names if name in arrays]  # not those of names that are gone
        saved.update({f"{kind}/{name}": _copied(arrays[name]) for name in there})
    return saved


def _copied(array: Any) -> npt.NDArray[Any]:
    if type(array) is np.ndarray:
        return array.copy(order="K")
    return np.array(cuda.host_copy(array, "state")[0], order="K")


def read(
    given: Any, algorithm: str, kinds: Sequence[str], like: Mapping[str, tuple[Any, Any]]
) -> State:
    """Return the state that a mapping holds, or raise the error that it deserves.

    `like` has the shape and dtype of the arrays of each tensor.  What is returned are the mapping's
    own arrays, still to be copied.
    """
    if not is_mapping(given):
        raise TypeError(
            f"state must be a mapping as state_dict() gives it, not {errors.described(given)}"
        )
    keys = [*given.keys()]
    saved_by = str(given[_ALGORITHM]) if _ALGORITHM in keys else None
    if saved_by != algorithm:
        raise ValueError(
            f"state[{_ALGORITHM!r}] must be {algorithm!r}, not {saved_by!r}; load what "
            f"state_dict() of an {algorithm} gave"
        )
    if _STEPS not in keys:
        raise ValueError(f"state[{_STEPS!r}] is missing; load what state_dict() gave")
    known = {_ALGORITHM, _STEPS, *(f"{_STEP}/{name}" for name in like)}
    known |= {f"{kind}/{name}" for kind in kinds for name in like}
    for key in keys:
        if key not in known:
            raise ValueError(_unknown(key, kinds, [*like]))
    taken = {}
    for name in like:
        key = f"{_STEP}/{name}"
        if key not in keys:
            raise ValueError(
                f"state[{key!r}] is missing, but tensors[{name!r}] is there; load what was saved "
                "of the same tensors"
            )
        taken[name] = _count(given[key], key)
    arrays: dict[str, Arrays] = {kind: {} for kind in kinds}
    for kind in kinds:
        for name, (shape, dtype) in like.items():
            key = f"{kind}/{name}"
            if key in keys:
                arrays[kind][name] = _array(given[key], key, shape, dtype, name)
            elif taken[name]:
                raise ValueError(
                    f"state[{key!r}] is missing, but tensors[{name!r}] took {taken[name]} steps; "
                    "load what was saved with the same options"
                )
    return State(_count(given[_STEPS], _STEPS), taken, arrays)


def _unknown(key: Any, kinds: Sequence[str], names: Sequence[str]) -> str:
    kind, _, name = key.partition("/") if isinstance(key, str) else (key, "", "")
    if kind not in (*kinds, _STEP):
        return (
            f"state[{key!r}] is nothing that this optimizer keeps; it has "
            f"{errors.listed((*kinds, _STEP))} of its tensors: make it with the options of the one "
            "that was saved"
        )
    return (
        f"state[{key!r}] is of no tensor{errors.suggestion(name, names)}; the tensors are "
        f"{errors.listed(names)}"
    )


def _count(value: Any, key: str) -> int:
    number = np.asarray(value)
    if number.shape != () or number.dtype.kind not in "iu" or number < 0:
        raise ValueError(
            f"state[{key!r}] must be a number of steps, an integer >= 0, not "
            f"{errors.described(value)}"
        )
    return int(number)


def _array(value: Any, key: str, shape: Any, dtype: Any, name: str) -> npt.NDArray[Any]:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"state[{key!r}] must be a NumPy array, not {errors.described(value)}")
    if value.shape != shape:
        raise ValueError(
            f"state[{key!r}] has shape {value.shape}, but tensors[{name!r}] has {shape}"
        )
    if value.dtype != dtype:
        raise TypeError(
            f"state[{key!r}] has dtype {value.dtype}; for tensors[{name!r}] it is kept in {dtype}"
        )
    return value
