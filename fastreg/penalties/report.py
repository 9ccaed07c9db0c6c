"""A report: each tensor's penalty, share of zeros and rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .._arrays import cuda, host
from .._engine import backend
from .plan import Plan, Selection
from .rules import rule_name


class ReportRow(NamedTuple):
    """What a report says of one tensor."""

    penalty: float
    """The penalty; 0.0 without a rule, and for a tied tensor that counts under another name."""
    zeros: float
    """Share of elements that are 0, from 0 to 1; 0.0 for an empty tensor."""
    rule: Any
    """The regularizer, or None."""
    tied_to: str | None
    """The name under which a tied tensor counts, else None."""


class Report(dict[str, ReportRow]):
    """Penalties by name: a dict for programs, an aligned plain-text table as ``str``."""

    total: float
    """The penalty of all tensors, as :meth:`Penalties.value` gives it."""

    def __init__(self, rows: Mapping[str, ReportRow], total: float) -> None:
        super().__init__(rows)
        self.total = total

    def __str__(self) -> str:
        cells = [("tensor", "penalty", "zeros", "rule")]
        for name, row in self.items():
            rule = "-" if row.rule is None else rule_name(row.rule)
            if row.tied_to is not None:
                rule = f"tied to {row.tied_to}"
            cells.append((name, f"{row.penalty:.6g}", f"{row.zeros:.1%}", rule))
        cells.append(("total", f"{self.total:.6g}", "", ""))
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        return "\n".join(
            f"{name:<{widths[0]}}  {penalty:>{widths[1]}}  {zeros:>{widths[2]}}  {rule}".rstrip()
            for name, penalty, zeros, rule in cells
        )


def make_report(plan: Plan, values: list[float], zeros: list[float]) -> Report:
    """Make a report of the penalties of a plan, and of all tensors' shares of zeros."""
    penalties = dict(zip(plan.names, values, strict=True))
    tied = dict(plan.tied)
    rows = {
        name: ReportRow(
            penalties.get(name, 0.0), share, plan.rules.get(tied.get(name, name)), tied.get(name)
        )
        for name, share in zip(plan.source.names, zeros, strict=True)
    }
    return Report(rows, backend.canonical_sum(values))


def shares_of_zeros(plan: Plan, source: Any) -> list[float]:
    """Return the share of zeros of each tensor in `source`, whether it has a penalty or not."""
    names = plan.source.names
    arrays = Selection(names, names)(source)
    return [
        share_of_zeros(array, f"tensors[{name!r}]")
        for name, array in zip(names, arrays, strict=True)
    ]


def share_of_zeros(x: Any, name: str) -> float:
    """Return the share of elements that are 0 (of either sign), from 0 to 1; 0.0 when empty."""
    if "complex" in str(getattr(x, "dtype", "")):
        x = x != 0
    if cuda.is_on_cuda(x):
        view, dtype = cuda.host_copy(x, name)
    else:
        view, dtype = host.host_view(x, name, False)
    if view.size == 0:
        return 0.0
    if dtype == "bf16":
        count = sum(int(np.count_nonzero(part & 0x7FFF)) for part in _parts(view))
    else:
        count = int(np.count_nonzero(view))
    return 1.0 - count / view.size


def _parts(view: host.Array) -> Iterator[Any]:
    flat = view.flat
    return (flat[start : start + 65536] for start in range(0, view.size, 65536))
