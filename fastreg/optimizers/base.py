"""What the optimizers have in common: their options, the step, the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress, repeat
from operator import attrgetter, is_
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from .._arrays import cuda
from .._arrays.libraries import ALL_NUMPY
from .._base import arguments, dtypes, errors, memory, steps
from .._base.array_types import AnyArray, Factor, Real, Tensors
from .._base.float_environment import Default
from .._base.steps import Settings
from .._engine import backend
from .._engine.cuda_steps import (
    Arena,
    Counts,
    Decided,
    NumbersThere,
    filled,
    is_capturing,
    is_there,
    place_of,
    require_number,
)
from .._engine.steps import Step, compute_dtype, require_capturable, take
from ..penalties import callables
from ..penalties.names import counted
from ..penalties.plan import Arrays
from . import saved
from .records import StepRecord
from .rules import GivenModed, Mode, Ruled, acting, checked, require_acting
from .tensors import Roster
from .tensors import Tensors as Named

Rate: TypeAlias = Real | Callable[[int], Real] | AnyArray
"""A number, a function of how many steps the optimizer took, or a 0-d array on a device."""

Clip: TypeAlias = Literal["total", "data"]
OnNonfinite: TypeAlias = Literal["raise", "skip", "ignore"]

CLIPS = ("total", "data")
ON_NONFINITE = ("raise", "skip", "ignore")


def rate(value: Any, name: str) -> Rate:
    """Return a learning rate or factor: a number >= 0, or a function of the step that gives one.

    One float32 or float64 number on a device is taken as it is, and read by each step.
    """
    if is_number_there(value):
        require_number(*cuda.any_view(value, name), name)
    elif not callable(value):
        value = arguments.strength(value, name)
    found: Rate = value
    return found


def is_number_there(value: Any) -> bool:
    """Return whether a learning rate or factor is an array on a device."""
    return type(value) is not float and cuda.is_on_cuda(value)


def number_of(value: Any, name: str, count: int) -> float:
    """Return what a learning rate or factor is after so many steps; a device is waited for."""
    if is_number_there(value):
        return arguments.strength(callables.number(value, name), name)
    return arguments.strength(value(count), f"{name}({count})") if callable(value) else value


def require_as_captured(captured: Any, now: Any, name: str) -> None:
    """Raise RuntimeError for a number that replays would not read where it is now."""
    if captured is not now and (is_number_there(captured) or is_number_there(now)):
        raise RuntimeError(
            f"{name} is no longer the array that was captured: write the number into that one in "
            "place, or capture again"
        )


def guard(on_nonfinite: str | None, max_norm: float | None, is_on_device: bool) -> str:
    """Return what is done about gradients that are not finite: a clip sees them for nothing.

    On a device "raise" has to wait, and has to be asked for.
    """
    if on_nonfinite is not None:
        return on_nonfinite
    if max_norm is None:
        return "ignore"
    return "skip" if is_on_device else "raise"


def _bound(value: Any, name: str) -> float | None:
    return None if value is None else arguments.bound(value, name)


class Optimizer:
    """What :class:`SGD` and :class:`AdamW` have in common."""

    _algorithm: ClassVar[int]
    _name: ClassVar[str]
    _flags: int
    _is_scaled = True
    _kinds: tuple[str, ...]
    """What messages and the saved state call the arrays that are kept of each tensor."""

    lr: arguments.Checked[Rate] = arguments.Checked(
        rate, "The learning rate, a number >= 0, a function of the step, or an array on a device."
    )
    strength: arguments.Checked[Rate] = arguments.Checked(
        rate, "What all strengths are multiplied with, given as `lr` is."
    )
    max_norm: arguments.Checked[float | None] = arguments.Checked(
        _bound, "The bound of the clip, or None for no clip."
    )

    def __init__(
        self,
        tensors: Tensors,
        lr: Rate,
        *,
        rules: GivenModed,
        mode: Mode,
        strength: Rate,
        independent: bool,
        initial_lr: Real | None,
        max_norm: Real | None,
        clip: Clip,
        on_nonfinite: OnNonfinite | None,
    ) -> None:
        self.lr = lr
        self.strength = strength
        self.max_norm = max_norm
        self._initial_lr = self._checked_initial(independent, initial_lr)
        self._clips_data = arguments.choice(clip, "clip", CLIPS) == "data"
        if on_nonfinite is not None:
            arguments.choice(on_nonfinite, "on_nonfinite", ON_NONFINITE)
        self._on_nonfinite = on_nonfinite
        moded = checked(rules, mode)
        self._tensors = Named(tensors, moded)
        require_acting(
            () if rules is None else moded.modes.values(),
            bool(self._flags & steps.CAUTIOUS),
            independent,
            not self._is_scaled,
        )
        self._kept = _Kept(tuple({} for _ in self._kinds))
        self._progress: tuple[int, dict[str, int]] = 0, {}
        self._counts: tuple[Counts, tuple[str, ...]] | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in ("lr", "strength", "max_norm"):
            raise AttributeError(
                f"{name!r} of an optimizer cannot be set: it would do nothing; lr, strength and "
                "max_norm can, and so can the strengths of its rules; make a new optimizer"
            )
        super().__setattr__(name, value)

    def _checked_initial(self, independent: bool, initial_lr: Real | None) -> float | None:
        if not arguments.flag(independent, "independent"):
            if initial_lr is not None:
                raise ValueError(
                    f"initial_lr={initial_lr!r} is for independent=True alone; leave it out"
                )
            return None
        if initial_lr is None and callable(self.lr):
            raise ValueError(
                "initial_lr must be given where independent=True and lr is a function: the "
                "decoupled strengths are multiplied with lr / initial_lr"
            )
        given = self.lr if initial_lr is None else initial_lr
        initial = arguments.strength(number_of(given, "initial_lr", 0), "initial_lr")
        if initial == 0.0:
            raise ValueError(
                "initial_lr must be a number > 0 where independent=True, not 0.0: the decoupled "
                "strengths are multiplied with lr / initial_lr"
            )
        return initial

    @property
    def steps(self) -> int:
        """How many steps the optimizer took; one that was skipped does not count.

        Of tensors on a device that may have skipped some it is waited for.
        """
        return self._taken()[0]

    def _taken(self) -> tuple[int, dict[str, int]]:
        """Return how many steps the optimizer and the tensors took, wherever they are counted."""
        if self._counts is not None:
            counts, names = self._counts
            taken, count = counts.read(self._tensors.ready()[1][0])
            self._progress = count, {**self._progress[1], **dict(zip(names, taken, strict=True))}
        return self._progress

    def __repr__(self) -> str:
        roster, _ = self._tensors.ready()
        ruled = compress(roster.names, roster.is_ruled)
        what = counted(ruled, len(roster.names), "tensors")
        return f"<{self._name}(lr={self.lr!r}) with rules for {what}>"

    def step(
        self, grads: Tensors, *, loss_scale: Factor = 1.0, found_inf: bool | Factor | None = None
    ) -> StepRecord:
        """Take a step: update all tensors in place, or none.

        Parameters
        ----------
        grads : mapping or sequence of arrays
            Gradients of the loss by the names of the tensors, each of the shape of its tensor, and
            of its dtype or float32 for half precision; they are only read.  None leaves a tensor as
            it is, and so does no gradient where the tensor has no rule.  Of a tied tensor it is
            given under the first name.
        loss_scale : float, optional
            What the loss was multiplied with; gradients are divided by it here.
        found_inf : bool or array of one element, optional
            Whether the caller has seen a gradient that is not finite: then the step is skipped.

        On a stream that is being captured into a CUDA graph the step is queued for the replays,
        each of which takes the next one and writes the numbers of this record again.

        Returns
        -------
        StepRecord
            ValueError for a gradient that is missing or does not fit, for gradients that are not
            finite where ``on_nonfinite`` is "raise", and for numbers of the step that are not;
            TypeError for arrays of a wrong kind or dtype; BufferError for those that may not be
            written, as JAX arrays; RuntimeError in a capture for what would have to wait, and for
            state that there is not yet.  Then nothing has been written.
        """
        scale = self._loss_scale(loss_scale)
        roster, parameters = self._tensors.ready()
        is_on_device = is_there(parameters)
        on_nonfinite = guard(self._on_nonfinite, self.max_norm, is_on_device)
        gradients = roster.gradients(grads)
        decided, skips = self._decided(roster, parameters, gradients, found_inf, on_nonfinite)
        # Functions of the step wait where the device counts.
        is_asked = callable(self.lr) or callable(self.strength)
        count, taken = self._taken() if is_asked else self._progress
        # Of a step that the host skips it works out the penalty.
        settings = self._settings(roster.rules, count, bool(decided.there) and not skips)
        names, which, is_ruled = roster.names, roster.which, roster.is_ruled
        if any(map(is_, gradients, repeat(None))):
            there = [one is not None for one in gradients]
            names, which = tuple(compress(names, there)), tuple(compress(which, there))
            parameters = tuple(compress(parameters, there))
            gradients = tuple(compress(gradients, there))
            is_ruled = tuple(compress(is_ruled, there))
        if decided.counts is not None:
            place_of_name = {name: place for place, name in enumerate(roster.names)}
            decided = decided._replace(places=[place_of_name[name] for name in names])
        if decided.is_captured:
            numbers = self.lr, self.strength
            decided = decided._replace(settings=lambda: self._again(roster, which, numbers))
        kept = self._kept_of(names, parameters, is_captured=decided.is_captured)
        first, second, largest = [*kept.picked, None, None, None][:3]
        before = tuple([taken.get(name, 0) for name in names])
        counts = dict(zip(names, [one + 1 for one in before], strict=True))
        old = self._kept, self._progress
        new = kept, (count + 1, {**taken, **counts})
        if decided.counts is not None:  # they count
            new = kept, self._progress

        def commit(is_taken: bool) -> None:
            self._kept, self._progress = new if is_taken else old

        outcome = take(
            Step(
                names,
                parameters,
                gradients,
                first,
                second,
                largest,
                before,
                settings,
                which,
                scale,
                self.max_norm,
                self._clips_data,
                on_nonfinite,
                decided=decided,
            ),
            found_inf=skips,
            commit=None if decided.is_captured else commit,
        )
        for arena in () if decided.is_captured else kept.arenas:
            arena.used()
        penalty: Any = 0.0
        zeros: Any = 0
        if outcome.on_device is None:
            penalty = backend.canonical_sum([*compress(outcome.penalties, is_ruled)])
            zeros = sum(outcome.zeros)
        elif any(is_ruled):
            penalty, zeros = outcome.on_device
        size = _size([*compress(parameters, is_ruled)])
        return StepRecord(penalty, outcome.norm, zeros, outcome.skipped, size)

    def _decided(
        self,
        roster: Roster,
        parameters: Arrays,
        gradients: Arrays,
        found_inf: Any,
        on_nonfinite: str,
    ) -> tuple[Decided, bool]:
        """Return what the device decides of a step, and whether the host skips it."""
        names = roster.names
        arrays = (*parameters, *[one for one in gradients if one is not None])
        captured = is_there(parameters) and is_capturing(arrays)
        stays = (
            is_there(parameters)
            and on_nonfinite != "raise"
            and found_inf is not None
            and cuda.is_on_cuda(found_inf)
        )
        skips = False
        if found_inf is not None and not stays:
            number = found_inf
            if cuda.is_on_cuda(found_inf):
                number = cuda.host_copy(found_inf, "found_inf")[0]
            skips = _is_found(number)
        if captured:
            require_capturable(on_nonfinite, False, skips)
            self._require_no_functions()
        counts_there = is_there(parameters) and on_nonfinite != "raise"
        there = self._numbers_there(roster.rules) if counts_there else ()
        if counts_there and (
            stays or captured or on_nonfinite == "skip" or self._counts is not None
        ):
            if self._counts is None or self._counts[1] != names:
                count, taken = self._taken()
                numbers = [taken.get(name, 0) for name in names]
                self._counts = Counts(place_of(parameters[0]), numbers, count), names
            found = found_inf if stays else None
            return Decided(self._counts[0], (), found, None, there, captured), skips
        if self._counts is not None:
            self._taken()
            self._counts = None
        return Decided(there=there, is_captured=captured), skips

    def _require_no_functions(self) -> None:
        for name in ("lr", "strength"):
            if callable(getattr(self, name)) and not is_number_there(getattr(self, name)):
                raise function_error(name)

    def _numbers_there(self, rules: tuple[Ruled | None, ...]) -> tuple[NumbersThere, ...]:
        """Return what the device has of each row of settings; nothing where it has none."""
        lr, strength = (one if is_number_there(one) else None for one in (self.lr, self.strength))
        if lr is None and strength is None:
            return ()
        initial = 1.0 if self._initial_lr is None else self._initial_lr
        return tuple(
            [NumbersThere(lr, initial, None if one is None else strength) for one in rules]
        )

    def _again(
        self, roster: Roster, which: tuple[int, ...], captured: tuple[Any, Any]
    ) -> tuple[tuple[Settings, ...], tuple[int, ...]]:
        """Return the settings of a step that was captured with a roster and numbers as they are."""
        now = self._tensors.ready()[0]
        if (now.names, now.which) != (roster.names, roster.which):
            raise RuntimeError(
                "the optimizer has other tensors than when its step was captured; capture again"
            )
        for name, one in zip(("lr", "strength"), captured, strict=True):
            require_as_captured(one, getattr(self, name), name)
        self._require_no_functions()
        return self._settings(now.rules, 0, True), which

    def state_dict(self) -> dict[str, Any]:
        """Return what the optimizer has learned: a flat mapping of NumPy arrays and plain numbers.

        ``numpy.savez(file, **state)`` and pickle keep it.  Arrays are copies, under the names that
        torch has for them, with "/" and the tensor's name behind; "step/..." is how many steps a
        tensor took.  Options are not in it: they are those of the constructor.
        """
        roster, _ = self._tensors.ready()
        return saved.written(self._name, self._state(), roster.names)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, also as ``numpy.load`` reads it.

        TypeError or ValueError, with the key, for another algorithm, other names, shapes, dtypes or
        arrays than the tensors and options have; then nothing has changed.
        """
        roster, arrays = self._tensors.ready()
        views, like = {}, {}
        for name, array in zip(roster.names, arrays, strict=True):
            views[name], dtype = cuda.any_view(array, f"tensors[{name!r}]")
            like[name] = views[name].shape, dtypes.stored(compute_dtype(dtype))
        found = saved.read(state, self._name, self._kinds, like)
        if is_there(arrays):
            kept = self._kept_of(roster.names, arrays, found.arrays)
        else:
            kept = _Kept(
                tuple(
                    {name: memory.copied_beside(views[name], one) for name, one in given.items()}
                    for given in found.arrays.values()
                )
            )
        self._kept = kept
        self._counts = None  # a graph goes on with those that it was captured with
        self._progress = found.steps, found.taken

    def _state(self) -> saved.State:
        count, taken = self._taken()
        return saved.State(count, taken, dict(zip(self._kinds, self._kept.arrays, strict=True)))

    def _loss_scale(self, loss_scale: Any) -> float:
        number = arguments.multiplier(loss_scale, "loss_scale")
        if not number > 0.0:
            raise ValueError(
                f"loss_scale must be a finite number > 0, not {errors.described(loss_scale)}"
            )
        return number

    def _settings(
        self, rules: tuple[Ruled | None, ...], count: int, stay: bool
    ) -> tuple[Settings, ...]:
        """Return the settings of this step; with `stay` numbers of the device are left to it."""
        lr = 0.0 if stay and is_number_there(self.lr) else number_of(self.lr, "lr", count)
        strength = 1.0
        if not (stay and is_number_there(self.strength)):
            strength = number_of(self.strength, "strength", count)
        factor = lr
        if self._initial_lr is not None:
            with Default():
                factor = lr / self._initial_lr
        plain = self._plain(lr)
        return tuple(
            plain if one is None else acting(plain, one, strength, factor, self._is_scaled)
            for one in rules
        )

    def _plain(self, lr: float) -> Settings:
        """Return the settings of tensors without a rule."""
        raise NotImplementedError

    def _kept_of(
        self,
        names: tuple[str, ...],
        parameters: Arrays,
        loaded: Any = None,
        is_captured: bool = False,
    ) -> _Kept:
        """Return the arrays that are kept, with zeros for tensors that have none yet.

        `loaded` are the numbers of the host that they are to have instead, on a device.
        """
        if loaded is None and self._kept.names is names:
            return self._kept
        kept = tuple(dict(arrays) for arrays in self._kept.arrays)
        if loaded is not None:
            kept = tuple({} for _ in self._kinds)
        missing: list[tuple[dict[str, Any], str, tuple[Any, str]]] = []
        for arrays in kept:
            for name, parameter in zip(names, parameters, strict=True):
                if name not in arrays:
                    view, dtype = cuda.any_view(parameter, f"tensors[{name!r}]")
                    missing.append((arrays, name, (view, compute_dtype(dtype))))
        if missing and is_captured:  # each replay would set it to zeros
            raise state_error(f"tensors[{missing[0][1]!r}]")
        arenas = self._kept.arenas if loaded is None else ()
        if missing and is_there(parameters):
            arena = Arena(place_of(parameters[0]), [like for _, _, like in missing])
            arenas = (*arenas, arena)
            made: list[Any] = [*arena.arrays]
        else:
            made = [
                memory.zeros_beside(view, dtypes.stored(dtype)) for _, _, (view, dtype) in missing
            ]
        for (arrays, name, _), array in zip(missing, made, strict=True):
            arrays[name] = array
        for kind, arrays in zip(self._kinds, kept, strict=True):
            for name, numbers in ({} if loaded is None else loaded[kind]).items():
                there: Any = arrays[name]
                filled(there, numbers)
        picked = tuple(tuple(map(one.__getitem__, names)) for one in kept)
        return _Kept(kept, names, picked, arenas)


class _Kept(NamedTuple):
    """The arrays that are kept of tensors, and those of the last step as the engine takes them."""

    arrays: tuple[saved.Arrays, ...]
    names: tuple[str, ...] | None = None
    picked: tuple[Arrays, ...] = ()
    arenas: tuple[Arena, ...] = ()
    """The memory of arrays that lie on a device."""


def _is_found(found_inf: Any) -> bool:
    try:
        return callables.number(found_inf, "found_inf") != 0.0
    except TypeError:
        shape = getattr(found_inf, "shape", None)
        what = errors.described(found_inf) + (f" of shape {tuple(shape)}" if shape else "")
        raise TypeError(
            f"found_inf must be a bool, or an array of one number, not {what}; pass True where a "
            "gradient is not finite"
        ) from None


def _size(arrays: Sequence[Any]) -> int:
    if not ALL_NUMPY(map(type, arrays)):
        arrays = [cuda.any_view(one, "tensors")[0] for one in arrays]
    return sum(map(attrgetter("size"), arrays))


def function_error(name: str) -> RuntimeError:
    """Return the error for a function of the step in the place of a number that is captured."""
    return RuntimeError(
        f"{name} is a function, which asks for the number of the step, and a step that is captured "
        f"into a CUDA graph has another one at each replay; set {name} to a 0-d array on the "
        "device, and write into it before each replay"
    )


def state_error(label: str) -> RuntimeError:
    """Return the error for state that a captured step would have to make."""
    return RuntimeError(
        f"{label} has no state yet, and a step that is captured into a CUDA graph cannot make it; "
        "take a step before the capture, or load a state"
    )


def flags(**given: tuple[Any, int]) -> int:
    """Return the flags of a step that are set, each given with its bit."""
    return sum(bit for name, (value, bit) in given.items() if arguments.flag(value, name))


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"Optimizer": Optimizer}
