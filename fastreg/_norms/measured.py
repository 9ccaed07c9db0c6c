"""Norms of the tensors of a mapping, sequence or module: docs/numerics.md, 10.

Contract
--------
- One pass over the elements.  Further passes are made only of tensors whose squares float64 cannot
  hold: float64 ones whose largest element is beyond 2**±400, and all where the largest of all is.
- The bits do not depend on backend, instruction set or threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .._arrays import cuda, host, torch_memory
from .._arrays.libraries import is_dtensor, is_tracer
from .._arrays.library import loaded
from .._base import errors, memory
from .._base.core import core
from .._base.float_environment import Default
from .._engine import backend, checks
from .._engine.totals import Sums, Total, exponent_for, total_of
from ..penalties.names import is_mapping, names_of, require_strings
from .records import Norm, Norms


class Selected(NamedTuple):
    """The arrays of a call, without those that are None."""

    names: tuple[str, ...]
    arrays: tuple[Any, ...]

    def label(self, place: int) -> str:
        """Return what messages call an array."""
        return f"tensors[{self.names[place]!r}]"


def is_module(source: Any) -> bool:
    """Return whether this is a module of torch."""
    torch = loaded("torch")
    return torch is not None and isinstance(source, getattr(torch.nn, "Module", ()))


def selected(source: Any) -> Selected:
    """Return the arrays of a mapping or sequence by name, in order."""
    names = names_of(source, "tensors")
    require_strings(names, "tensors")
    arrays = [source[name] for name in names] if is_mapping(source) else list(source)
    pairs = [(name, x) for name, x in zip(names, arrays, strict=True) if x is not None]
    return Selected(tuple(name for name, _ in pairs), tuple(x for _, x in pairs))


def norms(tensors: Any) -> Norms:
    """Return the norms of many tensors: L1, L2, the largest magnitude, zeros and non-finite ones.

    All of it comes from one pass over the elements, in float64, and is right at every magnitude:
    squares neither overflow nor vanish.  The bits are the same on every instruction set, with any
    number of threads and in the NumPy fallback.

    Parameters
    ----------
    tensors
        A mapping of names to arrays, a sequence of arrays (their names are "0", "1", ...), or a
        module of torch, which stands for its parameters.  Arrays in host memory of any kind that
        the regularizers take, of any shapes; dtypes may be mixed, integers and bool among them.
        None stands for no array (a gradient that is missing) and is left out.

    Returns
    -------
    Norms
        A dict of :class:`Norm` by name.  Its ``total`` is of all tensors together; an array that is
        there under two names counts once.  ``str`` of it is a table.

    Raises
    ------
    TypeError
        For what is no array of real numbers in host memory, with its name.

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
    chosen = selected(dict(tensors.named_parameters()) if is_module(tensors) else tensors)
    measured = Measured(chosen, False)
    with Default():
        return Norms(measured.each(), _norm(*measured.total()))


class Measured:
    """The sums of the arrays of a call, and what can be made of them, inside ``Default``."""

    def __init__(self, chosen: Selected, written: bool) -> None:
        self._chosen = chosen
        self._tensors: tuple[Any, ...] = chosen.arrays
        self.is_checked = False
        """Whether the arrays that are written have been looked at here and not by the core."""
        self.counted: Sequence[int] = range(len(chosen.arrays))
        """The places of the arrays that are no other one's memory."""
        found = NotImplemented
        if written or not _share(self._tensors):
            found = _plainly(self._tensors, written)
        if found is NotImplemented:
            self._describe(written)
            found = backend.norm_sums(self._tensors, 0, False)
            if found is NotImplemented:  # another thread has changed an array since
                raise errors.changed_error()
        self.sums = [Sums(*one) for one in found]

    @property
    def targets(self) -> tuple[Any, ...]:
        """The arrays to be written, each once, as the core takes them."""
        return tuple(self._tensors[place] for place in self.counted)

    def view(self, place: int) -> Any:
        """Return the view of an array, once it has been looked at here."""
        return self._tensors[place]

    def each(self) -> dict[str, Norm]:
        """Return the norms by name."""
        rows = {}
        for place, name in enumerate(self._chosen.names):
            sums = self.sums[place]
            exponent = exponent_for(sums.maximum)
            if exponent:
                sums = sums._replace(squares=self._squares([place], exponent)[0])
            rows[name] = _norm(sums, exponent)
        return rows

    def total(self) -> Total:
        """Return the sums of all arrays together."""
        sums = [self.sums[place] for place in self.counted]
        return total_of(sums, lambda exponent: self._squares(self.counted, exponent))

    def _squares(self, places: Sequence[int], exponent: int) -> list[float]:
        """Sum the squares of the elements times 2**exponent."""
        tensors = tuple(self._tensors[place] for place in places)
        found = backend.norm_sums(tensors, exponent, False)
        if found is NotImplemented:
            raise errors.changed_error()
        return [Sums(*one).squares for one in found]

    def _describe(self, written: bool) -> None:
        """Put views in the place of the arrays, and judge what they have in common."""
        self.is_checked = True
        seen = []
        for place, array in enumerate(self._chosen.arrays):
            label = self._chosen.label(place)
            _require_host(array, label)
            seen.append(checks.Seen(label, host.host_view(array, label, written), written))
        checks.require_current(seen)
        self._tensors = tuple(one.view for one in seen)
        firsts: dict[Any, int] = {}
        counted = []
        for place, (view, dtype) in enumerate(self._tensors):
            key = (dtype, memory.elements(view)) if view.size else place
            if firsts.setdefault(key, place) == place:
                counted.append(place)
        self.counted = counted


def _require_host(array: Any, label: str) -> None:
    """Refuse what has no elements here, in the words of norms."""
    if is_tracer(array):
        raise errors.special_array_error(
            label, "a JAX tracer, which has no elements yet", "call this outside of jax.jit"
        )
    if is_dtensor(array):
        raise errors.special_array_error(
            label,
            "a DTensor, and norms are not taken over several processes",
            f"pass {label}.to_local() for what this process has; to clip, use "
            "torch.nn.utils.clip_grad_norm_",
        )
    if cuda.is_on_cuda(array):
        raise errors.special_array_error(
            label, "on CUDA, for which there are no kernels of norms", "pass a copy in host memory"
        )


def _share(tensors: tuple[Any, ...]) -> bool:
    """Return whether arrays may be the same, or one is not plain."""
    if backend.name != "native":
        return True
    shared = backend.shares_address(tensors)
    if shared is NotImplemented and torch_memory.teach(core()):
        shared = backend.shares_address(tensors)
    return shared is not False


def _plainly(tensors: tuple[Any, ...], written: bool) -> Any:
    """Return the sums of arrays that the core reads by itself, or NotImplemented."""
    if backend.name != "native" or tuple in map(type, tensors):  # a tuple is no array
        return NotImplemented
    found = backend.norm_sums(tensors, 0, written)
    if found is NotImplemented and torch_memory.teach(core()):
        found = backend.norm_sums(tensors, 0, written)
    return found


def _norm(sums: Sums, exponent: int) -> Norm:
    l2 = Total(sums, exponent).l2
    return Norm(sums.l1, l2, sums.maximum, sums.zeros, sums.nonfinite)
