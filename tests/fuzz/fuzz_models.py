"""Saved models and saved regularizers that nobody has saved: a program for atheris.

``python tests/fuzz/fuzz_models.py [libFuzzer's options] [CORPUS]``; tests/fuzz/run.py runs it.

The first byte of an input says what the others are: a file, changes of a saved file of version 2 or
of version 1, or a saved regularizer.  What comes of it is the model or a ValueError that names the
file, the regularizer or a TypeError or ValueError, and no more memory than a small model needs;
what was loaded is saved and loaded to the same once more.
"""

import copy
import hashlib
import json
import resource
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import atheris
import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "layers")]
with atheris.instrument_imports(include=["fastreg"]):
    from damaged_files import saved, with_another_part, with_other_bytes

    from fastreg import regularizers
    from fastreg.layers import Sequential, storage, two_files  # noqa: F401  loaded late otherwise

MOST_MEMORY = 512 << 20
"""Bytes of address space beyond what imports take: an allocation by a number in a file is more."""


class Chance:
    """Numbers out of an input, as a source of random ones; zeros at its end."""

    def __init__(self, content):
        self._content = iter(content)

    def randrange(self, limit):
        number = next(self._content, 0)
        return (number if limit <= 256 else number << 8 | next(self._content, 0)) % limit

    def choice(self, some):
        return some[self.randrange(len(some))]


class Folder:
    """Files of both versions, and a place for others."""

    def __init__(self, path):
        shutil.copytree(TESTS / "layers/two_files", path, dirs_exist_ok=True)
        self.old = path / "mixed.json"
        (self.archive,) = path.glob("mixed-*.npz")
        self.new = path / "new.json"
        self.again = path / "again.json"
        saved(self.new)
        self.records = {1: json.loads(self.old.read_text()), 2: json.loads(self.new.read_text())}
        self.archived = self.archive.read_bytes()


def load(path, again):
    try:
        model = Sequential.load(path)
    except ValueError as error:
        if path.stem not in str(error):
            raise
        return
    model.save(again)
    other = Sequential.load(again)
    assert other.get_config() == model.get_config()
    for name, weight in model.weights.items():
        assert weight.dtype == other.weights[name].dtype
        assert weight.tobytes() == other.weights[name].tobytes()


def load_file(content, folder):
    folder.new.write_bytes(content)
    load(folder.new, folder.again)


def load_new(content, folder):
    record = copy.deepcopy(folder.records[2])
    with_another_part(record, Chance(content))
    folder.new.write_text(json.dumps(record))
    load(folder.new, folder.again)


def load_old(content, folder):
    record = copy.deepcopy(folder.records[1])
    archive = folder.archived
    if content[:1] > b"\x7f":
        with_another_part(record, Chance(content[1:]))
    else:
        archive = with_other_bytes(archive, Chance(content[1:]))
        record["weights"]["sha256"] = hashlib.sha256(archive).hexdigest()
    folder.archive.write_bytes(archive)
    folder.old.write_text(json.dumps(record))
    load(folder.old, folder.again)


def load_regularizer(content, folder):
    try:
        form = json.loads(content)
    except (ValueError, RecursionError):
        return
    try:
        found = regularizers.deserialize(form)
    except (TypeError, ValueError):
        return
    if found is None:
        return
    again = regularizers.serialize(found)
    assert regularizers.serialize(regularizers.deserialize(again)) == again
    value = found(np.ones((2, 2)))
    assert isinstance(value, float), value


KINDS = (load_file, load_new, load_old, load_regularizer)


def main():
    memory = Path("/dev/shm")  # saving waits for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
        folder = Folder(Path(path))

        def test_one_input(content):
            if content:
                KINDS[content[0] % len(KINDS)](content[1:], folder)

        warnings.simplefilter("ignore")  # of weights that are infinite before they are loaded
        again = f"{sys.executable} {sys.argv[0]}"  # what libFuzzer starts to merge a corpus
        atheris.Setup([again, *sys.argv[1:]], test_one_input)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY, used + MOST_MEMORY))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
