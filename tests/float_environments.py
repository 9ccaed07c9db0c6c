"""Floating point environments that a caller may have set, for tests."""

from __future__ import annotations

import ctypes
import platform
import struct
from contextlib import contextmanager

import pytest

ROUNDING = {"x86_64": (0x400, 0x800, 0xC00), "aarch64": (0x800000, 0x400000, 0xC00000)}
"""FE_DOWNWARD, FE_UPWARD and FE_TOWARDZERO."""

FLUSH = {"x86_64": (28, 0x8040), "aarch64": (0, 1 << 24)}
"""Where in fenv_t the control word is, and its bits that flush results and operands to zero."""

NAMES = ("downward", "upward", "toward zero", "flushing", "upward and flushing")


@contextmanager
def environment(name: str):
    """Set one of NAMES in this thread; nothing in the body may need another."""
    machine = platform.machine()
    if platform.system() != "Linux" or machine not in ROUNDING:
        pytest.skip("how to set the environment is known for Linux on x86-64 and Arm")
    library = ctypes.PyDLL(None)
    before = ctypes.create_string_buffer(64)
    assert library.fegetenv(before) == 0
    if "ward" in name:
        mode = ("downward", "upward", "toward zero").index(name.removesuffix(" and flushing"))
        assert library.fesetround(ROUNDING[machine][mode]) == 0
    if "flushing" in name:
        now = ctypes.create_string_buffer(64)
        library.fegetenv(now)
        offset, bits = FLUSH[machine]
        (word,) = struct.unpack_from("<I", now, offset)
        struct.pack_into("<I", now, offset, word | bits)
        library.fesetenv(now)
    try:
        yield
    finally:
        library.fesetenv(before)


def is_set(name: str) -> bool:
    """Return whether the environment of this name is set."""
    one, small, least = 1.0, 2.0**-60, float.fromhex("0x1p-1022")
    rounding = {
        "downward": -one - small < -one and one + small == one,
        "upward": one + small > one,
        "toward zero": one - small < one and -one + small > -one,
    }
    flushes = least * 0.5 == 0.0
    return all(flushes if part == "flushing" else rounding[part] for part in name.split(" and "))
