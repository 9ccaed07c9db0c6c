"""What the optimizers have in common: groups of parameters, rules, the step, what is saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Any, ClassVar, NamedTuple, TypeVar, overload

import torch

from ..._arrays import torch_shards
from ..._base import arguments, errors, steps
from ..._base.array_types import Real
from ..._base.float_environment import Default
from ..._base.steps import Settings
from ..._engine import backend
from ..._engine.cuda_steps import Counts, Decided, NumbersThere, is_capturing, is_there, place_of
from ..._engine.steps import require_capturable, take
from ...optimizers import StepRecord
from ...optimizers.base import (
    CLIPS,
    ON_NONFINITE,
    Clip,
    OnNonfinite,
    Rate,
    function_error,
    guard,
    is_number_there,
    number_of,
    rate,
    require_as_captured,
)
from ...optimizers.rules import MODES, Mode, acting, require_acting
from ...penalties.names import counted
from .. import kinds as kinds_of
from ..in_backward import outside_of_graphs
from . import state
from .options import OF_ALL_GROUPS, positive, require_known_ways
from .prepared import NamedStep, Prepared, Roster, label_of, unnamed
from .processes import processes_of
from .rules import ModedRules, ParameterRules, Parameters, needs_kinds

Loss = TypeVar("Loss")

_STEPS = "fastreg_steps"
"""The number of steps in the groups of a state dict."""


class _Sharded:
    """A record whose penalty and zeros have not been summed over the processes yet."""

    def __init__(self, record: StepRecord, penalties: Any, zeros: Any, parameters: Any) -> None:
        self._record = record
        self._values = [*penalties, *zeros]
        self._parameters = parameters

    def summed(self) -> StepRecord:
        count = len(self._parameters)
        values = torch_shards.summed(self._values, (*self._parameters, *self._parameters))
        return self._record._replace(
            penalty=backend.canonical_sum(values[:count]), zeros=int(sum(values[count:]))
        )


class _Scaling(NamedTuple):
    """What ``GradScaler`` has left to the step: tensors on a device that are not waited for."""

    scale: Any = None
    found_inf: Any = None

    @property
    def is_there(self) -> bool:
        return self.scale is not None or self.found_inf is not None


class Penalised(torch.optim.Optimizer):  # type: ignore[misc]
    """What :class:`SGD` and :class:`AdamW` have in common."""

    _algorithm: ClassVar[int]
    _is_scaled = True
    _kinds: ClassVar[tuple[str, ...]]
    """What torch calls the tensors that are kept of each parameter."""
    _step_supports_amp_scaling = True
    """``GradScaler`` gives its scale and what it found to the step, which unscales."""

    strength: arguments.Checked[Rate] = arguments.Checked(
        rate, "What all strengths are multiplied with: a number >= 0, or a function of the step."
    )
    max_norm: arguments.Checked[float | None] = arguments.Checked(
        lambda value, name: None if value is None else arguments.bound(value, name),
        "The bound of the clip, or None for no clip.",
    )

    def __init__(
        self,
        params: Parameters,
        defaults: dict[str, Any],
        *,
        rules: ModedRules,
        mode: Mode,
        strength: Rate,
        independent: bool,
        initial_lr: Real | None,
        cautious: bool,
        max_norm: Real | None,
        clip: Clip,
        on_nonfinite: OnNonfinite | None,
    ) -> None:
        self.strength = strength
        self.max_norm = max_norm
        self._is_independent = arguments.flag(independent, "independent")
        self._initial_lr = None if initial_lr is None else positive(initial_lr, "initial_lr")
        self._is_cautious = arguments.flag(cautious, "cautious")
        self._clips_data = arguments.choice(clip, "clip", CLIPS) == "data"
        if on_nonfinite is not None:
            arguments.choice(on_nonfinite, "on_nonfinite", ON_NONFINITE)
        self._on_nonfinite = on_nonfinite
        kinds = None
        if isinstance(params, torch.nn.Module):
            kinds = kinds_of.kinds(params) if needs_kinds(rules) else None
            params = params.named_parameters(remove_duplicate=False)
        self._rules = None if rules is None else ParameterRules(rules, mode, kinds)
        if rules is None:
            arguments.choice(mode, "mode", MODES)
        self._aliases: dict[str, str] = {}
        self._names: list[list[str]] = []
        self._ruled: list[list[Any]] = []
        self._first_lr: list[float] = []
        self._is_made = False
        self._steps = 0
        self._last: StepRecord | _Sharded | None = None
        self._forget()
        super().__init__(params, defaults)
        self._match()
        require_acting(
            () if self._rules is None else self._rules.modes,
            self._is_cautious,
            self._is_independent,
            not self._is_scaled,
        )
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        # As torch's, but for the names of options, which would be taken for what they are not.
        if name in (*OF_ALL_GROUPS, "initial_lr") and not hasattr(type(self), name):
            raise AttributeError(
                f"{name!r} of an optimizer cannot be set: it would do nothing; strength and "
                "max_norm can, and so can the strengths of its rules; make a new optimizer"
            )
        if name in self.__dict__.get("defaults", ()):
            raise AttributeError(
                f"{name!r} of an optimizer cannot be set: it would do nothing; set it in the "
                f"groups, group[{name!r}] = ... for group in optimizer.param_groups"
            )
        super().__setattr__(name, value)

    _counts: tuple[Counts, tuple[Any, ...]] | None = None
    """Where the device counts the steps, with the parameters."""
    _is_captured = False
    """Whether a graph uses the state that there is."""

    def _forget(self) -> None:
        """Drop what is kept between steps."""
        self._count_here()
        self._is_captured = False
        self._roster: Roster | None = None
        self._prepared: Prepared | None = None
        self._plain: dict[int, tuple[tuple[Any, ...], Settings]] = {}
        self._initials: dict[int, tuple[Any, int, float]] = {}

    @property
    def steps(self) -> int:
        """How many steps the optimizer took; one that was skipped does not count.

        Of parameters on a device that may have skipped some it is waited for.
        """
        self._read_counts()
        return self._steps

    def _read_counts(self) -> None:
        """Bring the state up to what the device has counted."""
        if self._counts is None:
            return
        counts, parameters = self._counts
        taken, self._steps = counts.read(parameters[0])
        for parameter, number in zip(parameters, taken, strict=True):
            kept = self.state.get(parameter)
            if kept is None:
                continue
            if self._algorithm == steps.ADAMW:
                kept[state.STEP] = number
            elif number == 0 and not self._is_captured:  # a momentum that holds nothing yet
                kept.pop(self._kinds[0], None)

    def _count_here(self) -> None:
        """Count steps on the host from now on."""
        self._read_counts()
        self._counts = None

    def _decided(
        self,
        roster: Roster,
        there: tuple[bool, ...] | None,
        scaling: _Scaling,
        on_nonfinite: str,
        stays: bool,
        captured: bool,
    ) -> Decided:
        """Return what the device decides of the next step: what the host cannot know."""
        is_wanted = stays and (
            captured
            or scaling.is_there
            or on_nonfinite == "skip"
            or self._counts is not None
            or self._is_capturable
        )
        numbers = self._numbers_there(roster) if stays else ()
        if not is_wanted:
            self._count_here()
            return Decided(there=numbers)
        if self._counts is None:
            taken = [self._taken_of(self.state.get(one, {})) for one in roster.parameters]
            counts = Counts(place_of(roster.parameters[0]), taken, self._steps)
            self._counts = counts, roster.parameters
        places = [*range(len(roster.parameters))]
        if there is not None:
            places = [*compress(places, there)]
        found = self._counts[0], places, scaling.found_inf, scaling.scale, numbers, captured
        return Decided(*found)

    def _taken_of(self, kept: Mapping[str, Any]) -> int:
        if self._algorithm == steps.ADAMW:
            return state.count(kept.get(state.STEP, 0), "a parameter")
        return int(kept.get(self._kinds[0]) is not None)

    @property
    def last(self) -> StepRecord | None:
        """What the last step has come to; None before the first.

        Of sharded parameters it is summed when it is first read: read it in all processes.
        """
        if isinstance(self._last, _Sharded):
            self._last = self._last.summed()
        return self._last

    # ------------------------------------------------------------------------------- the step

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], Loss]) -> Loss: ...
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step: update all parameters that have a gradient in place, or none.

        Parameters
        ----------
        closure : function, optional
            It computes the loss and its gradients, and returns the loss.

        Returns
        -------
        torch.Tensor, float or None
            What `closure` returned.  :attr:`last` is the record of the step.

        Raises
        ------
        TypeError, ValueError
            For a gradient that does not fit, is sparse, or is not finite where `on_nonfinite` is
            "raise", with the parameter's name; for options of a group that are no numbers >= 0.
            Then parameters, state and counts are as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        _step(self)
        return loss

    def _take(self) -> None:
        roster = self._roster
        if roster is None or not roster.is_of(self.param_groups):
            self._forget()
            self._roster = roster = Roster(self.param_groups, self._names, self._ruled)
        is_on_device = is_there(roster.parameters)
        if self._is_capturable and not is_on_device:
            raise ValueError(
                "capturable=True is for parameters on CUDA, and these are in host memory; leave it "
                "out, or move the module before the optimizer is made"
            )
        on_nonfinite = guard(self._on_nonfinite, self.max_norm, is_on_device)
        stays = is_on_device and on_nonfinite != "raise" and not roster.has_dtensors
        loss_scale, found_inf, scaling = self._scaling(stays)
        gradients = [parameter.grad for parameter in roster.parameters]
        there = None
        if type(None) in set(map(type, gradients)):
            there = tuple([gradient is not None for gradient in gradients])
            gradients = [*compress(gradients, there)]
        captured = is_on_device and is_capturing(roster.parameters[:1])
        if captured:
            self._require_capturable(roster, on_nonfinite, found_inf)
        decided = self._decided(roster, there, scaling, on_nonfinite, stays, captured)
        # Of a step that the host skips it works out the penalty.
        settings = self._settings(roster, stays and not found_inf)
        needs = _needs(settings)
        now = self._prepared
        is_new = now is None or not now.is_current(there, self.state, needs)
        if now is None or is_new:
            now = Prepared(
                roster,
                there,
                self.state,
                self._kinds,
                needs,
                self._algorithm == steps.ADAMW,
                may_add=not decided.is_captured,
            )
            self._prepared = now
        if decided.is_captured:
            decided = decided._replace(settings=self._again(roster, now, needs))
            self._is_captured = True
        processes = None
        if roster.has_dtensors and (self.max_norm is not None or on_nonfinite != "ignore"):
            question = f"a step clipped to {self.max_norm} with on_nonfinite={on_nonfinite!r}"
            processes = processes_of(now.names, now.parameters, question)
        prepared, count = now, self._steps

        def commit(is_taken: bool) -> None:
            prepared.count(self.state, is_taken)
            if decided.counts is None:
                self._steps = count + int(is_taken)

        try:
            outcome = take(
                NamedStep(
                    now.names,
                    now.local_parameters,
                    torch_shards.local_gradients(gradients, now.parameters, now.names),
                    *now.states,
                    now.taken,
                    settings,
                    now.which,
                    loss_scale,
                    self.max_norm,
                    self._clips_data,
                    on_nonfinite,
                    ("parameters", "gradients"),
                    decided,
                ),
                found_inf=found_inf,
                processes=processes,
                judges=processes is not None and is_new,
                commit=None if decided.is_captured else commit,
                per_tensor=roster.has_dtensors,
            )
        except Exception as error:
            if processes is not None and not found_inf:
                processes.refuse(error)
            if isinstance(error, TypeError):
                _require_dense(gradients, now.names)
            raise
        # Where the device decides it is not waited for.
        if outcome.skipped is not True and not decided.is_captured:
            now.was_taken(self.state)
        record = StepRecord(0.0, outcome.norm, 0, outcome.skipped, now.size())
        if outcome.on_device is not None:
            if any(now.is_ruled):
                penalty, all_zeros = outcome.on_device
                record = record._replace(penalty=penalty, zeros=all_zeros)
            self._last = record
            return
        penalties = [*compress(outcome.penalties, now.is_ruled)]
        if roster.has_dtensors:
            parameters = tuple(compress(now.parameters, now.is_ruled))
            zeros = compress(outcome.zeros, now.is_ruled)
            self._last = _Sharded(record, penalties, zeros, parameters)
        else:
            penalty = backend.canonical_sum(penalties)
            self._last = record._replace(penalty=penalty, zeros=sum(outcome.zeros))

    def _scaling(self, stays: bool) -> tuple[float, bool, _Scaling]:
        """Return what ``GradScaler`` has left to the step: its scale, and whether to skip.

        With `stays` numbers on a device are left there.
        """
        scale = getattr(self, "grad_scale", None)
        found = getattr(self, "found_inf", None)
        there = _Scaling()
        if stays and _is_number_there(found):
            there, found = there._replace(found_inf=found), None
        if found is not None and bool(found):
            return 1.0, True, _Scaling()
        if stays and _is_number_there(scale):
            there, scale = there._replace(scale=scale), None
        return 1.0 if scale is None else positive(scale, "grad_scale"), False, there

    # ------------------------------------------------------------------------------- its numbers

    @property
    def _is_capturable(self) -> bool:
        return any([group.get("capturable") for group in self.param_groups])

    def _numbers_there(self, roster: Roster) -> tuple[NumbersThere, ...]:
        """Return what the device has of each row of settings; nothing where it has none."""
        rates = [group["lr"] for group in self.param_groups]
        lr = [one if is_number_there(one) else None for one in rates]
        strength = self.strength if is_number_there(self.strength) else None
        if strength is None and not any([one is not None for one in lr]):
            return ()
        return tuple(
            [
                NumbersThere(
                    lr[group],
                    1.0 if lr[group] is None else self._divisor(group, one),
                    None if one is None else strength,
                    f"param_groups[{group}]['lr']",
                )
                for group, one in roster.acting
            ]
        )

    def _require_capturable(self, roster: Roster, on_nonfinite: str, found_inf: bool) -> None:
        require_capturable(on_nonfinite, roster.has_dtensors, found_inf)
        if callable(self.strength) and not is_number_there(self.strength):
            raise function_error("strength")
        for number, group in enumerate(self.param_groups):
            for name in self.defaults.keys() - {"lr"}:
                value = group.get(name)
                values = value if isinstance(value, (tuple, list)) else (value,)
                if any(map(is_number_there, values)):
                    raise RuntimeError(
                        f"param_groups[{number}][{name!r}] has a tensor on the device, which would "
                        "be waited for, and a step that is captured into a CUDA graph cannot; give "
                        "it as a number"
                    )

    def _again(
        self, roster: Roster, now: Prepared, needs: Any
    ) -> Callable[[], tuple[tuple[Settings, ...], tuple[int, ...]]]:
        """Return the function that gives the settings of a captured step anew."""
        rates = [group["lr"] for group in self.param_groups]
        strength, which = self.strength, now.which

        def again() -> tuple[tuple[Settings, ...], tuple[int, ...]]:
            if self._roster is not roster or not roster.is_of(self.param_groups):
                raise RuntimeError(
                    "the optimizer has other parameters than when its step was captured, or has "
                    "loaded a state; capture again"
                )
            for number, (one, group) in enumerate(zip(rates, self.param_groups, strict=True)):
                require_as_captured(one, group["lr"], f"param_groups[{number}]['lr']")
            require_as_captured(strength, self.strength, "strength")
            settings = self._settings(roster, True)
            if _needs(settings) != needs:
                raise RuntimeError(
                    "the optimizer has begun or ended a momentum or amsgrad since its step was "
                    "captured; capture again"
                )
            return settings, which

        return again

    def _settings(self, roster: Roster, stay: bool) -> tuple[Settings, ...]:
        """Return the settings of this step; with `stay` numbers of the device are left to it."""
        plain = [self._plain_of(number, stay) for number in range(len(self.param_groups))]
        if self._rules is None:
            return tuple([plain[group] for group, _ in roster.acting])
        strength: Any = self.strength
        if is_number_there(strength):
            strength = 1.0 if stay else number_of(strength, "strength", 0)
        elif callable(strength):
            strength = number_of(strength, "strength", self.steps)
        return tuple(
            [
                plain[group] if one is None else self._acting(group, plain[group], one, strength)
                for group, one in roster.acting
            ]
        )

    def _acting(self, group: int, plain: Settings, one: Any, strength: float) -> Settings:
        with Default():
            factor = plain.lr / self._divisor(group, one)
        return acting(plain, one, strength, factor, self._is_scaled)

    def _divisor(self, group: int, one: Any) -> float:
        """Return what the learning rate is divided by for decoupled strengths."""
        is_divided = self._is_independent and one is not None and one.mode == "decoupled"
        return self._initial(group) if is_divided else 1.0

    def _initial(self, group: int) -> float:
        if self._initial_lr is not None:
            return self._initial_lr
        label = f"param_groups[{group}]['initial_lr']"
        found = self.param_groups[group].get("initial_lr")
        if not is_number_there(found):
            return self._first_lr[group] if found is None else positive(found, label)
        known = self._initials.get(group)
        if known is None or known[0] is not found or known[1] != found._version:
            if is_capturing((found,)):
                raise RuntimeError(
                    f"{label} is a tensor on the device that no step has read yet, and one that is "
                    "captured into a CUDA graph cannot wait for it; take a step before the capture"
                )
            known = self._initials[group] = found, found._version, positive(found, label)
        return known[2]

    def _plain_of(self, number: int, stay: bool) -> Settings:
        """Return the settings of a group without a rule."""
        group = self.param_groups[number]
        if stay and is_number_there(group["lr"]):
            group = {**group, "lr": 0.0}  # the device has it
        raw = self._numbers(group)
        is_fixed = _FIXED.issuperset(map(type, raw))  # no tensors, nor what else changes in place
        known = self._plain.get(number) if is_fixed else None
        if known is not None and known[0] == raw:
            return known[1]
        found = self._checked(group, f"param_groups[{number}]")
        if is_fixed:
            self._plain[number] = raw, found
        return found

    def _numbers(self, group: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what the settings of a group are made of."""
        raise NotImplementedError

    def _checked(self, group: Mapping[str, Any], label: str) -> Settings:
        """Return the settings of a group, judged; `label` is its name in errors."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as ``torch.optim.Optimizer`` does.

        Rules are matched again, with the names of all groups.  If something is wrong, it has not
        been added.
        """
        if isinstance(param_group, dict) and "params" in param_group:
            self._fold_ties(param_group)
        count = len(self.param_groups)
        super().add_param_group(param_group)
        if not self._is_made:
            return
        aliases = dict(self._aliases)
        try:
            self._match()
        except BaseException:
            del self.param_groups[count:]
            self._aliases = aliases
            raise

    def _fold_ties(self, param_group: dict[str, Any]) -> None:
        """Leave out parameters that are there a second time, and note their further names."""
        params = param_group["params"]
        if isinstance(params, (torch.Tensor, set)):
            return
        first: dict[int, Any] = {}
        params = param_group["params"] = list(params)
        once = []
        for one in params:
            name, tensor = one if isinstance(one, tuple) and len(one) == 2 else (None, one)
            if id(tensor) not in first:
                first[id(tensor)] = name
                once.append(one)
            elif name is not None:
                self._aliases[name] = first[id(tensor)]
        param_group["params"] = once

    def _match(self) -> None:
        """Judge the groups, and find what acts on each parameter; nothing changes on an error."""
        groups = self.param_groups
        initial = [*self._first_lr]
        names = [*self._names]
        for number, group in enumerate(groups):
            settings = self._checked(group, f"param_groups[{number}]")
            require_known_ways(group, f"param_groups[{number}]")
            if number >= len(initial):
                initial.append(settings.lr)
                names.append(_names_of(group, number))
        ruled = self._matched()
        if self._is_independent and self._initial_lr is None and 0.0 in initial:
            raise ValueError(
                "lr must be a number > 0 where independent=True, not 0.0: the decoupled strengths "
                "are multiplied with lr / initial_lr; pass initial_lr"
            )
        self._first_lr, self._names, self._ruled = initial, names, ruled
        self._forget()

    def _matched(self) -> list[list[Any]]:
        groups = self.param_groups
        if self._rules is None:
            return [[None] * len(group["params"]) for group in groups]
        names: list[list[str]] = []
        for number, group in enumerate(groups):
            if self._rules.are_by_name and "param_names" not in group:
                raise TypeError(
                    "rules go by name, but params are tensors without names; pass the module, its "
                    "named_parameters(), or groups whose params are pairs (name, parameter)"
                )
            names.append(_names_of(group, number))
        by_name: dict[str, Any] = {}
        for group, given in zip(groups, names, strict=True):
            for name, parameter in zip(given, group["params"], strict=True):
                if by_name.setdefault(name, parameter) is not parameter:
                    raise ValueError(
                        f"two parameters have the name {name!r}, so rules cannot tell them apart; "
                        "give one of them another name in its pair (name, parameter)"
                    )
        found = self._rules.of(by_name, self._aliases)
        return [[found.get(name) for name in given] for given in names]

    def __repr__(self) -> str:
        text: str = super().__repr__()
        if self._rules is None:
            return text
        pairs = [
            (name, one)
            for names, ruled in zip(self._names, self._ruled, strict=True)
            for name, one in zip(names, ruled, strict=True)
        ]
        named = [name for name, one in pairs if one is not None]
        return f"{text}\nwith rules for {counted(named, len(pairs), 'parameters')}"

    # ------------------------------------------------------------------------------- what is saved

    def state_dict(self) -> dict[str, Any]:
        """Return what ``torch.optim`` returns for its optimizer of the same name.

        It can be loaded there.  Moments of half-precision parameters are in float32.  Rules and
        the other options of the constructor are not in it.
        """
        self._read_counts()
        handle = self.register_state_dict_post_hook(_as_torch_has_it, prepend=True)
        try:
            found: dict[str, Any] = super().state_dict()
        finally:
            handle.remove()
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what this :meth:`state_dict` or that of torch's optimizer has returned.

        Moments stay in float32 for half-precision parameters.  Tensors that have the right dtype,
        device and layout are taken as they are, not copied, as torch does.  Options that the dict
        lacks stay as they are.

        Raises
        ------
        ValueError
            For other groups, shapes or options that are not right; then nothing has changed.
        """
        handle = self.register_load_state_dict_pre_hook(lambda _, given: state.hold(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        self._read_counts()
        ours = {name: value for name, value in self.__dict__.items() if name in _KEPT}
        return {**super().__getstate__(), **ours}

    def __setstate__(self, found: dict[str, Any]) -> None:
        if "_ruled" in found:  # of a pickle or a copy
            super().__setstate__(found)
            self._forget()
            return
        groups = [
            {**now, **given}
            for now, given in zip(self.param_groups, found["param_groups"], strict=True)
        ]
        counts = [_steps_of(group.pop(_STEPS)) for group in groups if _STEPS in group]
        for number, (group, now) in enumerate(zip(groups, self.param_groups, strict=True)):
            # What torch's optimizer of a device was told does not bind this one.
            for name in _OURS:
                group.pop(name, None)
            group.update({name: now[name] for name in _OURS if name in now})
            self._checked(group, f"param_groups[{number}]")
            require_known_ways(group, f"param_groups[{number}]")
        labels = {
            id(one): label_of(name)
            for group, names in zip(groups, self._names, strict=True)
            for one, name in zip(group["params"], names, strict=True)
        }
        kept = found["state"]
        for parameter, one in [*kept.items()]:
            if id(parameter) in labels and isinstance(one, dict):
                label, counts_steps = labels[id(parameter)], self._algorithm == steps.ADAMW
                kept[parameter] = state.loaded(parameter, label, one, counts_steps)
        self._counts = None
        counts += [one[state.STEP] for one in kept.values() if state.STEP in one]
        super().__setstate__({**found, "param_groups": groups})
        self._steps = max(counts, default=self._steps)
        self._forget()


def _needs(settings: Sequence[Settings]) -> tuple[tuple[bool, ...], ...]:
    return tuple([(one.has_first, one.has_second, one.has_largest) for one in settings])


def _is_number_there(x: Any) -> bool:
    return type(x) is torch.Tensor and is_there((x,)) and x.dtype == torch.float32


_FIXED = {bool, int, float, type(None)}
_OURS = ("capturable", "decoupled_weight_decay")
_KEPT = (
    "_strength",
    "_max_norm",
    "_is_independent",
    "_initial_lr",
    "_is_cautious",
    "_is_scaled",
    "_clips_data",
    "_on_nonfinite",
    "_rules",
    "_aliases",
    "_names",
    "_ruled",
    "_first_lr",
    "_is_made",
    "_steps",
    "_last",
)
"""Attributes that a copy has as well."""

_step = outside_of_graphs(Penalised._take)


def _steps_of(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(
            f"{_STEPS!r} of a group must be a number of steps, not {errors.described(value)}"
        )
    return value


def _names_of(group: Mapping[str, Any], number: int) -> list[str]:
    names = group.get("param_names")
    return unnamed(number, len(group["params"])) if names is None else [*names]


def _require_dense(gradients: Sequence[Any], names: Sequence[str]) -> None:
    for gradient, name in zip(gradients, names, strict=True):
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"the gradient of {label_of(name)} is sparse ({gradient.layout}), and a step is of "
                "dense ones; make the module with sparse=False, or use torch.optim.SparseAdam for "
                "it"
            ) from None


def _as_torch_has_it(optimizer: Penalised, state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [{**group, _STEPS: optimizer.steps} for group in state_dict["param_groups"]]
    kept = state.saved(state_dict["state"])
    if optimizer._is_capturable:  # there torch has it on the device
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        for place, one in kept.items():
            if isinstance(one.get(state.STEP), torch.Tensor):
                kept[place] = {**one, state.STEP: one[state.STEP].to(parameters[place].device)}
    return {**state_dict, "state": kept, "param_groups": groups}
