"""Saved models with other parts and other bytes, as a source of numbers chooses them.

The source is a :class:`random.Random`, or a fuzzer's input with its ``choice`` and ``randrange``.
"""

import copy

from fastreg.layers import Conv2D, Dense, Flatten, Input, Sequential

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
    """Save a model with layers of each kind."""
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
    """Change some parts of a record, in place."""
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        places = places_in(record)
        if not places:
            return
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
    """Return the content of a file with some bytes changed."""
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
