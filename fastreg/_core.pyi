"""The compiled core: what ``csrc/python/bind_*.cpp`` export.

Contract
--------
- Arguments are positional. Objects are read where they lie: exact ``numpy.ndarray``, and exact
  tensors and parameters of torch once `learn_torch` has shown what they are.
- What is not plainly right, or is not in host memory, gives NotImplemented, and nothing has been
  written: foreign arrays, arrays on a device, scales that are no finite numbers, and what deserves
  an error. Python decides (``fastreg/_engine/calls.py``); the core runs no Python code but torch's.
- The interpreter is released during calls on 256 KiB or more. All functions may be called by
  several threads at once, and after ``os.fork()``.  A thread that is inside a call when the
  interpreter ends sleeps until the process has ended.
- The import fails with an ``ImportError`` in sub-interpreters.
- The import fails with an ``ImportError`` that quotes FASTREG_ISA, FASTREG_POLICY,
  FASTREG_TORCH_THREADS or FASTREG_NUM_THREADS when the value of one of them cannot be had.
"""

from collections.abc import Sequence
from typing import Any, SupportsIndex, overload

def evaluate_one(
    outputs: int,
    weight: Any,
    gradient: Any,
    l1: float,
    l2: float,
    scale: float,
    grad_scale: float,
    /,
) -> Any:
    """Evaluate the penalty of one tensor.

    Parameters
    ----------
    outputs
        VALUE=1, GRADIENT=2, ADD=4, PROX=8 as bits: 1, 2 (write the gradient), 3, 6 (add it), 7, 10
        (write the proximal step) or 11.
    weight
        An array of f16, bf16, f32 or f64; of integers or bool where only the value is asked for.
    gradient
        The array that the gradient is written or added to: shape and dtype of `weight`, any
        layout; `weight` itself will do. None for outputs=1. A proximal step is written here too.
    l1, l2
        Strengths: finite, not negative; checked where a regularizer is made.
    scale, grad_scale
        Finite factors of value and gradient, and of the gradient alone. With PROX both are >= 0,
        and `grad_scale` is the step.

    Returns
    -------
    float, tuple, None or NotImplemented
        The penalty in float64; None when `outputs` has no VALUE. With both VALUE and PROX the
        penalty of what is written, how many of its elements are 0, and how many there are.

    Raises
    ------
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
    copies: tuple[tuple[Any, Any], ...] = (),
    /,
) -> Any:
    """Evaluate the penalties of many tensors, or write nothing at all when one is refused.

    Parameters
    ----------
    outputs, scale, grad_scale
        As for `evaluate_one`.
    names
        The tensors' names, which the core does not need.
    weights, gradients
        One array per name, as for `evaluate_one`; `gradients` is None for outputs=1.
    strengths, which
        Pairs (l1, l2), and for each tensor the index of its pair.
    per_tensor
        Whether to give a list of penalties (and of zeros, and sizes) rather than their sum.
    copies
        Pairs (target, source) of arrays of one shape and one size of elements: with the gradients
        the targets are written, by nothing that could fail half-way.

    Returns
    -------
    float, list of float, tuple of three, None or NotImplemented
        As for `evaluate_one`.

    Raises
    ------
    MemoryError
        As for `evaluate_one`.
    """

def evaluate_views(
    outputs: int,
    views: tuple[tuple[Any, str], ...],
    targets: tuple[tuple[Any, str], ...] | None,
    strengths: tuple[tuple[float, float], ...],
    which: tuple[int, ...],
    scale: float,
    grad_scale: float,
    per_tensor: bool,
    copies: tuple[tuple[tuple[Any, str], Any], ...],
    checked: bool,
    /,
) -> Any:
    """Do what `evaluate_many` does for arrays that Python has described.

    Parameters
    ----------
    views, targets
        Pairs (numpy.ndarray, name of the dtype) in the place of weights and gradients; bfloat16 is
        "bf16" with its bits as uint16.
    copies
        As for `evaluate_many`, with such a pair as target.
    checked
        Whether the call is known to be right. Then NotImplemented is returned only where it would
        touch memory that is not the views'.
    """

def describe_tensors(
    outputs: int,
    weights: tuple[Any, ...],
    gradients: tuple[Any, ...] | None,
    strengths: tuple[tuple[float, float], ...],
    which: tuple[int, ...],
    scale: float,
    grad_scale: float,
    /,
) -> Any:
    """Describe the tensors of a call on a CUDA device; parameters are those of `evaluate_many`.

    Returns
    -------
    DeviceTensors or NotImplemented
        For `cuda_evaluate`, of torch's tensors on one device where all is plainly right.
    """

def accumulate_parameters(
    outputs: int,
    names: tuple[str, ...],
    parameters: tuple[Any, ...],
    others: tuple[Any, ...],
    frozen: tuple[Any, ...],
    strengths: tuple[tuple[float, float], ...],
    which: tuple[int, ...],
    scale: float,
    grad_scale: float,
    may_be_recorded: bool,
    /,
) -> Any:
    """Add the gradients of penalties to the ``grad`` of torch's parameters, where all is plain.

    Parameters
    ----------
    outputs, names, strengths, which, scale, grad_scale
        As for `evaluate_many`; outputs 6 or 7, or 1 for the penalty alone.
    parameters
        The penalised ones.
    others
        Tensors that must not begin where one of them, or a parameter, does.
    frozen
        Parameters that must not require a gradient.
    may_be_recorded
        Whether gradients that require a gradient are written all the same.

    Returns
    -------
    float, tuple or NotImplemented
        The penalty alone; else a pair, the gradients the second of it, for
        ``calls.finish_parameters``: what `evaluate_many` returns, or for tensors on a device what
        `describe_tensors` does. NotImplemented, with nothing written, for what has to go a longer
        way: subclasses, a missing gradient, a condition that is not met.
    """

def have_members(dicts: tuple[dict[str, Any], ...], members: tuple[Any, ...], /) -> bool:
    """Return whether the values of dicts, one dict after the other, are these very objects."""

def shares_address(weights: Sequence[Any], /) -> Any:
    """Return whether two of the arrays have the same lowest address. Empty ones do not count.

    NotImplemented where the core does not read one of them.
    """

def canonical_sum(values: Sequence[float]) -> float:
    """Sum numbers, of any sign, in the fixed order of the numerics contract; +0.0 for none."""

def norm_sums(tensors: tuple[Any, ...], exponent: int, written: bool) -> Any:
    """Return what norms are made of, from one pass over the elements.

    Parameters
    ----------
    tensors
        Arrays of any dtype that the core reads, or pairs (numpy.ndarray, name of the dtype) as of
        `evaluate_views`.
    exponent
        Elements are taken times 2**exponent.  Where that is not 0, only the sum of squares counts.
    written
        Whether `scale_tensors` is to write them: NotImplemented where it could not.

    Returns
    -------
    list of tuple, or NotImplemented
        For each tensor the canonical sums of abs(x) and x*x, the largest abs(x) (NaN if any is),
        the number of zeros, and that of elements that are not finite.

    Raises
    ------
    MemoryError
        When there is no memory for 32 bytes for 4,096 elements.
    """

def scale_tensors(tensors: tuple[Any, ...], factor: float, checked: bool) -> Any:
    """Multiply tensors in place; each product is rounded in float32, of float64 in that.

    Parameters
    ----------
    tensors
        As for `norm_sums`; floating, and writable.
    checked
        Whether it is known that no two elements share memory.

    Returns
    -------
    None or NotImplemented
        NotImplemented with nothing written.
    """

def measure_step(
    parameters: tuple[Any, ...],
    gradients: tuple[Any, ...],
    settings: tuple[tuple[float, ...], ...],
    which: tuple[int, ...],
    loss_scale: float,
    clip: int,
    exponent: int,
) -> Any:
    """Return what a clip needs, of d at the line of the clip (docs/numerics.md, 12).

    Parameters
    ----------
    parameters
        As `take_step` takes them.  Read where the clip is 2 and a tensor's mode is 1.
    gradients, settings, which, loss_scale, clip
        As for `take_step`.
    exponent
        As for `norm_sums`.

    Returns
    -------
    list of tuple, or NotImplemented
        The sum of d * d, the largest |d| and how many are not finite, each as `norm_sums` has it.

    Raises
    ------
    TypeError
        When there is not one of each for each parameter, or the settings are not 13 numbers.
    MemoryError
        As for `norm_sums`.
    """

def take_step(
    parameters: tuple[Any, ...],
    gradients: tuple[Any, ...],
    first: tuple[Any, ...] | None,
    second: tuple[Any, ...] | None,
    largest: tuple[Any, ...] | None,
    steps: tuple[int, ...],
    settings: tuple[tuple[float, ...], ...],
    which: tuple[int, ...],
    loss_scale: float,
    clip: int,
    factor: float,
    checked: bool,
) -> Any:
    """Take the next step of an optimizer in place, all tensors in one pass.

    Parameters
    ----------
    parameters
        Arrays of floating types, or pairs (numpy.ndarray, name of the dtype) as of
        `evaluate_views`.
    gradients
        Of the same shapes; of the parameters' dtypes, or of the type of the arithmetic: float64 for
        float64, else float32.
    first, second, largest
        Momentum or first moment, second moment, and the largest of those, in the type of the
        arithmetic; None where the settings need none.
    steps
        How many steps each tensor took.  After none, there is no momentum yet.
    settings
        Rows of 13 numbers: those of ``fastreg/_base/steps.py``.
    which
        The row of each tensor.
    loss_scale
        What the gradients are divided by; 1.0 for nothing.
    clip
        0 for none, 1 for the data's gradient, 2 with the penalty's gradient in it.
    factor
        The c of the clip.
    checked
        Whether it is known that no two elements share memory.

    Returns
    -------
    (list of float, list of int), or NotImplemented
        The penalty and the number of zeros of each tensor, both 0 for those without a mode.
        NotImplemented with nothing written where anything is not plainly right.

    Raises
    ------
    TypeError
        As for `measure_step`; nothing has been written.
    MemoryError
        When there is no memory for 20 bytes for 4,096 elements; nothing has been written.
    """

def cuda_measure_step(
    place: tuple[int, int],
    parameters: tuple[Any, ...],
    gradients: tuple[Any, ...],
    settings: tuple[tuple[float, ...], ...],
    which: tuple[int, ...],
    loss_scale: float,
    clip: int,
    exponent: int,
) -> Any:
    """Do what `measure_step` does for tensors on a device, and wait for it.

    Parameters
    ----------
    place
        The device, and the stream.
    parameters, gradients
        Pairs of a shadow and the name of its dtype.
    settings, which, loss_scale, clip, exponent
        As for `measure_step`.
    """

def cuda_take_step(
    place: tuple[int, int],
    parameters: tuple[Any, ...],
    gradients: tuple[Any, ...],
    first: tuple[Any, ...] | None,
    second: tuple[Any, ...] | None,
    largest: tuple[Any, ...] | None,
    steps: tuple[int, ...],
    settings: tuple[tuple[float, ...], ...],
    which: tuple[int, ...],
    loss_scale: float,
    clip: int,
    factor: float,
    known: tuple[Any, ...] | None,
    results: Sequence[int],
) -> Any:
    """Queue what `take_step` does for tensors on a device that have been judged.

    Parameters
    ----------
    place
        The device, and the stream.
    parameters, gradients, first, second, largest
        Pairs of a shadow and the name of its dtype.
    steps, settings, which, loss_scale, clip, factor
        As for `take_step`.
    known
        None, or what the device decides: the addresses of the loss scale and of what was found, of
        each tensor's count of steps, of the optimizer's, and of whether it was skipped; whether to
        measure, whether to skip what is not finite, the bound of the clip, and the address of the
        norm; then for each row of settings, or for none, the address of a learning rate, whether
        it is a float64, what decoupled strengths divide it by, the address of what the strengths
        are multiplied with, and whether that is a float64.  An address of 0 stands for nothing.
    results
        Where the penalties and zeros of the tensors that count go, and their sums; 0 for nowhere.

    Returns
    -------
    int
        What `cuda_set_settings` takes, where the stream is being captured; else 0.
    """

def cuda_set_settings(
    recording: int,
    settings: tuple[tuple[float, ...], ...],
    which: tuple[int, ...],
    stream: int,
) -> None:
    """Send a captured step's settings, for the replays that the stream gets after this."""

def get_num_threads() -> int:
    """Return how many threads a call may use, the caller's included.

    FASTREG_NUM_THREADS, else the number of processors that the process may run on at the first
    use.
    """

def set_num_threads(n: SupportsIndex) -> None:
    """Set how many threads a call may use; ValueError unless it is from 1 to 1024."""

def torch_threads() -> tuple[str, int, str]:
    """Return whose threads take a large call on tensors of torch that this thread makes now.

    "torch" or "own", how many at most, and why they are not torch's, or "".
    """

def set_torch_threads(name: str) -> None:
    """Let "torch" or "own" threads take them; ValueError for a wrong name."""

def instruction_set() -> str:
    """Return the instruction set in use: "portable", "avx2", "avx512" or "neon"."""

def set_instruction_set(name: str) -> None:
    """Use another instruction set; ValueError for one that `instruction_sets` does not list."""

def instruction_sets() -> list[str]:
    """Return the instruction sets that were compiled and that this processor has, best first."""

def policy_names() -> list[str]:
    """Return the names that FASTREG_POLICY may have."""

def set_policy(name: str) -> None:
    """Use another policy, or with "" that of this machine; ValueError for a wrong name."""

def policy() -> dict[str, Any]:
    """Return the policy in use: its name, the reason, the caches, the variants by size."""

def compiled_instruction_sets() -> list[str]:
    """Return the instruction sets that were compiled, best first."""

def dtypes() -> list[tuple[str, int, int, bool]]:
    """Return the table of dtypes: name, DLPack's kind, bytes, and whether there are gradients."""

def build_info() -> dict[str, str]:
    """Return "compiler", "build_type" and "cxx_standard" (the value of ``__cplusplus``)."""

def floor_read(source: Any) -> int:
    """Read every byte of a C-contiguous array of numbers, with the threads of a call.

    The four floors are what the benchmark measures kernels against. They raise ValueError for
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

def floor_step(parameters: Any, gradients: Any, first: Any = None, second: Any = None) -> None:
    """Read and write what the step of an optimizer does: bare additions, of bytes as float32.

    `parameters` and up to two moments are written, and have the bytes of `gradients`, moments
    twice as many where those are in half precision.
    """

def cuda_state() -> tuple[bool, str, int]:
    """Return whether there is CUDA, else why not, and the number of devices; opens the library."""

def cuda_device_of(address: int) -> int:
    """Return the device of an address; ValueError for memory that no device can use."""

def cuda_wait(device: int, stream: int, producer: int) -> None:
    """Have `stream` wait for what `producer` holds now."""

def cuda_is_capturing(stream: int) -> bool:
    """Return whether a stream is being captured into a graph."""

def cuda_clear(device: int, stream: int, address: int, bytes: int) -> None:
    """Queue zeros."""

def cuda_copy_from_host(device: int, stream: int, address: int, numbers: Any) -> None:
    """Copy a buffer to a device, and wait until that has been read.

    Where the stream is being captured the copy is no part of the graph.
    """

def cuda_copy(device: int, stream: int, address: int, bytes: int) -> bytearray:
    """Copy device memory to the host, in the order of a stream, and wait for it.

    RuntimeError where the stream is being captured.
    """

def torch_stream(device: int) -> int | None:
    """Return torch's current stream, 0 for the default; None where torch has no exchange table."""

def learn_torch(
    tensor: type,
    parameter: type,
    is_inference_mode_enabled: Any,
    flags: Any,
    samples: Sequence[tuple[Any, int, int, int, int, int]],
    other_numbers: int,
    not_inference: int,
    asks: bool,
) -> bool:
    """Learn torch's types, and from samples how it keeps tensors; return whether it did.

    With `asks`, ``flags(tensor)`` is asked where the samples do not agree.
    ``fastreg/_arrays/torch_memory.py`` says what the arguments are.
    """

def learn_torch_gradients(samples: Sequence[tuple[Any, Any]], is_mode_enabled: Any) -> bool:
    """Learn from fresh tensors, and gradients for them, where torch keeps ``.grad`` and
    ``requires_grad``; return whether all agree.  Else, as without samples, torch's getters are
    asked, as they are while ``is_mode_enabled()``.
    """

def describe_by_exchange(tensor: Any) -> tuple[Any, ...] | None:
    """Describe an exact torch tensor by DLPack's exchange table; None for all else.

    Returns
    -------
    tuple
        Address, shape, strides in elements or None, DLPack's kind of dtype, bits, lanes, kind of
        device, device.
    """

def describe_capsule(capsule: Any) -> tuple[tuple[Any, ...], bool, bool]:
    """Describe the array in a DLPack capsule, without taking it; TypeError where there is none.

    Returns
    -------
    tuple
        The description as of `describe_by_exchange`, whether the capsule has a version, and whether
        it says that it may be written.
    """

class StreamMark:
    """What a stream holds at this moment."""

    def __init__(self, device: int, stream: int) -> None: ...
    def has_passed(self) -> bool:
        """Return whether it has been done."""

class DeviceMemory:
    """Device memory for what is queued on a stream from now on; given back when it is dropped.

    Of so many bytes, or at an address that belongs to an object, which is dropped then.
    """

    @overload
    def __init__(self, device: int, stream: int, bytes: int) -> None: ...
    @overload
    def __init__(self, device: int, stream: int, address: int, owner: object) -> None: ...
    @property
    def device(self) -> int: ...
    @property
    def stream(self) -> int: ...
    @property
    def address(self) -> int: ...
    def mark_written(self) -> None:
        """Take what is queued on its stream now for what makes the contents."""

    def make_wait(self, stream: int) -> None:
        """Have a stream wait for the contents."""

    def read(self) -> float:
        """Copy the first number to the host, and wait for it."""

    def read_integer(self) -> int:
        """Do the same with an int64."""

    def export(
        self, shape: Sequence[int], code: int, bits: int, versioned: bool, device_type: int = 2
    ) -> Any:
        """Make a DLPack capsule that keeps the memory."""

_Strides = Sequence[int]

class DeviceTensors:
    """The tensors of a call, described and judged.

    Parameters
    ----------
    device, stream
        Where they are, and where the call is queued.
    tensors
        For each the addresses of the weights and the gradients (0: none), those of the elements of
        index 0; the count; the dtype's number; the index into the strengths; and None where both
        are without gaps and in one order, else shape, strides of weights and strides of gradients
        (() without gradients), in elements.
    """

    def __init__(
        self,
        device: int,
        stream: int,
        tensors: Sequence[
            tuple[int, int, int, int, int, tuple[_Strides, _Strides, _Strides] | None]
        ],
    ) -> None: ...
    @property
    def device(self) -> int: ...
    @property
    def stream(self) -> int: ...
    @property
    def sizes(self) -> list[int]:
        """The number of elements of each tensor."""

    @property
    def coefficient_types(self) -> list[tuple[int, int]]:
        """For each tensor the index into the strengths, and the dtype's number."""

    def __len__(self) -> int: ...

def cuda_evaluate(
    tensors: DeviceTensors,
    outputs: int,
    strengths: Sequence[tuple[float, float]],
    scale: float,
    grad_scale: float,
    values: int,
    total: int,
    zeros: int,
    total_zeros: int,
) -> int:
    """Queue a call; `values` and what follows are addresses, or 0: of float64, of zeros int64.

    Returns
    -------
    int
        What `cuda_set_strengths` takes, where the stream is being captured; else 0.

    Raises
    ------
    MemoryError, ValueError, RuntimeError
        With the text of the CUDA runtime.
    """

def cuda_norm_sums(
    tensors: DeviceTensors, exponent: int
) -> list[tuple[float, float, float, int, int]]:
    """Return what `norm_sums` does, and wait for it; RuntimeError on a stream that is captured."""

def cuda_scale(tensors: DeviceTensors, factor: float) -> int:
    """Queue what `scale_tensors` does; returns what `cuda_evaluate` does."""

def cuda_clip(tensors: DeviceTensors, max_norm: float, norm: int) -> int:
    """Queue a clip of tensors by the norm of all of them, which goes to the address `norm`.

    Returns what `cuda_evaluate` does.
    """

def cuda_set_strengths(
    recording: int,
    outputs: int,
    strengths: Sequence[tuple[float, float]],
    scale: float,
    grad_scale: float,
    stream: int,
) -> None:
    """Send a captured call's strengths, for the replays that the stream gets after this."""

def cuda_forget(recording: int) -> None:
    """Return what a captured call needs, once its graph has been replayed for the last time."""

def xla_handler(platform: str) -> Any:
    """Return the function that XLA calls on a platform, "cpu" or "CUDA", for JAX to register.

    It evaluates the penalties of many tensors; csrc/jax/request.h says how it is called.

    Returns
    -------
    capsule
        Of a handler of XLA's typed FFI.
    """
