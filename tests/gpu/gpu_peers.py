"""Who takes part on a device: the peers of ``python -m fastreg bench``, on torch's tensors there.

Contract: arrays are torch's, also where a peer's framework is another one, which shares them where
it can.  Triton and CuPy are peers here alone.  Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from math import fsum
from typing import Any

from fastreg.bench import workloads as host
from fastreg.bench.cases import OUTPUTS, Case
from fastreg.bench.peers import Fastreg, Peer, Prepared
from fastreg.bench.peers.with_jax import Jax
from fastreg.bench.peers.with_torch import Torch, TorchCompile, TorchForeach, sum_dtype
from fastreg.bench.row import COPY
from fastreg.bench.shapes import MODELS, Shapes
from fastreg.bench.workloads import Workload

#: Lists of tensors beside whole models: of 64 to 4,194,304 elements, and of 1 to 1,024.
LISTS: dict[str, Shapes] = {
    "400 mixed tensors": {
        str(place): (64 << place % 6, 64 << place % 5) if place % 2 else (64 << place % 7,)
        for place in range(400)
    },
    "3,000 small tensors": {str(place): (1 + 389 * place % 1024,) for place in range(3000)},
    "12 small tensors": {str(place): (1 + 389 * place % 1024,) for place in range(12)},
}

#: Elements that are converted to float64 at a time.
BLOCK = 2**26


class Tensors(host.Tensors):
    """Those of torch, whose exact sums are formed where they are."""

    @cached_property
    def sums(self) -> tuple[float, float]:
        magnitudes, squares = [], []
        for weights in self.weights:
            for part in weights.reshape(-1).split(BLOCK):
                wide = part.double()
                magnitudes.append(float(wide.abs().sum()))
                squares.append(float(wide.square().sum()))
        return fsum(magnitudes), fsum(squares)

    def as_float64(self, array: Any) -> Any:
        return array.double().cpu().numpy() if hasattr(array, "double") else array.astype("f8")


def workloads(torch: Any, cases: Sequence[Case], place: Any) -> Iterator[Workload]:
    """Yield the cases with torch's tensors on a device."""

    def make(dtype: str, length: int, size: int) -> tuple[Any, Any, Any]:
        kind = {"f16": "float16", "bf16": "bfloat16", "f32": "float32", "f64": "float64"}[dtype]
        generator = torch.Generator(device=place).manual_seed(20260101)
        drawn = torch.empty(length, dtype=getattr(torch, kind), device=place)
        weights = drawn.normal_(0.0, 0.05, generator=generator)
        return weights, torch.zeros_like(weights), torch.zeros_like(weights[:size])

    return host.workloads(cases, make, Tensors, MODELS | LISTS)


class OnDevice(Fastreg):
    """Fastreg, whose value is a tensor of float32 there, and of float64 for float64."""

    value_tolerance = 2.0**-23


class Floor(Peer):
    """A bare call of torch that moves the bytes of a case: read, copy or add."""

    summary = "a bare loop over the same bytes"

    def __init__(self, kind: str) -> None:
        self.name = kind  # type: ignore[misc]

    def make(self, workload: Workload) -> Prepared:
        import torch

        (w,), scratch = workload.as_one.weights, workload.scratch
        calls = {
            "read": lambda: w.sum(dtype=sum_dtype(torch, [w])),
            "copy": lambda: scratch.copy_(w),
            "add": lambda: scratch.add_(w),
        }
        return Prepared(calls[self.name], lambda: (scratch,))


def floors(case: Case) -> list[Peer]:
    """Return the device's own copy, and the case's floor where that is another."""
    return [Floor(kind) for kind in dict.fromkeys((COPY, case.floor))]


class JaxOnDevice(Jax):
    """JAX, which queues on streams of its own: its call waits for its result."""

    def make(self, workload: Workload) -> Prepared | None:
        if workload.case.dtype == "f64":
            return None  # a setting of the whole process
        return super().make(workload)

    @staticmethod
    def as_jax(jax: Any, array: Any) -> Any:
        return jax.numpy.array(jax.dlpack.from_dlpack(array), copy=True)


class Triton(Peer):
    """One kernel of Triton's over blocks, and torch's sum of the blocks' sums."""

    name = "triton"
    modules = ("triton",)
    summary = "one kernel of Triton's"

    def make(self, workload: Workload) -> Prepared:
        import gpu_triton

        tensors = workload.tensors
        return Prepared(gpu_triton.call(workload), lambda: tensors.gradients)


class CuPy(Peer):
    """CuPy's fused kernels: one reduction, one kernel for elements."""

    name = "cupy"
    modules = ("cupy",)
    summary = "CuPy's fused kernels"

    def make(self, workload: Workload) -> Prepared | None:
        case, outputs, tensors = workload.case, OUTPUTS[workload.case.outputs], workload.tensors
        if case.dtype == "bf16":
            return None
        import cupy

        w, g = (cupy.from_dlpack(x) for (x,) in (tensors.weights, tensors.gradients))
        l1, l2 = case.strengths
        real, wide = ("double", "float64") if case.dtype == "f64" else ("float", "float32")
        term = f"({real}){l1!r} * abs(({real})w) + ({real}){l2!r} * ({real})w * ({real})w"
        sign = f"(({real})w > 0) - (({real})w < 0)"
        slope = f"({real}){l1!r} * ({sign}) + ({real}){2 * l2!r} * ({real})w"
        total = cupy.ReductionKernel(
            "T w", f"{wide} total", term, "a + b", "total = a", "0", f"penalty_{case.terms}",
            reduce_type=real,
        )  # fmt: skip
        written = cupy.ElementwiseKernel("T w", "T g", f"g = (T)({slope})", "gradient")
        added = cupy.ElementwiseKernel(
            "T w, T old", "T g", f"g = (T)(({real})old + {slope})", "add"
        )

        def call() -> Any:
            penalty = total(w) if outputs.has_value else None
            if outputs.adds:
                added(w, g, g)
            elif outputs.mask & 6:
                written(w, g)
            return penalty

        return Prepared(call, lambda: tensors.gradients)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (Torch(), TorchForeach(), Triton(), TorchCompile(), CuPy(), JaxOnDevice())
}
#: Peers that cannot run in host memory.
NEED_A_GPU = ("triton", "cupy")
#: Peers that cannot be timed by events of torch's stream.
HOST_CLOCK = frozenset({"jax"})


def usable(
    wanted: Sequence[str], on_gpu: bool, peers: Mapping[str, Peer] = PEERS
) -> tuple[list[str], dict[str, str]]:
    """Split peers into those that are here and why the others are not."""
    found, absent = [], {}
    for name in wanted:
        if any(find_spec(module) is None for module in peers[name].modules):
            absent[name] = "not installed"
        elif name in NEED_A_GPU and not on_gpu:
            absent[name] = "needs a GPU"
        elif name == "jax" and on_gpu and (reason := _jax_without_gpu()):
            absent[name] = reason
        else:
            found.append(name)
    return found, absent


def _jax_without_gpu() -> str:
    import jax

    try:
        jax.devices("gpu")
    except RuntimeError as error:
        return f"finds no GPU: {error}"
    return ""
