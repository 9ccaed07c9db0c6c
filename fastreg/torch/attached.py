"""Penalties on the parameters of a module: attach, and the calls that a training loop makes."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, overload

import torch

from .._autodiff.torch import engines
from .._base.array_types import Real
from ..penalties import ProxRecord, Report
from ..penalties.names import counted
from ..penalties.rules import Rule
from . import in_backward, proximal
from .activity import Activity
from .module_penalties import ModulePenalties, summed
from .parameters import ModuleRules, require_module
from .steps import UNSAID, StepHandle, checked_max_norm, unwrapped, warn_of_weight_decay


def attach(
    module: torch.nn.Module,
    rules: ModuleRules,
    activity_regularizer: Mapping[str, Rule] | None = None,
    *,
    activity_reduction: Literal["mean", "sum"] = "mean",
    activity_batch_axis: int | Mapping[str, Any] = 0,
    allow_unmatched: bool = False,
) -> Penalties:
    """Put penalties on the parameters of a module, by name.

    Parameters
    ----------
    module : torch.nn.Module
        It is kept, and its parameters are read at every call: one that was replaced, moved, frozen
        or tied since is seen.
    rules : Kernels, mapping, function of name and parameter, or regularizer
        ``kernels(regularizer)`` is for the weights that multiply activations.  Or globs over
        ``module.named_parameters()``, each with what ``fastreg.regularizers.get`` takes, such a
        rule for kernels, or None for "no penalty".  The first glob that matches a name wins; a name
        that none matches has no penalty.  A function ``f(name, parameter)`` gives the regularizer
        of each, or None.  One regularizer is for all parameters.
    activity_regularizer : mapping, optional
        Globs over ``module.named_modules()``, each with the regularizer of what that module gives.
        See :meth:`Penalties.activity`.
    activity_reduction : {"mean", "sum"}, optional
        Whether activity penalties are divided by the batch size, as in Keras since 3.14.
    activity_batch_axis : int or mapping, optional
        The batch axis of what modules give that do not say it (by ``batch_first``); or globs over
        modules with an activity regularizer, each with an axis, or, for a module that gives a tuple
        or dict, with the axes of its parts as they are nested (None: does not count), for example
        ``{"encoder": (0, None), "decoder": {"hidden": 1}}``.
    allow_unmatched : bool, optional
        Whether globs may match nothing: for one mapping of rules for all stages of a pipeline.
        :attr:`Penalties.unmatched` lists them, so that what matches in no stage can be found.

    Returns
    -------
    Penalties

    Raises
    ------
    TypeError
        When `module` is no module, or a rule is no regularizer.
    ValueError
        When a rule never wins, or tied parameters have different rules.

    Examples
    --------
    >>> import torch, fastreg.torch
    >>> from fastreg import regularizers
    >>> model = torch.nn.Linear(2, 1)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> penalties = attach(model, {"*weight": regularizers.L1(0.5)})
    >>> model(torch.zeros(1, 2)).sum().backward()
    >>> penalties.accumulate()
    1.0
    >>> model.weight.grad
    tensor([[0.5000, 0.5000]])

    No penalty on biases, norms and embeddings:

    >>> penalties = attach(model, fastreg.torch.kernels(regularizers.L2(1e-4)))
    """
    return Penalties(
        module,
        rules,
        activity_regularizer,
        activity_reduction=activity_reduction,
        activity_batch_axis=activity_batch_axis,
        allow_unmatched=allow_unmatched,
    )


class Penalties:
    """Penalties on the parameters of a module; made by :func:`attach`.

    `scale` multiplies penalties and gradients, `grad_scale` gradients alone.

    A parameter that requires no gradient has no penalty.  A rule may be any callable of one tensor:
    where it offers no ``gradient(w)``, autograd differentiates the 0-d tensor that it gives.

    In host memory penalties are floats.  On a CUDA device they stay there, 0-d, and nothing waits.
    Of parameters that are sharded (FSDP2) each process adds the gradients of its shards, without
    communication; a penalty is summed over the processes, so all have to ask for it.

    It can be used as a context manager, which closes it.  Copies of the module have no penalties.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        rules: ModuleRules,
        activity_regularizer: Mapping[str, Rule] | None = None,
        *,
        activity_reduction: Literal["mean", "sum"] = "mean",
        activity_batch_axis: int | Mapping[str, Any] = 0,
        allow_unmatched: bool = False,
    ) -> None:
        require_module(module)
        self._arguments = (
            module,
            rules,
            activity_regularizer,
            activity_reduction,
            activity_batch_axis,
            allow_unmatched,
        )
        self._attach()

    def _attach(self) -> None:
        module, rules, activity_regularizer, reduction, batch_axis, allow = self._arguments
        self._penalties = ModulePenalties(module, rules, allow)
        self._last: Any = None
        self._activity = Activity(module, activity_regularizer, reduction, batch_axis, allow)

    def __getattr__(self, name: str) -> Any:
        # Of a copy whose module was not there yet.
        if name in ("_penalties", "_last", "_activity") and "_arguments" in self.__dict__:
            self._attach()
            return self.__dict__[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def rules(self) -> dict[str, Any]:
        """The regularizers by glob; set their strengths to change penalties.  Empty of a function.

        >>> import torch
        >>> attach(torch.nn.Linear(2, 1), {"weight": "l2"}).rules
        {'weight': L2(l2=0.01)}
        """
        return dict(self._penalties.planner.rules.by_glob)

    @property
    def unmatched(self) -> list[str]:
        """The globs that match no parameter of the module, where ``allow_unmatched`` is True.

        >>> import torch
        >>> rules = {"weight": "l2", "head.*": "l1"}
        >>> attach(torch.nn.Linear(2, 1), rules, allow_unmatched=True).unmatched
        ['head.*']
        """
        self._penalties.current()
        return list(self._penalties.planner.unmatched)

    def __repr__(self) -> str:
        plan, _ = self._penalties.current()
        parameters = self._penalties.parameters.by_name
        return f"<Penalties on {counted(plan.names, len(parameters), 'parameters')}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, self._arguments

    def __enter__(self) -> Penalties:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove all hooks from the module and the optimizer."""
        self._activity.close()
        if self._penalties.step is not None:
            self._penalties.step.remove()
            self._penalties.step = None

    @overload
    def accumulate(
        self, *, scale: Real = 1.0, grad_scale: Real = 1.0, value: Literal[True] = True
    ) -> float | torch.Tensor: ...
    @overload
    def accumulate(
        self, *, scale: Real = 1.0, grad_scale: Real = 1.0, value: Literal[False]
    ) -> None: ...
    @overload
    def accumulate(
        self, *, scale: Real = 1.0, grad_scale: Real = 1.0, value: bool
    ) -> float | torch.Tensor | None: ...
    def accumulate(self, *, scale: Real = 1.0, grad_scale: Real = 1.0, value: bool = True) -> Any:
        """Add the gradients of all penalties to the ``.grad`` of the parameters.

        Call it once per optimizer step, after the last ``backward()``.  A ``.grad`` that is missing
        is made, as the penalty in the loss would have made it.

        Parameters
        ----------
        scale, grad_scale : float, optional
            Factors; `grad_scale` is that of loss scaling, where gradients have not been unscaled.
        value : bool, optional
            False where the penalty is not needed: sharded parameters need no communication then.

        Returns
        -------
        float, torch.Tensor or None
            The penalty; 0-d on a CUDA device, None without `value`.

        Raises
        ------
        TypeError, ValueError
            For a gradient that does not fit its parameter, before anything is written.
        RuntimeError
            When :meth:`before_step` or the last ``backward()`` added them already, and for activity
            penalties that are in no loss.

        Examples
        --------
        >>> import torch
        >>> from fastreg import regularizers
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> attach(model, regularizers.L2(0.5)).accumulate(grad_scale=2.0**10)
        1.0
        >>> model.weight.grad
        tensor([[1024., 1024.]])
        """
        if torch.compiler.is_compiling():
            return _outside_of_graphs(
                self.accumulate, {"scale": scale, "grad_scale": grad_scale, "value": value}
            )
        if self._is_before_steps():
            raise RuntimeError(
                "before_step(optimizer) adds these penalties at each optimizer.step(), so they "
                "would count twice; drop this call, or remove() the handle of before_step"
            )
        if self._penalties.is_in_gradients():
            raise RuntimeError(
                "the last backward() added these penalties to the gradients already, as value() "
                "was in its loss, so they would count twice; drop this call, or take value() out "
                "of the loss"
            )
        if self._activity.rules is not None:
            self._activity.require_taken()
        return summed(self._penalties.add(scale, grad_scale, value, not torch.is_grad_enabled()))

    def value(
        self, *, tensors: Mapping[str, torch.Tensor] | None = None, scale: Real = 1.0
    ) -> torch.Tensor | float:
        """Return the penalty of all parameters; in a loss, ``loss + penalties.value()``.

        Parameters
        ----------
        tensors : mapping, optional
            Tensors by the names of the parameters, instead of them: what
            ``torch.func.functional_call`` takes.  Those that have no penalty need not be there.
        scale : float, optional
            A factor.

        Returns
        -------
        torch.Tensor or float
            While torch records gradients, a 0-d tensor that is differentiable.  An ordinary
            ``backward()`` adds the gradients to ``.grad`` in one native call when all others are
            there, for parameters in host memory; elsewhere autograd adds them.  Under
            ``torch.no_grad()`` what :meth:`accumulate` gives.

        Raises
        ------
        TypeError, ValueError
            For `tensors` that is no mapping, or has no tensor for a parameter with a penalty.
        RuntimeError
            While torch records gradients, when :meth:`before_step` adds them already.  (In the
            backward pass: where a parameter was modified in place since.)

        Examples
        --------
        >>> import torch
        >>> from fastreg import regularizers
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> penalties = attach(model, regularizers.L2(0.5))
        >>> loss = model(torch.zeros(1, 2)).sum() + penalties.value()
        >>> loss.backward()
        >>> model.weight.grad
        tensor([[1., 1.]])
        >>> with torch.no_grad():
        ...     penalties.value()
        1.0
        """
        if torch.is_grad_enabled() and self._is_before_steps():
            raise RuntimeError(
                "before_step(optimizer) adds these penalties at each optimizer.step(), so they "
                "would count twice with value() in the loss; remove() the handle of before_step, "
                "or, for a look at the value, read penalties.last or call value() under "
                "torch.no_grad()"
            )
        if self._activity.rules is not None:
            self._activity.require_taken_since()
        if torch.compiler.is_compiling():
            return _outside_of_graphs(self._penalties.value, {"scale": scale, "tensors": tensors})
        return self._penalties.value(scale, tensors)

    def prox(self, step: Real, *, scale: Real = 1.0) -> ProxRecord:
        """Take the proximal step of all penalties on the parameters, in place, not recorded.

        Call it after ``optimizer.step()``, with the learning rate as `step`, and without the
        penalty in the gradients: it is all that the penalty does.  What L1 makes small becomes
        exactly 0.  The state of the optimizer stays as it is.

        Parameters
        ----------
        step : float
            Finite and >= 0.
        scale : float, optional
            A factor >= 0 of the penalties.

        Returns
        -------
        ProxRecord
            The penalty of the parameters as they are now, and how many of their elements are 0, of
            the same pass.  Sharded parameters are summed over the processes, all of which have to
            call it.

        Raises
        ------
        TypeError
            For parameters on a CUDA device, and for a rule that is a function without a
            ``prox(w, step)`` of its own; then nothing has been written.
        ValueError
            For a `step` or `scale` that is not finite and >= 0.
        RuntimeError
            For parameters that an engine updates from a copy of its own.

        Examples
        --------
        >>> import torch
        >>> from fastreg import regularizers
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.0, -2.0, 0.25]]))
        >>> attach(model, regularizers.L1(0.5)).prox(1.0)
        ProxRecord(penalty=1.0, zeros=1, size=3)
        >>> model.weight.tolist()
        [[0.5, -1.5, 0.0]]
        """
        if torch.compiler.is_compiling():
            found: ProxRecord = _outside_of_graphs(self.prox, {"step": step, "scale": scale})
            return found
        with torch.no_grad():
            return proximal.take(self._penalties, step, scale)

    def report(self, *, scale: Real = 1.0) -> Report:
        """Return each parameter's penalty, share of zeros and rule, as ``fastreg.Penalties`` does.

        Examples
        --------
        >>> import torch
        >>> from fastreg import regularizers
        >>> model = torch.nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[0.0, 1.0]])), model.bias.fill_(3.0)
        >>> print(attach(model, {"weight": "l2"}).report())
        tensor  penalty  zeros  rule
        weight     0.01  50.0%  L2(l2=0.01)
        bias          0   0.0%  -
        total      0.01
        """
        if torch.compiler.is_compiling():
            found: Report = _outside_of_graphs(self.report, {"scale": scale})
            return found
        return self._penalties.report(scale)

    def check(self, group: Any = None) -> None:
        """Compare the penalties of several processes, which must be the same in all.

        Names, rules, strengths, shapes, dtypes and ``requires_grad`` are compared; and the
        penalty's bits of each parameter that a process has the whole of, which replicas that have
        drifted apart have not in common.  It is a collective operation, of some milliseconds: call
        it in every process, after :func:`attach` and once in a while, an epoch say.  A single
        process agrees with itself.

        Parameters
        ----------
        group : torch.distributed.ProcessGroup, optional
            The processes that train the same parameters; all, if None.

        Raises
        ------
        RuntimeError
            In every process, with what differs and on which ranks.

        Examples
        --------
        >>> import torch
        >>> attach(torch.nn.Linear(2, 1), {"weight": "l2"}).check()
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._penalties.check(group)

    def before_step(
        self,
        optimizer: Any,
        *,
        max_norm: Real | None = UNSAID,
        scale: Real = 1.0,
        grad_scale: Real = 1.0,
        value: bool = True,
    ) -> StepHandle:
        """Add the gradients of all penalties before each ``optimizer.step()``.

        This is after any clip of the training loop: whoever clips says `max_norm` here instead, or
        writes ``loss + penalties.value()``, which goes with every clip.

        Once per step: micro-batches whose gradients are accumulated have one penalty, not one each.
        It is right with ``torch.amp.GradScaler``, for optimizers that it unscales for and for fused
        ones, which get scaled gradients.  (A fused optimizer on a CUDA device is waited for then,
        to read the scale.)  With a closure (LBFGS) the penalty joins gradients and loss at each
        evaluation.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer
            It must hold all parameters with a penalty.  One that Accelerate or Lightning has
            wrapped is unwrapped.
        max_norm : float or None
            Required.  What the norm of all gradients of `optimizer`, penalty included, is clipped
            to, as by ``torch.nn.utils.clip_grad_norm_`` (which a norm that is not finite makes
            zeros or NaN of all gradients).  None says that nothing is clipped before ``step()``.
        scale, grad_scale : float, optional
            As for :meth:`accumulate`.
        value : bool, optional
            Whether :attr:`last` is wanted.  A closure's loss needs it.

        Returns
        -------
        StepHandle
            Its ``remove()`` takes the hook away.

        Raises
        ------
        TypeError
            Without `max_norm`.
        ValueError
            For a parameter with a penalty that `optimizer` does not hold, and for a `max_norm` that
            is not > 0.
        RuntimeError
            When there is such a hook already.

        Warns
        -----
        UserWarning
            Where the ``weight_decay`` of `optimizer` is not 0 for a parameter with an L2 penalty;
            and, later, where parameters change after backward passes while ``step()`` of this
            optimizer is never called (SAM, for example, has other methods).

        Examples
        --------
        >>> import torch
        >>> from fastreg import regularizers
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> penalties = attach(model, regularizers.L1(0.5))
        >>> handle = penalties.before_step(optimizer, max_norm=None)
        >>> model(torch.zeros(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> penalties.last, model.weight.tolist()
        (1.0, [[0.75, 0.75]])
        """
        plan, weights = self._penalties.current()
        engines.require_gradients(weights, plan.names)  # its optimizer is often of no known kind
        optimizer = unwrapped(optimizer)
        max_norm = checked_max_norm(max_norm)
        if self._is_before_steps():
            raise RuntimeError(
                "before_step() was called already, so the penalties would count twice; remove() "
                "the handle that it gave first"
            )

        step = StepHandle(optimizer, self._add_before_step, max_norm, scale, grad_scale, value)
        try:
            step.require_held(plan.names, weights)
            warn_of_weight_decay(
                optimizer, plan.names, weights, [plan.rules[name] for name in plan.names]
            )
            if weights:
                step.watch(plan.names[0], weights[0])
        except BaseException:  # warnings may be errors
            step.remove()
            raise
        self._penalties.step = step
        return step

    @property
    def last(self) -> torch.Tensor | float | None:
        """The penalty that was added before the last step; None before the first.

        Of sharded parameters it is summed when it is first read: read it in all processes.
        """
        self._last = summed(self._last)
        return self._last

    def activity(self, *, scale: Real | None = None) -> torch.Tensor:
        """Return the activity penalties of the forward passes since the last call.

        Add it to the loss, before the loss is scaled or divided::

            loss = criterion(model(x), y) + penalties.activity()

        What a module with an activity regularizer gave is a term, divided by the batch size unless
        `activity_reduction` is "sum" or the tensor has no batch axis.  States of recurrent modules
        and attention weights are none, unless `activity_batch_axis` asks for them.  Terms are
        collected while torch records gradients.  Those that are in no loss when penalties are added
        to gradients, or at the second :meth:`value`, are an error: their gradients would be missing
        without a sign.

        Parameters
        ----------
        scale : float, optional
            A factor.  Without it sums over samples are multiplied by the number of processes over
            which DistributedDataParallel or FSDP2 average gradients, so that they stay sums.

        Returns
        -------
        torch.Tensor
            0-d, differentiable; 0.0 without terms.

        Raises
        ------
        RuntimeError
            For sums over samples in one of several processes, where nothing tells how gradients are
            averaged.

        Examples
        --------
        >>> import torch
        >>> from fastreg import regularizers
        >>> model = torch.nn.Sequential(torch.nn.Identity())
        >>> penalties = attach(model, {}, {"0": regularizers.L1(0.5)})
        >>> _ = model(torch.ones(4, 3))
        >>> penalties.activity()
        tensor(1.5000)
        """
        return self._activity.take(scale)

    def _is_before_steps(self) -> bool:
        step = self._penalties.step
        return step is not None and step.is_active

    def _add_before_step(self, scale: float, grad_scale: float, value: bool) -> Penalties:
        if torch.compiler.is_compiling():
            made: Penalties = _outside_of_graphs(
                self._add_before_step, {"scale": scale, "grad_scale": grad_scale, "value": value}
            )
            return made
        if self._activity.rules is not None:
            self._activity.require_taken()
        if self._penalties.is_in_gradients():
            raise RuntimeError(
                "the last backward() added these penalties to the gradients already, as value() "
                "was in its loss, so they would count twice with before_step(optimizer); take "
                "value() out of the loss, or remove() the handle of before_step"
            )
        with torch.no_grad():
            self._last = self._penalties.add(scale, grad_scale, value, True)
        return self


@in_backward.outside_of_graphs
def _outside_of_graphs(method: Any, arguments: dict[str, Any]) -> Any:
    return method(**arguments)


def _copy(*arguments: Any) -> Penalties:
    """Attach again, as a copied module has no penalties."""
    made = Penalties.__new__(Penalties)
    made._arguments = arguments
    module, _, activity_regularizer, *_ = arguments
    # An attribute of the module is made before the module that it belongs to: later, then.
    if "_parameters" in module.__dict__:
        made._attach()
    elif activity_regularizer is not None:
        raise TypeError(
            "a module that holds its own Penalties cannot be copied with them where they have an "
            "activity_regularizer; keep them outside of the module"
        )
    return made


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, object] = {"Penalties": Penalties}
