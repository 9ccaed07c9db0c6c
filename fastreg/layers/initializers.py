"""Initial weights: the distributions of ``keras.initializers``, drawn by NumPy.

Names, defaults, fans and saved forms are those of Keras 3; the numbers are not, because the
generators differ.  Any callable of ``(shape, dtype)`` is an initializer.  One with a seed returns
the same numbers at every call, as in Keras; without a seed they are new at every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from .._base import arguments as _arguments
from .._base import errors
from .._base.dtypes import Array
from ..regularizers.saved_forms import saved_form, saved_instance

#: Standard deviation of a standard normal variable cut at two of its standard deviations.
_CUT_DEVIATION = 0.87962566103423978


class Initializer:
    """Base class: shown by its configuration."""

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """Return new weights."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this initializer, under Keras' names."""
        return dict(vars(self))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


class Constant(Initializer):
    """One number everywhere.

    >>> Constant(2.0)((2,))
    array([2., 2.], dtype=float32)
    """

    def __init__(self, value: float = 0.0) -> None:
        self.value: float = _arguments.multiplier(value, "value")

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return np.full(shape, self.value, dtype)


class Zeros(Initializer):
    """Zeros."""

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return np.zeros(shape, dtype)


class Ones(Initializer):
    """Ones."""

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return np.ones(shape, dtype)


class _Random(Initializer):
    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer))):
            raise TypeError(f"seed must be an integer or None, not {errors.described(seed)}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be 0 or more, not {seed}")
        self.seed: int | None = None if seed is None else int(seed)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


class RandomUniform(_Random):
    """Uniform between two bounds.

    >>> w = RandomUniform(0.0, 1.0, seed=0)((100,))
    >>> bool((w >= 0).all() and (w <= 1).all())
    True
    """

    def __init__(
        self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None
    ) -> None:
        super().__init__(seed)
        self.minval: float = _arguments.multiplier(minval, "minval")
        self.maxval: float = _arguments.multiplier(maxval, "maxval")
        if not 0 <= self.maxval - self.minval < math.inf:
            raise ValueError(
                f"maxval must be minval or more, by a finite difference; they were {self.maxval!r} "
                f"and {self.minval!r}"
            )

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return self._generator().uniform(self.minval, self.maxval, shape).astype(dtype)


class RandomNormal(_Random):
    """Normal with a mean and a standard deviation."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean: float = _arguments.multiplier(mean, "mean")
        self.stddev: float = _arguments.strength(stddev, "stddev")

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return self._generator().normal(self.mean, self.stddev, shape).astype(dtype)


class TruncatedNormal(RandomNormal):
    """Normal without what is further than two standard deviations from the mean.

    >>> w = TruncatedNormal(stddev=1.0, seed=0)((1000,))
    >>> bool((abs(w) <= 2).all())
    True
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return (self.mean + self.stddev * _cut_normal(self._generator(), shape)).astype(dtype)


def _cut_normal(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    numbers = generator.standard_normal(shape)
    while (far := np.abs(numbers) > 2).any():  # one in 22 is drawn again, each time
        numbers[far] = generator.standard_normal(int(far.sum()))
    return numbers


class VarianceScaling(_Random):
    """Variance ``scale`` over the fan-in, the fan-out or their mean.

    >>> VarianceScaling(seed=0)((4, 2)).shape
    (4, 2)
    """

    _modes: ClassVar = ("fan_in", "fan_out", "fan_avg")
    _distributions: ClassVar = ("truncated_normal", "untruncated_normal", "uniform")

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
        input_axes: None = None,
        output_axes: None = None,
    ) -> None:
        super().__init__(seed)
        self.scale: float = _arguments.strength(scale, "scale")
        if self.scale == 0.0:
            raise ValueError("scale must be above 0, not 0.0; use Zeros")
        self.mode: str = _arguments.choice(mode, "mode", self._modes)
        # "normal" is Keras' other name of the cut one
        wanted = "truncated_normal" if distribution == "normal" else distribution
        self.distribution: str = _arguments.choice(wanted, "distribution", self._distributions)
        for name, axes in (("input_axes", input_axes), ("output_axes", output_axes)):
            if axes is not None:
                raise ValueError(
                    f"{name} must be None, not {axes!r}; the axes of Dense and Conv kernels are "
                    "known"
                )

    def __call__(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        inputs, outputs = fans(shape)
        fan = {"fan_in": inputs, "fan_out": outputs, "fan_avg": (inputs + outputs) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        generator = self._generator()
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            numbers = generator.uniform(-limit, limit, shape)
        elif self.distribution == "untruncated_normal":
            numbers = generator.normal(0.0, math.sqrt(variance), shape)
        else:
            numbers = math.sqrt(variance) / _CUT_DEVIATION * _cut_normal(generator, shape)
        return numbers.astype(dtype)

    def get_config(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("scale", "mode", "distribution", "seed")}
        return {**own, "input_axes": None, "output_axes": None}


class _Scaled(VarianceScaling):
    """The named cases of variance scaling: only the seed is free."""

    _arguments: ClassVar[tuple[float, str, str]]

    def __init__(
        self, seed: int | None = None, input_axes: None = None, output_axes: None = None
    ) -> None:
        super().__init__(*self._arguments, seed, input_axes, output_axes)

    def get_config(self) -> dict[str, Any]:
        return {"seed": self.seed, "input_axes": None, "output_axes": None}


class GlorotUniform(_Scaled):
    """Uniform, variance 1 over the mean of both fans; the usual kernel of Keras."""

    _arguments = (1.0, "fan_avg", "uniform")


class GlorotNormal(_Scaled):
    """Cut normal, variance 1 over the mean of both fans."""

    _arguments = (1.0, "fan_avg", "truncated_normal")


class HeUniform(_Scaled):
    """Uniform, variance 2 over the fan-in; for relu."""

    _arguments = (2.0, "fan_in", "uniform")


class HeNormal(_Scaled):
    """Cut normal, variance 2 over the fan-in; for relu."""

    _arguments = (2.0, "fan_in", "truncated_normal")


class LecunUniform(_Scaled):
    """Uniform, variance 1 over the fan-in."""

    _arguments = (1.0, "fan_in", "uniform")


class LecunNormal(_Scaled):
    """Cut normal, variance 1 over the fan-in."""

    _arguments = (1.0, "fan_in", "truncated_normal")


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return how many inputs an output of a kernel sees, and how many outputs an input reaches.

    >>> fans((3, 3, 16, 32))
    (144, 288)
    """
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]


_CLASSES: dict[str, type[Initializer]] = {
    name: kind
    for kind in (
        *(Constant, Zeros, Ones, RandomUniform, RandomNormal, TruncatedNormal, VarianceScaling),
        *(GlorotUniform, GlorotNormal, HeUniform, HeNormal, LecunUniform, LecunNormal),
    )
    for name in (kind.__name__, _arguments.snake_case(kind.__name__))
}


def get(
    identifier: Any, argument: str, custom_objects: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Return the initializer that an argument stands for; errors call it `argument`.

    It is a name of Keras, a saved form, a class, or a callable of ``(shape, dtype)``; others are a
    TypeError or ValueError.  `custom_objects` are classes and functions by name, for saved forms.

    >>> get("he_normal", "kernel_initializer")
    HeNormal(seed=None, input_axes=None, output_axes=None)
    """
    custom = {} if custom_objects is None else custom_objects
    arguments: Any = {}
    if isinstance(identifier, Mapping):
        name, arguments = identifier.get("class_name"), identifier.get("config")
        if name in ("function", "builtin_function_or_method"):  # saved by its own name
            name, arguments = arguments, {}
        identifier = _by_name(str(name), argument, custom)
    elif isinstance(identifier, str):
        identifier = _by_name(identifier, argument, custom)
    elif type(identifier).__module__.startswith("keras."):
        # one of Keras' own: its kind and seed, so that the weights are NumPy's
        return get(
            {"class_name": type(identifier).__name__, "config": identifier.get_config()},
            argument,
            custom,
        )
    if isinstance(identifier, type):
        with errors.prefixed(argument):
            identifier = identifier(**(arguments or {}))
    if not callable(identifier):
        raise TypeError(
            f"{argument} must be a name like 'glorot_uniform' or a callable of (shape, dtype), not "
            f"{errors.described(identifier)}"
        )
    found: Callable[..., Any] = identifier
    return found


def serialize(initializer: Any, argument: str) -> Any:
    """Return the saved form, that of Keras; TypeError for an initializer without one."""
    kind = type(initializer)
    if kind.__name__ in ("function", "builtin_function_or_method"):
        if initializer.__name__ == "<lambda>":
            raise TypeError(f"{argument} must have a name to be saved, not be a lambda")
        return saved_form("builtins", "function", initializer.__name__, "function")
    if _CLASSES.get(kind.__name__) is kind:
        return saved_form("keras.initializers", kind.__name__, initializer.get_config(), None)
    return saved_instance(initializer, argument)


def _by_name(name: str, argument: str, custom: Mapping[str, Any]) -> Any:
    found = custom.get(name, _CLASSES.get(name))
    if found is None:
        raise ValueError(
            f"{argument} must name an initializer, not {name!r}"
            f"{errors.suggestion(name, (*_CLASSES, *custom))}; the names are "
            f"{errors.listed([name for name in _CLASSES if name.islower()], 20)}"
        )
    return found
