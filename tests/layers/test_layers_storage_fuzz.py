"""Files that are damaged or crafted: a model, or a ValueError that names the file; no memory."""

import copy
import hashlib
import json
import os
import random
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from fastreg.layers import Conv2D, Dense, Flatten, Input, Sequential

TWO_FILES = Path(__file__).parent / "two_files"
ROUNDS = int(os.environ.get("FASTREG_FUZZ_ROUNDS", "200"))
MOST_MEMORY = 4 << 20

VALUES = [
    *(None, True, False, 0, 1, -1, 3, 1025, 2**31, 2**62, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308),
    *("", "x", "l1", "Dense", "float64", "bfloat16", "\0", "\ud800", "a/b", "A" * 2000, "same"),
    *([], {}, [None], [1] * 70, [2**62] * 9, {"class_name": "L1"}, {"class_name": "Dense"}),
    {"class_name": "L1L2", "config": {"l1": 1e308, "l2": -1}, "registered_name": "x"},
    {"class_name": "RandomUniform", "config": {"minval": -1e308, "maxval": 1e308}},
    {"class_name": "RandomNormal", "config": {"mean": 1e300, "stddev": 1e300, "seed": 2**200}},
    {"class_name": "function", "config": ["x"]},
]


def saved(path):
    layers = [
        Input((5, 5, 2)),
        Conv2D(2, 3, activation="relu", kernel_regularizer="l1", name="conv"),
        Flatten(name="flat"),
        Dense(3, kernel_initializer="he_normal", activity_regularizer="l2", name="hidden"),
        Dense(2, dtype="float16", bias_regularizer={"class_name": "L1L2", "config": {}}, name="o"),
    ]
    Sequential(layers, name="m").save(path)


def places_in(record):
    """List each (container, key) of a record."""
    found, left = [], [record]
    while left:
        node = left.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                left.append(node[key])
    return found


def with_another_part(record, chance):
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        places = places_in(record)
        node, key = chance.choice(places)
        kind = chance.randrange(6)
        if kind == 0:
            del node[key]
        elif kind == 1:
            other, other_key = chance.choice(places)
            node[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(node, dict):
            node[chance.choice(["x", "self", "units", "name", "class_name", "config"])] = node.pop(
                key
            )
        elif kind == 3:
            node[key] = {"class_name": node[key], "config": node[key]}
        elif kind == 4 and isinstance(node[key], (int, float)):
            node[key] = node[key] * chance.choice([-1, 0, 2, 1e9, 10**9])
        else:
            node[key] = copy.deepcopy(chance.choice(VALUES))


def with_other_bytes(content, chance):
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.randrange(len(changed))
        kind = chance.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            changed[place] = chance.choice(b'\0\xff"{}[],:9-e')
        elif kind == 2:
            del changed[place : place + chance.choice([1, 3, 50, 4000])]
        elif kind == 3:
            changed[place:place] = changed[place - 40 : place] * chance.choice([1, 3])
        else:
            changed[place : place + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\0\0\0\x7f"])
        if not changed:
            break
    return bytes(changed)


@pytest.fixture
def _little_memory():
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_MEMORY


def outcome(path):
    """Load a file; say what came of it."""
    try:
        Sequential.load(path)
    except ValueError as error:
        return "refused" if path.stem in str(error) else f"without a name: {error}"
    return "loaded"


def report(what, outcomes):
    print(f"{what}: {dict(outcomes)}")
    assert outcomes["refused"] > ROUNDS // 4
    assert outcomes["loaded"] > 0
    assert outcomes.keys() == {"refused", "loaded"}


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # weights that are infinite before they load
@pytest.mark.parametrize("version", [1, 2])
def test_other_parts(tmp_path, version):
    shutil.copytree(TWO_FILES, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "mixed.json"
    if version == 2:
        saved(path)
    record = json.loads(path.read_text())
    outcomes = Counter()
    for seed in range(ROUNDS):
        changed = copy.deepcopy(record)
        with_another_part(changed, random.Random(seed))
        path.write_text(json.dumps(changed))
        try:
            outcomes[outcome(path)] += 1
        except BaseException as error:
            error.args = (f"seed {seed}: {error}",)
            raise
    report(f"version {version}, parts", outcomes)


@pytest.mark.usefixtures("_little_memory")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_other_bytes(tmp_path):
    path = tmp_path / "m.json"
    saved(path)
    content = path.read_bytes()
    outcomes = Counter(loaded=1)  # most change a digest or a name
    for seed in range(ROUNDS):
        path.write_bytes(with_other_bytes(content, random.Random(seed)))
        outcomes[outcome(path)] += 1
    report("version 2, bytes", outcomes)


@pytest.mark.usefixtures("_little_memory")
def test_other_bytes_of_an_archive(tmp_path):
    shutil.copytree(TWO_FILES, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "mixed.json"
    (weights,) = tmp_path.glob("mixed-*.npz")
    record, content = json.loads(path.read_text()), weights.read_bytes()
    outcomes = Counter()
    for seed in range(ROUNDS):
        changed = with_other_bytes(content, random.Random(seed))
        weights.write_bytes(changed)
        record["weights"]["sha256"] = hashlib.sha256(changed).hexdigest()
        path.write_text(json.dumps(record))
        outcomes[outcome(path)] += 1
    report("version 1, archives", outcomes)
