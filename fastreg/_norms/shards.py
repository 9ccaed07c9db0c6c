"""The processes that share DTensors: what each knows, gathered over their mesh.

Contract
--------
- Rows come in rank order: by their coordinates in the mesh.
- Before anything else is gathered, the processes have agreed on their arrays and on what is asked.
  A process that refuses its arrays says so before it raises: the others raise as well, and none
  waits for it.
- One all-gather for each dimension of the mesh.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch

from .._arrays import torch_agreement, torch_shards
from .._arrays.libraries import is_dtensor
from .._arrays.torch_agreement import HEAD, Terms
from .._base import errors

Rows = list[list[float]]
"""Numbers, a row from each process."""

_LENGTH = 1024
"""Of the first vector, whatever is in it: those of processes that disagree fit together."""


class Shards:
    """Arrays of which some are DTensors of one mesh, and the processes of that."""

    def __init__(self, names: Sequence[str], arrays: Sequence[Any]) -> None:
        self._names = names
        self._arrays = arrays
        self._mesh = _common_mesh(names, arrays)
        self._coordinates = list(itertools.product(*map(range, self._mesh.shape)))
        own = self._mesh.get_coordinate()
        self.own: int | None = None if own is None else self._coordinates.index(tuple(own))
        """The row of this process; None where the mesh leaves it out: it waits for nobody."""

    def local(self) -> tuple[Any, ...]:
        """Return what this process has of each array."""
        tensors = [p for p, array in enumerate(self._arrays) if isinstance(array, torch.Tensor)]
        local = torch_shards.local_tensors(
            [self._arrays[place] for place in tensors], [self._names[place] for place in tensors]
        )
        found = dict(zip(tensors, local, strict=True))
        return tuple(found.get(place, array) for place, array in enumerate(self._arrays))

    def identity(self, place: int) -> Hashable:
        """Return a key that is equal in every process for the same DTensors; else None."""
        array = self._arrays[place]
        return torch_shards.identity(array, self._names[place]) if is_dtensor(array) else None

    def counting(self, place: int) -> list[int]:
        """Return the rows of an array that count: of a replicated one, the first that has it.

        So it is with an array that is no DTensor.
        """
        array = self._arrays[place]
        if is_dtensor(array):
            replicates = [not torch_shards.is_shard(placement) for placement in array.placements]
        else:
            replicates = [True] * self._mesh.ndim
        return [
            row
            for row, coordinate in enumerate(self._coordinates)
            if not any(itertools.compress(coordinate, replicates))
        ]

    def refuse(self, error: Exception) -> None:
        """Tell the others of an error that this process is about to raise."""
        text = str(error)
        with suppress(RuntimeError):  # what they raise
            self._agree([], {"this call": f"refused ({text})"}, False)

    def ask(self, question: str, numbers: Sequence[float], counted: Sequence[int]) -> Rows:
        """Return the numbers of all processes, if they ask the same of the same arrays."""
        described = {"this call": question}
        once = set(counted)
        for place, (name, array) in enumerate(zip(self._names, self._arrays, strict=True)):
            words = [] if place in once else ["there before under another name"]
            if isinstance(array, torch.Tensor):
                words.append(f"of the shape {tuple(array.shape)} in {array.dtype}")
            if is_dtensor(array):
                words.append(f"with the placements {cast(Any, array).placements}")
            described[repr(name)] = ", ".join(words) or "an array"
        return self._agree(numbers, described, True)

    def _agree(self, numbers: Sequence[float], described: Mapping[str, str], is_good: bool) -> Rows:
        terms = Terms(repr(described).encode(), lambda: described)
        first = numbers[: _LENGTH - HEAD]
        padding = [0.0] * (_LENGTH - HEAD - len(first))
        rows = self.gather([*terms.head(not is_good), *first, *padding])
        if not is_good or any(row[:HEAD] != rows[0][:HEAD] for row in rows):
            known: Mapping[int, Mapping[str, str]] = {torch.distributed.get_rank(): described}
            for group in self._groups():
                known = torch_agreement.gathered(known, group)
            raise torch_agreement.error(
                known, "their tensors", "give every process the same tensors in the same order"
            )
        rest = numbers[len(first) :]
        more = self.gather(rest) if rest else [[] for _ in rows]
        return [
            [*row[HEAD : HEAD + len(first)], *others]
            for row, others in zip(rows, more, strict=True)
        ]

    def gather(self, numbers: Sequence[float]) -> Rows:
        """Return the numbers of all processes, which have as many each."""
        vector = torch.tensor(numbers, dtype=torch.float64, device=self._mesh.device_type)
        for group, size in zip(self._groups(), reversed(self._mesh.shape), strict=True):
            parts = [torch.empty_like(vector) for _ in range(size)]
            torch.distributed.all_gather(parts, vector, group=group)
            vector = torch.stack(parts)
        return cast(Rows, vector.reshape(-1, len(numbers)).tolist())

    def _groups(self) -> list[Any]:
        """Return the process groups of the mesh, that of its last dimension first."""
        return [self._mesh.get_group(dim) for dim in reversed(range(self._mesh.ndim))]


def _common_mesh(names: Sequence[str], arrays: Sequence[Any]) -> Any:
    first: str | None = None
    mesh: Any = None
    for name, array in zip(names, arrays, strict=True):
        if not is_dtensor(array):
            continue
        if first is None:
            first, mesh = name, array.device_mesh
        elif array.device_mesh != mesh:
            raise errors.special_array_error(
                f"tensors[{name!r}]",
                f"a DTensor on {array.device_mesh}, and tensors[{first!r}] is one on {mesh}",
                "pass those of one mesh at a time, or distribute all over the same",
            )
    return mesh
