"""Dispatch: does an array's framework have to compute the penalty, or can the core read the memory?

Contract
--------
- A *value* needs its framework when it must be differentiable or is traced; a *gradient* only when
  there is no memory to read (tracer, meta, FakeTensor), since the core computes it in closed form.
- Nor can the core read a DTensor, a sharded JAX array, or one on a device it does not support.
- It is asked once per call.  A port is a module with the functions of :class:`Port`, imported at
  the first array that needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any, Protocol, cast

from .._arrays.libraries import (
    ALL_NUMPY,
    HOLDERS,
    has_dtensors,
    held,
    is_dtensor,
    library_of,
    port_of,
)
from .._arrays.torch_arrays import has_no_elements
from .._base import errors, float_environment
from .._base.penalty import Strengths

PORTS = {"jax": "fastreg._autodiff.jax.functions"}
"""The modules of ports, imported at the first array that needs one; ``fastreg`` adds that of Keras.
Those for torch are import statements, which Dynamo traces."""

_ALL_FLOATS = frozenset((float,)).issuperset
_REQUIRES_GRAD = attrgetter("requires_grad")
_IS_META = attrgetter("is_meta")


class Port(Protocol):
    """What the port of a framework offers; tensors and strengths are as for ``evaluate_many``.

    A strength or scale may be traced, too, where the framework can.  Results are what the
    framework can differentiate: float64 for float64 tensors, else float32.
    """

    def total(
        self, weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any
    ) -> Any:
        """Return the penalty of all tensors, 0-d; None or 0 where there are none."""

    def values(
        self, weights: Sequence[Any], strengths: Strengths, which: Sequence[int], scale: Any
    ) -> Sequence[Any]:
        """Return the penalty of each tensor, 0-d each, from one pass over all."""

    def gradients(
        self,
        weights: Sequence[Any],
        strengths: Strengths,
        which: Sequence[int],
        scale: Any,
        grad_scale: Any,
    ) -> Sequence[Any]:
        """Return ``scale * grad_scale * (l1 * sign(w) + 2 * l2 * w)`` of each, as new arrays."""

    def proximal(
        self,
        weights: Sequence[Any],
        strengths: Strengths,
        which: Sequence[int],
        scale: Any,
        step: Any,
    ) -> Sequence[Any]:
        """Return the proximal step of each, ``Elementwise.prox``, as new arrays."""

    def orthogonal(self, w: Any, factor: Any, mode: str) -> Any:
        """Return the penalty of ``OrthogonalRegularizer``, 0-d."""

    def factor(self, number: Any, name: str) -> Any:
        """Return a scale as it can be multiplied: a float, or what is traced."""


def product(port: Any, first: Any, *others: Any) -> Any:
    """Return the product of strengths and scales, as a port takes them.

    A port that has a function `product` multiplies what is traced in its own way.
    """
    multiply = getattr(port, "product", float_environment.product)
    return multiply(first, *others)


def port_for_value(x: Any, *numbers: Any) -> Port | None:
    """Return the port that has to compute the value of `x`; None where the core can.

    `numbers` are its strengths and factors, which may be traced.
    """
    return _port_of(x, True) or port_for_numbers(*numbers)


def port_for_gradient(x: Any, *numbers: Any) -> Port | None:
    """Return the port of an array without readable elements, or of traced numbers; else None."""
    return _port_of(x, False) or port_for_numbers(*numbers)


def port_for_values(arrays: Sequence[Any], names: Sequence[str]) -> Port | None:
    """Return the port for the values of many arrays, that of the first that has one; else None."""
    return _port_of_many(arrays, names, True)


def port_for_gradients(arrays: Sequence[Any], names: Sequence[str]) -> Port | None:
    """Do what :func:`port_for_values` does, for gradients."""
    return _port_of_many(arrays, names, False)


def port_for_numbers(*numbers: Any) -> Port | None:
    """Return the port of strengths or factors that are traced: JAX's tracers, of a schedule."""
    if _ALL_FLOATS(map(type, numbers)):
        return None
    return next(filter(None, [_port_of(number, False) for number in numbers]), None)


def require_jax(arrays: Sequence[Any], names: Sequence[str]) -> None:
    """Raise TypeError for an array of another library, as JAX traces a scale or strength."""
    for array, name in zip(arrays, names, strict=True):
        if _framework_of(array) != "jax":
            raise TypeError(
                f"tensors[{name!r}] is {errors.described(array)}, but JAX traces a scale or a "
                "strength; pass arrays of JAX, jax.numpy.asarray(...)"
            )


def _port_of_many(arrays: Sequence[Any], names: Sequence[str], records: bool) -> Port | None:
    if ALL_NUMPY(map(type, arrays)) or _are_readable_torch(arrays, records):
        return None
    if has_dtensors(arrays):  # their port takes plain tensors as well, but not the other way
        first = names[list(map(is_dtensor, arrays)).index(True)]
        _require_one_framework(arrays, names, "torch", first)
        return _imported("dtensors")
    for array, name in zip(arrays, names, strict=True):
        port = _port_of(array, records)
        if port is not None:
            _require_one_framework(arrays, names, _framework_of(array), name)
            return port
    return None


def _are_readable_torch(arrays: Sequence[Any], records: bool) -> bool:
    """Return whether no tensor needs a port, all being plain torch ones: 20 us for 400."""
    torch: Any = sys.modules.get("torch")
    nn = getattr(torch, "nn", None)  # missing while another thread imports torch
    if nn is None or not {torch.Tensor, nn.Parameter}.issuperset(map(type, arrays)):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if "deepspeed" in sys.modules:  # its parameters may have no elements now
        return False
    if records and torch.is_grad_enabled() and any(map(_REQUIRES_GRAD, arrays)):
        return False
    return not any(map(_IS_META, arrays))


def _port_of(x: Any, records: bool) -> Port | None:
    """Return the port of one array; `records` is as for ``Library.needs_port``.

    Plain torch tensors are handled here: neither their row nor the table is asked.
    """
    torch: Any = sys.modules.get("torch")
    nn = getattr(torch, "nn", None)  # missing while another thread imports torch
    if nn is not None and (type(x) is torch.Tensor or type(x) is nn.Parameter):
        if (
            (records and x.requires_grad and torch.is_grad_enabled())
            or torch.compiler.is_compiling()
            or has_no_elements(torch, x)
        ):
            from .torch import functions  # Dynamo traces this, and not import_module

            return cast(Port, functions)
        return None
    port = port_of(type(x))
    if port in HOLDERS:
        return _port_of(held(x, port), records)
    # Dynamo follows no further where it need not: the table of libraries grows.
    if port == "dtensors" or (port == "torch" and torch.compiler.is_compiling()):
        return _imported(port)
    return _imported(port) if port and library_of(type(x)).needs_port(x, records) else None


def _imported(port: str) -> Port:
    """Return a port by its name, and import it where it is needed first."""
    if port == "torch":
        from .torch import functions

        return cast(Port, functions)
    if port == "dtensors":
        from .torch import dtensors

        return cast(Port, dtensors)
    return cast(Port, import_module(PORTS[port]))


def _framework_of(x: Any) -> str:
    """Return "torch", "jax" or "other", the framework of an array or of the one it wraps."""
    port = port_of(type(x))
    if port in HOLDERS:
        return _framework_of(held(x, port))
    return {"torch": "torch", "dtensors": "torch", "jax": "jax"}.get(port, "other")


def _require_one_framework(
    arrays: Sequence[Any], names: Sequence[str], wanted: str, first: str
) -> None:
    for array, name in zip(arrays, names, strict=True):
        if _framework_of(array) != wanted:
            raise TypeError(
                f"tensors[{name!r}] is {errors.described(array)}, but {wanted} follows "
                f"tensors[{first!r}] to differentiate or trace it; pass all tensors as arrays of "
                f"{wanted}"
            )
