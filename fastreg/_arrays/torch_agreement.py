"""Agreement: processes that sum their parts of penalties have to mean the same penalties.

Contract
--------
- What they have to agree on is hashed to three whole numbers.  Sums of these and of their squares
  over n processes are n times the own ones only where all are equal: so every process sees from an
  all-reduce of sums that there is a disagreement, whoever it is that differs.
- The numbers have 20 bits, so that a float64 holds the sums for 8,192 processes exactly.
- Descriptions are made, and exchanged, only after a disagreement.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

Description: TypeAlias = Mapping[str, str]
"""What a process has, by name."""
Descriptions: TypeAlias = dict[int, Description]
"""What each process has, by rank."""

_BITS = 20
HEAD = 7
"""Three numbers, their squares, and a count of processes that know of a disagreement."""


class Terms:
    """What must be equal on all ranks before their penalties are all-reduced.

    Examples
    --------
    >>> one = Terms(b"l1=0.1", lambda: {"weight": "L1(l1=0.1)"})
    >>> other = Terms(b"l1=0.2", lambda: {"weight": "L1(l1=0.2)"})
    >>> sums = [sum(pair) for pair in zip(one.head(False), other.head(False))]
    >>> one.agrees(sums, 2), other.agrees(sums, 2)
    (False, False)
    >>> one.agrees([2 * entry for entry in one.head(False)], 2)
    True
    """

    __slots__ = ("_numbers", "describe")

    def __init__(self, content: bytes, describe: Callable[[], Description]) -> None:
        bits = digest(content)
        numbers = [bits >> shift & (1 << _BITS) - 1 for shift in (0, _BITS, 2 * _BITS)]
        self._numbers = (*numbers, *[number * number for number in numbers])
        self.describe: Callable[[], Description] = describe

    def head(self, knows: bool) -> list[float]:
        """Return what is summed over the processes; `knows` is of an earlier disagreement."""
        return [*map(float, self._numbers), float(knows)]

    def agrees(self, sums: Sequence[float], processes: int) -> bool:
        """Return whether all processes gave the head that this one did, and none knew better."""
        return list(sums) in self._agreeing(processes)

    def agree(self, sums: torch.Tensor, processes: int) -> torch.Tensor:
        """Return :meth:`agrees` as a 0-d tensor on the device of `sums`, without waiting for it."""
        agreeing = torch.tensor(self._agreeing(processes), dtype=sums.dtype).to(sums.device)
        return (sums == agreeing).all(1).any()

    def _agreeing(self, processes: int) -> list[list[float]]:
        head = self.head(False)
        # A fake process group, which estimates of memory and time use, gives back what it is given.
        return [[processes * number for number in head], head]


def digest(content: bytes) -> int:
    """Return 64 bits that are the same in every process, as those of ``hash(str)`` are not."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def require(terms: Terms, group: Any) -> None:
    """Refuse terms that are not those of every process of a group: a collective operation."""
    heads: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(heads, terms.head(False), group=group)
    if any(head != heads[0] for head in heads):
        raise error(gathered({torch.distributed.get_rank(): terms.describe()}, group))


def gathered(known: Mapping[int, Description], group: Any) -> Descriptions:
    """Return what the processes of a group know: a collective operation."""
    parts: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(parts, dict(known), group=group)
    return {rank: one for part in parts for rank, one in part.items()}


def error(
    known: Mapping[int, Description],
    what: str = "their penalties",
    remedy: str = "give every process the same rules, strengths, factors and requires_grad, and "
    "replicas the same weights",
) -> RuntimeError:
    """Build the error of processes that disagree, which says what differs.

    Examples
    --------
    >>> error({0: {"w": "L1(l1=0.1)"}, 1: {"w": "L1(l1=0.2)"}})
    RuntimeError('the processes disagree about their penalties: ...
    """
    differences = list(_differences(known))
    text = "; ".join(differences[:4])
    if len(differences) > 4:
        text += f"; and {len(differences) - 4} more"
    return RuntimeError(
        f"the processes disagree about {what}: "
        f"{text or 'they have them in different orders'}; {remedy}"
    )


def _differences(known: Mapping[int, Description]) -> Iterable[str]:
    owners = Counter(name for description in known.values() for name in description)
    # First entries that are not parameters, then parameters that few processes have.
    for name in sorted(owners, key=lambda name: (name.startswith("'"), owners[name], name)):
        ranks: dict[str, list[int]] = {}
        for rank, description in sorted(known.items()):
            ranks.setdefault(description.get(name, "nothing"), []).append(rank)
        if len(ranks) > 1:
            yield f"{name} is " + ", ".join(
                f"{text} on rank{'s' * (len(some) > 1)} {_listed(some)}"
                for text, some in ranks.items()
            )


def _listed(ranks: list[int], limit: int = 8) -> str:
    rest = len(ranks) - limit
    return ", ".join(map(str, ranks[:limit])) + (f" and {rest} more" if rest > 0 else "")
