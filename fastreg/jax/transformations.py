"""Penalties as gradient transformations, for optax to chain: pairs of pure functions.

Contract
--------
- ``init(params)`` returns the state, ``update(updates, state, params)`` the new updates and the new
  state, as optax has it; optax is not imported.
- An update of None stands for a leaf that does not change: its penalty is left out as well.
- Numbers are computed in float32, float64 where a leaf or its update is, and rounded once, to
  the dtype of the update; :func:`proximal` returns none narrower than the leaf, which would lose
  zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._autodiff.jax.strengths import factor, may_be_traced
from .._base import arguments, errors
from .._base.array_types import Factor
from ..penalties.plan import Plan
from ..penalties.proximal import require_prox
from ..penalties.rules import GivenRules, Rules, checked_rules
from . import leaves
from .attached import TreePenalties, gradients, proximal_steps

Scheduled: TypeAlias = Factor | Callable[[Any], Any]
"""A number, or a function of the number of updates."""


class Transformation(NamedTuple):
    """A gradient transformation, as optax takes them."""

    init: Callable[[Any], Any]
    """``init(params)`` returns the state."""
    update: Callable[..., tuple[Any, Any]]
    """``update(updates, state, params)`` returns the new updates and the new state."""


class PenaltyState(NamedTuple):
    """The state of a transformation."""

    count: Any
    """int32, 0-d: how many updates were made, which functions of the step get."""


def add_penalty(rules: GivenRules, *, scale: Scheduled = 1.0) -> Transformation:
    """Return a gradient transformation that adds the gradient of the penalty to the updates.

    It stands where the gradient of the loss would have it: first, so that a clip and the optimizer
    see the sum.

    Parameters
    ----------
    rules : mapping, or what ``fastreg.regularizers.get`` takes
        As for :func:`attach`.
    scale : float, jax.Array or function, optional
        A factor of the penalties; a function gets the number of updates so far, as the schedules
        of optax do.

    Returns
    -------
    Transformation
        Its ``init`` raises what :func:`attach` does, so a rule that never wins is an error there.
        Its ``update`` wants `params`: ValueError without.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastreg.regularizers import L1
    >>> params = {"kernel": jnp.asarray([1.0, -2.0, 0.0]), "bias": jnp.asarray([3.0])}
    >>> grads = {"kernel": jnp.asarray([0.5, 0.5, 0.5]), "bias": jnp.asarray([1.0])}
    >>> transformation = add_penalty({"kernel": L1(0.25)})
    >>> updates, state = transformation.update(grads, transformation.init(params), params)
    >>> updates["kernel"], updates["bias"]
    (Array([0.75, 0.25, 0.5 ], dtype=float32), Array([1.], dtype=float32))
    """

    check = arguments.multiplier

    def changed(plan: Plan, pairs: list[_Pair], count: Any) -> list[Any]:
        factor = _number(scale, "scale", count, check)
        made = gradients(plan, tuple(pair.weight for pair in pairs), factor, 1.0)
        return [
            (pair.update.astype(slope.dtype) + slope).astype(pair.update.dtype)
            for pair, slope in zip(pairs, made, strict=True)
        ]

    _require_number(scale, "scale", check)
    return _transformation(checked_rules(rules), lambda plan: None, changed)


def proximal(
    rules: GivenRules, learning_rate: Scheduled, *, scale: Scheduled = 1.0
) -> Transformation:
    """Return a gradient transformation after which the update ends in a proximal step.

    It is the last of a chain: what ``optax.apply_updates(params, updates)`` gives is
    ``prox(params + updates)``, so that L1 makes exact zeros.  These are exact; the other elements
    are rounded once more, in ``params + (prox - params)``.

    Parameters
    ----------
    rules : mapping, or what ``fastreg.regularizers.get`` takes
        As for :func:`attach`.
    learning_rate : float, jax.Array or function
        >= 0, that of the optimizer before it; a function gets the number of updates so far, as the
        schedules of optax do.
    scale : float, jax.Array or function, optional
        A factor >= 0 of the penalties, as `learning_rate`: a warm-up, for example.

    Returns
    -------
    Transformation
        Its ``init`` raises what :func:`attach` does, so a rule that never wins is an error there;
        and TypeError for a rule that is a function without a ``prox(w, step)`` of its own.  Its
        ``update`` wants `params`: ValueError without.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from fastreg.regularizers import L1
    >>> params = {"kernel": jnp.asarray([1.0, -2.0, 0.25]), "bias": jnp.asarray([3.0])}
    >>> updates = {"kernel": jnp.asarray([0.0, 0.5, 0.0]), "bias": jnp.asarray([1.0])}
    >>> transformation = proximal({"kernel": L1(0.5)}, learning_rate=1.0)
    >>> updates, state = transformation.update(updates, transformation.init(params), params)
    >>> params["kernel"] + updates["kernel"]
    Array([ 0.5, -1. ,  0. ], dtype=float32)
    """

    check = arguments.strength

    def changed(plan: Plan, pairs: list[_Pair], count: Any) -> list[Any]:
        step = _number(learning_rate, "learning_rate", count, check)
        factor = _number(scale, "scale", count, check)
        moved = tuple(pair.weight + pair.update.astype(pair.weight.dtype) for pair in pairs)
        made = proximal_steps(plan, moved, step, factor)
        return [
            (new - pair.weight).astype(jnp.promote_types(pair.dtype, pair.update.dtype))
            for pair, new in zip(pairs, made, strict=True)
        ]

    _require_number(learning_rate, "learning_rate", check)
    _require_number(scale, "scale", check)
    return _transformation(checked_rules(rules), require_prox, changed)


class _Pair(NamedTuple):
    """A leaf that has a penalty, and its update."""

    weight: Any
    """The leaf, in the dtype in which both are computed."""
    dtype: Any
    """The leaf's own."""
    update: Any


def _transformation(
    rules: Rules,
    require: Callable[[Plan], None],
    changed: Callable[[Plan, list[_Pair], Any], list[Any]],
) -> Transformation:
    """Return a transformation by what it makes of the updates of leaves that have a penalty.

    `require` refuses plans that it is not for.
    """
    given = rules.by_glob["*"] if rules.for_all else rules.by_glob
    kept: list[TreePenalties] = []

    def planned(params: Any) -> tuple[Plan, tuple[Any, ...]]:
        if not kept or kept[0]._treedef != jax.tree_util.tree_structure(params):
            kept[:] = [TreePenalties(params, given)]
        plan, weights = kept[0]._ready(params)
        require(plan)
        return plan, weights

    def init(params: Any) -> PenaltyState:
        planned(params)
        return PenaltyState(jnp.zeros((), np.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, PenaltyState]:
        if params is None:
            raise ValueError(
                "params must be the parameters that the updates are of, not None; call "
                "update(updates, state, params)"
            )
        plan, weights = planned(params)
        structure = jax.tree_util.tree_structure(params)
        try:
            flat = structure.flatten_up_to(updates)
        except ValueError as error:
            raise ValueError(
                f"updates must be a tree of the structure of params: {error}; pass the gradients "
                "with respect to all of params"
            ) from error
        # By place: two leaves may have one name.
        places = [place for place, name in enumerate(plan.source.names) if name in plan.rules]
        pairs = [
            _pair(name, weight, flat[place])
            for name, weight, place in zip(plan.names, weights, places, strict=True)
        ]
        for place, made in zip(places, changed(plan, pairs, state.count), strict=True):
            if flat[place] is not None:
                flat[place] = made
        most = np.iinfo(np.int32).max
        count = jnp.where(state.count < most, state.count + 1, most)
        return structure.unflatten(flat), PenaltyState(count)

    return Transformation(init, update)


def _pair(name: str, weight: Any, update: Any) -> _Pair:
    leaves.require_array(weight, name)
    leaves.require_floating((weight,), (name,))
    if update is None:  # what is made of it is left out
        update = jnp.zeros_like(weight)
    label = errors.leaf_label(name).replace("params", "updates", 1)
    if not hasattr(update, "dtype"):
        raise TypeError(f"{label} must be an array or None, not {errors.described(update)}")
    if update.shape != weight.shape:
        raise ValueError(
            f"{label} has shape {tuple(update.shape)}; it must have that of the parameter, "
            f"{tuple(weight.shape)}"
        )
    compute = jnp.promote_types(jnp.promote_types(weight.dtype, update.dtype), np.float32)
    return _Pair(weight.astype(compute), weight.dtype, update)


def _require_number(given: Any, name: str, check: Callable[[Any, str], float]) -> None:
    if not callable(given) and not may_be_traced(given):
        check(given, name)


def _number(given: Any, name: str, count: Any, check: Callable[[Any, str], float]) -> Any:
    """Return a number of this step: of the host, checked, or of JAX."""
    number = given(count) if callable(given) else given
    return factor(number, name) if may_be_traced(number) else check(number, name)
