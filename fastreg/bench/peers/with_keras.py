"""Keras 3: its regularizers, differentiated by its backend, PyTorch or JAX.

KERAS_BACKEND decides which; unset, PyTorch where it is installed. On JAX the whole call is one
jitted program; on PyTorch it is eager, as in Keras' own training there.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

from fastreg.bench.cases import OUTPUTS
from fastreg.bench.peers.base import Peer, Prepared
from fastreg.bench.peers.with_jax import donating, jax_session
from fastreg.bench.peers.with_torch import Torch, as_tensor
from fastreg.bench.workloads import Array, Workload

BACKENDS = ("torch", "jax")


class Keras(Peer):
    """``keras.regularizers.L1L2`` and automatic differentiation."""

    name = "keras"
    modules: ClassVar[tuple[str, ...]] = ("keras",)
    spins = True
    summary = "Keras' regularizer, differentiated by its backend (KERAS_BACKEND: torch, jax)"

    def available(self) -> bool:
        return super().available() and any(find_spec(backend) for backend in BACKENDS)

    @contextmanager
    def session(self, threads: int) -> Iterator[int]:
        backend = _import_keras().backend.backend()
        with ExitStack() as stack:
            if backend == "torch":
                yield stack.enter_context(Torch().session(threads))
            elif backend == "jax":
                yield stack.enter_context(jax_session(threads))
            else:
                raise RuntimeError(f"KERAS_BACKEND was {backend}; the peer keras can do torch, jax")

    def make(self, workload: Workload) -> Prepared | None:
        keras = _import_keras()
        l1, l2 = workload.case.strengths
        regularizer = keras.regularizers.L1L2(l1=l1, l2=l2)
        if keras.backend.backend() == "jax":
            return self._with_jax(regularizer, workload)
        return self._with_torch(regularizer, workload)

    @staticmethod
    def _with_jax(regularizer: Any, workload: Workload) -> Prepared:
        jax: Any = importlib.import_module("jax")
        outputs = OUTPUTS[workload.case.outputs]

        def value(weights: list[Any]) -> Any:
            return sum(regularizer(w) for w in weights)

        def penalty(weights: list[Any], gradients: list[Any]) -> Any:
            if not outputs.mask & 6:
                return value(weights), []
            total, slopes = jax.value_and_grad(value)(weights)
            if outputs.adds:
                slopes = [g + slope for g, slope in zip(gradients, slopes, strict=True)]
            return total if outputs.has_value else 0.0, slopes

        return donating(jax, penalty, workload)

    @staticmethod
    def _with_torch(regularizer: Any, workload: Workload) -> Prepared:
        torch: Any = importlib.import_module("torch")
        tensors = workload.tensors
        outputs = OUTPUTS[workload.case.outputs]
        weights = [as_tensor(torch, w).requires_grad_() for w in tensors.weights]
        latest: list[Any] = []

        def total() -> Any:
            return sum(regularizer(w) for w in weights)

        def value() -> Any:
            with torch.no_grad():
                return total()

        def written() -> Any:
            penalty = total()
            latest[:] = torch.autograd.grad(penalty, weights)
            return penalty.detach()

        def added() -> Any:
            penalty = total()
            penalty.backward()
            return penalty.detach()

        if outputs.adds:
            for w, g in zip(weights, tensors.gradients, strict=True):
                w.grad = as_tensor(torch, g)
            return Prepared(added, lambda: tensors.gradients)
        if outputs.mask & 2:
            return Prepared(written, lambda: [_as_array(torch, g) for g in latest])
        return Prepared(value, lambda: tensors.gradients)


def _import_keras() -> Any:
    """Return Keras, on a backend that is installed."""
    if "keras" in sys.modules or "KERAS_BACKEND" in os.environ:
        return importlib.import_module("keras")
    os.environ["KERAS_BACKEND"] = next(name for name in BACKENDS if find_spec(name))
    try:
        return importlib.import_module("keras")
    finally:
        del os.environ["KERAS_BACKEND"]


def _as_array(torch: Any, tensor: Any) -> Array:
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
