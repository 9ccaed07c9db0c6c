"""Regularizers as pytrees: their strengths are the leaves.

Contract
--------
- Unflattening checks nothing: leaves may be tracers, or placeholders of JAX.
- Subclasses are not registered: they have a penalty of their own.
"""

from __future__ import annotations

from typing import Any

from jax import tree_util

from ..regularizers import L1, L1L2, L2, OrthogonalRegularizer

_ELEMENTWISE: dict[type, tuple[str, ...]] = {L1: ("l1",), L2: ("l2",), L1L2: ("l1", "l2")}

REGISTERED: tuple[type, ...] = (*_ELEMENTWISE, OrthogonalRegularizer)


def register() -> None:
    """Register the regularizers of fastreg with JAX; once for a process."""
    for kind, names in _ELEMENTWISE.items():
        _register_elementwise(kind, names)
    tree_util.register_pytree_with_keys(
        OrthogonalRegularizer,
        lambda reg: (((tree_util.GetAttrKey("factor"), reg._factor),), reg._mode),
        _make_orthogonal,
    )


def _register_elementwise(kind: type, names: tuple[str, ...]) -> None:
    def flatten(reg: Any) -> tuple[tuple[tuple[Any, Any], ...], None]:
        return tuple((tree_util.GetAttrKey(name), getattr(reg, "_" + name)) for name in names), None

    def unflatten(_: None, leaves: Any) -> Any:
        reg: Any = object.__new__(kind)
        reg._l1 = reg._l2 = 0.0
        for name, leaf in zip(names, leaves, strict=True):
            setattr(reg, "_" + name, leaf)
        return reg

    tree_util.register_pytree_with_keys(kind, flatten, unflatten)


def _make_orthogonal(mode: str, leaves: Any) -> OrthogonalRegularizer:
    reg = object.__new__(OrthogonalRegularizer)
    reg._mode = mode
    (reg._factor,) = leaves
    return reg
