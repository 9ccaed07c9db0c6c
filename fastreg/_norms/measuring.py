"""Norms of the tensors of a mapping, sequence or module: docs/numerics.md, 10."""

from __future__ import annotations

from .._arrays.libraries import has_dtensors
from .._base.array_types import HasParameters, Tensors
from .._base.float_environment import Default
from .._engine.cuda_norms import has_device_arrays
from .measured import (
    Judge,
    Measured,
    Selected,
    is_module,
    no_judge,
    norm_of,
    parameters_of,
    selected,
)
from .records import Norms


def norms(tensors: Tensors | HasParameters) -> Norms:
    """Return the norms of many tensors: L1, L2, the largest magnitude, zeros and non-finite ones.

    All of it comes from one pass over the elements, in float64, and is right at every magnitude:
    squares neither overflow nor vanish.  The bits are the same on every instruction set, with any
    number of threads and in the NumPy fallback.

    Parameters
    ----------
    tensors
        A mapping of names to arrays, a sequence of arrays (their names are "0", "1", ...), or a
        module of torch, which stands for its parameters.  Arrays of any kind that the regularizers
        take, all in host memory or on one CUDA device, which is waited for; of any shapes, and of
        mixed dtypes, integers and bool among them.
        None stands for no array (a gradient that is missing) and is left out.  DTensors (a module
        of FSDP2) have the norms of the whole tensors: every process of their mesh has to call this.

    Returns
    -------
    Norms
        A dict of :class:`~fastreg._norms.records.Norm` by name.  Its ``total`` is of all tensors
        together; an array that is there under two names counts once.  ``str`` of it is a table.

    Raises
    ------
    TypeError
        For what is no array of real numbers, with its name; for arrays in several memories; for
        DTensors of several meshes, or with a Partial placement.
    RuntimeError
        In all processes that share DTensors, where they have different ones, or where one of them
        has refused its arrays.

    Examples
    --------
    >>> import numpy, fastreg
    >>> found = fastreg.norms({"kernel": numpy.array([3.0, -4.0]), "bias": numpy.zeros(2)})
    >>> found["kernel"]
    Norm(l1=7.0, l2=5.0, maximum=4.0, zeros=0, nonfinite=0)
    >>> print(found)
    tensor  l1  l2  maximum  zeros  nonfinite
    kernel   7   5        4      0          0
    bias     0   0        0      2          0
    total    7   5        4      2          0
    >>> float(fastreg.norms([numpy.full(1_000_000, 300, numpy.float16)]).total.l2)
    300000.0
    """
    chosen = selected(parameters_of(tensors) if is_module(tensors) else tensors)
    measured = measure(chosen, False, "norms")
    with Default():
        return Norms(measured.each(), norm_of(*measured.total()))


def measure(chosen: Selected, written: bool, question: str, judge: Judge = no_judge) -> Measured:
    """Return the sums of arrays, over all processes where they share some.

    `question` is what these have to ask alike.
    """
    if not has_dtensors(chosen.arrays):
        return Measured(chosen, written, judge)
    from . import shared  # only where there are DTensors

    return shared.measured(chosen, written, question, judge)


def stays_on_device(chosen: Selected) -> bool:
    """Return whether arrays are on a device whose norm no other process has a part in."""
    return has_device_arrays(chosen.arrays[:1]) and not has_dtensors(chosen.arrays)
