"""The saved form of a model, that of Keras, from other programs and files; no weight is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._base import errors
from .base import Form, Layer, Shape, shape_of
from .convolution import Conv1D, Conv2D, Conv3D
from .dense import Dense
from .flatten import Flatten
from .inputs import InputLayer

LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind for kind in (Dense, Conv1D, Conv2D, Conv3D, Flatten)
}


def layers_of(config: Any, custom_objects: Mapping[str, Any] | None) -> list[Layer | InputLayer]:
    """Return the layers of a saved model; they are not built."""
    if not isinstance(config, Mapping):
        raise TypeError(
            f"config must be a dict with the layers of a Sequential, not "
            f"{errors.described(config)}; pass what get_config() gave"
        )
    saved_layers = config.get("layers")
    if not isinstance(saved_layers, (list, tuple)):
        raise ValueError(
            f'config must have a list of layers under "layers", not '
            f"{errors.described(saved_layers)}; pass what get_config() of a Sequential gave"
        )
    _refuse_graph(config)
    return [_layer_of(saved, place, custom_objects) for place, saved in enumerate(saved_layers)]


def weights_of(config: Any, custom_objects: Mapping[str, Any] | None) -> dict[str, Form]:
    """Return shape and dtype of each weight of a saved model, by name."""
    found: dict[str, Form] = {}
    shape: Shape | None = None
    for place, layer in enumerate(layers_of(config, custom_objects)):
        if isinstance(layer, InputLayer):
            shape = layer.batch_shape
            continue
        if shape is None and layer._first_input is not None and place == 0:
            shape = (None, *layer._first_input)
        if shape is None:
            if config.get("build_input_shape") is None:
                return {}  # it will be built by its first call
            shape = shape_of(config["build_input_shape"], "build_input_shape")
        found.update(layer.weight_forms(shape))
        shape = layer.compute_output_shape(shape)
    return found


def _refuse_graph(config: Mapping[str, Any]) -> None:
    """Raise for a functional model, which has "layers" too: as a stack it is another model."""
    for owner in (config, *config["layers"]):
        for key in ("input_layers", "output_layers", "inbound_nodes"):
            if isinstance(owner, Mapping) and key in owner:
                raise ValueError(
                    f"config has {key!r}, so it is that of a functional model, a graph of layers; "
                    "fastreg has stacks only: where the graph is one, pass "
                    "keras.Sequential(model.layers).get_config()"
                )


def _layer_of(
    saved: Any, place: int, custom_objects: Mapping[str, Any] | None
) -> Layer | InputLayer:
    """Return one layer of a saved model; errors say which one it is."""
    where = f'config["layers"][{place}]'
    name = saved.get("class_name") if isinstance(saved, Mapping) else None
    if not isinstance(name, str) or (name != "InputLayer" and name not in LAYERS):
        raise ValueError(
            f"{where} is of the class {name!r}; fastreg has "
            f"{errors.listed((*LAYERS, 'InputLayer'))}"
        )
    own = saved.get("config")
    if not isinstance(own, Mapping):
        raise ValueError(
            f'{where}, {name}, must have a dict under "config", not {errors.described(own)}'
        )
    with errors.prefixed(f"{where}, {name}"):
        if name == "InputLayer":
            return InputLayer(**own)
        return LAYERS[name].from_config(own, custom_objects)
