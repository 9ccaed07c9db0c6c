"""Penalties on the tensors of a model: attach, and the calls that a training loop makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic, overload

from .._arrays import results
from .._arrays.libraries import ALL_NUMPY
from .._base.array_types import Factor, Framework, Host, Made, Real, Tensors, Value
from .._base.penalty import GRADIENT, VALUE_AND_ADD, VALUE_AND_GRADIENT
from . import evaluation, proximal
from .names import counted, names_of, require_kept
from .plan import Arrays, Plan, Planner
from .proximal import ProxRecord
from .report import Report, make_report, shares_of_zeros
from .rules import GivenRules, checked_rules


@overload
def attach(
    tensors: Mapping[str, Host] | Sequence[Host], rules: GivenRules
) -> Penalties[float, Host]: ...
@overload
def attach(
    tensors: Mapping[str, Framework[Made]] | Sequence[Framework[Made]], rules: GivenRules
) -> Penalties[float | Made, Made]: ...
@overload
def attach(tensors: Tensors, rules: GivenRules) -> Penalties[Any, Any]: ...
def attach(tensors: Any, rules: Any) -> Penalties[Any, Any]:
    """Put penalties on the tensors of a model, by name.

    Parameters
    ----------
    tensors : mapping or sequence of arrays
        The model's tensors by name; in a sequence the names are "0", "1", ....  It is kept and
        read at every call, so ``params[name] = ...`` between calls is seen.
    rules : mapping, or what ``fastreg.regularizers.get`` takes
        Globs over names, each with a regularizer, or None for "no penalty".  The first glob that
        matches a name wins; a name that none matches has no penalty.  A key that is the name of a
        tensor is for that tensor alone, brackets and all.  One regularizer instead of a mapping is
        for all tensors.  (A dict with the key "class_name" is a saved regularizer.)

    Returns
    -------
    Penalties
        TypeError when `tensors` is no mapping or sequence, or a rule is no regularizer; ValueError
        when a rule never wins, or tied tensors have different rules.

    Examples
    --------
    >>> import numpy, fastreg
    >>> params = {"dense/kernel": numpy.array([1.0, -2.0]), "dense/bias": numpy.array([3.0])}
    >>> penalties = fastreg.attach(params, {"*kernel": fastreg.regularizers.L1(0.5)})
    >>> grads = {"dense/kernel": numpy.zeros(2), "dense/bias": numpy.zeros(1)}
    >>> penalties.accumulate(grads)
    1.5
    >>> grads["dense/kernel"]
    array([ 0.5, -0.5])
    """
    return Penalties(tensors, rules)


class Penalties(Generic[Value, Made]):
    """Penalties on many tensors; made by :func:`attach`.

    Every method takes `tensors` for those whose arrays are immutable or elsewhere this time: it is
    used instead of the attached ones for that call.  `scale` multiplies penalties and gradients,
    `grad_scale` gradients alone.  What is no array, or of the wrong kind, is a TypeError; names,
    rules and factors that do not fit are a ValueError.

    A rule may be any callable of one array that gives a number.  It is called with the array as
    it is, alone; where a gradient is asked for, it must offer ``gradient(w)``, which gives an
    array of the shape of `w`.  Scales are applied to what it gives.

    Tensors on a CUDA device are all on one in a call.  Their penalty stays there, 0-d in the kind
    of the first, and nothing waits for it; with a callable among the rules, which can give a value
    there but no gradient, it is a float.
    """

    def __init__(self, tensors: Tensors, rules: GivenRules) -> None:
        self._tensors = tensors
        self._planner = Planner(checked_rules(rules))
        self._planner.ready(tensors)

    @property
    def rules(self) -> dict[str, Any]:
        """The regularizers by glob; set their strengths to change penalties."""
        return dict(self._planner.rules.by_glob)

    def __repr__(self) -> str:
        names = names_of(self._tensors, "tensors")
        plan, _ = self._ready(self._tensors)
        return f"<Penalties on {counted(plan.names, len(names), 'tensors')}>"

    def value(self, *, tensors: Tensors | None = None, scale: Factor = 1.0) -> Value:
        """Return the penalty of all tensors: the canonical sum of their penalties.

        It is a float; on a CUDA device 0-d, see above.  Where a tensor requires grad or is traced,
        in torch or JAX, it is 0-d and differentiable: the sum of what the core computes, plus what
        callables give.  Arrays of several frameworks are a TypeError then.

        Examples
        --------
        >>> import numpy
        >>> attach([numpy.ones(4), numpy.ones(2)], "l2").value(scale=0.5)
        0.03
        """
        plan, weights = self._ready(tensors)
        found: Value = evaluation.value(plan, weights, scale)
        return found

    def gradient(
        self, *, tensors: Tensors | None = None, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> dict[str, Made]:
        """Return the gradients of the penalised tensors, as new arrays by name.

        There is one of the kind, shape, dtype and layout of each tensor that has a penalty (the
        first name of tied ones).  Integer tensors, and callables that offer no gradient, are a
        TypeError.

        Examples
        --------
        >>> import numpy
        >>> params = {"kernel": numpy.ones(2), "bias": numpy.ones(1)}
        >>> attach(params, {"kernel": "l2"}).gradient(grad_scale=50.0)
        {'kernel': array([1., 1.])}
        """
        plan, weights = self._ready(tensors)
        return evaluation.new_gradients(GRADIENT, plan, weights, scale, grad_scale)[1]

    def value_and_grad(
        self, *, tensors: Tensors | None = None, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> tuple[Value, dict[str, Made]]:
        """Return what :meth:`value` and :meth:`gradient` give, in one pass.

        Torch tensors that require a gradient are accepted: their gradients are given.

        >>> import numpy
        >>> from fastreg import regularizers
        >>> attach([numpy.ones(2)], regularizers.L2(0.5)).value_and_grad()
        (1.0, {'0': array([1., 1.])})
        """
        plan, weights = self._ready(tensors)
        return evaluation.new_gradients(VALUE_AND_GRADIENT, plan, weights, scale, grad_scale)

    def accumulate(
        self,
        grads: Tensors,
        *,
        tensors: Tensors | None = None,
        scale: Real = 1.0,
        grad_scale: Real = 1.0,
    ) -> Value:
        """Add the gradients of all penalties to `grads` in place, and return the penalty.

        Parameters
        ----------
        grads : mapping or sequence of arrays
            Writable arrays by the names of the tensors, with their shapes and dtypes.  Gradients
            of tensors without penalty may be there (or None) and are not touched.  ValueError for a
            missing one, one of an unknown name, or one that does not fit its tensor; BufferError
            for one that may not be written; TypeError for a callable that offers no gradient.

        Returns
        -------
        float
            The canonical sum of the tensors' penalties; on a CUDA device 0-d, see above.

        Examples
        --------
        >>> import numpy
        >>> from fastreg import regularizers
        >>> grads = [numpy.zeros(2)]
        >>> attach([numpy.ones(2)], regularizers.L2(0.5)).accumulate(grads)
        1.0
        >>> grads
        [array([1., 1.])]
        """
        plan, weights = self._ready(tensors)
        gradients = plan.gradients(grads)
        foreign = not ALL_NUMPY(map(type, gradients))
        if foreign:
            results.check_targets(gradients, plan.names)
        total: Value = evaluation.total(VALUE_AND_ADD, plan, weights, gradients, scale, grad_scale)
        if foreign:
            results.all_written(gradients)
        return total

    def prox(self, step: Real, *, tensors: Tensors | None = None, scale: Real = 1.0) -> ProxRecord:
        """Take the proximal step of all penalties, in place: ``w = regularizer.prox(w, step)``.

        Call it after the optimizer's step, with the learning rate as `step`, and without the
        penalty in the gradients: it is all that the penalty does.

        Parameters
        ----------
        step : float
            Finite and >= 0.
        scale : float, optional
            A factor >= 0 of the penalties.

        Returns
        -------
        ProxRecord
            The penalty of the tensors as they are now, and how many of their elements are 0, of the
            same pass; on a CUDA device both stay there.  BufferError for a tensor that may not be
            written; TypeError for integers, and for a callable without a ``prox(w, step)`` of its
            own penalty, which gives an array of the shape of `w`; on a device for any callable.
            Then nothing has been written.

        Examples
        --------
        >>> import numpy
        >>> from fastreg import regularizers
        >>> params = {"kernel": numpy.array([1.0, -2.0, 0.25]), "bias": numpy.array([3.0])}
        >>> attach(params, {"kernel": regularizers.L1(0.5)}).prox(1.0)
        ProxRecord(penalty=1.0, zeros=1, size=3)
        >>> params["kernel"]
        array([ 0.5, -1.5,  0. ])
        """
        plan, weights = self._ready(tensors)
        require_kept(self._tensors if tensors is None else tensors, plan.names, weights, "tensors")
        return proximal.take(plan, weights, step, scale)

    def report(self, *, tensors: Tensors | None = None, scale: Real = 1.0) -> Report:
        """Return each tensor's penalty, share of zeros and rule, as ``ReportRow`` by name.

        ``print(report)`` shows a table.  Tensors on a CUDA device are copied to the host one by one
        to count zeros, and waited for.

        Examples
        --------
        >>> import numpy
        >>> params = {"kernel": numpy.array([0.0, 1.0]), "bias": numpy.array([3.0])}
        >>> print(attach(params, {"kernel": "l2"}).report())
        tensor  penalty  zeros  rule
        kernel     0.01  50.0%  L2(l2=0.01)
        bias          0   0.0%  -
        total      0.01
        """
        plan, weights = self._ready(tensors)
        source = self._tensors if tensors is None else tensors
        values = evaluation.values(plan, weights, scale)
        return make_report(plan, values, shares_of_zeros(plan, source))

    def _ready(self, tensors: Any) -> tuple[Plan, Arrays]:
        return self._planner.ready(self._tensors if tensors is None else tensors)


# The package makes itself the module of this class; doctest then needs to be told of it.
__test__: dict[str, Any] = {"Penalties": Penalties}
