"""JAX on the CPU: one jitted program per case, with the gradient's memory donated.

Weights and gradients are JAX arrays from the start. A written gradient takes the memory of the one
before; without that, the system would have to clear fresh pages at each call.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.base import Peer, Prepared, written_out
from fastreg.bench.workloads import Array, Workload


class Jax(Peer):
    """``jit`` over the list of tensors; half precision is computed in float32."""

    name = "jax"
    modules: ClassVar[tuple[str, ...]] = ("jax",)
    summary = "JAX, jit with donation"

    @contextmanager
    def session(self, threads: int) -> Iterator[int]:
        with jax_session(threads) as used:
            yield used

    def make(self, workload: Workload) -> Prepared | None:
        jax: Any = importlib.import_module("jax")
        jnp = jax.numpy
        case = workload.case
        wide = jnp.float64 if case.dtype == "f64" else jnp.float32

        def penalty(weights: list[Any], gradients: list[Any]) -> Any:
            total: Any = 0.0
            new = []
            for w, g in zip(weights, gradients, strict=True):
                value, slope = written_out(case, w.astype(wide), g.astype(wide), jnp.sign)
                total = value + total
                if OUTPUTS[case.outputs].mask & 6:
                    new.append(slope.astype(g.dtype))
            return total, new

        return donating(jax, penalty, workload, self.as_jax)

    @staticmethod
    def as_jax(jax: Any, array: Any) -> Any:
        """Return JAX's own copy of an array."""
        return jax.numpy.array(array, copy=True)


@contextmanager
def jax_session(threads: int) -> Iterator[int]:
    """Import JAX with so many threads, and let it have float64; gives 0 where it is too late."""
    fresh = "jax" not in sys.modules
    before = os.environ.get("NPROC")
    if fresh:  # XLA reads it once, when it makes the CPU's thread pool
        os.environ["NPROC"] = str(threads)
    try:
        jax: Any = importlib.import_module("jax")
        jax.devices("cpu")
    finally:
        if fresh and before is None:
            del os.environ["NPROC"]
        elif fresh and before is not None:
            os.environ["NPROC"] = before
    if fresh:
        _threads_at_import.append(threads)
    wide = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        with jax.default_device(jax.devices("cpu")[0]):
            yield threads if threads in _threads_at_import else 0
    finally:
        jax.config.update("jax_enable_x64", wide)


#: With how many threads this module has started JAX; empty where someone else did.
_threads_at_import: list[int] = []


def donating(
    jax: Any, penalty: Any, workload: Workload, as_jax: Callable[[Any, Any], Any] = Jax.as_jax
) -> Prepared:
    """Return a call of ``penalty(weights, gradients)``, whose gradients are donated."""
    weights, gradients = (
        [as_jax(jax, array) for array in arrays]
        for arrays in (workload.tensors.weights, workload.tensors.gradients)
    )
    if not OUTPUTS[workload.case.outputs].mask & 6:
        value_only = jax.jit(lambda weights: penalty(weights, weights)[0])
        return Prepared(
            lambda: value_only(weights).block_until_ready(), lambda: workload.tensors.gradients
        )
    compiled = jax.jit(penalty, donate_argnums=1, keep_unused=True)
    state = [gradients]

    def call() -> Any:
        value, state[0] = compiled(weights, state[0])
        jax.block_until_ready(state[0])
        return value

    def gradients_now() -> list[Array]:
        return [np.asarray(gradient) for gradient in state[0]]

    return Prepared(call, gradients_now)
