"""Penalties on a tree of parameters, by the names of its leaves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from itertools import compress
from types import SimpleNamespace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .._arrays import results
from .._autodiff import dispatch
from .._autodiff.jax import functions
from .._autodiff.jax.sharding import checked_specs
from .._base.array_types import Factor, Real
from .._base.errors import leaf_label
from .._base.penalty import VALUE
from ..penalties import evaluation, proximal
from ..penalties.names import counted
from ..penalties.plan import Plan, make_plan
from ..penalties.report import Report, make_report
from ..penalties.rules import GivenRules, Rules, checked_rules, match
from ..regularizers.base import Configured
from . import leaves
from .pytrees import REGISTERED

Tree = TypeVar("Tree")


def attach(params: Any, rules: GivenRules) -> TreePenalties:
    """Put penalties on the leaves of a tree, by name.

    Parameters
    ----------
    params : pytree of arrays
        Its structure counts, and not its arrays: every method is given the parameters anew.  A
        leaf's name is its path, joined by "/": "dense/kernel", "layers/0/bias".  What holds one
        array and has ``__jax_array__``, as parameters of flax nnx do, is a leaf by its own path.
    rules : mapping, or what ``fastreg.regularizers.get`` takes
        As for ``fastreg.attach``: globs over names, of which the first that matches wins, each with
        a regularizer or None; or one regularizer for all leaves.

    Returns
    -------
    TreePenalties

    Raises
    ------
    TypeError
        When a rule is no regularizer.
    ValueError
        When a rule never wins.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import fastreg.jax
    >>> params = {"dense": {"kernel": jnp.asarray([1.0, -2.0]), "bias": jnp.asarray([3.0])}}
    >>> penalties = fastreg.jax.attach(params, {"*kernel": "l2"})
    >>> value, grads = jax.jit(jax.value_and_grad(penalties.value))(params)
    >>> float(value)
    0.05000000074505806
    >>> grads["dense"]["bias"]
    Array([0.], dtype=float32)
    """
    return TreePenalties(params, rules)


class TreePenalties:
    """Penalties on a tree of parameters; made by :func:`attach`.

    Every method is a pure function of the parameters, to be used inside jit, grad and vmap.  It is
    itself a pytree, whose leaves are the strengths of its rules: given to a compiled function as an
    argument, ``step(params, penalties)``, it takes schedules without compiling anew.  Subclasses of
    regularizers are no leaves: setting their strengths compiles anew, once a value.

    A rule may be any function of one array that JAX can trace, and that gives a 0-d array; what it
    reads besides is a constant of the compiled program.

    Leaves that are one array twice are two parameters, as they are for ``jax.grad``.
    """

    __slots__ = ("_plan", "_rules", "_treedef")

    def __init__(self, params: Any, rules: GivenRules) -> None:
        self._rules = checked_rules(rules)
        self._treedef = jax.tree_util.tree_structure(params)
        self._plan = _make_plan(leaves.names_of(params), self._rules)

    @property
    def rules(self) -> dict[str, Any]:
        """The regularizers by glob; set their strengths to change penalties."""
        return dict(self._rules.by_glob)

    def __repr__(self) -> str:
        return f"<TreePenalties on {counted(self._plan.names, self._treedef.num_leaves, 'leaves')}>"

    def value(
        self,
        params: Any,
        *,
        scale: Factor = 1.0,
        mesh: jax.sharding.Mesh | None = None,
        specs: Any = None,
    ) -> jax.Array:
        """Return the penalty of all leaves.

        Parameters
        ----------
        params : pytree of arrays
            With the structure that was attached; another is matched against the rules anew.
        scale : float or jax.Array, optional
            A factor.
        mesh, specs : optional
            For sharded parameters, as for :func:`sharded_penalty`.

        Returns
        -------
        jax.Array
            0-d; float64 if a leaf is, else float32.

        Raises
        ------
        TypeError
            For leaves that are no arrays of numbers.
        ValueError
            When names and rules do not fit, or a strength is not finite after scaling.
        """
        plan, weights = self._ready(params)
        if mesh is None:
            if specs is not None:
                raise TypeError("specs are those of a mesh, which is missing; pass mesh as well")
            return _value(plan, weights, scale)
        mesh, every = checked_specs(mesh, specs, params, plan.source.names)
        return _value(plan, weights, scale, mesh, plan.source(every))

    def gradient(self, params: Tree, *, scale: Factor = 1.0, grad_scale: Factor = 1.0) -> Tree:
        """Return the gradient as a tree like `params`, zeros where there is no penalty.

        Parameters
        ----------
        params : pytree of arrays
        scale, grad_scale : float or jax.Array, optional
            Factors.

        Returns
        -------
        pytree of jax.Array
            Of the shapes and dtypes of `params`.

        Raises
        ------
        TypeError
            For leaves of integers that have a penalty.
        """
        plan, weights = self._ready(params)
        leaves.require_floating(weights, plan.names)
        found: Tree = _like(params, plan, gradients(plan, weights, scale, grad_scale))
        return found

    def value_and_grad(
        self, params: Tree, *, scale: Factor = 1.0, grad_scale: Factor = 1.0
    ) -> tuple[jax.Array, Tree]:
        """Return what :meth:`value` and :meth:`gradient` give, from one call of the core."""
        plan, weights = self._ready(params)
        leaves.require_floating(weights, plan.names)
        value = _value(plan, weights, scale)
        made = gradients(plan, weights, scale, grad_scale, value)
        return value, _like(params, plan, made)

    def prox(self, params: Tree, step: Factor, *, scale: Factor = 1.0) -> Tree:
        """Return the proximal steps of all penalties as a tree like `params`.

        Parameters
        ----------
        params : pytree of arrays
            What has no penalty stays as it is.
        step : float or jax.Array
            >= 0: the learning rate, where the step follows one of gradient descent without the
            penalty.
        scale : float or jax.Array, optional
            A factor >= 0 of the penalties.

        Returns
        -------
        pytree of jax.Array
            Of the shapes, dtypes and shardings of `params`.

        Raises
        ------
        TypeError
            For leaves of integers that have a penalty, and for a rule that is a function without a
            ``prox(w, step)`` of its own.
        ValueError
            For a `step` or `scale` of the host that is not finite and >= 0.

        Examples
        --------
        >>> import jax, jax.numpy as jnp
        >>> from fastreg import regularizers
        >>> params = {"kernel": jnp.asarray([1.0, -2.0, 0.25]), "bias": jnp.asarray([3.0])}
        >>> penalties = attach(params, {"kernel": regularizers.L1(0.5)})
        >>> jax.jit(penalties.prox)(params, 1.0)["kernel"]
        Array([ 0.5, -1.5,  0. ], dtype=float32)
        """
        plan, weights = self._ready(params)
        proximal.require_prox(plan)
        leaves.require_floating(weights, plan.names)
        of_weights = iter(proximal_steps(plan, weights, step, scale))
        all_leaves, treedef = jax.tree_util.tree_flatten(params)
        found: Tree = jax.tree_util.tree_unflatten(
            treedef,
            [
                next(of_weights) if name in plan.rules else leaf
                for name, leaf in zip(plan.source.names, all_leaves, strict=True)
            ],
        )
        return found

    def report(self, params: Any, *, scale: Real = 1.0) -> Report:
        """Return each leaf's penalty, share of zeros and rule, outside of compiled functions.

        Parameters
        ----------
        params : pytree of arrays
            As for :meth:`value`; sharded ones as well.
        scale : float, optional
            A factor.

        Returns
        -------
        Report
            A dict of ``fastreg.penalties.ReportRow`` by name; ``print(report)`` shows a table.

        Raises
        ------
        TypeError
            For what JAX traces.

        Examples
        --------
        >>> import jax.numpy as jnp
        >>> params = {"kernel": jnp.asarray([0.0, 1.0]), "bias": jnp.asarray([3.0])}
        >>> print(attach(params, {"kernel": "l2"}).report(params))
        tensor  penalty  zeros  rule
        bias          0   0.0%  -
        kernel     0.01  50.0%  L2(l2=0.01)
        total      0.01
        """
        plan, weights = self._ready(params)
        zeros = [
            leaves.share_of_zeros(leaf, name)
            for leaf, name in zip(jax.tree_util.tree_leaves(params), plan.source.names, strict=True)
        ]
        fused = compress(weights, plan.fused)
        is_read = all(dispatch.port_for_value(weight) is None for weight in fused)
        values = evaluation.values(plan, weights, scale, None if is_read else functions)
        return make_report(plan, values, zeros)

    def _ready(self, params: Any) -> tuple[Plan, tuple[Any, ...]]:
        plan = self._plan
        if jax.tree_util.tree_structure(params) != self._treedef:
            plan = _make_plan(leaves.names_of(params), self._rules)
        weights = plan.source(jax.tree_util.tree_leaves(params))
        for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True):
            if is_fused:
                leaves.require_array(weight, name)
        return plan, weights


def _make_plan(names: list[str], rules: Rules) -> Plan:
    return make_plan(names, match(names, rules)[0])


def _value(
    plan: Plan, weights: tuple[Any, ...], scale: Any, mesh: Any = None, specs: Any = ()
) -> jax.Array:
    """Return the sum of the penalties; `specs` are those of `weights`."""
    if mesh is None and _are_of_the_core(plan, weights, scale):
        return results.wrap_value(
            evaluation.total(VALUE, plan, weights, None, scale, 1.0), _widest(weights)
        )
    names = [leaf_label(name) for name in compress(plan.names, plan.fused)]
    of_fused = tuple(compress(specs, plan.fused))
    port = SimpleNamespace(
        total=functools.partial(functions.total, mesh=mesh, specs=of_fused, names=names),
        factor=functions.factor,
    )
    result: jax.Array = evaluation.differentiable_value(port, plan, weights, scale)
    return result


def gradients(
    plan: Plan, weights: tuple[Any, ...], scale: Any, grad_scale: Any, value: Any = None
) -> list[Any]:
    """Return the gradient of each weight; a `value` that is traced comes before them."""
    port = SimpleNamespace(
        gradients=functools.partial(functions.gradients, value=value), factor=functions.factor
    )
    return evaluation.traced_gradients(
        port, plan, weights, scale, grad_scale, lambda rule, weight: jax.grad(rule)(weight)
    )


def proximal_steps(plan: Plan, weights: tuple[Any, ...], step: Any, scale: Any) -> list[Any]:
    """Return the proximal step of each weight, of rules that :func:`proximal.require_prox` took."""
    fused = tuple(compress(weights, plan.fused))
    made = iter(functions.proximal(fused, plan.strengths(), plan.which, scale, step))
    factor = functions.factor(step, "step") * functions.factor(scale, "scale")
    return [
        next(made) if is_fused else plan.rules[name].prox(weight, factor)
        for name, weight, is_fused in zip(plan.names, weights, plan.fused, strict=True)
    ]


def _like(params: Any, plan: Plan, gradients: Iterable[Any]) -> Any:
    """Return the gradients of the penalised leaves in a tree like `params`, zeros elsewhere."""
    all_leaves, treedef = jax.tree_util.tree_flatten(params)
    # By place: two leaves may have one name, {"a/b": ..., "a": {"b": ...}}.
    of_weights = iter(gradients)
    return jax.tree_util.tree_unflatten(
        treedef,
        [
            next(of_weights) if name in plan.rules else leaves.zeros_like(leaf, name)
            for name, leaf in zip(plan.source.names, all_leaves, strict=True)
        ],
    )


def _are_of_the_core(plan: Plan, weights: tuple[Any, ...], scale: Any) -> bool:
    """Return whether the core can read all that a penalty is made of."""
    numbers = [scale, *(number for pair in plan.strengths() for number in pair)]
    return (
        not plan.others
        and bool(weights)
        and all(type(number) is float for number in numbers)
        and all(dispatch.port_for_value(w) is None for w in weights)
    )


def _widest(weights: tuple[Any, ...]) -> Any:
    return next((w for w in weights if w.dtype == jnp.float64), weights[0])


def _flatten(penalties: TreePenalties) -> tuple[tuple[Any, ...], Any]:
    by_glob = penalties._rules.by_glob
    rules = tuple(rule for rule in by_glob.values() if type(rule) in REGISTERED)
    static = tuple(
        (glob, None if type(rule) in REGISTERED else (_kept(rule),))
        for glob, rule in by_glob.items()
    )
    names = tuple(penalties._plan.source.names)
    return rules, (static, penalties._rules.for_all, penalties._treedef, names)


def _kept(rule: Any) -> Any:
    """Return what a compiled program is kept under: a rule that is set anew must differ from it."""
    return copy.copy(rule) if isinstance(rule, Configured) else rule


def _unflatten(aux: Any, rules: Any) -> TreePenalties:
    static, for_all, treedef, names = aux
    of_rules = iter(rules)
    by_glob = {glob: next(of_rules) if rule is None else rule[0] for glob, rule in static}
    penalties = object.__new__(TreePenalties)
    penalties._rules = Rules(by_glob, for_all)
    penalties._treedef = treedef
    penalties._plan = _make_plan(list(names), penalties._rules)
    return penalties


jax.tree_util.register_pytree_node(TreePenalties, _flatten, _unflatten)
