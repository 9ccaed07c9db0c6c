"""Base class of Dense and the convolutions: kernel, bias, activation, and their penalties.

Contract: a subclass is a linear map.  It defines the shape of its kernel, the map and its two
gradients; bias, activation, penalties, weights and saved form are here.  The penalties of kernel
and bias are added to their gradients in one fused pass each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .. import regularizers
from .._base import arguments, errors
from .._base.dtypes import Array
from . import activations, initializers, precision, terms
from .base import Call, Form, Layer, Shape, shape_of

PARTS = ("kernel", "bias")


class _Kept(NamedTuple):
    """The state of a call: the input, and z where the derivative needs it."""

    x: Array
    z: Array | None


class KernelLayer(Layer):
    """A linear map with a kernel, then a bias, then an activation.

    Parameters
    ----------
    activation : optional
        None, "linear", "relu", "tanh", "sigmoid", "softmax", or an object with ``forward`` and
        ``derivative`` (see ``fastreg.layers.activations``).
    use_bias : bool, optional
        Whether there is a bias.
    kernel_initializer, bias_initializer : optional
        A name of Keras, or a callable of ``(shape, dtype)``.
    kernel_regularizer, bias_regularizer : optional
        What ``regularizers.get`` takes.
    **others
        The arguments of :class:`~fastreg.layers.Layer`.
    """

    #: The first arguments of the subclass, in the order of its configuration.
    _own_arguments: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        *,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **others: Any,
    ) -> None:
        self._activation = activations.get(activation)
        self._use_bias = arguments.flag(use_bias, "use_bias")
        self._kernel_initializer = initializers.get(kernel_initializer, "kernel_initializer")
        self._bias_initializer = initializers.get(bias_initializer, "bias_initializer")
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self._weights: dict[str, Array] = {}
        # last, because it draws the automatic name: a refused layer takes no number
        super().__init__(**others)

    @property
    def activation(self) -> activations.Activation:
        """The activation."""
        return self._activation

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias."""
        return self._use_bias

    kernel_regularizer: arguments.Checked[Any] = arguments.Checked(
        terms.regularizer,
        "The regularizer of the kernel, or None; unlike in Keras, may be set at any time.",
    )
    bias_regularizer: arguments.Checked[Any] = arguments.Checked(
        terms.regularizer,
        "The regularizer of the bias, or None; unlike in Keras, may be set at any time.",
    )

    def _kernel_shape(self, channels: int) -> tuple[int, ...]:
        raise NotImplementedError

    def _map(self, x: Array, kernel: Array) -> Array:
        """Return a new array, in the compute dtype."""
        raise NotImplementedError

    def _map_gradients(
        self, x: Array, kernel: Array, dz: Array, wants: tuple[bool, bool]
    ) -> tuple[Array | None, Array | None]:
        """Return the gradients with respect to `x` and the kernel, each where it is wanted."""
        raise NotImplementedError

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make kernel and bias for inputs of this shape; errors are those of every layer."""
        if self.built:
            self.compute_output_shape(input_shape)
            return
        initializer_of = {"kernel": self._kernel_initializer, "bias": self._bias_initializer}
        self._weights = {
            part: self._made(part, initializer_of[part], shape)
            for part, shape in self._weight_shapes(input_shape).items()
        }
        self.built = True

    def weight_forms(self, input_shape: Sequence[int | None]) -> dict[str, Form]:
        shapes = self._weight_shapes(input_shape)
        return {f"{self.name}/{part}": (shape, self.dtype) for part, shape in shapes.items()}

    def _weight_shapes(self, input_shape: Sequence[int | None]) -> dict[str, tuple[int, ...]]:
        shape = shape_of(input_shape, "input_shape")
        self.compute_output_shape(shape)
        channels = shape[-1]
        if not channels:
            raise ValueError(
                f"input_shape must say how many channels there are (its last extent), not {shape}"
            )
        kernel_shape = self._kernel_shape(channels)
        return {"kernel": kernel_shape, **({"bias": kernel_shape[-1:]} if self.use_bias else {})}

    def _unbuild(self) -> None:
        self._weights = {}
        super()._unbuild()

    def _made(self, part: str, initializer: Any, shape: tuple[int, ...]) -> Array:
        # drawn in the compute dtype: few initializers know bfloat16
        made = precision.numbers(
            initializer(shape, dtype=self._precision.compute), f"what {part}_initializer gives"
        )
        if made.shape != shape:
            raise ValueError(
                f"what {part}_initializer gives has shape {made.shape}; it must be {shape}"
            )
        return np.array(self._precision.rounded(made), order="C")

    def _check_channels(self, shape: Shape) -> None:
        if self.built and shape[-1] is not None:
            channels = self._weights["kernel"].shape[-2]
            if shape[-1] != channels:
                raise ValueError(
                    f"the input of {self.name} must have {channels} channels (its last extent), "
                    f"for which it was built, not shape {shape}"
                )

    @property
    def kernel(self) -> Array:
        """The kernel; setting it writes the numbers of another array into this one."""
        return self._weight("kernel")

    @kernel.setter
    def kernel(self, value: Array) -> None:
        self._replace("kernel", value)

    @property
    def bias(self) -> Array | None:
        """The bias, None without; setting it writes another array's numbers into this one."""
        return self._weight("bias") if self.use_bias else None

    @bias.setter
    def bias(self, value: Array) -> None:
        self._replace("bias", value)

    def _weight(self, part: str) -> Array:
        self._require_built(part)
        return self._weights[part]

    def _replace(self, part: str, value: Any) -> None:
        self._require_built(part)
        if part not in self._weights:
            raise ValueError(f"{self.name} has no {part}: it was made with use_bias=False")
        own = self._weights[part]
        if value is own:  # what `layer.kernel -= step` ends with
            return
        if type(value) is not np.ndarray or value.dtype != own.dtype:
            raise TypeError(
                f"{part} must be a NumPy array of dtype {own.dtype}, not "
                f"{getattr(value, 'dtype', None) or errors.described(value)}; use "
                f"set_weights, or pass {part}.astype({self.dtype!r})"
            )
        if value.shape != own.shape:
            raise ValueError(f"{part} must have shape {own.shape}, not {value.shape}")
        # written, not put in its place: fastreg.attach and the caller's dicts hold the array itself
        own[...] = value

    @property
    def weights(self) -> list[Array]:
        """Kernel and bias: the arrays themselves, none before `build`."""
        return list(self._weights.values())

    def weight_names(self) -> list[str]:
        return [f"{self.name}/{part}" for part in self._weights]

    def _forward(self, x: Array) -> tuple[Array, Any]:
        with np.errstate(under="ignore"):  # a product too small for the type is 0
            z = self._map(x, self._precision.computable(self._weights["kernel"]))
        if self.use_bias:
            z += self._precision.computable(self._weights["bias"])
        y = self._checked(self._activation.forward(z), z.shape, "activation")
        return y, _Kept(x, z if getattr(self._activation, "needs_input", True) else None)

    def _checked(self, made: Any, shape: tuple[int, ...], function: str) -> Array:
        """Return what a function of the activation made, in the compute dtype."""
        if not isinstance(made, np.ndarray) or made.shape != shape:
            raise ValueError(
                f"the {function} of {self.name} must give an array of the shape it got, {shape}, "
                f"not {getattr(made, 'shape', None) or errors.described(made)}"
            )
        return made.astype(self._precision.compute, copy=False)

    def _needs_output(self) -> bool:
        return not isinstance(self._activation, activations.Linear)

    def _backward(
        self, call: Call, dy: Array, grad_scale: float, input_gradient: bool
    ) -> tuple[Array | None, list[Array], list[float]]:
        x, z = call.kept
        dz = dy
        if call.output is not None:
            y = self._precision.computable(call.output)
            dz = self._activation.derivative(z, y, dy)
            dz = self._checked(dz, dy.shape, "derivative of the activation")
        kernel = self._precision.computable(self._weights["kernel"])
        with np.errstate(under="ignore"):
            dx, dkernel = self._map_gradients(x, kernel, dz, (input_gradient, self.trainable))
        if dkernel is None:
            return dx, [], []
        gradients = {"kernel": self._precision.rounded(dkernel)}
        if self.use_bias:
            # in float64: there can be millions of positions, and they are added one by one
            rows = dz.reshape(-1, dz.shape[-1])
            dbias = np.add.reduce(rows, axis=0, dtype=np.float64)
            gradients["bias"] = self._precision.rounded(dbias)
        weight_terms = [
            terms.accumulate(
                rule, self._weights[part], gradients[part], f"{self.name}.{part}", 1.0, grad_scale
            )
            for part, rule in self._rules().items()
        ]
        return dx, list(gradients.values()), weight_terms

    def _rules(self) -> dict[str, Any]:
        """Return the regularizers of the weights that are there, by part."""
        rules = {"kernel": self.kernel_regularizer, "bias": self.bias_regularizer}
        return {
            part: rule
            for part, rule in rules.items()
            if rule is not None and part in self._weights and self.trainable
        }

    def _weight_losses(self) -> list[float]:
        return [
            terms.value(rule, self._weights[part], f"{self.name}.{part}")
            for part, rule in self._rules().items()
        ]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in self._own_arguments},
            "activation": activations.serialize(self._activation),
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(
                self._kernel_initializer, "kernel_initializer"
            ),
            "bias_initializer": initializers.serialize(self._bias_initializer, "bias_initializer"),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": None,
            "bias_constraint": None,
        }

    @classmethod
    def _from_saved(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        config = super()._from_saved(config, custom_objects)
        for part in PARTS:
            key = f"{part}_regularizer"
            if key in config:
                config[key] = terms.regularizer(config[key], key, custom_objects)
            key = f"{part}_initializer"
            if key in config:
                config[key] = initializers.get(config[key], key, custom_objects)
        if "activation" in config:
            config["activation"] = activations.get(config["activation"], custom_objects)
        return config
