"""Properties of a tensor's memory that torch knows, but DLPack and the shape do not tell.

Contract
--------
- The elements of a strided tensor need not be there: the storage can be freed or cut under it
  (``storage.resize_(0)``, which is how FSDP2 frees gathered parameters).
- Nor need they be what memory holds: ``conj()``, its imaginary part, and the zero tensors of
  autograd are flags on other numbers.
- An inference tensor may be written in inference mode alone.
- Nothing here changes the tensor: ``numpy()`` would make its storage one that cannot be resized.
"""

from __future__ import annotations

from typing import Any

from .._base import errors
from .library import loaded


def needed_bytes(x: Any) -> int:
    """Return how many bytes the storage of a strided tensor must have."""
    if x.numel() == 0:
        return 0
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    needed: int = (x.storage_offset() + last + 1) * x.element_size()
    return needed


def is_at(x: Any, view: Any) -> bool:
    """Return whether the elements of a tensor lie where a NumPy view of them does."""
    torch = loaded("torch")
    with torch._C.DisableTorchFunctionSubclass():
        size = x.element_size()
        return (
            x.data_ptr() == view.__array_interface__["data"][0]
            and tuple(x.shape) == view.shape
            and all(
                step * size == stride or extent == 1
                for extent, step, stride in zip(x.shape, x.stride(), view.strides, strict=True)
            )
            and x.untyped_storage().nbytes() >= needed_bytes(x)
        )


def is_writable(torch: Any, x: Any) -> bool:
    """Return whether torch would write `x` now."""
    return not x.is_inference() or bool(torch.is_inference_mode_enabled())


def require_memory(torch: Any, x: Any, name: str, writable: bool) -> None:
    """Refuse a strided tensor whose memory does not hold its elements, or may not be written."""
    if x.is_neg():
        raise errors.special_array_error(
            name, "a torch tensor with the negative bit", f"pass {name}.resolve_neg()"
        )
    if x._is_zerotensor():
        raise errors.special_array_error(
            name, "a torch zero tensor without memory", f"pass {name}.clone()"
        )
    needed, there = needed_bytes(x), x.untyped_storage().nbytes()
    if there < needed:
        raise ValueError(
            f"{name} is a torch tensor whose memory was freed or cut: its storage has {there} "
            f"bytes, its elements need {needed}; pass it while they are there (FSDP frees gathered "
            "parameters after their use)"
        )
    if writable and not is_writable(torch, x):
        raise errors.read_only_error(
            name,
            "an inference tensor outside of inference mode, where torch writes none",
            f"pass {name}.clone(), or call this under torch.inference_mode()",
        )


def flags(x: Any) -> tuple[bool, bool]:
    """Return whether a plain tensor's elements lie in its memory, and whether they may be written.

    The core asks where it has not learned to see them by itself.
    """
    torch = loaded("torch")
    try:
        require_memory(torch, x, "", False)
    except (TypeError, ValueError):
        return False, False
    return True, is_writable(torch, x)


_tries_left = 8


def teach(core: Any) -> bool:
    """Show the core how torch keeps its tensors; return whether it reads them from now on.

    Samples show it.  Some states of torch spoil them, as a mode of fake tensors; where a release
    keeps its tensors in another way, the core asks :func:`flags`.
    """
    global _tries_left
    torch = loaded("torch")
    if _tries_left <= 0 or torch is None:  # below 0: several threads have tried at once
        return False
    tensor: Any = getattr(torch, "Tensor", None)
    if not hasattr(tensor, "__dlpack_c_exchange_api__"):
        return False
    _tries_left -= 1
    found: tuple[Any, int, int] = [], 0, 0
    try:
        found = samples()
    except AttributeError:  # another release
        _tries_left = 0
    except Exception:  # torch's, of any kind
        return False
    learned: bool = core.learn_torch(
        tensor, torch.nn.Parameter, torch.is_inference_mode_enabled, flags, *found, _tries_left <= 0
    )
    if learned:
        _tries_left = 0
        teach_gradients(core)
    return learned


def teach_gradients(core: Any) -> bool:
    """Show the core where torch keeps gradients; return whether it reads them there from now on.

    Where it does not, it asks torch's getters.
    """
    torch = loaded("torch")
    try:
        with torch.inference_mode(False):
            pairs = [
                (torch.empty(n, device="cpu"), torch.zeros(n, device="cpu")) for n in (3, 5, 7)
            ]
        if any(type(x) is not torch.Tensor for pair in pairs for x in pair):
            return False
        return bool(core.learn_torch_gradients(pairs, torch._C._is_torch_function_mode_enabled))
    except Exception:  # torch's, of any kind: another release, or a mode
        return False


def samples() -> tuple[list[tuple[Any, int, int, int, int, int]], int, int]:
    """Return tensors that differ in all that the core looks for, to find where torch keeps it.

    Of each the addresses of torch's objects for it and its storage, its dispatch keys, its offset
    in the storage and the bytes of that; then the keys that say that numbers are not those in
    memory, and the one that inference tensors lack.
    """
    torch = loaded("torch")
    keys, kinds = torch._C._dispatch_keys, torch._C.DispatchKey
    made = [
        torch.empty(1003, device="cpu")[17:41],
        torch._neg_view(torch.empty(217, device="cpu")[5:]),
    ]
    with torch.inference_mode():
        made.append(torch.empty(709, dtype=torch.float64, device="cpu")[29:31])
    made.append(torch.empty(311, dtype=torch.complex64, device="cpu")[3:].conj())
    made.append(torch.nn.Parameter(torch.empty(1301, device="cpu")[11:], requires_grad=False))
    described = [
        (
            x,
            x._cdata,
            x.untyped_storage()._cdata,
            keys(x).raw_repr(),
            x.storage_offset(),
            x.untyped_storage().nbytes(),
        )
        for x in made
    ]

    def bit(kind: Any) -> int:
        number: int = torch._C.DispatchKeySet(kind).raw_repr()
        return number

    other_numbers = bit(kinds.Negative) | bit(kinds.Conjugate) | bit(kinds.ZeroTensor)
    return described, other_numbers, bit(kinds.ADInplaceOrView)
