"""The two strengths of a regularizer, as the core takes them."""

from __future__ import annotations

from typing import Any

from ..regularizers.base import Configured
from ..regularizers.elementwise import is_fused
from ._framework import keras

Pair = tuple[float, float]

_theirs = keras.regularizers


def strengths_of(rule: Any) -> Pair | None:
    """Return l1 and l2 if the core can evaluate a rule, one of Keras unless it has variables."""
    if is_fused(rule):
        return rule._l1, rule._l2
    kind = type(rule)
    if kind is _theirs.L1:
        pair = rule.l1, 0.0
    elif kind is _theirs.L2:
        pair = 0.0, rule.l2
    elif kind is _theirs.L1L2:
        pair = rule.l1, rule.l2
    else:
        return None
    if any(isinstance(strength, keras.Variable) for strength in pair):
        return None
    return float(pair[0]), float(pair[1])


def snapshot(rule: Any) -> Any:
    """Return a hashable that differs once a regularizer's strengths do; its id if it has none."""
    if isinstance(rule, Configured) or type(rule) in (
        _theirs.L1,
        _theirs.L2,
        _theirs.L1L2,
        _theirs.OrthogonalRegularizer,
    ):
        return type(rule).__name__, *rule.get_config().values()
    return id(rule)
