"""A pytest plugin with faults for a rehearsal: PLANTED names one, and the test that it meets.

PLANTED="hang test_values[stand_in-f32-L1]" python -m pytest -p planted ...
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import pytest

FAULT, _, TEST = os.environ.get("PLANTED", "").partition(" ")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Do what the fault is, just before the test."""
    if item.name == TEST:
        FAULTS[FAULT](item)


def hang(item: Any) -> None:
    time.sleep(3600)


def crash(item: Any) -> None:
    os._exit(139)


def wrong_bit(item: Any) -> None:
    """Have the device's array differ from the host's in the last bit of one element."""
    maker = item.funcargs["maker"]
    make = maker.make

    def made(numbers: np.ndarray, **places: int) -> Any:
        if numbers.size < 33:
            return make(numbers, **places)
        changed = numbers.copy("K")
        bits = changed.reshape(-1).view(f"u{numbers.itemsize}")
        bits[17] ^= 1
        return make(changed, **places)

    maker.make = made
    item.addfinalizer(lambda: maker.__dict__.pop("make"))


def lost_device(item: Any) -> None:
    """Make every later call of the stand-in's fail, as after an illegal address."""
    item.funcargs["maker"].runtime.library.stand_in_lose_device()


FAULTS = {"hang": hang, "crash": crash, "wrong_bit": wrong_bit, "lost_device": lost_device}
