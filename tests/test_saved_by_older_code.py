"""What users have on disk loads, and does what it did: see ``fixtures/make_fixtures.py``.

Models in two files, which only version 1 of their format had: layers/test_layers_two_files.py.
"""

import json

import numpy as np
import pytest
from saved_pickles import FIXTURES, PROTOCOLS, unpickled

import fastreg
from fastreg import layers, regularizers
from fastreg.penalties import Report, ReportRow

CONFIGURATIONS = json.loads((FIXTURES / "configurations.json").read_text(encoding="ascii"))
ELEMENTWISE = {"L1": {"l1": 0.5}, "L2": {"l2": 0.25}, "L1L2": {"l1": 0.5, "l2": 0.25}}
ORTHOGONAL = {"factor": 0.5, "mode": "columns"}
OWN = {**ELEMENTWISE, "OrthogonalRegularizer": ORTHOGONAL}
PENALTIES = {"L1": 3.5, "L2": 5.25, "L1L2": 8.75}  # of WEIGHT
WEIGHT = np.array([[1.0, -2.0], [0.0, 4.0]])
SLOPE = np.array([[1.0, -1.5], [0.0, 2.5]])  # of L1L2
RULE = regularizers.L1L2(l1=0.5, l2=0.25)


def numbered(shape, dtype=np.float32):
    return (np.arange(np.prod(shape, dtype=int)).reshape(shape) / 16 - 1).astype(dtype)


def require_numbered(weights, *shapes):
    assert [weight.shape for weight in weights] == [*shapes]
    for weight in weights:
        assert weight.astype(np.float32).tolist() == numbered(weight.shape).tolist()


@pytest.fixture(params=PROTOCOLS)
def pickled(request):
    def load(name):
        return unpickled("pickles.json", name, request.param)

    return load


@pytest.fixture
def pickled_arrays(pickled):
    if np.__version__ < "2":
        pytest.skip("NumPy 1 does not read all pickles of NumPy 2")
    return pickled


@pytest.mark.parametrize("name", OWN)
def test_regularizers(pickled, name):
    regularizer = pickled(name)
    assert type(regularizer) is getattr(regularizers, name)
    assert regularizer.get_config() == OWN[name]
    if name in PENALTIES:
        assert regularizer(WEIGHT) == PENALTIES[name]
    else:
        assert regularizer(np.array([[1.0, 2.0], [0.0, 0.0]])) == 0.5


def test_base_class(pickled):
    assert type(pickled("Regularizer")) is regularizers.Regularizer
    assert pickled("Regularizer")(WEIGHT) == 0.0


def test_penalties_that_were_not_called(pickled_arrays):
    penalties = pickled_arrays("attach one of a mapping")
    assert type(penalties) is fastreg.Penalties
    assert repr(penalties) == "<Penalties on 1 of 2 tensors: 'dense/kernel'>"
    assert penalties.rules == {"*kernel": regularizers.L1(0.5)}
    assert penalties.value() == 3.5


def test_penalties_on_a_mapping(pickled_arrays):
    penalties = pickled_arrays("attach a mapping")
    rules = penalties.rules
    assert list(rules) == ["*bias", "other", "*"]
    assert rules["*bias"] is None
    assert rules["other"].get_config() == ORTHOGONAL
    assert rules["*"] == RULE
    assert penalties.value() == 9.25
    grads = {
        "dense/kernel": np.zeros((2, 2)),
        "dense/bias": np.zeros(1),
        "other": np.zeros((2, 2)),
        "tied": np.zeros((2, 2)),
    }
    assert penalties.accumulate(grads) == 9.25
    assert grads["dense/kernel"].tolist() == SLOPE.tolist()
    assert not any(grads[name].any() for name in ("dense/bias", "other", "tied"))
    assert penalties.report()["tied"].tied_to == "dense/kernel"
    rules["*"].l1 = 0.0
    assert penalties.value() == 5.75


def test_penalties_on_a_sequence(pickled_arrays):
    penalties = pickled_arrays("attach a sequence")
    assert penalties.value() == 0.875
    grads = [np.zeros(2), np.zeros(3)]
    assert penalties.accumulate(grads) == 0.875
    assert [grad.tolist() for grad in grads] == [[0.25, 0.25], [0.5, 0.5, 0.5]]


def test_report(pickled):
    report = pickled("Report")
    assert type(report) is Report
    assert report.total == 9.25
    orthogonal = regularizers.OrthogonalRegularizer(0.5, "columns")
    assert report == {
        "dense/kernel": (8.75, 0.25, RULE, None),
        "dense/bias": (0.0, 0.0, None, None),
        "other": (0.5, 0.5, orthogonal, None),
        "tied": (0.0, 0.25, RULE, "dense/kernel"),
    }
    row = pickled("ReportRow")
    assert type(row) is ReportRow
    assert row == ReportRow(0.0, 0.25, RULE, "dense/kernel")


# ------------------------------------------------------------------------------- layers


def require_model(model, dtype="float32"):
    """Hold a model against that of the generator."""
    assert type(model) is layers.Sequential
    assert repr(model) == "<Sequential model of 3 layers>"
    weights = model.get_weights()
    require_numbered(weights, (3, 3, 1, 2), (2,), (18, 2), (2,))
    assert [weight.dtype.name for weight in weights] == [dtype, dtype, "float32", "float32"]
    conv, _, dense = model.layers
    assert conv.kernel_regularizer == regularizers.L1(0.5)
    assert conv.bias_regularizer == regularizers.L2(0.25)
    assert dense.kernel_regularizer == RULE
    assert dense.activity_regularizer == regularizers.L1(0.125)
    assert model.losses[-3:] == [4.28125, 0.4697265625, 14.060546875]
    y = model(np.ones((2, 5, 5, 1), np.float32))
    assert np.allclose(y.sum(axis=1), 1.0)
    model.backward(np.zeros_like(y))
    assert len(model.losses) == 4


def test_pickled_model(pickled_arrays):
    require_model(pickled_arrays("Sequential"))


@pytest.mark.parametrize(
    ("name", "shapes", "loss", "batch"),
    [
        ("Dense", [(3, 2)], 1.0849609375, (1, 3)),
        ("Conv1D", [(3, 1, 2), (2,)], 1.0849609375, (1, 4, 1)),
        ("Conv3D", [(2, 2, 2, 1, 2), (2,)], 1.4609375, (1, 2, 2, 2, 1)),
    ],
)
def test_pickled_layers(pickled_arrays, name, shapes, loss, batch):
    layer = pickled_arrays(name)
    assert type(layer) is getattr(layers, name)
    require_numbered(layer.get_weights(), *shapes)
    assert layer.losses == [loss]
    assert layer(np.ones(batch, np.float32)).shape == layer.compute_output_shape(batch)


def test_pickled_layers_without_weights(pickled):
    assert pickled("Flatten")(np.ones((2, 3, 4), np.float32)).shape == (2, 12)
    assert type(pickled("Input")) is layers.InputLayer
    assert pickled("Input").batch_shape == (None, 3)


def test_saved_model():
    require_model(layers.Sequential.load(FIXTURES / "model.json"))


def test_saved_model_of_bfloat16():
    pytest.importorskip("ml_dtypes")
    require_model(layers.Sequential.load(FIXTURES / "model_bfloat16.json"), "bfloat16")


# ------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("name", OWN)
def test_serialized_regularizers(name):
    saved = CONFIGURATIONS[f"serialize {name}"]
    assert saved == {
        "module": "keras.regularizers",
        "class_name": name,
        "config": OWN[name],
        "registered_name": None,
    }
    kind = getattr(regularizers, name)
    for loaded in (regularizers.deserialize(saved), regularizers.get(saved)):
        assert loaded == kind(**OWN[name])
        assert regularizers.serialize(loaded) == saved
    assert kind.from_config(CONFIGURATIONS[f"get_config {name}"]) == kind(**OWN[name])


@pytest.mark.parametrize("name", ["Dense", "Conv1D", "Conv3D", "Flatten", "Sequential"])
def test_configurations_of_layers(name):
    saved = CONFIGURATIONS[f"get_config {name}"]
    layer = getattr(layers, name).from_config(saved)
    again = json.loads(json.dumps(layer.get_config()))
    assert again == saved
    if name == "Sequential":
        assert layer.layers[2].kernel_regularizer == RULE
    elif name != "Flatten":
        assert layer.kernel_regularizer == regularizers.L2(0.25)
        assert saved["kernel_regularizer"]["config"] == {"l2": 0.25}


def test_configuration_of_an_input():
    layer = layers.InputLayer(**CONFIGURATIONS["get_config Input"])
    assert json.loads(json.dumps(layer.get_config())) == CONFIGURATIONS["get_config Input"]
    assert layer.batch_shape == (None, 3)
