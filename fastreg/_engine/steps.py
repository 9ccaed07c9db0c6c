"""Steps of optimizers: judged, measured, clipped and taken, with any backend.

Contract
--------
- The numbers are those of docs/numerics.md, 12.
- The core takes what is plainly right: NumPy arrays and torch tensors in host memory.  All else is
  described and judged here, and refused by name or handed back as views.
- A step that raises or is skipped has written nothing.
- Parameters and state are written as under ``torch.no_grad()``, and autograd is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from .._arrays import cuda, host, torch_memory
from .._arrays.libraries import ALL_NUMPY, library_of
from .._arrays.results import all_written
from .._base import dtypes, errors, memory, steps
from .._base.core import core
from .._base.float_environment import Default
from .._base.penalty import rounded
from .._base.steps import Settings
from . import backend, checks, cuda_steps
from .totals import Sums, Total, clip_factor, first_nonfinite, nonfinite_message, total_of

Tensors = tuple[Any, ...]

_LARGEST = 3.4028234663852886e38
"""The largest float32 number."""

_STATES = {
    steps.SGD: ("momentum", "second moment", "largest second moment"),
    steps.ADAMW: ("first moment", "second moment", "largest second moment"),
}


class Step(NamedTuple):
    """A step of many tensors, each with its gradient and no two of them tied."""

    names: Sequence[str]
    parameters: Tensors
    gradients: Tensors
    first: Tensors | None
    """Momentum or first moment: for each tensor an array, or None; None for all."""
    second: Tensors | None
    largest: Tensors | None
    taken: tuple[int, ...]
    """How many steps each tensor took; of SGD with momentum, 0 says that there is none yet."""
    settings: tuple[Settings, ...]
    which: tuple[int, ...]
    """For each tensor, the index of its settings."""
    loss_scale: float = 1.0
    max_norm: float | None = None
    clips_data: bool = False
    """Whether the data's gradient is clipped alone."""
    on_nonfinite: str = "ignore"
    words: tuple[str, str] = ("tensors", "grads")
    """What messages call the collections of parameters and gradients."""
    decided: cuda_steps.Decided = cuda_steps.Decided()
    """What a device decides, where the tensors are there."""

    @property
    def clip(self) -> int:
        """Where the step clips."""
        if self.max_norm is None:
            return steps.UNCLIPPED
        return steps.CLIP_DATA if self.clips_data else steps.CLIP_TOTAL

    def arguments(self, factor: float) -> tuple[Any, ...]:
        """Return the arguments of a backend that takes the step, with this factor of the clip."""
        return (
            self.parameters,
            self.gradients,
            self.first,
            self.second,
            self.largest,
            self.taken,
            self.settings,
            self.which,
            self.loss_scale,
            self.clip,
            factor,
        )

    def label(self, place: int) -> str:
        return f"{self.words[0]}[{self.names[place]!r}]"

    def gradient_label(self, place: int) -> str:
        return f"{self.words[1]}[{self.names[place]!r}]"

    def settings_of(self, place: int) -> Settings:
        return self.settings[self.which[place]]


class Taken(NamedTuple):
    """What a step has come to."""

    penalties: list[float]
    """Of each tensor; 0.0 of those without a rule."""
    zeros: list[int]
    """How many elements of each tensor are 0; 0 for those without a rule."""
    norm: Any
    """The norm before the clip, where the step clips or guards: a float, or on the device."""
    skipped: Any
    """A bool; where the device decides a number there, 1 or 0."""

    @property
    def on_device(self) -> tuple[Any, Any] | None:
        """The sum of the penalties, and of the zeros, where they stay on a device; else None."""
        return None


class Queued(Taken):
    """What a step on a device comes to: the sums of penalties and zeros, and nothing of each."""

    __slots__ = ()

    @property
    def on_device(self) -> tuple[Any, Any]:
        return self.penalties[0], self.zeros[0]


class Processes(Protocol):
    """The processes that share the tensors of a step: all of them then do the same."""

    def own(self, sums: Sequence[Sums]) -> Sequence[Sums]:
        """Return what this process counts of each tensor, given the sums of its shards."""
        ...

    def gathered(self, sums: Sums) -> Sequence[Sums]:
        """Return the sums of all processes, given what this one counts."""
        ...

    def first_nonfinite(self) -> tuple[int, int] | None:
        """Return the place of the first tensor that is not finite anywhere, and of how many."""
        ...


def take(
    step: Step,
    *,
    found_inf: bool = False,
    processes: Processes | None = None,
    judges: bool = False,
    commit: Callable[[bool], None] | None = None,
    per_tensor: bool = False,
) -> Taken:
    """Take a step in place, or skip it, or raise what it deserves.

    `found_inf` skips before anything else is looked at.  With `judges` all tensors are judged
    before any is measured, so that this process does not refuse a step that others take.
    `commit` is called with True just before arrays are written, and with False if they were not:
    the caller counts the step then, since Ctrl-C raises as soon as the core returns.
    With `per_tensor` penalties and zeros on a device are waited for.
    """
    if cuda_steps.is_there(step.parameters):
        return _take_there(step, found_inf, processes, commit, per_tensor)
    if found_inf:
        return _skipped(step, None)
    tensors = _Readable(step, judges)
    if not _numbers_fit(step):
        _require_numbers(_described(step))
    norm, factor, is_skipped = _judged(step, tensors, processes)
    if is_skipped:
        return _skipped(step, norm)
    penalties, zeros = tensors.taken(factor, commit)
    _tell(step)
    return Taken(penalties, zeros, norm, False)


def _tell(step: Step) -> None:
    """Tell autograd what has been written."""
    if not ALL_NUMPY(map(type, step.parameters)):
        all_written(step.parameters)
    for states in (step.first, step.second, step.largest):
        written = [one for one in states or () if one is not None]
        if not ALL_NUMPY(map(type, written)):
            all_written(written)


def _judged(
    step: Step, tensors: _Readable | _There, processes: Processes | None
) -> tuple[float | None, float, bool]:
    """Return the norm, the factor of the clip, and whether the step is skipped; or raise."""
    if step.max_norm is None and step.on_nonfinite == "ignore":
        return None, 1.0, False
    total, bad = _looked_at(tensors, processes)
    with Default():
        norm, factor = total.l2, 1.0
        if step.max_norm is not None:
            factor = clip_factor(total, step.max_norm)
    if bad is not None and step.on_nonfinite != "ignore":
        tensors.judge()
    if bad is not None and step.on_nonfinite == "raise":
        remedy = 'stepped; pass on_nonfinite="skip" to leave such steps out, or "ignore"'
        raise ValueError(nonfinite_message(step.gradient_label(bad[0]), bad[1], remedy))
    return norm, factor, bad is not None and step.on_nonfinite == "skip"


def _take_there(
    step: Step,
    found_inf: bool,
    processes: Processes | None,
    commit: Callable[[bool], None] | None,
    per_tensor: bool,
) -> Taken:
    """Do what :func:`take` does for tensors on a device; it waits for what the host has to know.

    That is: norms of what is not finite and to be raised, or of what other processes have too.
    """
    if found_inf:
        return _skipped(step, None)
    tensors = _There(step)
    if not _numbers_fit(step):
        _require_numbers(tensors.step)
    looks = step.max_norm is not None or step.on_nonfinite == "skip"
    if processes is None and step.on_nonfinite != "raise" and (looks or step.decided.is_any):
        found = tensors.queued(1.0, commit, True)
        skipped = False if found.skipped is None else found.skipped
        taken: Taken = Queued([found.penalty], [found.zeros], found.norm, skipped)
    else:
        norm, factor, is_skipped = _judged(step, tensors, processes)
        if is_skipped:
            return _skipped(step, norm)
        if per_tensor:
            taken = Taken(*tensors.taken(factor, commit), norm, False)
        else:
            found = tensors.queued(factor, commit, False)
            taken = Queued([found.penalty], [found.zeros], norm, False)
    _tell(step)
    return taken


def require_capturable(on_nonfinite: str, is_sharded: bool, found_inf: bool) -> None:
    """Refuse what a step that is captured into a CUDA graph would have to wait for."""
    if on_nonfinite == "raise":
        raise RuntimeError(
            'on_nonfinite="raise" waits for the gradients\' norm, which a step that is captured '
            'into a CUDA graph cannot; pass "skip" or "ignore"'
        )
    if is_sharded:
        raise RuntimeError(
            "the parameters are sharded (DTensor), and their steps wait for numbers of all "
            "processes, so that they cannot be captured into a CUDA graph"
        )
    if found_inf:
        raise RuntimeError(
            "found_inf was known on the host, so that each replay would be skipped; pass a float32 "
            "array on the device to a step that is captured into a CUDA graph"
        )


class _There:
    """The tensors of a step on a device, described and judged."""

    def __init__(self, given: Step) -> None:
        labelled = [(given.label(place), x) for place, x in enumerate(given.parameters)]
        labelled += [(given.gradient_label(place), x) for place, x in enumerate(given.gradients)]
        for kind, states in enumerate((given.first, given.second, given.largest)):
            labelled += [
                (_state_label(given, place, kind), x)
                for place, x in enumerate(states or ())
                if x is not None
            ]
        labelled += given.decided.labelled
        self._there = cuda_steps.Tensors(labelled, given.decided.is_captured)
        self._first = given.parameters[0]
        step = _described(given, self._view)
        if step.decided.settings is not None:
            decided = step.decided._replace(settings=partial(_settings_again, step))
            step = step._replace(decided=decided)
        self.step = step

    def _view(self, x: Any, label: str, writable: bool) -> tuple[Any, str]:
        _require_mutable(x, label, writable)
        return self._there.view(x, label, writable)

    @property
    def _ruled(self) -> list[int]:
        step = self.step
        return [i for i in range(len(step.names)) if step.settings_of(i).mode != steps.NONE]

    def measured(self, exponent: int) -> list[Sums]:
        """Do what :meth:`_Readable.measured` does."""
        step = self.step
        found = self._there.measured(
            step.parameters,
            step.gradients,
            step.settings,
            step.which,
            step.loss_scale,
            step.clip,
            exponent,
        )
        return _clip_sums(_required(found))

    def judge(self) -> None:
        """Do what :meth:`_Readable.judge` does: all has been judged."""

    def taken(
        self, factor: float, commit: Callable[[bool], None] | None
    ) -> tuple[list[float], list[int]]:
        """Do what :meth:`_Readable.taken` does."""
        ruled = self._ruled
        found = _committed(
            commit, lambda: self._there.each(self.step.arguments(factor), len(ruled))
        )
        step = self.step
        penalties, zeros = [0.0] * len(step.names), [0] * len(step.names)
        for place, penalty, count in zip(ruled, *_required(found), strict=True):
            penalties[place], zeros[place] = float(penalty), int(count)
        return penalties, zeros

    def queued(
        self, factor: float, commit: Callable[[bool], None] | None, decides: bool
    ) -> cuda_steps.Results:
        """Queue the step; the device decides what it is, or that is known."""
        step, there = self.step, self._there
        decision = None
        if decides:
            skips = step.on_nonfinite == "skip"
            decision = there.decision(step.decided, step.max_norm, skips)
        arguments = step.arguments(factor), bool(self._ruled), self._first, step.decided, decision
        found = _committed(commit, lambda: there.taken(*arguments))
        results: cuda_steps.Results = _required(found)
        return results


def _settings_again(step: Step) -> tuple[tuple[Settings, ...], Tensors]:
    """Return what the settings of a step that was captured are now, judged as a step's are."""
    settings, which = step.decided.settings()  # type: ignore[misc]
    now = step._replace(settings=settings, which=which)
    if not _numbers_fit(now):
        _require_numbers(now)
    return settings, which


def _committed(commit: Callable[[bool], None] | None, call: Callable[[], Any]) -> Any:
    """Call the backend, and count the step just before; take that back if it has not written."""
    if commit is None:
        return call()
    try:
        commit(True)
        found = call()
    except (MemoryError, RuntimeError, TypeError, ValueError):
        commit(False)
        raise
    if found is NotImplemented:
        commit(False)
    return found


def _clip_sums(found: Sequence[tuple[float, float, int]]) -> list[Sums]:
    """Return sums of which a clip needs no others than these."""
    return [Sums(0.0, squares, maximum, 0, nonfinite) for squares, maximum, nonfinite in found]


def _required(found: Any) -> Any:
    if found is NotImplemented:  # another thread has changed an array since
        raise errors.changed_error()
    return found


class _Readable:
    """The tensors of a step as the backend takes them: as they are, else as views."""

    def __init__(self, step: Step, judges: bool) -> None:
        self._step = step
        self._is_checked = judges or backend.name != "native" or tuple in map(type, step.parameters)
        if self._is_checked:
            self._step = _described(step)

    def judge(self) -> None:
        """Raise what a step deserves that is not taken, and so not judged by the core."""
        if not self._is_checked:
            _described(self._step)

    def measured(self, exponent: int) -> list[Sums]:
        """Return the sums of d at the line of the clip, of elements times 2**exponent."""

        def call(step: Step, _: bool) -> Any:
            return backend.measure_step(
                step.parameters,
                step.gradients,
                step.settings,
                step.which,
                step.loss_scale,
                step.clip,
                exponent,
            )

        return _clip_sums(self._called(call))

    def taken(
        self, factor: float, commit: Callable[[bool], None] | None
    ) -> tuple[list[float], list[int]]:
        """Take the step, and return penalties and zeros."""

        def call(step: Step, is_checked: bool) -> Any:
            arguments = step.arguments(factor)
            return _committed(commit, lambda: backend.take_step(*arguments, is_checked))

        penalties, zeros = self._called(call)
        return penalties, zeros

    def _called(self, call: Callable[[Step, bool], Any]) -> Any:
        found = call(self._step, self._is_checked)
        if found is NotImplemented and not self._is_checked:
            if torch_memory.teach(core()):
                found = call(self._step, False)
            if found is NotImplemented:
                self._step, self._is_checked = _described(self._step), True
                found = call(self._step, True)
        return _required(found)


def _looked_at(
    tensors: _Readable | _There, processes: Processes | None
) -> tuple[Total, tuple[int, int] | None]:
    """Return the sums of all gradients, and the place and count of the first not finite."""

    def counted(exponent: int) -> Sequence[Sums]:
        sums = tensors.measured(exponent)
        return sums if processes is None else processes.own(sums)

    def squares(exponent: int) -> list[float]:
        return [one.squares for one in counted(exponent)]

    sums = counted(0)
    with Default():
        if processes is not None:
            return total_of(sums, squares, processes.gathered), processes.first_nonfinite()
        place = first_nonfinite(sums)
        bad = None if place is None else (place, sums[place].nonfinite)
        return total_of(sums, squares), bad


def _skipped(step: Step, norm: float | None) -> Taken:
    """Return what a skipped step reports: penalties and zeros of the parameters as they are."""
    ruled = [
        place for place in range(len(step.names)) if step.settings_of(place).mode != steps.NONE
    ]
    penalties, zeros = [0.0] * len(step.names), [0] * len(step.names)
    for place, sums in zip(ruled, _sums_of(step, ruled), strict=True):
        penalties[place] = _penalty(step.settings_of(place), sums)
        zeros[place] = sums.zeros
    return Taken(penalties, zeros, norm, True)


def _sums_of(step: Step, places: Sequence[int]) -> list[Sums]:
    """Return the sums of some parameters, which are only read: nothing else is judged."""
    if cuda_steps.is_there(step.parameters):
        if not places:
            return []
        there = cuda_steps.Tensors([(step.label(i), step.parameters[i]) for i in places])
        shadows = [there.view(step.parameters[i], step.label(i), False) for i in places]
        return [Sums(*one) for one in there.sums(shadows)]
    found, arrays = NotImplemented, tuple([step.parameters[i] for i in places])
    if backend.name == "native" and tuple not in map(type, arrays):
        found = backend.norm_sums(arrays, 0, False)
    if found is NotImplemented:
        views = [host.host_view(step.parameters[i], step.label(i), False) for i in places]
        found = backend.norm_sums(tuple(views), 0, False)
    if found is NotImplemented:  # another thread has changed an array since
        raise errors.changed_error()
    return [Sums(*one) for one in found]


def _penalty(one: Settings, sums: Sums) -> float:
    with Default():
        value = one.l1 * sums.l1 if one.l1 else 0.0
        if one.l2:
            squares = one.l2 * sums.squares
            value = value + squares if one.l1 else squares
    return value


def _numbers_fit(step: Step) -> bool:
    """Return whether all numbers of a step are certainly finite in the type of the arithmetic."""
    return all(
        all(abs(number) <= _LARGEST for number in found)
        for index, taken in set(zip(step.which, step.taken, strict=True))
        for found in (steps.exact(step.settings[index], taken, step.loss_scale, 1.0),)
    )


def _require_numbers(step: Step) -> None:
    """Raise ValueError for the first tensor with a number that is not finite."""
    for place, (_, dtype) in enumerate(step.parameters):
        found = steps.exact(step.settings_of(place), step.taken[place], step.loss_scale, 1.0)
        for name, number in found._asdict().items():
            if not math.isfinite(rounded(number, dtype)):
                raise ValueError(
                    f"{steps.SPOKEN.get(name, name)} must be finite in "
                    f"{'float64' if dtype == 'f64' else 'float32'}, the type of the arithmetic for "
                    f"{step.label(place)}, not {number!r}; change the options that it is made of"
                )


# ------------------------------------------------------------------------------ what was given


def _on_host(x: Any, label: str, writable: bool) -> tuple[Any, str]:
    _require_mutable(x, label, writable)
    if cuda.is_on_cuda(x):
        raise TypeError(
            f"{label} is on CUDA, but the first of the tensors is in host memory; pass all of them "
            "on one device"
        )
    return host.host_view(x, label, writable)


def _described(step: Step, view: Callable[[Any, str, bool], tuple[Any, str]] = _on_host) -> Step:
    """Return a step with views in the place of arrays, or raise the error that it deserves."""
    seen: list[checks.Seen] = []

    def view_of(x: Any, label: str, writable: bool) -> tuple[Any, str]:
        seen.append(checks.Seen(label, view(x, label, writable), writable))
        return seen[-1].view

    count = range(len(step.names))
    parameters = [view_of(step.parameters[place], step.label(place), True) for place in count]
    gradients = [
        view_of(step.gradients[place], step.gradient_label(place), False) for place in count
    ]
    states: list[list[Any] | None] = []
    for kind, given in enumerate((step.first, step.second, step.largest)):
        described = None
        if given is not None:
            described = [
                None if one is None else view_of(one, _state_label(step, place, kind), True)
                for place, one in enumerate(given)
            ]
        states.append(described)
    for place in count:
        _require_fitting(step, place, parameters[place], gradients[place])
        for kind, kept in enumerate(states):
            needed = _needs(step.settings_of(place))[kind]
            one = None if kept is None else kept[place]
            _require_state(_state_label(step, place, kind), parameters[place], one, needed)
    checks.require_current(seen)
    _require_apart(seen)
    first, second, largest = (None if kept is None else tuple(kept) for kept in states)
    return step._replace(
        parameters=tuple(parameters),
        gradients=tuple(gradients),
        first=first,
        second=second,
        largest=largest,
    )


def _needs(one: Settings) -> tuple[bool, bool, bool]:
    return one.has_first, one.has_second, one.has_largest


def _state_label(step: Step, place: int, kind: int) -> str:
    return f"the {_STATES[step.settings_of(place).algorithm][kind]} of {step.label(place)}"


def _require_mutable(x: Any, label: str, writable: bool) -> None:
    if writable and library_of(type(x)).name == "jax":
        raise errors.read_only_error(
            label,
            "a JAX array, which is immutable",
            "pass a NumPy copy, or use an optimizer of JAX",
        )


def _require_fitting(step: Step, place: int, parameter: Any, gradient: Any) -> None:
    """Refuse a parameter that has no step, and a gradient that is not of its shape and dtype."""
    label, gradient_label = step.label(place), step.gradient_label(place)
    view, dtype = parameter
    if dtype not in dtypes.FLOATS:
        raise TypeError(
            f"{label} has dtype {dtypes.spoken(dtype)}: there is no step for integer or bool "
            f"elements; pass for example {label}.astype(numpy.float32)"
        )
    if gradient[0].shape != view.shape:
        raise ValueError(
            f"{gradient_label} has shape {gradient[0].shape}, but {label} has {view.shape}; a "
            "gradient has the shape of its parameter"
        )
    compute = compute_dtype(dtype)
    if gradient[1] not in (dtype, compute):
        wanted = " or ".join(dict.fromkeys((dtypes.spoken(dtype), dtypes.spoken(compute))))
        raise TypeError(
            f"{gradient_label} has dtype {dtypes.spoken(gradient[1])}, but {label} has "
            f"{dtypes.spoken(dtype)}; its gradient must be {wanted}"
        )


def compute_dtype(dtype: str) -> str:
    """Return the type of the arithmetic and of the state: float32, or float64 for float64."""
    return "f64" if dtype == "f64" else "f32"


def _require_state(label: str, parameter: Any, state: Any, needed: bool) -> None:
    if state is None:
        if needed:
            raise ValueError(f"{label} is missing (None); pass an array of zeros")
        return
    view, dtype = parameter
    compute = compute_dtype(dtype)
    if state[1] != compute:
        raise TypeError(
            f"{label} has dtype {dtypes.spoken(state[1])}; it is kept in {dtypes.spoken(compute)} "
            "for this tensor: make a new optimizer, or load a state of tensors like these"
        )
    if state[0].shape != view.shape:
        raise ValueError(
            f"{label} has shape {state[0].shape}, but its tensor has {view.shape}; make a new "
            "optimizer, or load a state of tensors like these"
        )


def _require_apart(seen: Sequence[checks.Seen]) -> None:
    """Refuse what is written and overlaps itself or another array of the step."""
    spans = []
    for place, one in enumerate(seen):
        view = one.view[0]
        if view.size == 0:
            continue
        if one.is_written and memory.overlaps_itself(view):
            raise ValueError(
                f"{one.label} overlaps itself (strides {view.strides} for shape {view.shape}): one "
                "element has several places; pass a copy"
            )
        spans.append((*memory.byte_bounds(view), place))
    spans.sort()
    open_spans: list[tuple[int, int, int]] = []
    for span in spans:
        open_spans = [other for other in open_spans if other[1] > span[0]]
        for other in open_spans:
            first, second = sorted((other[2], span[2]))
            one, another = seen[first], seen[second]
            if (one.is_written or another.is_written) and memory.share_memory(
                one.view[0], another.view[0]
            ):
                raise ValueError(
                    f"{another.label} overlaps {one.label} in memory, which a step must not write "
                    "twice or while it is read; pass a copy of one of them"
                )
        open_spans.append(span)
