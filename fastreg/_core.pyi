"""The compiled core: what ``csrc/python/module.cpp`` exports.

Contract
--------
- Arguments are positional. Objects are read where they lie: exact ``numpy.ndarray`` and torch CPU
  tensors directly, everything else through ``fastreg._arrays.host_view``.
- Whatever is not plainly right is put to ``fastreg._checks.check_call``, so refusals have the types
  and texts of the fallback (``TypeError`` for kinds, ``ValueError`` for values, ``BufferError`` for
  memory that must not be written), and nothing has been written when one is raised.
- The interpreter is released during calls on 256 KiB or more. All functions may be called by
  several threads at once, and after ``os.fork()``.
- The import fails with an ``ImportError`` that quotes FASTREG_ISA or FASTREG_NUM_THREADS when the
  value of one of them cannot be had.
"""

from collections.abc import Sequence
from typing import Any, SupportsIndex

def evaluate_one(
    outputs: int,
    weight: Any,
    gradient: Any,
    l1: float,
    l2: float,
    scale: float,
    grad_scale: float,
    /,
) -> float | None:
    """Evaluate the penalty of one tensor.

    Parameters
    ----------
    outputs
        VALUE=1, GRADIENT=2, ADD=4 as bits: 1, 2 (write the gradient), 3, 6 (add it) or 7.
    weight
        An array of f16, bf16, f32 or f64; of integers or bool where only the value is asked for.
    gradient
        The array that the gradient is written or added to: shape and dtype of `weight`, any
        layout; `weight` itself will do. None for outputs=1.
    l1, l2
        Strengths: finite, not negative; checked where a regularizer is made.
    scale, grad_scale
        Finite factors of value and gradient, and of the gradient alone.

    Returns
    -------
    float or None
        The penalty in float64; None when `outputs` has no VALUE.

    Raises
    ------
    TypeError, ValueError, BufferError
        As ``fastreg._checks`` says them.
    MemoryError
        When there is no memory for the sums of the chunks: 16 bytes for 4,096 elements.
    """

def evaluate_many(
    outputs: int,
    names: tuple[str, ...],
    weights: tuple[Any, ...],
    gradients: tuple[Any, ...] | None,
    strengths: tuple[tuple[float, float], ...],
    which: tuple[int, ...],
    scale: float,
    grad_scale: float,
    per_tensor: bool,
    /,
) -> float | list[float] | None:
    """Evaluate the penalties of many tensors, or write nothing at all when one is refused.

    Parameters
    ----------
    outputs, scale, grad_scale
        As for `evaluate_one`.
    names
        The tensors' names, for messages.
    weights, gradients
        One array per name, as for `evaluate_one`; `gradients` is None for outputs=1.
    strengths, which
        Pairs (l1, l2), and for each tensor the index of its pair.
    per_tensor
        Whether to give a list of penalties rather than their canonical sum.

    Returns
    -------
    float, list of float or None
        None when `outputs` has no VALUE.

    Raises
    ------
    TypeError, ValueError, BufferError, MemoryError
        As for `evaluate_one`; the messages name the tensor.
    """

def shares_address(weights: Sequence[Any], /) -> bool:
    """Say whether two of the arrays have the same lowest address. Empty ones do not count."""

def canonical_sum(values: Sequence[float]) -> float:
    """Sum numbers, of any sign, in the fixed order of the numerics contract; +0.0 for none."""

def get_num_threads() -> int:
    """Give how many threads a call may use, the caller's included.

    FASTREG_NUM_THREADS, else the number of processors that the process may run on at the first
    use.
    """

def set_num_threads(n: SupportsIndex) -> None:
    """Set how many threads a call may use; ValueError unless it is from 1 to 1024."""

def instruction_set() -> str:
    """Give the instruction set in use: "portable", "avx2", "avx512" or "neon"."""

def set_instruction_set(name: str) -> None:
    """Use another instruction set; ValueError for one that `instruction_sets` does not list."""

def instruction_sets() -> list[str]:
    """Give the instruction sets that were compiled and that this processor has, best first."""

def compiled_instruction_sets() -> list[str]:
    """Give the instruction sets that were compiled, best first."""

def build_info() -> dict[str, str]:
    """Give "compiler", "build_type" and "cxx_standard" (the value of ``__cplusplus``)."""

def floor_read(source: Any) -> int:
    """Read every byte of a C-contiguous array of numbers, with the threads of a call.

    The three floors are what the benchmark measures kernels against. They raise ValueError for
    arrays that are not C-contiguous, not writable where they are written, or not alike.

    Returns
    -------
    int
        The exclusive or of what was read.
    """

def floor_copy(target: Any, source: Any) -> None:
    """Copy `source` to `target`: C-contiguous arrays of one size and dtype."""

def floor_add(target: Any, source: Any) -> None:
    """Add `source` to `target` in place: float64 as such, the bytes of all others as float32."""
