"""What fastreg is measured against on a device: floors, and other ways to the same numbers.

Contract: a variant is a function without arguments that does one cell to arrays that all variants
share where their frameworks can; what it gives is (penalty or None, gradient or None).  A peer that
does not do a cell gives no function for it.  Nothing here measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastreg._engine import backend
from fastreg.bench.cases import OUTPUTS, Case
from fastreg.regularizers import L1L2

Variant = Callable[[], tuple[Any, Any]]


class Workload:
    """A case with torch's tensors on the device: weights, and a gradient to write or add to."""

    def __init__(self, torch: Any, case: Case, place: Any) -> None:
        self.torch, self.case = torch, case
        dtypes = {"f16": torch.float16, "bf16": torch.bfloat16}
        self.dtype = (dtypes | {"f32": torch.float32, "f64": torch.float64})[case.dtype]
        # Sums of a value are of this type: what half precision sums to does not fit it.
        self.sum_dtype = torch.float64 if case.dtype == "f64" else torch.float32
        generator = torch.Generator(device=place).manual_seed(20260101)
        drawn = torch.empty(case.size, dtype=self.dtype, device=place)
        self.weights = drawn.normal_(0.0, 0.05, generator=generator)
        self.gradient = torch.zeros_like(self.weights)
        self.scratch = torch.zeros_like(self.weights)

    @property
    def has_value(self) -> bool:
        return OUTPUTS[self.case.outputs].has_value

    @property
    def has_gradient(self) -> bool:
        return self.case.outputs != "value"

    @property
    def adds(self) -> bool:
        return OUTPUTS[self.case.outputs].adds


# ---------------------------------------------------------------------------------- fastreg


def fastreg_variant(workload: Workload) -> Variant:
    rule = L1L2(*workload.case.strengths)
    w, g = workload.weights, workload.gradient
    outputs = workload.case.outputs
    if outputs == "value":
        return lambda: (rule(w), None)
    if outputs == "gradient":
        return lambda: (None, rule.gradient(w, g))
    if outputs == "value+gradient":
        return lambda: rule.value_and_grad(w, g)
    if outputs == "value+add":
        return lambda: (rule.accumulate(w, g), g)
    mask, (l1, l2) = OUTPUTS[outputs].mask, workload.case.strengths

    def add() -> tuple[None, Any]:
        backend.evaluate_one(mask, w, g, l1, l2, 1.0, 1.0)
        return None, g

    return add


# ----------------------------------------------------------------------------------- floors


def floor_variant(workload: Workload, floor: str) -> Variant:
    """Give a bare call of torch that moves the bytes of a cell: read, copy or add."""
    w, scratch = workload.weights, workload.scratch
    if floor == "read":
        return lambda: (w.sum(dtype=workload.sum_dtype), None)
    if floor == "copy":
        return lambda: (None, scratch.copy_(w))
    return lambda: (None, scratch.add_(w))


# ------------------------------------------------------------------------------------ torch


def torch_function(torch: Any, workload: Workload) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Give the cell as one writes it by hand, in as few passes as torch's functions allow."""
    l1, l2 = workload.case.strengths
    sum_dtype = workload.sum_dtype

    def value(w: Any) -> Any:
        penalty = 0.0
        if l1:
            penalty = l1 * w.abs().sum(dtype=sum_dtype)
        if l2:
            penalty = penalty + l2 * w.square().sum(dtype=sum_dtype)
        return penalty

    def gradient(w: Any) -> Any:
        if not l1:
            return w * (2 * l2)
        slope = torch.sign(w).mul_(l1)
        return slope.add_(w, alpha=2 * l2) if l2 else slope

    def add(w: Any, g: Any) -> Any:
        if l1:
            g.add_(torch.sign(w), alpha=l1)
        return g.add_(w, alpha=2 * l2) if l2 else g

    def cell(w: Any, g: Any) -> tuple[Any, Any]:
        penalty = value(w) if workload.has_value else None
        if not workload.has_gradient:
            return penalty, None
        return penalty, add(w, g) if workload.adds else gradient(w)

    return cell


def torch_variant(workload: Workload) -> Variant:
    cell = torch_function(workload.torch, workload)
    w, g = workload.weights, workload.gradient
    return lambda: cell(w, g)


def compiled_variant(workload: Workload) -> Variant:
    torch = workload.torch
    torch._dynamo.reset()  # one cell's code at a time: else recompiling has a limit
    cell = torch.compile(torch_function(torch, workload), fullgraph=True, dynamic=False)
    w, g = workload.weights, workload.gradient
    return lambda: cell(w, g)


def foreach_alone_variant(workload: Workload) -> Variant:
    """Give the cell by torch's functions over lists, of one tensor."""
    torch, w, g = workload.torch, workload.weights, workload.gradient
    l1, l2 = workload.case.strengths

    def value() -> Any:
        penalty = 0.0
        if l1:
            penalty = l1 * torch._foreach_norm([w], 1)[0].to(workload.sum_dtype)
        if l2:
            penalty = penalty + l2 * torch._foreach_norm([w], 2)[0].to(workload.sum_dtype).square()
        return penalty

    def cell() -> tuple[Any, Any]:
        penalty = value() if workload.has_value else None
        if not workload.has_gradient:
            return penalty, None
        slope = torch._foreach_sign([w]) if l1 else torch._foreach_mul([w], 2 * l2)
        if l1:
            torch._foreach_mul_(slope, l1)
            if l2:
                torch._foreach_add_(slope, [w], alpha=2 * l2)
        if not workload.adds:
            return penalty, slope[0]
        torch._foreach_add_([g], slope)
        return penalty, g

    return cell


# ----------------------------------------------------------------------------------- Triton


def triton_variant(workload: Workload) -> Variant:
    """Give one kernel of Triton's over blocks, and torch's sum of the blocks' sums."""
    import gpu_triton

    cell: Variant = gpu_triton.variant(workload)
    return cell


# ------------------------------------------------------------------------------------- CuPy


def cupy_variant(workload: Workload) -> Variant | None:
    """Give CuPy's fused kernels: one reduction, one kernel for elements."""
    if workload.case.dtype == "bf16" or workload.weights.device.type != "cuda":
        return None
    import cupy

    w, g = (cupy.from_dlpack(x) for x in (workload.weights, workload.gradient))
    l1, l2 = workload.case.strengths
    compute = "double" if workload.case.dtype == "f64" else "float"
    term = (
        f"({compute}){l1!r} * abs(({compute})w) + ({compute}){l2!r} * ({compute})w * ({compute})w"
    )
    sign = f"(({compute})w > 0) - (({compute})w < 0)"
    slope = f"({compute}){l1!r} * ({sign}) + ({compute}){2 * l2!r} * ({compute})w"
    total = cupy.ReductionKernel(
        "T w", f"{'float64' if compute == 'double' else 'float32'} total", term, "a + b",
        "total = a", "0", f"penalty_{workload.case.terms}", reduce_type=compute,
    )  # fmt: skip
    written = cupy.ElementwiseKernel("T w", "T g", f"g = (T)({slope})", "gradient")
    added = cupy.ElementwiseKernel("T w, T old", "T g", f"g = (T)((float)old + {slope})", "add")
    if compute == "double":
        added = cupy.ElementwiseKernel("T w, T old", "T g", f"g = old + {slope}", "add")

    def cell() -> tuple[Any, Any]:
        penalty = total(w) if workload.has_value else None
        if not workload.has_gradient:
            return penalty, None
        return penalty, added(w, g, g) if workload.adds else written(w, g)

    return cell


# -------------------------------------------------------------------------------------- JAX


def jax_variant(workload: Workload) -> Variant | None:
    """Give one jitted function; where it adds, the gradient is donated and so reused.

    JAX queues on streams of its own: this variant waits for its result.
    """
    if workload.case.dtype == "f64":
        return None  # a setting of the whole process
    import jax

    l1, l2 = workload.case.strengths

    def cell(w: Any, g: Any) -> tuple[Any, Any]:
        wide = w.astype(jax.numpy.float32)
        penalty = slope = None
        if workload.has_value:
            penalty = l1 * abs(wide).sum() + l2 * (wide * wide).sum()
        if workload.has_gradient:
            slope = l1 * jax.numpy.sign(wide) + 2 * l2 * wide
            slope = (slope + g if workload.adds else slope).astype(w.dtype)
        return penalty, slope

    device = jax.devices("gpu" if workload.weights.device.type == "cuda" else "cpu")[0]
    as_jax = [jax.dlpack.from_dlpack(x.clone()) for x in (workload.weights, workload.gradient)]
    w, state = (jax.device_put(x, device).copy() for x in as_jax)
    adds = workload.adds
    compiled = jax.jit(cell, donate_argnums=(1,) if adds else ())

    def call() -> tuple[Any, Any]:
        nonlocal state
        penalty, slope = compiled(w, state)
        if adds:
            state = slope
        return jax.block_until_ready((penalty, slope))

    return call


#: Name -> maker of a variant.  Those in HOST_CLOCK cannot be timed by events of torch's stream.
PEERS: dict[str, Callable[[Workload], Variant | None]] = {
    "torch": torch_variant,
    "foreach": foreach_alone_variant,
    "triton": triton_variant,
    "torch.compile": compiled_variant,
    "cupy": cupy_variant,
    "jax": jax_variant,
}
HOST_CLOCK = frozenset({"jax"})


# ------------------------------------------------------------------------------ many tensors


def gpt2_small() -> list[tuple[int, ...]]:
    """Give the shapes of GPT-2 small's parameters: 148 tensors, 124,439,808 elements."""
    width, shapes = 768, [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
        shapes += [
            (width,),
            (width,),
            (width, 4 * width),
            (4 * width,),
            (4 * width, width),
            (width,),
        ]
    return [*shapes, (width,), (width,)]


def mixed_tensors(count: int = 400) -> list[tuple[int, ...]]:
    """Give the shapes of matrices and vectors as a model has them: 64 to 4,194,304 elements."""
    return [
        ((64 << place % 6, 64 << place % 5) if place % 2 else (64 << place % 7,))
        for place in range(count)
    ]


def small_tensors(count: int = 3000) -> list[tuple[int, ...]]:
    """Give the shapes of many vectors of 1 to 1,024 elements."""
    return [(1 + 389 * place % 1024,) for place in range(count)]


def foreach_variant(torch: Any, weights: list[Any], grads: list[Any], l1: float, l2: float) -> Any:
    """Give the value and the addition of gradients by torch's functions over lists."""

    def call() -> Any:
        absolute = torch.stack(torch._foreach_norm(weights, 1)).sum()
        squares = torch.stack(torch._foreach_norm(weights, 2)).square().sum()
        torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=l1)
        torch._foreach_add_(grads, weights, alpha=2 * l2)
        return l1 * absolute + l2 * squares

    return call


def loop_variant(torch: Any, weights: list[Any], grads: list[Any], l1: float, l2: float) -> Any:
    """Give the same by a loop over tensors."""

    def call() -> Any:
        total = 0.0
        for w, g in zip(weights, grads, strict=True):
            total = total + l1 * w.abs().sum() + l2 * w.square().sum()
            g.add_(torch.sign(w), alpha=l1).add_(w, alpha=2 * l2)
        return total

    return call
