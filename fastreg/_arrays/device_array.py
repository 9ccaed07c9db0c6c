"""Arrays in device memory that fastreg has written, for other libraries to take."""

from __future__ import annotations

from typing import Any

from .._base import dtypes
from .._base.core import DEFAULT_STREAM

_CUDA = 2  # kDLCUDA


class DeviceArray:
    """An array in device memory that fastreg has written, without gaps: for others to take.

    It has ``__dlpack__`` and, but for bfloat16, ``__cuda_array_interface__``.
    """

    def __init__(
        self,
        memory: Any,
        shape: tuple[int, ...],
        dtype: str,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.memory = memory
        self.shape = shape
        self.dtype_name = dtype
        self.strides = strides
        """In bytes; None for C order."""

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> str:
        """The type of the elements."""
        return dtypes.spoken(self.dtype_name)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        row = dtypes.ROWS[self.dtype_name]
        if row.spoken in dtypes.AS_BITS:
            raise AttributeError("__cuda_array_interface__ has no bfloat16")
        return {
            "shape": self.shape,
            "typestr": row.stored.str,
            "data": (self.memory.address, False),
            "strides": self.strides,
            "stream": self.memory.stream,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.memory.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """Export the memory; the consumer's stream waits for what writes it.

        Raises
        ------
        ValueError
            For stream 0, which DLPack does not allow.
        BufferError
            When a copy is asked for, or another device.
        """
        if stream == 0:
            raise ValueError("stream must be 1 for the legacy default stream, or 2 or more, not 0")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(f"dl_device must be {self.__dlpack_device__()}, not {dl_device}")
        if copy:
            raise BufferError("copy must be False or None: this exports its own memory only")
        if stream != -1:
            self.memory.make_wait(DEFAULT_STREAM if stream is None else int(stream))
        row = dtypes.ROWS[self.dtype_name]
        is_versioned = max_version is not None and max_version[0] >= 1
        return self.memory.export(self.shape, row.kind, 8 * row.stored.itemsize, is_versioned)

    def __repr__(self) -> str:
        return f"<{self.dtype} array of shape {self.shape} on CUDA device {self.memory.device}>"


class DeviceValue(DeviceArray):
    """A penalty in device memory: float64, 0-d, with the two interfaces of :class:`DeviceArray`.

    ``float(value)`` and ``value.item()`` copy it to the host, and wait for it.
    """

    def __init__(self, memory: Any) -> None:
        super().__init__(memory, (), "f64")

    def item(self) -> float:
        """Copy the penalty to the host."""
        value: float = self.memory.read()
        return value

    __float__ = item

    def __repr__(self) -> str:
        return f"<a penalty on CUDA device {self.memory.device}; float(...) copies it>"


class DeviceCount(DeviceArray):
    """A whole number in device memory: int64, 0-d, with the two interfaces of :class:`DeviceArray`.

    ``int(count)`` and ``count.item()`` copy it to the host, and wait for it.
    """

    def __init__(self, memory: Any) -> None:
        super().__init__(memory, (), "i64")

    def item(self) -> int:
        """Copy the number to the host."""
        count: int = self.memory.read_integer()
        return count

    __int__ = item

    def __bool__(self) -> bool:
        return self.item() != 0

    def __repr__(self) -> str:
        return f"<a number on CUDA device {self.memory.device}; int(...) copies it>"
