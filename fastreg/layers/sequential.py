"""Sequential: layers one after the other, and the input that the first one takes.

Contract: the model is built as soon as the shape of its input is known: from :func:`Input`, from
``input_shape`` or ``input_dim`` of the first layer, from :meth:`Sequential.build`, or from the
first call.  A call or backward goes through all layers before any of them keeps something: if it
raises, the model is unchanged.  Saved forms are those of Keras, in both directions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .._base import arguments, errors
from .._base.dtypes import Array
from ..penalties.rules import rule_name
from ..regularizers.saved_forms import saved_form
from . import forms, precision
from .base import Call, Layer, Shape, automatic_name, checked_name, require_list, shape_of
from .inputs import InputLayer

AnySequential = TypeVar("AnySequential", bound="Sequential")

NEXT = "\n"  # between the penalties of a layer

_LOOP = (
    "the training loop is yours, in NumPy; docs/layers.md begins with one, and "
    "examples/digits_conv.py is a whole one. To train in Keras: "
    "keras.Sequential.from_config(model.get_config())"
)
#: Attributes of keras.Sequential, and what there is instead.
_OF_KERAS = {
    **dict.fromkeys(("compile", "fit", "train_on_batch", "evaluate", "test_on_batch"), _LOOP),
    **dict.fromkeys(("predict", "predict_on_batch"), "call the model, model(x, training=False)"),
    "save_weights": "save(path) writes form and weights",
    "load_weights": "Sequential.load(path) reads form and weights",
}


class Sequential:
    """A stack of layers, as ``keras.Sequential``; the training loop is yours.

    Parameters
    ----------
    layers : iterable of layers, optional
        The first may be an :func:`Input`.
    trainable : bool, optional
        False freezes all layers.
    name : str, optional
        By default "sequential" with a number.  TypeError or ValueError for an object that is not a
        layer, two layers of one name, and shapes that do not fit.

    Examples
    --------
    >>> import fastreg
    >>> from fastreg import regularizers
    >>> from fastreg.layers import Dense
    >>> model = Sequential(name="model")
    >>> model.add(Dense(3, activation="relu", input_dim=4, name="hidden",
    ...                 kernel_regularizer=regularizers.l2(0.01),
    ...                 activity_regularizer=regularizers.l1(0.01)))
    >>> model.add(Dense(2, name="out"))
    >>> y = model(np.ones((5, 4), np.float32))
    >>> len(model.losses)
    2
    >>> dx = model.backward(np.ones_like(y))
    >>> list(model.gradients)
    ['hidden/kernel', 'hidden/bias', 'out/kernel', 'out/bias']
    >>> for name, w in model.trainable_weights.items():
    ...     w -= 0.1 * model.gradients[name]
    """

    def __init__(
        self,
        layers: Iterable[Any] | None = None,
        trainable: bool = True,
        name: str | None = None,
    ) -> None:
        trainable = arguments.flag(trainable, "trainable")
        self._layers: list[Layer] = []
        self._input: InputLayer | None = None
        self._shapes: list[Shape] = []
        self._calls: list[Call] = []
        self._name = automatic_name(Sequential) if name is None else checked_name(name)
        for layer in () if layers is None else layers:
            self.add(layer)
        if not trainable:
            self.trainable = False

    if not TYPE_CHECKING:  # or every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            what = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _OF_KERAS:
                what += f": {_OF_KERAS[name]}"
            raise AttributeError(what, name=name, obj=self)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._name

    @property
    def layers(self) -> list[Layer]:
        """The layers, in order, as a new list."""
        return list(self._layers)

    @property
    def built(self) -> bool:
        """Whether all layers have their weights."""
        return bool(self._layers) and all(layer.built for layer in self._layers)

    def __repr__(self) -> str:
        return f"<Sequential {self.name} of {len(self._layers)} layers>"

    def add(self, layer: Any) -> None:
        """Append a layer, or as the first an input; it is built if the model's input is known.

        TypeError for an object that is not a layer of fastreg; ValueError for a name that is there
        already, and if the layer does not take the output before it.  Nothing has changed then.
        """
        if isinstance(layer, InputLayer):
            if self._layers or self._input is not None:
                raise ValueError(f"{self.name} has an input or layers already; Input goes first")
            self._input = layer
            return
        if not isinstance(layer, Layer):
            remedy = (
                "add its layers one by one"
                if isinstance(layer, Sequential)
                else f"the layers are {errors.listed(forms.LAYERS)}, of fastreg.layers"
            )
            raise TypeError(
                f"layer must be a layer of fastreg, not {errors.described(layer)}; {remedy}"
            )
        for other in self._layers:
            if other is layer:
                raise ValueError(
                    f"{layer.name} is in {self.name} already; a layer keeps one call for its "
                    "backward, so make a second one"
                )
            if other.name == layer.name:
                raise ValueError(
                    f"{self.name} has a layer of the name {layer.name!r} already; pass name=..."
                )
        first = self._input
        if first is None and not self._layers and layer._first_input is not None:
            first = InputLayer(layer._first_input, dtype=layer.dtype)
        shape = self._shapes[-1] if self._shapes else None
        if first is not None and not self._layers:
            shape = first.batch_shape
        if shape is not None:
            following = layer.compute_output_shape(shape)
            layer.build(shape)
            self._shapes.append(following)
        self._input = first
        self._layers.append(layer)
        self._calls = []  # of the model as it was

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make all weights for inputs of this shape, the batch included (None will do for it).

        RuntimeError without layers; TypeError or ValueError when a layer does not take its input,
        or an initializer returns weights that do not fit.  After this and every other error no
        layer has been built that was not before.
        """
        self._require_layers()
        shape = shape_of(input_shape, "input_shape")
        before, shapes = self._chain(shape)
        new = [layer for layer in self._layers if not layer.built]
        try:
            for layer, its_input in zip(self._layers, before, strict=True):
                layer.build(its_input)
        except BaseException:  # a later layer's initializer fails, or its channels are not known
            for layer in new:
                layer._unbuild()
            raise
        if self._input is None:
            self._input = InputLayer(batch_shape=(None, *shape[1:]), dtype=self._layers[0].dtype)
            self._shapes = [(None, *after[1:]) for after in shapes]

    def _chain(self, shape: Shape) -> tuple[list[Shape], list[Shape]]:
        """Return the shapes before and after each layer, for an input of this shape."""
        before, after = [], []
        for layer in self._layers:
            before.append(shape)
            shape = layer.compute_output_shape(shape)
            after.append(shape)
        return before, after

    def _require_layers(self) -> None:
        if not self._layers:
            raise RuntimeError(f"{self.name} has no layers; add one first")

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Shape:
        """Return the shape of the output for an input of this shape, the batch included."""
        self._require_layers()
        return self._chain(shape_of(input_shape, "input_shape"))[1][-1]

    def __call__(self, x: Any, *, training: bool | None = None) -> Array:
        """Return the output for a batch; builds the model at the first call.

        Parameters, result and errors are those of :class:`~fastreg.layers.Layer`; a model
        without layers is a RuntimeError.
        """
        self._require_layers()
        keep = training is None or arguments.flag(training, "training")
        output = precision.numbers(x, "x")
        self.build(output.shape)
        calls = []
        for layer in self._layers:
            output, call = layer._run(output, keep)
            # bfloat16 goes from layer to layer as every array that is passed in
            output = precision.numbers(output, "x")
            calls.append(call)
        for layer, call in zip(self._layers, calls, strict=True):
            layer._keep(call)
        self._calls = calls
        last = self._layers[-1]._precision.storage
        # the caller may write into the result: it must not alias what is kept for backward
        return np.array(output, dtype=last, order="C")

    def backward(
        self, dy: Any, *, grad_scale: float = 1.0, input_gradient: bool = True
    ) -> Array | None:
        """Return the gradient with respect to the input, and leave `gradients`, penalties included.

        Parameters, result and errors are those of :meth:`~fastreg.layers.Layer.backward`; a
        layer that was called on its own after the model is a RuntimeError.
        """
        if not self._calls:
            raise RuntimeError(f"{self.name}.backward(dy) needs a call before it: call the model")
        for layer, call in zip(self._layers, self._calls, strict=True):
            if layer._call is not call:
                raise RuntimeError(
                    f"{layer.name} was called on its own after the call of {self.name}; call the "
                    "model again"
                )
        wanted = arguments.flag(input_gradient, "input_gradient")
        steps = []
        slope = dy
        for layer in reversed(self._layers):
            step = layer._reverse(slope, grad_scale, wanted or layer is not self._layers[0])
            steps.append(step)
            slope = step.input_gradient
        for layer, step in zip(reversed(self._layers), steps, strict=True):
            layer._finish(step)
        result: Array | None = slope
        return result

    @property
    def trainable(self) -> bool:
        """Whether any layer is trained; setting it sets all layers."""
        return any(layer.trainable for layer in self._layers)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        value = arguments.flag(value, "trainable")
        for layer in self._layers:
            layer.trainable = value

    @property
    def weights(self) -> dict[str, Array]:
        """All weights by name, the arrays themselves; layer by layer, kernel before bias."""
        return _by_name(self._layers)

    @property
    def trainable_weights(self) -> dict[str, Array]:
        """The weights of the layers that are not frozen, by name."""
        return _by_name(layer for layer in self._layers if layer.trainable)

    @property
    def non_trainable_weights(self) -> dict[str, Array]:
        """The weights of frozen layers, by name."""
        return _by_name(layer for layer in self._layers if not layer.trainable)

    @property
    def gradients(self) -> dict[str, Array]:
        """The gradients of the last backward by the names of their weights, penalties included."""
        gradients: dict[str, Array] = {}
        for layer in self._layers:
            own = layer.gradients
            if own:  # none for a layer that was frozen
                gradients.update(zip(layer.weight_names(), own, strict=True))
        return gradients

    @property
    def losses(self) -> list[float]:
        """The penalties in Keras' order, all activity terms before all weight terms."""
        return [term for layer in self._layers for term in layer._activity_losses()] + [
            term for layer in self._layers for term in layer._weight_losses()
        ]

    @property
    def penalty(self) -> float:
        """The sum of all terms as the last backward saw them, without another pass."""
        return sum(layer.penalty for layer in self._layers)

    def get_weights(self) -> list[Array]:
        """Return copies of all weights as a list, in the order of `weights` and of Keras."""
        return [weight for layer in self._layers for weight in layer.get_weights()]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Write new numbers into all weights, or into none when one does not fit.

        They are in the order of :meth:`get_weights`, which is that of Keras; errors are those of
        :meth:`~fastreg.layers.Layer.set_weights`.
        """
        self._require_built("set_weights(...)")
        require_list(weights, [*self.weights], self.name, "what get_weights() gave")
        fitting, start = [], 0
        for layer in self._layers:
            end = start + len(layer.weights)
            fitting.append(layer._fitting_weights(weights[start:end], start))
            start = end
        for layer, new in zip(self._layers, fitting, strict=True):
            layer._put_weights(new)

    def count_params(self) -> int:
        """Return the number of weights' elements; RuntimeError before the model is built."""
        self._require_built("count_params()")
        return sum(layer.count_params() for layer in self._layers)

    def _require_built(self, what: str) -> None:
        if not self.built:
            raise RuntimeError(
                f"{what} needs weights, and {self.name} has not all of them yet: call it on a "
                "batch or build(input_shape) first"
            )

    def summary(self, print_fn: Callable[[str], Any] = print) -> None:
        """Print a table of the layers, by `print_fn`: output shape, number of weights, penalties.

        >>> from fastreg.layers import Dense
        >>> layer = Dense(2, input_dim=3, kernel_regularizer="l2", name="d")
        >>> Sequential([layer], name="m").summary()
        Model: m
        layer      output     weights  penalties
        d (Dense)  (None, 2)        8  kernel L2(l2=0.01)
        total                       8
        """
        rows = [("layer", "output", "weights", "penalties")]
        for place, layer in enumerate(self._layers):
            shape = str(self._shapes[place]) if self._shapes else "?"
            count = f"{layer.count_params():,}" if layer.built else "?"
            rows.append((layer._label(), shape, count, _penalties_of(layer)))
        total = f"{self.count_params():,}" if self.built else "?"
        frozen = sum(weight.size for weight in self.non_trainable_weights.values())
        rows.append(("total", "", total, f"{frozen:,} of them frozen" if frozen else ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"Model: {self.name}"]
        for name, shape, count, note in rows:
            start = f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}  "
            lines.append(_in_columns(start, note))
        print_fn("\n".join(lines))

    def get_config(self) -> dict[str, Any]:
        """Return the form of the model as plain Python objects, Keras'; errors are a layer's."""
        first: list[Any] = [] if self._input is None else [self._input]
        config: dict[str, Any] = {
            "name": self.name,
            "trainable": True,  # each layer says whether it is
            "dtype": precision.get(None).config(),
            "layers": [
                saved_form("keras.layers", type(layer).__name__, layer.get_config(), None)
                for layer in first + self._layers
            ],
        }
        if self._input is not None:
            config["build_input_shape"] = self._input.batch_shape
        return config

    @classmethod
    def from_config(
        cls: type[AnySequential],
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> AnySequential:
        """Return a new model of the form that :meth:`get_config` returned, here or in Keras.

        Parameters and errors are those of :meth:`~fastreg.layers.Layer.from_config`; the form
        of a graph of layers (a functional model of Keras) is a ValueError.
        """
        layers = forms.layers_of(config, custom_objects)
        model = cls(name=config.get("name"))
        for layer in layers:
            model.add(layer)
        shape = config.get("build_input_shape")
        if shape is not None and model._layers and not model.built:
            model.build(shape)
        if config.get("trainable") is False:
            model.trainable = False
        return model

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its form and its weights, into one JSON file.

        `path` must end in ".json".  What is there is replaced at the very end, by a rename: whoever
        reads it, in this or another process, gets the model that was there or this one.

        RuntimeError before the model is built; TypeError when a part cannot be saved, a lambda for
        example; ValueError for another suffix; OSError when the file cannot be written.  The model
        that was there is there as before.
        """
        from . import storage

        self._require_built("save(path)")
        storage.save(self.get_config(), self.weights, path)

    @classmethod
    def load(
        cls: type[AnySequential],
        path: str | os.PathLike[str],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> AnySequential:
        """Read a model that :meth:`save` wrote, as one of this class.

        `custom_objects` are functions and classes by name, for parts of your own.  OSError when a
        file is not there; ValueError, before arrays are made, when it is not what `save` writes, or
        weights and form do not fit each other.
        """
        from . import storage

        saved = storage.load(path)
        if next(kind for kind in cls.__mro__ if "from_config" in vars(kind)) is Sequential:
            # before there are weights: a small file can have the form of a very large model
            saved.require(_read(path, forms.weights_of, saved.config, custom_objects))
        model: AnySequential = _read(path, cls.from_config, saved.config, custom_objects)
        own = model.weights
        saved.require({name: (weight.shape, weight.dtype.name) for name, weight in own.items()})
        for name, array in saved.decoded().items():
            storage.stored(own[name])[...] = array
        return model


def _read(path: str | os.PathLike[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """Return ``read(*arguments)`` of parts of a file; errors name the file."""
    try:
        return read(*arguments)
    except (TypeError, ValueError) as error:  # in a file a wrong kind is a wrong value
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _by_name(layers: Iterable[Layer]) -> dict[str, Array]:
    return {
        name: weight
        for layer in layers
        for name, weight in zip(layer.weight_names(), layer.weights, strict=True)
    }


def _in_columns(start: str, note: str, width: int = 80) -> str:
    """Return a row; a note that is too long is wrapped below itself, at a comma."""
    lines = [start]
    for place, part in enumerate(note.split(NEXT)):
        more = f", {part}" if place else part
        if place and len(lines[-1] + more) > width:
            lines[-1] += ","
            lines.append(" " * len(start) + part)
        else:
            lines[-1] += more
    return "\n".join(line.rstrip() for line in lines)


def _penalties_of(layer: Layer) -> str:
    parts = []
    for part in ("kernel", "bias", "activity"):
        rule = getattr(layer, f"{part}_regularizer", None)
        if rule is None or (part != "activity" and not layer.trainable):
            continue
        parts.append(f"{part} {rule_name(rule)}")
    return NEXT.join(parts)
