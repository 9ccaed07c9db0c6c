"""No copies, no leaks, and no 32-bit number where sizes and distances are counted."""

import sys

import numpy as np
import pytest
from interpreter import SANITIZED, runs

from fastreg._engine import backend as _backend
from fastreg.regularizers import L1, L1L2, L2

pytestmark = [
    pytest.mark.skipif(SANITIZED, reason="a sanitizer needs memory of its own"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]

BACKENDS = ["numpy", *(["native"] if _backend.name == "native" else [])]

PEAK = """
from pathlib import Path
import numpy as np
import fastreg
from fastreg.regularizers import L1L2

def status(field):  # in bytes
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(text.partition(field + ":")[2].split()[0])

def growth(call):
    "The peak beside what was there before, after one call that is not counted."
    call()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = status("VmRSS")
    call()
    return status("VmHWM") - before

regularizer = L1L2(0.3, 0.7)
megabyte = 1 << 20
"""


# The fallback is slower, and a copy of 64 MB is seen as well.  It computes all gradients before it
# writes any, which takes their memory once more; the core writes in place.
@pytest.mark.parametrize(
    ("backend_name", "rows"), [(name, 8192 if name == "native" else 2048) for name in BACKENDS]
)
def test_less_than_4_megabytes_beside_the_arrays(backend_name, rows):
    output = runs(
        PEAK
        + f"w = np.full(({rows}, 8192), 0.1, np.float32)"  # 256 MB
        + """
grad = np.full_like(w, 0.5)
calls = {
    "value": lambda: regularizer(w),
    "out": lambda: regularizer.gradient(w, grad),
    "accumulate": lambda: regularizer.accumulate(w, grad),
    "in place": lambda: regularizer.accumulate(grad, grad),
    "half": lambda: regularizer.accumulate(w.view(np.float16), grad.view(np.float16)),
    "integers": lambda: regularizer(w.view(np.int32)),
    "other layouts": lambda: regularizer.accumulate(w[:2000, ::2].T, grad[:2000, ::2].T),
    "many": lambda: fastreg.attach(list(w[::64]), regularizer).accumulate(list(grad[::64])),
}
import os
is_fallback = os.environ["FASTREG_BACKEND"] == "numpy"
for name, call in calls.items():
    written = 0 if name in ("value", "integers") else grad.nbytes
    if name == "other layouts":
        written //= 2
    grown = growth(call)
    if grown > 4 * megabyte + is_fallback * written:
        print(name, grown / megabyte)
""",
        FASTREG_BACKEND=backend_name,
    )
    assert output == ""


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_no_leak_over_many_calls(backend_name):
    pytest.importorskip("psutil")
    output = runs(
        """
        import psutil
        import numpy as np
        import fastreg
        from fastreg.regularizers import L1L2

        process = psutil.Process()
        regularizer = L1L2(0.3, 0.7)
        w, grad = np.ones(64, np.float32), np.zeros(64, np.float32)
        strided = np.ones((8, 16), np.float32)[:, ::2]
        penalties = fastreg.attach({"a": w, "b": strided}, regularizer)
        grads = {"a": grad, "b": strided.copy()}
        frozen = grad.copy()
        frozen.flags.writeable = False

        def good():
            regularizer(w)
            regularizer(strided)
            regularizer.gradient(w)
            regularizer.accumulate(w, grad, scale=0.5)
            regularizer(memoryview(w))
            penalties.accumulate(grads)

        def refused(error, call, *arguments, **options):
            try:
                call(*arguments, **options)
            except error:
                return
            raise AssertionError(f"not refused: {call} {arguments}")

        def bad():
            refused(TypeError, regularizer, [1.0])
            refused(BufferError, regularizer.accumulate, w, frozen)
            refused(ValueError, regularizer.accumulate, w, grad[:3])
            refused(TypeError, regularizer.gradient, np.ones(3, int))
            refused(ValueError, regularizer, w, scale=float("nan"))
            refused(ValueError, penalties.accumulate, {"a": grad})

        def growth(call, times):
            for _ in range(500):
                call()
            before = process.memory_info().rss
            for _ in range(times):
                call()
            return process.memory_info().rss - before

        rounds = 100_000 // 6 if fastreg.get_instruction_set() != "numpy" else 1_000
        print(growth(good, rounds) < 1 << 20, growth(bad, rounds // 2) < 1 << 20)
        """,
        FASTREG_BACKEND=backend_name,
    )
    assert output == "True True\n"


# ------------------------------------------------------------------------------ large sizes

# Arrays of zeros have no memory until they are written, so these cost a few pages.


def test_more_than_2_to_the_31_elements(backend):
    if backend == "numpy":
        pytest.skip("the fallback counts in Python's numbers, which have no end")
    if backend != _backend.instruction_sets()[0]:
        pytest.skip("sizes are counted outside the kernels: one of them is enough")
    w = np.zeros(2**31 + 4097, np.int8)
    places = np.array([0, 2**31 - 1, 2**31, 2**31 + 4096])
    w[places] = [1, 2, 4, -8]
    assert L1(1.0)(w) == 15.0
    assert L2(1.0)(w) == 85.0


def test_strides_over_more_than_2_to_the_32_bytes(backend):
    distance = 2**24 + 1  # elements of float32, 67 in all
    w = np.zeros(66 * distance + 1, np.float32)[::distance]
    grad = np.zeros(66 * distance + 1, np.float32)[::-distance]
    assert w.strides[0] * (w.size - 1) > 2**32
    w[:] = np.arange(w.size)
    grad[:] = 1.0
    expected = np.ones(w.size, np.float32)
    plain = np.ascontiguousarray(w)
    assert L1L2(0.5, 0.25).accumulate(w, grad) == L1L2(0.5, 0.25).accumulate(plain, expected)
    assert (grad == expected).all()


def test_a_view_that_repeats_one_row_is_not_laid_out(backend):
    """A million rows that are one row in memory: summed without a copy of them all."""
    w = np.broadcast_to(np.float32([0.25, -0.5, 1.0]), (1_000_003, 3))
    assert L1(1.0)(w) == 1.75 * 1_000_003
