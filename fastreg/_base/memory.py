"""The memory of NumPy arrays: views by address, bounds, overlaps, equality."""

from __future__ import annotations

from typing import Any

import numpy as np

from .dtypes import Array


class _Memory:
    """An owner of ``__array_interface__``: a view keeps it alive, and it keeps `owner`."""

    def __init__(self, interface: dict[str, Any], owner: Any) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def at(address: int, shape: Any, strides: Any, dtype: np.dtype[Any], owner: Any = None) -> Array:
    """Return a view of memory by its address, which keeps `owner` alive.

    `strides` count bytes, and are None for C order without gaps.
    """
    if 0 in shape:
        return np.empty(shape, dtype)
    interface = {
        "version": 3,
        "data": (address, False),
        "shape": tuple(shape),
        "strides": None if strides is None else tuple(strides),
        "typestr": dtype.str,
    }
    return np.asarray(_Memory(interface, owner))


def owner(base: Any) -> Any:
    """Return the owner of a view by :func:`at`, given its base; None for all other bases."""
    return base.owner if type(base) is _Memory else None


def zeros_beside(view: Array, dtype: np.dtype[Any]) -> Array:
    """Return zeros of the shape of `view`, which begin as far behind a cache line as it does.

    One pass over both then meets their lines together: with torch's arrays, which begin at a line,
    and NumPy's, which begin 16 bytes behind one, each access to one of them takes two.  Beside
    elements of another size, with gaps between them, or at an odd address they lie as NumPy places
    them.
    """
    axes = dense_order(view)
    address = int(view.ctypes.data)
    if axes is None or view.itemsize != dtype.itemsize or address % dtype.itemsize:
        return np.zeros_like(view, dtype, subok=False)
    line = 64
    spare = np.zeros(view.nbytes + line, np.uint8)
    first = (address - int(spare.ctypes.data)) % line
    in_order = spare[first : first + view.nbytes].view(dtype).reshape([view.shape[a] for a in axes])
    return in_order.transpose(np.argsort(axes).tolist())


def copied_beside(view: Array, array: Array) -> Array:
    """Return a copy of an array of the shape of `view`, placed as by :func:`zeros_beside`."""
    copied = zeros_beside(view, array.dtype)
    copied[...] = array
    return copied


def byte_bounds(view: Array) -> tuple[int, int]:
    """Return the first byte of an array that is not empty and the one after its last."""
    low = high = int(view.ctypes.data)
    for extent, stride in zip(view.shape, view.strides, strict=True):
        if stride < 0:
            low += (extent - 1) * stride
        else:
            high += (extent - 1) * stride
    return low, high + view.itemsize


def same_elements_in_order(first: Array, second: Array) -> bool:
    """Return whether two arrays are the same memory with the same layout."""
    return (
        first.ctypes.data == second.ctypes.data
        and first.dtype == second.dtype
        and first.shape == second.shape
        and all(
            extent == 1 or one == other
            for extent, one, other in zip(first.shape, first.strides, second.strides, strict=True)
        )
    )


def overlaps_itself(view: Array) -> bool:
    """Return whether two elements of an array have a byte in common."""
    axes = sorted(
        (abs(stride), extent)
        for stride, extent in zip(view.strides, view.shape, strict=True)
        if extent > 1
    )
    reach = view.itemsize
    for stride, extent in axes:
        if stride < reach:
            break
        reach = stride * (extent - 1) + reach
    else:
        return False
    if axes[0][0] == 0:
        return True
    # Interleaved axes, which only a hand-made stride can give: look at every address.
    offsets = np.zeros((1,), np.int64)
    for stride, extent in axes:
        offsets = (offsets[:, None] + np.arange(extent, dtype=np.int64) * stride).reshape(-1)
    offsets.sort()
    return bool((np.diff(offsets) < view.itemsize).any())


def share_memory(first: Array, second: Array) -> bool:
    """Return whether two arrays have a byte in common; True when that is too hard to decide."""
    shares_memory: Any = np.shares_memory  # its stub does not know how to bound the work
    try:
        return bool(shares_memory(first, second, max_work=1_000_000))
    except RuntimeError:  # NumPy's TooHardError: refuse what cannot be shown to be disjoint
        return True


def elements(view: Array) -> tuple[Any, ...]:
    """Return a key of the elements' addresses in a non-empty array: equal keys, equal sets.

    The order of the elements does not count, so an array and its transpose or reverse are equal.
    """
    address = byte_bounds(view)[0]
    axes = sorted(
        (abs(stride), extent)
        for stride, extent in zip(view.strides, view.shape, strict=True)
        if extent > 1 and stride
    )
    merged: list[tuple[int, int]] = []
    for stride, extent in axes:
        if merged and merged[-1][0] * merged[-1][1] == stride:
            merged[-1] = merged[-1][0], merged[-1][1] * extent
        else:
            merged.append((stride, extent))
    return address, tuple(merged)


def dense_order(view: Array) -> list[int] | None:
    """Return the axes of a dense array from the widest stride to the narrowest, else None.

    Dense: without the axes of extent 1, sorted by stride, every stride is positive and equal to
    the extent of the axes inside it.
    """
    single = [axis for axis, extent in enumerate(view.shape) if extent == 1]
    axes = sorted(
        (axis for axis, extent in enumerate(view.shape) if extent != 1),
        key=lambda axis: view.strides[axis],
        reverse=True,
    )
    expected = view.itemsize
    for axis in reversed(axes):
        if view.strides[axis] != expected:
            return None
        expected *= view.shape[axis]
    return single + axes
