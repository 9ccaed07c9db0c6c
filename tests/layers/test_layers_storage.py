"""Models on disk: what comes back, what is refused, and that nothing is half-written."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastreg.layers import Conv2D, Dense, Flatten, Sequential, storage

X = np.random.default_rng(0).standard_normal((3, 5, 5, 2), dtype=np.float32)


def model_of(dtype="float32", units=3):
    model = Sequential(
        [
            Conv2D(2, 3, activation="relu", dtype=dtype, kernel_regularizer="l1", name="conv"),
            Flatten(dtype=dtype, name="flat"),
            Dense(units, dtype=dtype, activity_regularizer="l2", name="out"),
        ],
        name="model",
    )
    model(X)
    return model


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_what_was_saved_comes_back(tmp_path, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = model_of(dtype)
    path = tmp_path / "digits.json"
    model.save(path)
    record = json.loads(path.read_text())
    assert names(tmp_path) == [record["weights"]["file"], "digits.json"]
    again = Sequential.load(str(path))
    assert again.get_config() == model.get_config()
    for name, weight in model.weights.items():
        assert again.weights[name].dtype == weight.dtype
        np.testing.assert_array_equal(again.weights[name], weight)
    np.testing.assert_array_equal(again(X), model(X))
    assert again.losses == model.losses
    with np.load(tmp_path / record["weights"]["file"]) as archive:
        assert archive.files == list(model.weights)


def test_a_second_save_replaces_the_first(tmp_path):
    path = tmp_path / "digits.json"
    other = tmp_path / "other.json"
    model = model_of()
    model.save(path)
    model.save(other)
    model.save(path)  # the same again
    assert len(names(tmp_path)) == 4
    model.layers[0].bias += 1
    model.save(path)
    assert len(names(tmp_path)) == 4  # the old weights of digits have gone
    np.testing.assert_array_equal(Sequential.load(path).layers[0].bias, model.layers[0].bias)
    Sequential.load(other)


def test_a_model_is_kept_by_copying_both_files(tmp_path):
    path = tmp_path / "digits.json"
    model = model_of()
    model.save(path)
    (weights,) = tmp_path.glob("*.npz")
    both, alone = tmp_path / "both", tmp_path / "alone.json"
    both.mkdir()
    for file in (path, weights):
        (both / file.name).write_bytes(file.read_bytes())
    alone.write_bytes(path.read_bytes())
    old = model.layers[0].get_weights()
    model.layers[0].bias += 1
    model.save(path)
    np.testing.assert_array_equal(Sequential.load(both / path.name).layers[0].bias, old[1])
    with pytest.raises(FileNotFoundError):
        Sequential.load(alone)
    assert "copy both files" in " ".join((Sequential.save.__doc__ or "").split())


def own(w):
    return 0.0


def test_functions_of_ones_own_need_custom_objects(tmp_path):
    model = model_of()
    model.layers[2].kernel_regularizer = own
    model.save(tmp_path / "m.json")
    with pytest.raises(ValueError, match="custom_objects"):
        Sequential.load(tmp_path / "m.json")
    assert Sequential.load(tmp_path / "m.json", {"own": own}).layers[2].kernel_regularizer is own


def test_keras_loads_the_form(tmp_path, keras):
    model = model_of()
    model.save(tmp_path / "m.json")
    theirs = keras.Sequential.from_config(json.loads((tmp_path / "m.json").read_text())["config"])
    theirs.set_weights(model.get_weights())
    np.testing.assert_allclose(theirs(X).detach().numpy(), model(X), rtol=1e-5, atol=1e-5)


class InterruptedSaveError(Exception):
    pass


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("fails_at", [0, 1])
def test_an_interrupted_save_leaves_what_was_there(
    tmp_path, monkeypatch, exists, function, fails_at
):
    path = tmp_path / "digits.json"
    old = model_of()
    if exists:
        old.save(path)
    before = names(tmp_path)
    calls = []
    genuine = getattr(os, function)

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) > fails_at:
            raise InterruptedSaveError
        return genuine(*arguments)

    monkeypatch.setattr(storage.os, function, failing)
    new = model_of()
    with pytest.raises(InterruptedSaveError):
        new.save(path)
    monkeypatch.undo()
    assert names(tmp_path) == before
    if exists:
        np.testing.assert_array_equal(Sequential.load(path).layers[0].kernel, old.layers[0].kernel)


def test_what_cannot_be_saved_writes_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="needs weights"):
        Sequential([Dense(2)]).save(tmp_path / "m.json")
    model = model_of()
    with pytest.raises(ValueError, match=r'must end in "\.json"'):
        model.save(tmp_path / "m.keras")
    with pytest.raises(TypeError, match="path must be a path"):
        model.save(3)
    with pytest.raises(FileNotFoundError):
        model.save(tmp_path / "none" / "m.json")
    model.layers[0].kernel_regularizer = lambda w: 0.0
    with pytest.raises(TypeError, match="lambda"):
        model.save(tmp_path / "m.json")
    assert names(tmp_path) == []


@pytest.fixture
def saved(tmp_path):
    model_of().save(tmp_path / "m.json")
    return tmp_path / "m.json"


def change(path: Path, edit):
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("config"), r"m\.json has no \"config\""),
        (lambda r: r.update(config=None), r"m\.json: config must be a dict"),
        (lambda r: r["config"].update(layers=None), r"m\.json: .* under \"layers\", not None"),
        (lambda r: r["config"]["layers"][3].pop("config"), r"m\.json: .*\[3\], Dense.*\"config\""),
        (lambda r: r["config"]["layers"][3]["config"].pop("units"), r"\[3\], Dense.* have 'units'"),
        (
            lambda r: r["config"]["layers"][3]["config"].update(units="3"),
            r"m\.json: .*\[3\].*units",
        ),
        (lambda r: r["config"]["layers"][3].update(class_name=["Dense"]), r"class \['Dense'\]"),
        (lambda r: r.update(format="other"), "is not a model that fastreg saved"),
        (lambda r: r.update(version=2), "has version 2 of the format"),
        (lambda r: r.pop("weights"), "names no weights file"),
        (lambda r: r["weights"].update(file="../m-0123456789abcdef.npz"), "names no weights file"),
        (lambda r: r["weights"].update(file=3), "names no weights file"),
        (lambda r: r["weights"].update(sha256="0"), "has changed since"),
        (lambda r: r["config"]["layers"][1]["config"].update(name="c"), "missing 'c/bias', 'c/ke"),
        (lambda r: r["config"]["layers"][1]["config"].update(filters=3), "conv/kernel has shape"),
        (lambda r: r["config"]["layers"][3]["config"].update(use_bias=False), "additional 'out/b"),
        (lambda r: r["config"]["layers"][3]["config"].update(dtype="float16"), "dtype float32"),
        (lambda r: r["config"]["layers"][2].update(class_name="Pool"), "class 'Pool'"),
    ],
)
def test_files_that_do_not_fit(saved, edit, message):
    change(saved, edit)
    with pytest.raises(ValueError, match=message):
        Sequential.load(saved)


def test_damaged_files(saved):
    (weights,) = saved.parent.glob("*.npz")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="has changed since"):
        Sequential.load(saved)
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        Sequential.load(saved)
    saved.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        Sequential.load(saved)
    saved.write_text("[]")
    with pytest.raises(ValueError, match="is not a model"):
        Sequential.load(saved)


@pytest.mark.parametrize("pickled", [False, True])
def test_weights_files_that_hold_something_else(saved, pickled):
    import hashlib

    (weights,) = saved.parent.glob("*.npz")
    if pickled:
        np.savez(weights, **{"conv/kernel": np.array([{}], object)})
    else:
        weights.write_bytes(b"no archive")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    change(saved, lambda record: record["weights"].update(sha256=digest))
    with pytest.raises(ValueError, match="holds no weights"):
        Sequential.load(saved)
