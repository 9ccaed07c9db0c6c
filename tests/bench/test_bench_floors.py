"""The floor of an optimizer's step reads and writes what it says, and refuses what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from fastreg._info import native_core

core = native_core()
pytestmark = pytest.mark.skipif(core is None, reason="the core is not there")


@pytest.mark.parametrize("size", [0, 5, 64, 100_003])
@pytest.mark.parametrize("moments", [0, 1, 2])
def test_every_element_is_added_to(size: int, moments: int) -> None:
    parameters, gradients = np.full(size, 8.0, np.float32), np.full(size, 1.0, np.float32)
    kept = [np.full(size, 2.0, np.float32) for _ in range(moments)]
    core.floor_step(parameters, gradients, *kept)
    assert (gradients == 1.0).all()
    # A moment gets what the array before it has become; the last elements the gradient alone.
    whole = np.flatnonzero(parameters == 9.0 + 2.0 * moments)
    assert len(whole) >= size - 16
    for place, moment in enumerate(kept, start=1):
        assert (moment[whole] == 1.0 + 2.0 * place).all()
    rest = np.setdiff1d(np.arange(size), whole)
    for array, before in zip([parameters, *kept], [8.0, *[2.0] * moments], strict=True):
        assert (array[rest] != before).all()


@pytest.mark.parametrize("size", [6, 4096])
def test_moments_of_half_precision_are_twice_as_large(size: int) -> None:
    parameters, gradients = np.full(size, 0x3C00, np.int16), np.full(size, 0x3C00, np.int16)
    kept = [np.full(size, 2.0, np.float32) for _ in range(2)]
    core.floor_step(parameters, gradients, *kept)
    assert (parameters != 0x3C00).any()
    assert all((moment != 2.0).all() for moment in kept)


def test_what_does_not_fit_is_refused() -> None:
    w, half, long = np.zeros(8, np.float32), np.zeros(4, np.float32), np.zeros(24, np.float32)
    for arrays in [(w, half), (w, w, half), (w, w, long), (w, w, w, half), (w, w, None, w)]:
        with pytest.raises(ValueError, match="floor"):
            core.floor_step(*arrays)
