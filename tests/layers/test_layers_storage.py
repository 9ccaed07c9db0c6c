"""Models on disk: what comes back, what is refused, and that nothing is half-written."""

import base64
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fastreg._base import files
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
    assert names(tmp_path) == ["digits.json"]
    again = Sequential.load(str(path))
    assert again.get_config() == model.get_config()
    for name, weight in model.weights.items():
        assert again.weights[name].dtype == weight.dtype
        np.testing.assert_array_equal(again.weights[name], weight)
    np.testing.assert_array_equal(again(X), model(X))
    assert again.losses == model.losses


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_file_can_be_read_without_fastreg(tmp_path, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    model = model_of(dtype)
    model.save(tmp_path / "m.json")
    record = json.loads((tmp_path / "m.json").read_text())
    contents = [base64.b64decode(weight["data"]) for weight in record["weights"]]
    for saved, content, (name, own) in zip(
        record["weights"], contents, model.weights.items(), strict=True
    ):
        assert (saved["name"], saved["dtype"], saved["shape"]) == (name, dtype, list(own.shape))
        numbers = np.frombuffer(content, "<u2" if dtype == "bfloat16" else dtype)
        assert numbers.tobytes() == own.tobytes()
    assert record["sha256"] == hashlib.sha256(b"".join(contents)).hexdigest()


def test_the_way_in_docs_reads_the_file(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
    (block,) = (text for text in page.split("```python\n") if "def arrays_of" in text)
    names = {}
    exec(block.partition("```")[0], names)
    model = model_of()
    model.save(tmp_path / "m.json")
    arrays = names["arrays_of"](tmp_path / "m.json")
    assert list(arrays) == list(model.weights)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(arrays[name], weight)


def test_a_large_weight_is_written_in_pieces(tmp_path):
    model = Sequential([Dense(1025, input_dim=1200)])  # 6 of them, the last one short
    model.save(tmp_path / "m.json")
    again = Sequential.load(tmp_path / "m.json")
    np.testing.assert_array_equal(again.layers[0].kernel, model.layers[0].kernel)


class Own(Sequential):
    """A class of the user's."""


class Named(Sequential):
    """One that makes itself in its own way."""

    def get_config(self):
        return {"name": self.name, "units": 3}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls([Dense(config["units"], input_dim=2, name="d")], name=config["name"])


@pytest.mark.parametrize("kind", [Own, Named])
def test_a_class_of_ones_own_loads_as_itself(tmp_path, kind):
    model = kind([Dense(3, input_dim=2, name="d")], name="own")
    model.layers[0].bias += 1
    model.save(tmp_path / "m.json")
    again = kind.load(tmp_path / "m.json")
    assert type(again) is kind
    assert again.name == "own"
    np.testing.assert_array_equal(again.get_weights()[1], np.ones(3, np.float32))
    assert type(again) is type(kind.from_config(model.get_config()))
    change(tmp_path / "m.json", lambda record: record["config"].update(units=4, layers=[]))
    with pytest.raises(ValueError, match=r"m\.json does not fit its model"):
        kind.load(tmp_path / "m.json")


def test_a_second_save_replaces_the_first(tmp_path):
    path = tmp_path / "digits.json"
    model = model_of()
    model.save(path)
    (tmp_path / "kept.json").write_bytes(path.read_bytes())  # a copy is a model of its own
    model.save(path)  # the same again
    old = model.get_weights()
    model.layers[0].bias += 1
    model.save(path)
    assert names(tmp_path) == ["digits.json", "kept.json"]
    np.testing.assert_array_equal(Sequential.load(path).layers[0].bias, model.layers[0].bias)
    kept = Sequential.load(tmp_path / "kept.json").get_weights()
    for weight, expected in zip(kept, old, strict=True):
        np.testing.assert_array_equal(weight, expected)


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
        (lambda r: r.update(version=3), "has version 3 of the format; this fastreg reads 1 to 2"),
        (lambda r: r.update(version=0), "has version 0"),
        (lambda r: r.update(version=True), "has version bool True"),
        (lambda r: r.update(version=[]), "has version a list"),
        (lambda r: r.pop("version"), "has version None"),
        (lambda r: r.pop("weights"), r"m\.json has no list of \"weights\", but None"),
        (lambda r: r.update(weights={}), 'no list of "weights", but a dict'),
        (lambda r: r.pop("sha256"), "its weights have changed since"),
        (lambda r: r.update(sha256="0"), "its weights have changed since"),
        (lambda r: r["weights"].append(3), r"\[\"weights\"\]\[4\], must be a dict, not int 3"),
        (lambda r: r["weights"].append(r["weights"][0]), "the name 'conv/kernel' once more"),
        (lambda r: r["weights"][0].pop("name"), "must have a string 'name', not None"),
        (lambda r: r["weights"][0].update(dtype=["<f4"]), "must have a string 'dtype', not a list"),
        (lambda r: r["weights"][0].update(dtype="int8"), "has dtype 'int8', not one of"),
        (lambda r: r["weights"][0].update(data=None), "must have a string 'data'"),
        (lambda r: r["weights"][0].update(data=""), r"has 0 characters of data; shape \(3, 3, 2, "),
        (lambda r: r["weights"][1].update(data="=" * 12), "data of conv/bias is no base64"),
        (lambda r: r["weights"][1].update(data="\xe9" * 12), "data of conv/bias is no base64"),
        (lambda r: r["weights"][0].update(shape=None), "must have the shape of an array"),
        (lambda r: r["weights"][0].update(shape=[3, -3]), "must have the shape of an array"),
        (lambda r: r["weights"][0].update(shape=[True]), "must have the shape of an array"),
        (lambda r: r["weights"][0].update(shape=[10**30]), "must have the shape of an array"),
        (lambda r: r["weights"][0].update(shape=[1] * 65), "must have the shape of an array"),
        (lambda r: r["weights"][0].update(shape=[2**60] * 9), "characters of data"),
        (lambda r: r["config"]["layers"][3]["config"].update(units=2**60), "out/kernel has shape"),
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
    content = saved.read_bytes()
    weights = content.index(b"AAA") if b"AAA" in content else content.index(b'"data": "') + 9
    other = b"B" if content[weights : weights + 1] == b"A" else b"A"
    saved.write_bytes(content[:weights] + other + content[weights + 1 :])
    with pytest.raises(ValueError, match=r"m\.json: its weights have changed"):
        Sequential.load(saved)
    saved.unlink()
    with pytest.raises(FileNotFoundError):
        Sequential.load(saved)
    for text, message in (
        (b"{", "is not JSON"),
        (content[:-9], "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b'{"format": NaN}', "is not JSON .it has NaN"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[" * 500 + b"]" * 500, "is nested too deeply"),
        (b'{"format": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b"[]", "is not a model"),
        (b"null", "is not a model"),
    ):
        saved.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            Sequential.load(saved)


def test_a_small_file_with_the_form_of_a_large_model_makes_nothing(saved):
    """17 TB of weights, in the form and in the list of weights, but no data."""
    import tracemalloc

    def edit(record):
        record["config"]["layers"][3]["config"].update(units=2**40)
        record["weights"][2].update(shape=[4, 2**40])

    change(saved, edit)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="characters of data"):
            Sequential.load(saved)
        change(saved, lambda record: record["weights"][2].update(shape=[0, 2**40], data=""))
        with pytest.raises(ValueError, match="out/kernel has shape"):
            Sequential.load(saved)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# ------------------------------------------------------------------------- the file itself


def test_links_stay_links(tmp_path):
    (tmp_path / "models").mkdir()
    link = tmp_path / "m.json"
    link.symlink_to(Path("models") / "real.json")
    model = model_of()
    model.save(link)  # to where there is nothing yet
    model.save(link)
    assert link.is_symlink()
    assert names(tmp_path / "models") == ["real.json"]
    assert names(tmp_path) == ["m.json", "models"]
    Sequential.load(link)
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=r"loop\.json"):
        model.save(loop)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes(tmp_path, umask):
    path = tmp_path / "m.json"
    model = model_of()
    before = os.umask(umask)
    try:
        model.save(path)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        for mode in (0o600, 0o640, 0o666, 0o444):
            path.chmod(mode)
            model.save(path)
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_long_names(tmp_path):
    path = tmp_path / ("\N{GREEK SMALL LETTER OMEGA}" * 125 + ".json")  # 255 bytes
    model_of().save(path)
    assert names(tmp_path) == [path.name]
    with pytest.raises(OSError, match="too long"):
        model_of().save(tmp_path / ("a" * 255 + ".json"))


def test_what_is_no_file_is_not_replaced(tmp_path):
    directory = tmp_path / "d.json"
    directory.mkdir()
    with pytest.raises(IsADirectoryError, match=r"nothing has been replaced.*d\.json"):
        model_of().save(directory)
    with pytest.raises(IsADirectoryError):
        Sequential.load(directory)
    if not Path("/dev/full").exists():
        return
    full = tmp_path / "full.json"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left .*full\.json"):
        model_of().save(full)
    assert Path("/dev/full").is_char_device()
    assert names(tmp_path) == ["d.json", "full.json"]


def test_temporary_files_of_killed_processes(tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    old, others = tmp_path / ".m.json.0123abcd.tmp", [".m.json.mine.tmp", ".n.json.0123abcd.tmp"]
    for name in (old.name, *others):
        (tmp_path / name).touch()
    model = model_of()
    model.save(path)  # it is new: its process may be about to lock it
    assert old.exists()
    monkeypatch.setattr(files, "GRACE", -1.0)
    with open(old, "rb") as file:
        assert files._lock(file)
        model.save(path)  # it is in use
        assert old.exists()
    model.save(path)
    assert names(tmp_path) == sorted([*others, path.name])
    assert storage.VERSION == 2
