"""Processes that save, load and are killed: run by test_layers_storage_faults.py, or by itself.

``python tests/layers/saving_processes.py kill 200`` prints what was counted.  All weights of a
model are one number, so that a mixture of two models is seen.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from fastreg.layers import Dense, Sequential

SIZE = 120  # 60 kB of weights: several pieces for the disk


def model_of(number):
    model = Sequential([Dense(SIZE, input_dim=SIZE, name="dense")], name="model")
    for weight in model.weights.values():
        weight[...] = number
    return model


def number_of(path):
    """Load a model and return its number; AssertionError when it is a mixture."""
    weights = Sequential.load(path).get_weights()
    numbers = {float(x) for weight in weights for x in np.unique(weight)}
    assert len(numbers) == 1, numbers
    return numbers.pop()


def forked(work):
    """Run `work` in a process of its own; it has nothing of this one's to clean up."""
    with warnings.catch_warnings():
        # from Python 3.12 on: threads of BLAS, which nothing here uses, are not in the child
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


def save_for_ever(path, first):
    model = model_of(first)
    number = first
    while True:
        for weight in model.weights.values():
            weight[...] = number
        model.save(path)
        number += 1


def load_until(path, stop, counts):
    """Load as often as possible; a failure ends the process."""
    loads = 0
    while not stop.exists():
        number_of(path)
        loads += 1
    counts.write_text(json.dumps(loads))


def finished(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill(path, rounds, savers):
    """Kill savers of one path at random moments, while another process loads; return counts."""
    chance = random.Random(0)
    stop, counts = path.with_name("stop"), path.with_name("loads")
    model_of(0).save(path)
    reader = forked(lambda: load_until(path, stop, counts))
    seen, most = set(), 0
    patience = 1.0  # more where others have the processors, and the savers got nowhere
    for place in range(rounds):
        firsts = [1000 * (place * savers + saver + 1) for saver in range(savers)]
        children = [forked(lambda first=first: save_for_ever(path, first)) for first in firsts]
        time.sleep(patience * chance.uniform(0.002, 0.03))
        for child in children:
            os.kill(child, signal.SIGKILL)
        assert [finished(child) for child in children] == [-signal.SIGKILL] * savers
        number = number_of(path)
        patience = min(1.5 * patience, 30.0) if number in seen else 1.0
        seen.add(number)
        most = max(most, len(list(path.parent.glob(".*.tmp"))))
    stop.touch()
    assert finished(reader) == 0
    left = list(path.parent.glob(".*.tmp"))
    for file in left:
        os.utime(file, (0, 0))
    model_of(7).save(path)
    assert number_of(path) == 7
    return {
        "kills": rounds * savers,
        "models seen": len(seen),
        "loads": json.loads(counts.read_text()),
        "temporary files left": len(left),
        "after the next save": len(list(path.parent.glob(".*.tmp"))),
    }


def together(path, seconds, savers):
    """Let savers of one path run at the same time, and end; return counts."""
    stop, counts = path.with_name("stop"), path.with_name("loads")
    model_of(0).save(path)

    def save_until(first):
        model = model_of(first)
        saves = 0
        while not stop.exists():
            model.save(path)
            saves += 1
        path.with_name(f"saves{first}").write_text(json.dumps(saves))

    children = [forked(lambda first=first: save_until(first)) for first in range(1, savers + 1)]
    children.append(forked(lambda: load_until(path, stop, counts)))
    time.sleep(seconds)
    stop.touch()
    assert [finished(child) for child in children] == [0] * (savers + 1)
    assert 1 <= number_of(path) <= savers
    return {
        "saves": sum(json.loads(file.read_text()) for file in path.parent.glob("saves*")),
        "loads": json.loads(counts.read_text()),
        "temporary files left": len(list(path.parent.glob(".*.tmp"))),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "m.json"
        if sys.argv[1] == "kill":
            print(json.dumps(kill(place, int(sys.argv[2]), savers=2)))
        else:
            print(json.dumps(together(place, float(sys.argv[2]), savers=3)))
