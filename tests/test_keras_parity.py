"""Against Keras itself: saved forms load both ways, values and slopes agree."""

import os
import warnings

import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
torch = pytest.importorskip("torch")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Keras' import says is not about this package
    keras = pytest.importorskip("keras")

import fastreg  # noqa: E402
from fastreg import regularizers  # noqa: E402

theirs = keras.regularizers

CONFIGS = [
    ("L1", {"l1": 0.5}),
    ("L2", {"l2": 0.25}),
    ("L1L2", {"l1": 0.5, "l2": 0.25}),
    ("OrthogonalRegularizer", {"factor": 0.5, "mode": "columns"}),
]


class Custom(theirs.Regularizer):
    def __init__(self, factor=0.5):
        self.factor = factor

    def __call__(self, w):
        return self.factor

    def get_config(self):
        return {"factor": self.factor}


@keras.saving.register_keras_serializable("fastreg_tests")
class Registered(Custom):
    pass


@keras.saving.register_keras_serializable("fastreg_tests")
def registered(w):
    return 0.0


def plain(w):
    return 0.0


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_saved_forms_are_the_same_and_load_both_ways(name, config):
    one, other = getattr(regularizers, name)(**config), getattr(theirs, name)(**config)
    assert regularizers.serialize(one) == theirs.serialize(other)
    assert regularizers.deserialize(theirs.serialize(other)) == one
    assert theirs.deserialize(regularizers.serialize(one)).get_config() == config
    assert one.get_config() == other.get_config()


@pytest.mark.parametrize("value", [None, "l1", "anything"])
def test_serialize_of_names(value):
    assert regularizers.serialize(value) == theirs.serialize(value)


@pytest.mark.parametrize("value", [Custom(2.0), Registered(2.0), plain, registered, abs])
def test_custom_objects_are_saved_as_keras_saves_them(value):
    assert regularizers.serialize(value) == theirs.serialize(value)


def test_custom_objects_load_both_ways():
    for one, other in ((regularizers, theirs), (theirs, regularizers)):
        saved = one.serialize(Custom(2.0))
        assert other.deserialize(saved, custom_objects={"Custom": Custom}).factor == 2.0
        assert other.deserialize(one.serialize(Registered(2.0))).factor == 2.0
        assert other.deserialize(one.serialize(plain), custom_objects={"plain": plain}) is plain
        assert other.deserialize(one.serialize(registered)) is registered


def test_instances_of_keras_are_saved_for_keras():
    assert regularizers.serialize(theirs.L2(0.5)) == theirs.serialize(theirs.L2(0.5))


@pytest.mark.parametrize(
    "name",
    ["l1", "L1", "l2", "L2", "l1l2", "L1L2", "orthogonal_regularizer", "OrthogonalRegularizer"],
)
def test_names_stand_for_the_same(name):
    ours = regularizers.get(name).get_config()
    expected = theirs.get(name).get_config()
    assert ours.keys() == expected.keys()
    for key, setting in expected.items():
        assert ours[key] == (setting if key == "mode" else pytest.approx(setting, rel=1e-7))
    assert type(regularizers.get(name)).__name__ == type(theirs.get(name)).__name__


@pytest.mark.parametrize("name", ["typo", "", "L1_L2"])
def test_both_refuse(name):
    for module in (regularizers, theirs):
        with pytest.raises(ValueError, match="regularizer"):
            module.get(name)


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "L1", "config": {"l1": 0.5}},
        {"class_name": "l1l2", "config": {"l1": 0.5}},
        {"class_name": "L2"},
    ],
)
def test_dict_forms(config):
    assert regularizers.get(config).get_config() == theirs.get(config).get_config()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(7, 5), (40, 3), (2, 2)])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_values_and_slopes_of_ordinary_weights(name, config, shape, dtype):
    w = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if name == "OrthogonalRegularizer":
        config = config | {"mode": "rows"}  # Keras 3.15 is wrong for "columns"
    tensor = torch.tensor(w, requires_grad=True)
    value = getattr(theirs, name)(**config)(tensor)
    value.backward()
    ours = getattr(regularizers, name)(**config)
    # Keras holds some strengths in float32 and sums in the dtype of the weight.
    assert ours(w) == pytest.approx(float(value.detach()), rel=1e-5)
    np.testing.assert_allclose(ours.gradient(w), tensor.grad.numpy(), rtol=2e-5, atol=1e-7)


def test_orthogonal_columns_are_the_rows_of_the_transpose():
    w = np.array([[1.0, 2.0], [3.0, 5.0]])
    expected = float(theirs.OrthogonalRegularizer(0.5)(torch.tensor(w.T)))
    assert regularizers.OrthogonalRegularizer(0.5, "columns")(w) == pytest.approx(expected)


def test_keras_layers_take_these_regularizers():
    layer = keras.layers.Dense(3, kernel_regularizer=regularizers.L1L2(0.5, 0.25))
    layer.build((None, 4))
    with torch.no_grad():
        (loss,) = layer.losses
    kernel = layer.kernel.value.detach().numpy()
    assert float(loss) == pytest.approx(regularizers.L1L2(0.5, 0.25)(kernel), rel=1e-6)


def test_keras_variables_are_arrays():
    variable = keras.Variable(np.array([1.0, -2.0], np.float32))
    with torch.no_grad():
        value = regularizers.L1(0.5)(variable)
    assert isinstance(value, torch.Tensor)
    assert float(value) == 1.5
    assert regularizers.L1(0.5).gradient(variable).tolist() == [0.5, -0.5]
    grad = np.zeros(2, np.float32)
    assert regularizers.L1(0.5).accumulate(variable, grad) == 1.5
    assert grad.tolist() == [0.5, -0.5]
    regularizers.L1(0.5)(variable).backward()
    assert variable.value.grad.tolist() == [0.5, -0.5]


def test_symbolic_tensors_give_symbolic_penalties():
    penalty = regularizers.L1(0.5)(keras.KerasTensor((3,)))
    assert isinstance(penalty, keras.KerasTensor)
    assert penalty.shape == ()


def test_regularizers_of_keras_are_taken_as_fastregs():
    grads = {"w": np.zeros(2)}
    assert fastreg.attach({"w": np.ones(2)}, keras.regularizers.L2(0.5)).accumulate(grads) == 1.0
    assert grads["w"].tolist() == [1.0, 1.0]
