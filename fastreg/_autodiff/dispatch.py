"""Which arrays a framework follows, so that its adapter has to compute what is asked of them.

Contract
--------
- Autograd and a trace see only what goes through their framework.  For an array that one of them
  follows the regularizers and penalties hand the call over to the adapter; of all others the core
  reads the elements.
- A value is handed over where anything follows the array (:func:`following`), a gradient only where
  the array has no elements to read (:func:`tracing`): one that autograd follows has them.
- An array of JAX has none, either, where it is sharded, or on a device that the core cannot use.
- An adapter is imported at the first array that needs it: only where its framework is loaded.
- Each is a module with the functions of :class:`Adapter`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from operator import attrgetter
from typing import Any, Protocol, cast

import numpy as np

from .._arrays.libraries import framework, has_dtensors, is_dtensor
from .._base import errors, float_environment
from .._base.core import why_off

PORTS = {"jax": "fastreg._autodiff.jax.functions"}
"""The modules of ports, imported at the first array that needs one; ``fastreg`` adds that of Keras.
Those for torch are import statements, which Dynamo traces."""

_NUMPY = frozenset((np.ndarray,))
_REQUIRES_GRAD = attrgetter("requires_grad")
_IS_META = attrgetter("is_meta")


class Adapter(Protocol):
    """What a framework's adapter offers; tensors and strengths are as for ``evaluate_many``.

    A strength or scale may be what the framework follows, too, where it can.  Results are what the
    framework can differentiate: float64 for float64 tensors, else float32.
    """

    def total(
        self,
        weights: Sequence[Any],
        strengths: Sequence[tuple[Any, Any]],
        which: Sequence[int],
        scale: Any,
    ) -> Any:
        """Return the penalty of all tensors, 0-d."""

    def values(
        self,
        weights: Sequence[Any],
        strengths: Sequence[tuple[Any, Any]],
        which: Sequence[int],
        scale: Any,
    ) -> Sequence[Any]:
        """Return the penalty of each tensor, 0-d each, from one pass over all."""

    def gradient(self, w: Any, l1: Any, l2: Any, factor: Any) -> Any:
        """Return ``factor * (l1 * sign(w) + 2 * l2 * w)`` as a new array."""

    def orthogonal(self, w: Any, factor: Any, mode: str) -> Any:
        """Return the penalty of ``OrthogonalRegularizer``, 0-d."""

    def factor(self, number: Any, name: str) -> Any:
        """Return a scale as it can be multiplied: a float, or what the framework follows.

        Raises
        ------
        TypeError, ValueError
            For what is no finite number, by its `name`.
        """


def product(adapter: Any, first: Any, *others: Any) -> Any:
    """Return the product of strengths and scales, as an adapter takes them.

    An adapter that has a function `product` multiplies what its framework follows in its own way.
    """
    multiply = getattr(adapter, "product", float_environment.product)
    return multiply(first, *others)


def are_numpy(arrays: Iterable[Any]) -> bool:
    """Return whether all arrays are plain ones of NumPy, which no framework follows."""
    return _NUMPY.issuperset(map(type, arrays))


def following(x: Any) -> Adapter | None:
    """Return the adapter that has to compute the value of `x`; None where the core can."""
    return _adapter_of(x, True)


def tracing(x: Any) -> Adapter | None:
    """Return the adapter of an array without readable elements; None where the core can read."""
    return _adapter_of(x, False)


def of_any(
    find: Callable[[Any], Adapter | None], arrays: Sequence[Any], names: Sequence[str]
) -> Adapter | None:
    """Return what `find` gives for the first array that has an adapter; None where none has.

    Raises
    ------
    TypeError
        When there is an adapter, and arrays of other frameworks as well.
    """
    if are_numpy(arrays) or _are_plain_torch(arrays, find is following):
        return None
    if has_dtensors(arrays):  # their adapter takes plain tensors as well, but not the other way
        _require_one_framework(
            arrays, names, "torch", names[list(map(is_dtensor, arrays)).index(True)]
        )
        return _dtensors()
    for array, name in zip(arrays, names, strict=True):
        adapter = find(array)
        if adapter is not None:
            _require_one_framework(arrays, names, framework(array)[0], name)
            return adapter
    return None


def require_jax(arrays: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse arrays of others where JAX traces a number that they are multiplied with."""
    for array, name in zip(arrays, names, strict=True):
        if framework(array)[0] != "jax":
            raise TypeError(
                f"tensors[{name!r}] is {errors.described(array)}, but JAX traces a scale or a "
                "strength; pass arrays of JAX, jax.numpy.asarray(...)"
            )


def _are_plain_torch(arrays: Sequence[Any], is_followed_by_autograd: bool) -> bool:
    """Say at once that `_adapter_of` has nothing for many tensors of torch: 400 take 20 us."""
    torch: Any = sys.modules.get("torch")
    nn = getattr(torch, "nn", None)  # missing while another thread imports torch
    if nn is None or not {torch.Tensor, nn.Parameter}.issuperset(map(type, arrays)):
        return False
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if "deepspeed" in sys.modules:  # its parameters may have no elements now
        return False
    if is_followed_by_autograd and torch.is_grad_enabled() and any(map(_REQUIRES_GRAD, arrays)):
        return False
    return not any(map(_IS_META, arrays))


def _adapter_of(x: Any, is_followed_by_autograd: bool) -> Adapter | None:
    kind, module, x = framework(x)
    if kind == "torch":
        if is_dtensor(x):  # followed or not, no one process has its elements
            return _dtensors()
        if _has_no_elements(module, x) or (
            is_followed_by_autograd and x.requires_grad and module.is_grad_enabled()
        ):
            from .torch import functions  # torch.compile can trace no import_module

            return cast(Adapter, functions)
    elif kind == "jax" and _is_left_to_jax(module, x):
        return cast(Adapter, import_module(PORTS["jax"]))
    elif kind == "other" and _is_followed_by_keras(x):
        return cast(Adapter, import_module(PORTS["keras"]))
    return None


def of_strengths(*strengths: Any) -> Adapter | None:
    """Return the adapter of strengths or factors that are traced: JAX's tracers, of a schedule."""
    if all(type(strength) is float for strength in strengths):
        return None
    return next(filter(None, map(tracing, strengths)), None)


def _is_left_to_jax(jax: Any, x: Any) -> bool:
    if isinstance(x, jax.core.Tracer):
        return True
    devices = x.sharding.device_set
    if len(devices) != 1:
        return True
    (device,) = devices
    return device.platform != "cpu" and (device.platform != "gpu" or bool(why_off()))


def _dtensors() -> Adapter:
    from .torch import dtensors  # Dynamo traces this, and not import_module

    return cast(Adapter, dtensors)


def _has_no_elements(torch: Any, x: Any) -> bool:
    """Return whether `x` only stands for a tensor: torch compiles or transforms a function."""
    if torch.compiler.is_compiling():
        return True
    kind = type(x)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        return bool(
            x.is_meta
            or torch._C._functorch.is_functorch_wrapped_tensor(x)
            # DeepSpeed's ZeRO-3 has taken them: the adapter refuses it by name.
            or x.__dict__.get("ds_numel", x.numel()) != x.numel()
        )
    return kind.__name__ == "FakeTensor"


def _is_followed_by_keras(x: Any) -> bool:
    """Return whether `x` is symbolic, or a tensor of a backend that has no adapter of its own."""
    keras: Any = sys.modules.get("keras")
    if keras is None or type(x) is np.ndarray or not hasattr(keras, "KerasTensor"):
        return False
    return isinstance(x, keras.KerasTensor) or bool(
        keras.backend.backend() in ("tensorflow", "openvino") and keras.ops.is_tensor(x)
    )


def _require_one_framework(
    arrays: Sequence[Any], names: Sequence[str], wanted: str, first: str
) -> None:
    for array, name in zip(arrays, names, strict=True):
        if framework(array)[0] != wanted:
            raise TypeError(
                f"tensors[{name!r}] is {errors.described(array)}, but {wanted} follows "
                f"tensors[{first!r}] to differentiate or trace it; pass all tensors as arrays of "
                f"{wanted}"
            )
