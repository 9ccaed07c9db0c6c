"""PyTorch on the CPU, without autograd: eager in place, eager over lists, and compiled.

Weights and gradients share the memory of the workload's NumPy arrays.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import numpy as np

from fastreg.bench.cases import OUTPUTS, Case
from fastreg.bench.peers.base import Call, Peer, Prepared, written_out
from fastreg.bench.workloads import Array, Workload


class _TorchPeer(Peer):
    modules: ClassVar[tuple[str, ...]] = ("torch",)
    pool = "torch"
    spins = True

    def make(self, workload: Workload) -> Prepared | None:
        torch: Any = importlib.import_module("torch")
        tensors = workload.tensors
        weights, gradients = (
            [as_tensor(torch, array) for array in arrays]
            for arrays in (tensors.weights, tensors.gradients)
        )
        unrecorded = torch.no_grad()(self.write(torch, workload.case, weights, gradients))
        return Prepared(unrecorded, lambda: tensors.gradients)

    def write(self, torch: Any, case: Case, weights: list[Any], gradients: list[Any]) -> Call:
        """Return the call that computes the case."""
        raise NotImplementedError


class Torch(_TorchPeer):
    """Tensor by tensor, in place and with ``out=``; half precision is summed from float32."""

    name = "torch"
    summary = "PyTorch eager, in place and with out="

    def write(self, torch: Any, case: Case, weights: list[Any], gradients: list[Any]) -> Call:
        l1, l2 = case.strengths
        outputs = OUTPUTS[case.outputs]
        largest = max(w.numel() for w in weights)
        wide = sum_dtype(torch, weights)
        space = torch.zeros(largest, dtype=wide, device=weights[0].device)
        narrow_space = (
            space if weights[0].dtype == wide else torch.zeros_like(space, dtype=weights[0].dtype)
        )
        work = [
            (w, g, space[: w.numel()].view(w.shape), narrow_space[: w.numel()].view(w.shape))
            for w, g in zip(weights, gradients, strict=True)
        ]
        half = case.is_half

        def call() -> Any:
            total: Any = 0.0
            for w, g, buffer, narrow in work:
                if outputs.has_value:
                    if l1:
                        if half:
                            buffer.copy_(w).abs_()
                        else:
                            torch.abs(w, out=buffer)
                        total = buffer.sum() * l1 + total
                    if l2:
                        if half:
                            buffer.copy_(w).square_()
                        else:
                            torch.mul(w, w, out=buffer)
                        total = buffer.sum() * l2 + total
                if outputs.adds:
                    if l1:
                        g.add_(torch.sign(w, out=narrow), alpha=l1)
                    if l2:
                        g.add_(w, alpha=2 * l2)
                elif outputs.mask & 2:
                    if l1:
                        torch.sign(w, out=g).mul_(l1)
                        if l2:
                            g.add_(w, alpha=2 * l2)
                    else:
                        torch.mul(w, 2 * l2, out=g)
            return total

        return call


class TorchForeach(_TorchPeer):
    """The multi-tensor operations, sums as norms: one pass, but these drift with the size."""

    name = "torch-foreach"
    summary = "PyTorch's multi-tensor operations, sums as norms"

    def write(self, torch: Any, case: Case, weights: list[Any], gradients: list[Any]) -> Call:
        l1, l2 = case.strengths
        outputs = OUTPUTS[case.outputs]
        wide = sum_dtype(torch, weights)

        def norms(order: int) -> Any:
            return torch.stack(torch._foreach_norm(weights, order, dtype=wide))

        def call() -> Any:
            total: Any = 0.0
            if outputs.has_value:
                if l1:
                    total = norms(1).sum() * l1
                if l2:
                    total = norms(2).square().sum() * l2 + total
            if outputs.adds:
                if l1:
                    torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=l1)
                if l2:
                    torch._foreach_add_(gradients, weights, alpha=2 * l2)
            elif outputs.mask & 2:
                torch._foreach_copy_(gradients, weights)
                if l1:
                    torch._foreach_sign_(gradients)
                    torch._foreach_mul_(gradients, l1)
                    if l2:
                        torch._foreach_add_(gradients, weights, alpha=2 * l2)
                else:
                    torch._foreach_mul_(gradients, 2 * l2)
            return total

        return call


class TorchCompile(_TorchPeer):
    """The whole expression through ``torch.compile``, shapes fixed; half precision from float32."""

    name = "torch-compile"
    summary = "torch.compile of the whole expression (needs a C++ compiler)"
    compiles_slowly = True
    backend: ClassVar[str] = "inductor"

    def write(self, torch: Any, case: Case, weights: list[Any], gradients: list[Any]) -> Call:
        outputs = OUTPUTS[case.outputs]
        wide = sum_dtype(torch, weights)

        def penalty(weights: list[Any], gradients: list[Any]) -> Any:
            total: Any = 0.0
            for w, g in zip(weights, gradients, strict=True):
                value, slope = written_out(case, w.to(wide), g.to(wide), torch.sign)
                total = value + total
                if outputs.mask & 6:
                    g.copy_(slope)
            return total

        # all cases share one code object, and the compiler gives up on one with many variants
        torch.compiler.reset()
        compiled = torch.compile(penalty, fullgraph=True, dynamic=False, backend=self.backend)
        return lambda: compiled(weights, gradients)


def sum_dtype(torch: Any, weights: list[Any]) -> Any:
    """Return the dtype to sum in: float32 for half precision as well."""
    return torch.float64 if weights[0].dtype == torch.float64 else torch.float32


def as_tensor(torch: Any, array: Array) -> Any:
    """Return a tensor on the memory of an array, bfloat16 included; a tensor as it is."""
    if isinstance(array, torch.Tensor):
        return array
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
