"""fastreg itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

import fastreg
from fastreg._info import native_core
from fastreg.bench.cases import Case
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.peers.with_torch import as_tensor
from fastreg.bench.row import OWN
from fastreg.bench.workloads import Array, Workload
from fastreg.regularizers import L1L2


def entry_points(*names: str) -> ModuleType:
    """Return the first of the modules below the public methods that this build has.

    `bench compare` measures older builds with this benchmark.
    """
    for name in names:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            pass
    return import_module("fastreg._backend")


backend: Any = entry_points("fastreg._engine.backend")
calls: Any = entry_points("fastreg._engine.calls", "fastreg._engine.backend")


def entries_for(w: Array) -> Any:
    """Return the entry points for an array; the core alone takes NumPy's."""
    return backend if type(w) is np.ndarray else calls


class Fastreg(Peer):
    """The public methods, with preallocated outputs unless the case wants new ones.

    Where no public method takes outputs (gradients of many tensors) or leaves the value out (add),
    the entry point below them is measured. Memory of torch comes as torch's tensors.
    """

    name = OWN
    summary = "this package"
    value_tolerance: ClassVar[float] = 1e-12  # its sums are in float64

    def make(self, workload: Workload) -> Prepared:
        case, tensors = workload.case, workload.tensors
        weights, gradients = tensors.weights, tensors.gradients
        if case.memory == "torch":
            torch: Any = import_module("torch")
            weights, gradients = (
                [as_tensor(torch, array) for array in arrays] for arrays in (weights, gradients)
            )
        many = len(weights) > 1
        call = (
            self._many(case, weights, gradients) if many else self._one(case, *weights, *gradients)
        )
        if case.makes_arrays:
            return Prepared(call, lambda: _arrays_of(call()), _first_of_pair)
        return Prepared(call, lambda: tensors.gradients, _first_of_pair)

    @staticmethod
    def _one(case: Case, w: Any, g: Any) -> Any:
        l1, l2 = case.strengths
        regularizer = L1L2(l1, l2)
        match case.outputs:
            case "value":
                return partial(regularizer, w)
            case "gradient":
                return partial(regularizer.gradient, w, g)
            case "value+gradient":
                return partial(regularizer.value_and_grad, w, g)
            case "value+add":
                return partial(regularizer.accumulate, w, g)
            case "new-gradient":
                return partial(regularizer.gradient, w)
            case "value+new-gradient":
                return partial(regularizer.value_and_grad, w)
            case _:
                mask = case.returns.mask
                return partial(entries_for(w).evaluate_one, mask, w, g, l1, l2, 1.0, 1.0)

    @staticmethod
    def _many(case: Case, weights: list[Any], gradients: list[Any]) -> Any:
        named = {str(n): w for n, w in enumerate(weights)}
        strengths = case.strengths
        match case.outputs:
            case "value":
                return fastreg.attach(named, L1L2(*strengths)).value
            case "value+add":
                accumulate = fastreg.attach(named, L1L2(*strengths)).accumulate
                return partial(accumulate, dict(zip(named, gradients, strict=True)))
            case outputs if case.makes_arrays:
                raise ValueError(f"{outputs} is measured on one tensor, not on all of a model")
            case _:
                return partial(
                    entries_for(weights[0]).evaluate_many,
                    case.returns.mask,
                    tuple(named),
                    tuple(weights),
                    tuple(gradients),
                    (strengths,),
                    (0,) * len(weights),
                    1.0,
                    1.0,
                    False,
                )


class Forced(Fastreg):
    """The same under a policy of the core that is forced, as FASTREG_POLICY does."""

    def __init__(self, policy: str, name: str) -> None:
        self.policy = policy
        self.name = name  # type: ignore[misc]

    def make(self, workload: Workload) -> Prepared:
        force = partial(native_core().set_policy, self.policy)  # type: ignore[union-attr]
        force()
        return replace(super().make(workload), before=force)


def policy_names() -> list[str]:
    """Return the names of the core's policies; none where there is no core, or an older one."""
    return list(getattr(native_core(), "policy_names", list)())


@contextmanager
def under_policies(names: Sequence[str]) -> Iterator[tuple[Fastreg, list[Fastreg]]]:
    """Yield fastreg as it is and under each of the policies; then the policy is as before."""
    if not names:
        yield Fastreg(), []
        return
    core: Any = native_core()
    now = core.policy()
    try:
        yield Forced(now["name"], OWN), [Forced(name, f"{OWN}-{name}") for name in names]
    finally:
        core.set_policy(now["name"] if now["forced"] else "")


def _arrays_of(result: Any) -> tuple[Array]:
    """Return the new gradient as an array of NumPy, be it alone or with a value."""
    gradient = result[1] if isinstance(result, tuple) else result
    return (gradient if isinstance(gradient, np.ndarray) else gradient.double().numpy(),)


def _first_of_pair(result: Any) -> float:
    """Return the value, also where the gradients come with it."""
    return float(result[0] if isinstance(result, tuple) else result)
