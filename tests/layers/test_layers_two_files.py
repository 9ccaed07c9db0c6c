"""Models that version 1 of the format saved, in two files: read, replaced, and refused by name.

``two_files/`` has what that version wrote.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastreg.layers import Sequential, two_files

HERE = Path(__file__).parent / "two_files"
X = np.linspace(-1, 1, 100, dtype=np.float32).reshape(2, 5, 5, 2)


@pytest.fixture
def saved(tmp_path):
    for file in HERE.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "mixed.json"


def weights_of(path):
    (weights,) = path.parent.glob(f"{path.stem}-*.npz")
    return weights


def change(path, edit):
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def replace_weights(path, content):
    """Put other weights beside the JSON, with their digest in it."""
    weights_of(path).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    change(path, lambda record: record["weights"].update(sha256=digest))


def numbers(model):
    """The numbers that the files were made with: one after the other through all weights."""
    start = 0
    for weight in model.weights.values():
        wanted = np.arange(start, start + weight.size) / 16 - 2
        assert weight.astype(np.float64).ravel().tolist() == wanted.tolist()
        start += weight.size
    return start


def test_what_version_1_saved_comes_back(saved):
    model = Sequential.load(saved)
    assert [weight.dtype.name for weight in model.weights.values()] == [
        *("float32", "float32", "float16", "float16", "float64")
    ]
    assert numbers(model) == 101
    assert model(X).shape == (2, 2)


def test_bfloat16_comes_back(saved):
    pytest.importorskip("ml_dtypes")
    model = Sequential.load(saved.with_name("brain.json"))
    assert [weight.dtype.name for weight in model.weights.values()] == ["bfloat16"] * 2
    assert numbers(model) == 8


def test_a_save_makes_one_file_of_two(saved):
    model = Sequential.load(saved)
    other = weights_of(saved.with_name("brain.json"))
    model.layers[0].bias += 1
    model.save(saved)
    assert sorted(file.name for file in saved.parent.glob("*")) == sorted(
        ["mixed.json", "brain.json", other.name]
    )
    again = Sequential.load(saved)
    for name, weight in model.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


def test_a_save_leaves_the_weights_of_a_copy(saved):
    """Whoever copies the JSON has two models with one file of weights."""
    copy = saved.with_name("best.json")
    shutil.copy(saved, copy)
    shared = weights_of(saved)
    model = Sequential.load(copy)
    model.layers[0].bias += 1
    model.save(copy)
    assert numbers(Sequential.load(saved)) == 101
    Sequential.load(copy).save(saved)  # now no model is left that names them
    assert not shared.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a pipe with a name")
def test_a_save_waits_for_no_pipe(saved):
    """A process of its own, because what waits for a pipe waits for ever."""
    os.mkfifo(saved.with_name("pipe.json"))
    script = """
import pathlib, sys, threading
from fastreg.layers import Sequential
saved = pathlib.Path(sys.argv[1])
model, pipe = Sequential.load(saved), saved.with_name("pipe.json")
model.save(saved)  # looks at the JSON beside it
read = []
reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
reader.start()
model.save(pipe)
reader.join()
assert read == [saved.read_bytes()]
"""
    subprocess.run([sys.executable, "-c", script, str(saved)], check=True, timeout=60)


def test_a_reader_whose_weights_have_gone_reads_the_model_that_replaced_them(saved, monkeypatch):
    model = Sequential.load(saved)
    model.layers[0].bias += 1
    genuine = two_files.read

    def read(target, record):
        monkeypatch.undo()
        model.save(target)
        return genuine(target, record)

    monkeypatch.setattr(two_files, "read", read)
    np.testing.assert_array_equal(Sequential.load(saved).layers[0].bias, model.layers[0].bias)


def test_weights_that_are_not_there(saved):
    weights_of(saved).unlink()
    with pytest.raises(FileNotFoundError, match=r"mixed-.*\.npz"):
        Sequential.load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda r: r.pop("config"), r"mixed\.json has no \"config\""),
        (lambda r: r["config"].update(layers=None), r"mixed\.json: .* under \"layers\", not None"),
        (lambda r: r.pop("weights"), "names no weights file"),
        (lambda r: r.update(weights=[]), "names no weights file"),
        (lambda r: r["weights"].update(file="../m-0123456789abcdef.npz"), "names no weights file"),
        (lambda r: r["weights"].update(file="m\0-0123456789abcdef.npz"), "names no weights file"),
        (lambda r: r["weights"].update(file=3), "names no weights file"),
        (lambda r: r["weights"].update(sha256="0"), "has changed since"),
        (lambda r: r["config"]["layers"][1]["config"].update(name="c"), "missing 'c/bias', 'c/ke"),
        (lambda r: r["config"]["layers"][1]["config"].update(filters=3), "conv/kernel has shape"),
        (lambda r: r["config"]["layers"][3]["config"].update(use_bias=False), "additional 'half/b"),
        (
            lambda r: r["config"]["layers"][3]["config"].update(dtype="float32"),
            "half/kernel has shape .* and dtype float16, not .* and float32",
        ),
    ],
)
def test_files_that_do_not_fit(saved, edit, message):
    change(saved, edit)
    with pytest.raises(ValueError, match=message):
        Sequential.load(saved)


def test_damaged_files(saved):
    weights = weights_of(saved)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="has changed since"):
        Sequential.load(saved)


def archive_of(arrays, **options):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in arrays:
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def head(text, version=b"\1\0"):
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text


GOOD = npy(np.zeros((2, 2), np.float32))
LARGE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000, 100000), }\n"
WRONG = {
    "no archive": b"no archive",
    "nothing": b"",
    "an archive cut short": archive_of([("a.npy", GOOD)])[:-9],
    "pickles": archive_of([("conv/kernel.npy", npy(np.array([{}], object)))]),
    "complex numbers": archive_of([("a.npy", npy(np.zeros(2, complex)))]),
    "strings": archive_of([("a.npy", npy(np.array(["ab"])))]),
    "records": archive_of([("a.npy", npy(np.zeros(2, [("x", "<f4")])))]),
    "Fortran order": archive_of([("a.npy", npy(np.zeros((2, 3), order="F")))]),
    "no array": archive_of([("a.txt", b"words")]),
    "no head": archive_of([("a.npy", b"words")]),
    "half a head": archive_of([("a.npy", GOOD[:9])]),
    "one name twice": archive_of([("a.npy", GOOD), ("b.npy", GOOD)]).replace(b"b.npy", b"a.npy"),
    "deflate": archive_of([("a.npy", GOOD)], compression=zipfile.ZIP_DEFLATED),
    "lzma": archive_of([("a.npy", GOOD)], compression=zipfile.ZIP_LZMA),
    "bzip2": archive_of([("a.npy", GOOD)], compression=zipfile.ZIP_BZIP2),
    "more than there is": archive_of([("a.npy", head(LARGE))]),
    "brackets": archive_of([("a.npy", head(b"(" * 60_000 + b"\n"))]),
    "calls": archive_of([("a.npy", head(LARGE.replace(b"False", b"exit()")))]),
    "axes": archive_of([("a.npy", head(LARGE.replace(b"100000", b"1, 1" * 40)))]),
    "elements": archive_of([("a.npy", GOOD + b"\0")]),
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_files_that_hold_something_else(saved, what):
    replace_weights(saved, WRONG[what])
    with pytest.raises(ValueError, match=r"mixed-[0-9a-f]{16}\.npz holds no weights"):
        Sequential.load(saved)


def test_a_small_archive_is_not_expanded(saved):
    """3 MB that expand to 3 GiB, with the names that the model has."""
    import tracemalloc

    size = 1 << 26
    shape = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size // 4},), }}\n".encode()
    names = ["conv/kernel", "conv/bias", "half/kernel", "half/bias", "out/kernel"]
    content = archive_of(
        [(f"{name}.npy", head(shape) + bytes(size)) for name in names],
        compression=zipfile.ZIP_DEFLATED,
    )
    assert len(content) < size // 100
    replace_weights(saved, content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its members are larger than the file"):
            Sequential.load(saved)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(content) + (1 << 20)
    finally:
        tracemalloc.stop()


def test_weights_in_the_other_byte_order(saved):
    with np.load(weights_of(saved)) as archive:
        arrays = {name: archive[name] for name in archive.files}
    buffer = io.BytesIO()
    np.savez(buffer, **{k: a.astype(a.dtype.newbyteorder(">")) for k, a in arrays.items()})
    replace_weights(saved, buffer.getvalue())
    assert numbers(Sequential.load(saved)) == 101


def test_integers_are_no_weights(saved):
    replace_weights(saved, archive_of([("a.npy", npy(np.zeros(2, np.uint32)))]))
    with pytest.raises(ValueError, match=r"holds no weights \(a has dtype uint32"):
        Sequential.load(saved)
