"""The base of all layers: names, dtype, activity penalty, calls and their backward, saved form.

Contract: a call or a backward changes the layer at its end, by :meth:`Layer._keep` and
:meth:`Layer._finish` alone: if it raises, the layer is unchanged.  :class:`Sequential` uses these
two over several layers.  The output of a call belongs to the caller; its input is kept until
backward, not copied: do not write into it before.  A layer is not thread-safe.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from .. import regularizers
from .._base import arguments, errors
from .._base.dtypes import Array
from . import precision, terms

Shape = tuple[int | None, ...]
Form = tuple[tuple[int, ...], str]
"""Shape and name of the dtype of a weight."""

REDUCTIONS = ("mean", "sum")

# Arguments that Keras writes into configurations, of which fastreg takes one value.
_ONLY_CHOICE: dict[str, tuple[Any, ...]] = {
    "data_format": (None, "channels_last"),
    "groups": (1,),
    "kernel_constraint": (None,),
    "bias_constraint": (None,),
    "lora_rank": (None,),
    "lora_alpha": (None,),
    "quantization_config": (None,),
    "sparse": (False,),
    "ragged": (False,),
    "optional": (False,),
}

AnyLayer = TypeVar("AnyLayer", bound="Layer")


@dataclass(slots=True)
class ActivityTerm:
    """The activity penalty of one call; its value is computed once, when it is first needed."""

    rule: Any
    output: Array | None
    scale: float
    label: str
    known: float | None = None

    def value(self) -> float:
        """Return the penalty."""
        if self.known is None:
            assert self.output is not None  # kept until the value is known
            empty = self.output.size == 0  # where a function of one's own may give NaN
            self.known = (
                0.0 if empty else terms.value(self.rule, self.output, self.label, self.scale)
            )
        return self.known


@dataclass(slots=True)
class Call:
    """The state that one call of a layer keeps."""

    shape: tuple[int, ...]
    """The shape of the output."""
    output: Array | None
    """The output in the storage dtype, where backward needs it."""
    kept: Any
    """Anything else that backward needs."""
    activity: ActivityTerm | None
    waiting: bool
    """Whether backward may still be run."""


@dataclass(slots=True)
class Step:
    """The results of one backward of a layer."""

    input_gradient: Array | None
    gradients: list[Array]
    weight_terms: list[float]
    activity: float | None

    @property
    def losses(self) -> list[float]:
        """The penalties in Keras' order."""
        return ([] if self.activity is None else [self.activity]) + self.weight_terms


class Layer:
    """Base class of layers; it has no weights itself.

    Parameters
    ----------
    trainable : bool, optional
        False: no weight terms in `losses`, no weight gradients.  The activity term stays.
    activity_regularizer : optional
        What ``regularizers.get`` takes; a penalty on the output.
    activity_reduction : {"mean", "sum"}, optional
        Whether the activity term, which is on the output after the activation, is divided by the
        batch size, as Keras does since 3.14.
    dtype : optional
        "float16", "bfloat16", "float32" (None) or "float64", or a saved policy of Keras.
    name : str, optional
        Without "/"; by default made of the class and a number.
    input_shape, input_dim : optional
        Extents of the input without the batch: :class:`Sequential` builds the layer with them.
    """

    #: Where Keras has the class, for saved forms.
    _module: ClassVar[str] = "keras.layers"
    #: BaseConv writes the activity regularizer always, other layers when it is set.
    _always_saves_activity: ClassVar[bool] = False

    def __init__(
        self,
        *,
        trainable: bool = True,
        activity_regularizer: Any = None,
        activity_reduction: str = "mean",
        dtype: Any = None,
        name: str | None = None,
        input_shape: Sequence[int | None] | None = None,
        input_dim: int | None = None,
        **others: Any,
    ) -> None:
        refuse_others(type(self), type(self).__name__, others)
        self._precision = precision.get(dtype)
        self.trainable = trainable
        self.activity_regularizer = activity_regularizer
        self.activity_reduction: str = arguments.choice(
            activity_reduction, "activity_reduction", REDUCTIONS
        )
        self._first_input = _input_without_batch(input_shape, input_dim)
        self.built: bool = False
        self._name = automatic_name(type(self)) if name is None else checked_name(name)
        self._call: Call | None = None
        self._step: Step | None = None

    @property
    def name(self) -> str:
        """The name, the first part of the names of its weights."""
        return self._name

    @property
    def dtype(self) -> str:
        """The name of the dtype of weights, outputs and gradients."""
        return self._precision.name

    trainable: arguments.Checked[bool] = arguments.Checked(
        arguments.flag, "Whether the weights are trained; may be set at any time."
    )
    activity_regularizer: arguments.Checked[Any] = arguments.Checked(
        terms.regularizer, "The regularizer of the output, or None; may be set, for later calls."
    )

    def _label(self) -> str:
        """Return what errors call the layer: its name and class."""
        return f"{self.name} ({type(self).__name__})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}{'' if self.built else ', not built'}>"

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Return the shape of the output, None for an unknown extent.

        ValueError for an input that the layer does not take.
        """
        raise NotImplementedError

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for inputs of this shape, the batch included (None will do for it).

        No change where they fit already.  ValueError when the layer does not take such an input, or
        is built for another one; ValueError or TypeError when an initializer returns something
        other than numbers of the right shape.
        """
        self.compute_output_shape(shape_of(input_shape, "input_shape"))
        self.built = True

    def _unbuild(self) -> None:
        """Undo `build`, for a model of which another layer could not be built."""
        self.built = False

    @property
    def weights(self) -> list[Array]:
        """All weights, kernel before bias, as arrays that may be changed in-place."""
        return []

    @property
    def trainable_weights(self) -> list[Array]:
        """The weights, none for a frozen layer; in the order of `gradients`."""
        return self.weights if self.trainable else []

    @property
    def non_trainable_weights(self) -> list[Array]:
        """The weights of a frozen layer."""
        return [] if self.trainable else self.weights

    def weight_forms(self, input_shape: Sequence[int | None]) -> dict[str, Form]:
        """Return by name the shape and dtype of the weights that `build` would make; its errors."""
        return {}

    def weight_names(self) -> list[str]:
        """Return the names of the `weights`, for example "dense/kernel"."""
        return []

    def count_params(self) -> int:
        """Return the number of weights' elements; RuntimeError before the layer is built."""
        self._require_built("count_params()")
        return sum(weight.size for weight in self.weights)

    def get_weights(self) -> list[Array]:
        """Return copies of the weights, in the order of `weights`."""
        return [weight.copy() for weight in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Write new numbers into the weights: all of them, or none when one does not fit.

        They are arrays in the order and shapes of `weights`, and rounded to the layer's dtype.
        TypeError or ValueError when they do not fit, RuntimeError before the layer is built.
        """
        self._require_built("set_weights(...)")
        self._put_weights(self._fitting_weights(weights))

    def _fitting_weights(self, weights: Sequence[Any], first: int = 0) -> list[Array]:
        names = self.weight_names()
        require_list(weights, names, self.name, "[kernel, bias]")
        fitting = []
        for place, name, own, given in zip(
            range(first, first + len(names)), names, self.weights, weights, strict=True
        ):
            new = precision.numbers(given, f"weights[{place}]")
            if new.shape != own.shape:
                raise ValueError(
                    f"weights[{place}] has shape {new.shape}, but {name} has {own.shape}"
                )
            fitting.append(self._precision.rounded(new))
        return fitting

    def _put_weights(self, weights: Sequence[Array]) -> None:
        for own, new in zip(self.weights, weights, strict=True):
            own[...] = new

    def __call__(self, x: Any, *, training: bool | None = None) -> Array:
        """Return the output for a batch; builds the layer at the first call.

        Parameters
        ----------
        x : array
            Real numbers in host memory, batch first, channels last.  Kept until backward.
        training : bool, optional
            False: nothing is kept for backward.

        Returns
        -------
        numpy.ndarray
            A new array in the layer's dtype.  TypeError or ValueError when `x` does not fit, before
            anything changes.
        """
        keep = training is None or arguments.flag(training, "training")
        given = precision.numbers(x, "x")
        output, call = self._run(given, keep)
        self._keep(call)
        # The caller may write into the result: it must not alias what is kept for backward, or `x`,
        # of which Flatten returns a view.
        return output.copy() if keep or np.may_share_memory(output, given) else output

    def _run(self, x: Array, keep: bool) -> tuple[Array, Call]:
        """Return the output and what to keep, without keeping it."""
        self.compute_output_shape(x.shape)
        if not self.built:
            self.build(x.shape)
        y, kept = self._forward(self._precision.computable(x))
        output = self._precision.rounded(y)
        rule = self.activity_regularizer
        term = None
        if rule is not None:
            batch = len(output) if self.activity_reduction == "mean" else 1
            term = ActivityTerm(
                rule, output, 1.0 / batch if batch else 0.0, f"the output of {self.name}"
            )
            if not keep:
                term.value()
                term.output = None
        retained = output if keep and self._needs_output() else None
        return output, Call(output.shape, retained, kept if keep else None, term, keep)

    def _keep(self, call: Call) -> None:
        self._call = call

    def _forward(self, x: Array) -> tuple[Array, Any]:
        """Return the output, and what backward needs of it; `x` has the compute dtype."""
        raise NotImplementedError

    def _needs_output(self) -> bool:
        return False

    def backward(
        self, dy: Any, *, grad_scale: float = 1.0, input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient with respect to the input, and leave `gradients`, penalties included.

        Parameters
        ----------
        dy : array
            The gradient of the data loss with respect to the last output, of its shape.  It is not
            changed.
        grad_scale : float, optional
            Factor of the penalties' gradients: that of loss scaling, where `dy` has it already.
        input_gradient : bool, optional
            False, for a first layer: the gradient with respect to the input is not computed, and
            None returned.

        Returns
        -------
        numpy.ndarray or None
            In the shape of the input and the layer's dtype.  RuntimeError without a call before it,
            or a second time after one call; TypeError when a regularizer has no gradient;
            ValueError when `dy` does not fit.  In all cases nothing has changed.
        """
        step = self._reverse(dy, grad_scale, arguments.flag(input_gradient, "input_gradient"))
        self._finish(step)
        return step.input_gradient

    def _reverse(self, dy: Any, grad_scale: float, input_gradient: bool) -> Step:
        """Return the results of a backward, without keeping them."""
        call = self._call
        if call is None:
            raise RuntimeError(f"{self.name}.backward(dy) needs a call before it: call the layer")
        if not call.waiting:
            raise RuntimeError(
                f"{self.name}.backward(dy) was run for the last call already, or that call had "
                "training=False; call the layer again"
            )
        factor = arguments.multiplier(grad_scale, "grad_scale")
        given = precision.numbers(dy, "dy")
        if given.shape != call.shape:
            raise ValueError(
                f"dy has shape {given.shape}, but the output of {self.name} had {call.shape}"
            )
        slope = self._precision.computable(given)
        activity = None
        term = call.activity
        if term is not None:
            assert term.output is not None  # kept while the call waits
            activity = 0.0
            if term.output.size:
                slope = np.array(slope, order="C")  # what the caller passed stays as it is
                activity = terms.accumulate(
                    term.rule,
                    self._precision.computable(term.output),
                    slope,
                    term.label,
                    term.scale,
                    factor,
                )
        dx, gradients, weight_terms = self._backward(call, slope, factor, input_gradient)
        return Step(
            None if dx is None else self._precision.rounded(dx), gradients, weight_terms, activity
        )

    def _finish(self, step: Step) -> None:
        call = self._call
        assert call is not None  # _reverse has seen it
        if call.activity is not None:
            call.activity.known = step.activity
            call.activity.output = None
        call.output = call.kept = None
        call.waiting = False
        self._step = step

    def _backward(
        self, call: Call, dy: Array, grad_scale: float, input_gradient: bool
    ) -> tuple[Array | None, list[Array], list[float]]:
        """Return the gradients with respect to input and weights, and the weights' penalties."""
        raise NotImplementedError

    @property
    def gradients(self) -> list[Array]:
        """The gradients of `trainable_weights` from the last backward, penalties included.

        RuntimeError before the first one, and for a layer that was frozen then and is not now.
        """
        gradients = self._last_step().gradients
        if not gradients and self.trainable_weights:
            # an empty list would let a loop over the weights pass the layer by
            raise RuntimeError(
                f"{self.name} was frozen in the last backward, which gave it no gradients; after "
                "trainable = True, run a call and its backward first"
            )
        return gradients

    @property
    def penalty(self) -> float:
        """The sum of the terms in the last backward, without another pass; RuntimeError before."""
        return sum(self._last_step().losses)

    def _last_step(self) -> Step:
        if self._step is None:
            raise RuntimeError(f"{self.name} has no gradients yet: run backward(dy) first")
        return self._step

    @property
    def losses(self) -> list[float]:
        """The penalties in Keras' order (activity, kernel, bias); absent terms are absent.

        The activity term is that of the last call; weight terms are computed now, from the weights
        as they are, and are there from `build` on.  A frozen layer has no weight terms.
        """
        return self._activity_losses() + self._weight_losses()

    def _activity_losses(self) -> list[float]:
        term = None if self._call is None else self._call.activity
        return [] if term is None else [term.value()]

    def _weight_losses(self) -> list[float]:
        return []

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that make this layer as plain Python objects, in Keras' form.

        TypeError when a part cannot be saved, a lambda for example.
        """
        config: dict[str, Any] = {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": self._precision.config(),
        }
        if self.activity_regularizer is not None or self._always_saves_activity:
            config["activity_regularizer"] = regularizers.serialize(self.activity_regularizer)
        if self.activity_reduction != "mean":  # Keras has one rule, and no such argument
            config["activity_reduction"] = self.activity_reduction
        return config

    @classmethod
    def from_config(
        cls: type[AnyLayer],
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> AnyLayer:
        """Return a layer with the arguments that :meth:`get_config` returned, here or in Keras.

        `custom_objects` are functions and classes by name, for regularizers, activations and
        initializers of your own.  TypeError or ValueError when the arguments do not fit, or ask for
        what fastreg does not have.
        """
        if not isinstance(config, Mapping):
            raise TypeError(f"config must be a dict, not {errors.described(config)}")
        for key, parameter in inspect.signature(cls).parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and parameter.default is parameter.empty and key not in config:
                raise ValueError(f"config of a {cls.__name__} must have {key!r}, and has not")
        return cls(**cls._from_saved(dict(config), custom_objects))

    @classmethod
    def _from_saved(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """Return saved arguments with the parts that need custom objects."""
        key = "activity_regularizer"
        if key in config:
            config[key] = terms.regularizer(config[key], key, custom_objects)
        return config

    def _require_built(self, what: str) -> None:
        if not self.built:
            raise RuntimeError(
                f"{what} needs weights, and {self.name} has none yet: call it on a batch or "
                "build(input_shape) first"
            )


def refuse_others(kind: type, name: str, others: Mapping[str, Any]) -> None:
    """Raise for keywords that a class does not have, but for Keras' defaults."""
    for key, value in others.items():
        if key not in _ONLY_CHOICE:
            near = errors.suggestion(key, _arguments_of(kind))
            raise TypeError(f"{name} has no argument {key!r}{near}")
        # only what compares to one bool: an array does not
        comparable = value is None or isinstance(value, (str, int, float, np.generic))
        if not comparable or value not in _ONLY_CHOICE[key]:
            raise ValueError(
                f"{key} must be {_ONLY_CHOICE[key][-1]!r}, not {errors.described(value)}: "
                "fastreg's layers have no other"
            )


def _arguments_of(kind: type) -> list[str]:
    """Return the keywords that a class and its bases take."""
    return [
        name
        for base in kind.__mro__
        if "__init__" in vars(base) and base is not object
        for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    ]


def require_list(weights: Any, names: Sequence[str], owner: str, remedy: str) -> None:
    """Raise unless new weights are a list, with an array for each of these names."""
    if isinstance(weights, Mapping) or not isinstance(weights, Sequence):
        raise TypeError(
            f"weights must be a list of arrays, not {errors.described(weights)}; pass {remedy}"
        )
    if len(weights) != len(names):
        raise ValueError(
            f"weights has {len(weights)} arrays, but {owner} has {len(names)}: "
            f"{errors.listed(names) or 'none'}"
        )


def shape_of(shape: Any, name: str) -> Shape:
    """Return a shape as a tuple of extents, None where one is unknown."""
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        raise TypeError(
            f"{name} must be a tuple of integers and None, not {errors.described(shape)}"
        )
    for extent in shape:
        if extent is None:
            continue
        if isinstance(extent, bool) or not isinstance(extent, (int, np.integer)):
            raise TypeError(
                f"{name} must be a tuple of integers and None, not {errors.described(extent)} in it"
            )
        if extent < 0:
            raise ValueError(f"{name} must have no negative extent, not {errors.described(extent)}")
        if extent > sys.maxsize:
            raise ValueError(
                f"{name} must have no extent above {sys.maxsize}, not {errors.described(extent)}"
            )
    return tuple(None if extent is None else int(extent) for extent in shape)


def _input_without_batch(input_shape: Any, input_dim: Any) -> Shape | None:
    if input_shape is not None and input_dim is not None:
        raise ValueError("input_shape and input_dim say the same thing; pass one of them")
    if input_dim is not None:
        return (arguments.positive_integer(input_dim, "input_dim"),)
    return None if input_shape is None else shape_of(input_shape, "input_shape")


def checked_name(name: Any) -> str:
    """Return a name: a string that is not empty and has no "/", the separator of weight names."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {errors.described(name)}")
    if not name or "/" in name:
        raise ValueError(f'name must not be empty or contain "/", not {name!r}')
    return name


_numbers: dict[str, Any] = defaultdict(itertools.count)


def automatic_name(kind: type) -> str:
    """Return a new name as Keras does: "conv2d", "conv2d_1", ..."""
    stem = arguments.snake_case(kind.__name__)
    number = next(_numbers[stem])
    return stem if number == 0 else f"{stem}_{number}"
