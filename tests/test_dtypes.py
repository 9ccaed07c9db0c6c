"""bfloat16 as bits, for arrays without axes as for all others."""

import importlib
import importlib.util

import numpy as np
import pytest

from fastreg._base import dtypes

NUMBERS = [0.0, -0.0, 1.0, -3.1415927, 1.00390625, 65504.0, 3.4e38, np.inf, -np.inf, 1e-40]


@pytest.mark.parametrize("number", [*NUMBERS, np.nan, -np.nan])
def test_one_number_is_rounded_and_widened_as_one_of_many(number):
    many = np.array([number, number], np.float32)
    one = np.array(number, np.float32)
    bits = dtypes.to_bfloat16(one)
    assert bits.shape == ()
    assert bits.dtype == np.uint16
    assert bits == dtypes.to_bfloat16(many)[0]
    wide = dtypes.from_bfloat16(bits)
    assert wide.dtype == np.float32
    assert wide.view(np.uint32) == dtypes.from_bfloat16(dtypes.to_bfloat16(many))[0].view(np.uint32)
    assert np.isnan(wide) == np.isnan(number)


# All bits set: wraps where it is rounded. None but the lowest: would be rounded to infinity.
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001])
def test_every_nan_stays_one(bits):
    for shape in ((), (2,)):
        numbers = np.full(shape, bits, np.uint32).view(np.float32)
        assert np.isnan(dtypes.from_bfloat16(dtypes.to_bfloat16(numbers))).all()


@pytest.mark.skipif(not importlib.util.find_spec("fastreg._core"), reason="needs the core")
def test_the_table_is_that_of_the_core():
    core = importlib.import_module("fastreg._core")
    assert core.dtypes() == [
        (row.name, row.kind, row.stored.itemsize, row.name in dtypes.FLOATS) for row in dtypes.TABLE
    ]


def test_types_that_numpy_has_are_stored_as_such():
    assert list(dtypes.AS_BITS) == ["bfloat16"]
    for row in dtypes.TABLE:
        assert row.spoken in dtypes.AS_BITS or np.dtype(row.spoken) == row.stored
    assert len(dtypes.NAMES) == len(dtypes.TABLE) - 1
