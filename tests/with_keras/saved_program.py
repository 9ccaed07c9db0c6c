"""Load the fixtures of Keras on the backend of KERAS_BACKEND; print what came back as JSON.

The arguments are modules that are imported first: what is registered depends on them.
"""

import importlib
import json
import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Keras' import says is not about this package
    import keras

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


def shown(x):
    return f"{type(x).__module__}.{type(x).__name__}", x.get_config()


def rules(model):
    first, second = model.layers
    return [
        shown(rule)
        for rule in (
            first.kernel_regularizer,
            first.bias_regularizer,
            first.activity_regularizer,
            second.kernel_regularizer,
            second.bias_regularizer,
        )
    ]


def outputs(model):
    return [float(y) for y in model(keras.ops.convert_to_tensor([[1.0, 0.0], [-2.0, 0.0]]))]


def model():
    loaded = keras.saving.load_model(FIXTURES / "model.keras")
    loaded(keras.ops.ones((2, 2)))
    return {
        "weights": [weight.reshape(-1).tolist() for weight in loaded.get_weights()],
        "losses": [float(loss) for loss in loaded.losses],
        "rules": rules(loaded),
    }


def symbolic():
    return outputs(keras.saving.load_model(FIXTURES / "symbolic.keras"))


def configurations():
    saved = json.loads((FIXTURES / "keras_configurations.json").read_text(encoding="ascii"))
    return {
        "model": rules(keras.Sequential.from_config(saved.pop("model"))),
        "symbolic": outputs(keras.Model.from_config(saved.pop("symbolic"))),
    } | {name: shown(keras.regularizers.deserialize(config)) for name, config in saved.items()}


def pickles():
    from saved_pickles import PROTOCOLS, unpickled

    return {
        name: [shown(unpickled("keras_pickles.json", name, protocol)) for protocol in PROTOCOLS]
        for name in ("L1", "L2", "L1L2", "OrthogonalRegularizer")
    }


for name in sys.argv[2:]:
    importlib.import_module(name)
print(json.dumps({name: globals()[name]() for name in sys.argv[1].split(",")}))
