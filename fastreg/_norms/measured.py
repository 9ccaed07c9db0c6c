"""The sums that norms are made of, of the arrays of one process: docs/numerics.md, 10.

Contract
--------
- One pass over the elements.  Further passes are made only of tensors whose squares float64 cannot
  hold: float64 ones whose largest element is beyond 2**±400, and all where the largest of all is.
- The bits do not depend on backend, instruction set or threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

from .._arrays import host, torch_memory
from .._arrays.libraries import is_tracer
from .._arrays.library import loaded
from .._base import errors, memory
from .._base.core import core
from .._engine import backend, checks, cuda_norms
from .._engine.totals import Sums, Total, exponent_for, first_nonfinite, total_of
from ..penalties.names import is_mapping, names_of, require_strings
from .records import Norm

Judge: TypeAlias = "Callable[[Arrays], None]"


def no_judge(arrays: Arrays) -> None:
    """Refuse nothing."""


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


def parameters_of(module: Any) -> dict[str, Any]:
    """Return the parameters of a module of torch, unless FSDP1 has parts of them."""
    parameters = dict(module.named_parameters())
    if loaded("torch.distributed.fsdp._flat_param") is not None:
        from .._arrays import torch_shards  # imports torch

        torch_shards.local_tensors(tuple(parameters.values()), tuple(parameters))
    return parameters


def selected(source: Any) -> Selected:
    """Return the arrays of a mapping or sequence by name, in order."""
    names = names_of(source, "tensors")
    require_strings(names, "tensors")
    arrays = [source[name] for name in names] if is_mapping(source) else list(source)
    pairs = [(name, x) for name, x in zip(names, arrays, strict=True) if x is not None]
    return Selected(tuple(name for name, _ in pairs), tuple(x for _, x in pairs))


class Arrays:
    """The arrays of a call, as the core reads them by itself or as they have been described here.

    `judge` may refuse arrays that the core does not find plainly right, before they are read.
    """

    _may_be_plain = True
    """Whether the core may look at the arrays first."""

    def __init__(self, chosen: Selected) -> None:
        self._chosen = chosen
        self._tensors: tuple[Any, ...] = chosen.arrays
        self.engine: Any = backend
        """What measures and scales: ``backend``, or its like for arrays on a device."""
        self.is_checked = False
        """Whether the arrays that are written have been looked at here and not by the core."""
        self.counted: Sequence[int] = range(len(chosen.arrays))
        """The places of the arrays that are no other one's memory."""

    @property
    def targets(self) -> tuple[Any, ...]:
        """The arrays to be written, each once, as the core takes them."""
        return tuple(self._tensors[place] for place in self.counted)

    def written(self, arrays: Sequence[Any]) -> list[Any]:
        """Return those of the call's arrays that were written with the targets."""
        return [arrays[place] for place in self.counted]

    def view(self, place: int) -> Any:
        """Return the view of an array, once it has been looked at here."""
        return self._tensors[place]

    def ask(self, question: Callable[[bool], Any], written: bool, judge: Judge) -> Any:
        """Return what the core says of the arrays as they are, else as they are described here.

        `question` gets whether the core has to judge that they can be written.
        """
        found = NotImplemented
        if self._may_be_plain and (written or not _share(self._tensors)):
            found = self._ask_plainly(question, written)
        if found is NotImplemented:
            self._describe(written)
            judge(self)
            found = question(False)
            if found is NotImplemented:  # another thread has changed an array since
                raise errors.changed_error()
        return found

    def _ask_plainly(self, question: Callable[[bool], Any], written: bool) -> Any:
        if backend.name != "native" or tuple in map(type, self._tensors):  # a tuple is no array
            return NotImplemented
        if cuda_norms.has_device_arrays(self._tensors[:1]):
            self.engine = cuda_norms.Plain()
        found = question(written)
        if found is NotImplemented and torch_memory.teach(core()):
            found = question(written)
        return found

    def _describe(self, written: bool) -> None:
        """Put views in the place of the arrays, and judge what they have in common."""
        self.is_checked = True
        self.engine, view_of = backend, host.host_view
        arrays = self._chosen.arrays
        labelled = [(self._chosen.label(place), array) for place, array in enumerate(arrays)]
        for label, array in labelled:
            _require_elements(array, label)
        if cuda_norms.has_device_arrays(arrays):
            self.engine = cuda_norms.Described(labelled)
            view_of = self.engine.view
        seen = [checks.Seen(label, view_of(x, label, written), written) for label, x in labelled]
        checks.require_current(seen)
        self._tensors = tuple(one.view for one in seen)
        firsts: dict[Hashable, int] = {}
        counted = []
        for place, (view, dtype) in enumerate(self._tensors):
            key = self._identity(place)
            if key is None:
                key = (dtype, memory.elements(view)) if view.size else place
            if firsts.setdefault(key, place) == place:
                counted.append(place)
        self.counted = counted

    def _identity(self, place: int) -> Hashable:
        """Return what tells an array from others; None: its dtype and its memory."""
        return None


class Measured(Arrays):
    """The sums of the arrays of a call, and what can be made of them, inside ``Default``."""

    def __init__(self, chosen: Selected, written: bool, judge: Judge = no_judge) -> None:
        super().__init__(chosen)
        found = self.ask(
            lambda is_new: self.engine.norm_sums(self._tensors, 0, is_new), written, judge
        )
        self.sums = [Sums(*one) for one in found]

    def each(self) -> dict[str, Norm]:
        """Return the norms by name."""
        rows = {}
        for place, (name, sums) in enumerate(zip(self._chosen.names, self.sums, strict=True)):
            l1, squares, maximum, zeros, nonfinite = sums
            exponent = exponent_for(maximum)
            if exponent:
                sums = sums._replace(squares=self._squares([place], exponent)[0])
                rows[name] = norm_of(sums, exponent)
            else:  # as norm_of, in half the time: there may be hundreds
                rows[name] = Norm(l1, math.sqrt(squares), maximum, zeros, nonfinite)
        return rows

    def total(self) -> Total:
        """Return the sums of all arrays together."""
        sums = [self.sums[place] for place in self.counted]
        return total_of(sums, lambda exponent: self._squares(self.counted, exponent))

    def first_nonfinite(self) -> tuple[int, int] | None:
        """Return the place of the first array that is not finite, and of how many elements."""
        place = first_nonfinite(self.sums)
        return None if place is None else (place, self.sums[place].nonfinite)

    def _squares(self, places: Sequence[int], exponent: int) -> list[float]:
        """Sum the squares of the elements times 2**exponent."""
        tensors = tuple(self._tensors[place] for place in places)
        found = self.engine.norm_sums(tensors, exponent, False)
        if found is NotImplemented:
            raise errors.changed_error()
        return [Sums(*one).squares for one in found]


def _require_elements(array: Any, label: str) -> None:
    """Refuse what has no elements yet, in the words of norms."""
    if is_tracer(array):
        raise errors.special_array_error(
            label, "a JAX tracer, which has no elements yet", "call this outside of jax.jit"
        )


def _share(tensors: tuple[Any, ...]) -> bool:
    """Return whether arrays may be the same, or one is not plain."""
    if backend.name != "native":
        return True
    shared = backend.shares_address(tensors)
    if shared is NotImplemented and torch_memory.teach(core()):
        shared = backend.shares_address(tensors)
    return shared is not False


def norm_of(sums: Sums, exponent: int) -> Norm:
    """Return the norms that sums make, of squares times ``2**exponent`` each."""
    l2 = Total(sums, exponent).l2
    return Norm(sums.l1, l2, sums.maximum, sums.zeros, sums.nonfinite)
