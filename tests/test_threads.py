"""Threads, processes and the floating-point state change no bit; settings are read and checked."""

import threading
from concurrent.futures import ThreadPoolExecutor

import canonical
import numpy as np
import pytest
from interpreter import python, runs

import fastreg
from fastreg._engine import backend as _backend
from fastreg._engine import reference
from fastreg.regularizers import L1, L1L2

pytest.importorskip("fastreg._core", exc_type=ImportError)

SIZE = 1_000_003
THREADS = (1, 2, 3, 7)


@pytest.fixture(autouse=True)
def native():
    """Run on the native core, whatever was chosen, and put its number of threads back."""
    before = _backend.name
    _backend.select("native")
    threads = fastreg.get_num_threads()
    yield
    fastreg.set_num_threads(threads)
    _backend.select(before)


def numbers(size, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(size).astype(canonical.NUMPY[dtype])


def same(a, b):
    """Compare bits; there is no NaN here."""
    integers = f"u{a.dtype.itemsize}"
    return a.dtype == b.dtype and bool((a.view(integers) == b.view(integers)).all())


# ------------------------------------------------------------------------------------ bits


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    w, old = numbers(SIZE, dtype), numbers(SIZE, dtype, seed=1)
    for outputs in (1, 2, 3, 6, 7):
        expected = None if outputs == 1 else old.copy()
        value = reference.evaluate_one(outputs, w, expected, 0.3, 0.7, 0.5, 2.0)
        for threads in THREADS:
            fastreg.set_num_threads(threads)
            grad = None if outputs == 1 else old.copy()
            assert _backend.evaluate_one(outputs, w, grad, 0.3, 0.7, 0.5, 2.0) == value
            assert grad is None or same(grad, expected)


def test_any_number_of_threads_over_many_tensors():
    sizes = [5, 0, 33, 4097, 70_001, 200_003, 1] * 9
    params = {
        str(place): numbers(size, canonical.DTYPES[place % 4], seed=place)
        for place, size in enumerate(sizes)
    }
    penalties = fastreg.attach(params, L1L2(0.3, 0.7))
    _backend.select("numpy")
    expected = {name: np.zeros_like(w) for name, w in params.items()}
    value = penalties.accumulate(expected)
    _backend.select("native")
    for threads in THREADS:
        fastreg.set_num_threads(threads)
        grads = {name: np.zeros_like(w) for name, w in params.items()}
        assert penalties.accumulate(grads) == value
        assert all(same(grads[name], expected[name]) for name in params)


@pytest.mark.parametrize("layout", ["transposed", "every second", "integers"])
def test_any_number_of_threads_where_elements_are_gathered(layout):
    w = {
        "transposed": lambda: numbers(SIZE - 3, "f32").reshape(1000, 1000)[:, :999].T,
        "every second": lambda: numbers(2 * SIZE, "f16")[::2],
        "integers": lambda: np.arange(SIZE, dtype=np.int16),
    }[layout]()
    value = reference.evaluate_one(1, w, None, 0.3, 0.7, 1.0, 1.0)
    for threads in THREADS:
        fastreg.set_num_threads(threads)
        assert L1L2(0.3, 0.7)(w) == value


def test_threads_with_small_stacks():
    """Of 64 KiB, in which strided and integer arrays once did not fit."""
    output = runs(
        """
        import threading
        import numpy as np
        import fastreg
        from fastreg.regularizers import L1L2

        fastreg.set_num_threads(2)
        rule = L1L2(0.3, 0.7)
        w = np.linspace(-1.0, 1.0, 600_000)
        arrays = [w, w[::2], w[:5000].astype(np.int8), w.astype(np.float16), w.reshape(600, -1).T]
        expected = [rule(array) for array in arrays]
        gradients = [rule.gradient(array) for array in arrays if array.dtype != np.int8]

        def work():
            assert [rule(array) for array in arrays] == expected
            for array, gradient in zip([a for a in arrays if a.dtype != np.int8], gradients):
                total = np.zeros(array.shape[::-1], array.dtype).T
                rule.accumulate(array, total)
                assert (total == gradient).all()
            print("right")

        threading.stack_size(64 * 1024)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        """
    )
    assert output == "right\n"


def test_calls_of_several_python_threads_at_once():
    fastreg.set_num_threads(3)
    regularizer = L1L2(0.3, 0.7)
    weights = [numbers(300_000 + place, "f32", seed=place) for place in range(4)]
    expected = [regularizer.value_and_grad(w) for w in weights]
    start = threading.Barrier(4)

    def work(place):
        start.wait()
        for turn in range(20):
            if place == 0:
                fastreg.set_num_threads(1 + turn % 5)
            value, gradient = regularizer.value_and_grad(weights[place])
            assert value == expected[place][0]
            assert same(gradient, expected[place][1])
        return True

    with ThreadPoolExecutor(4) as executor:
        assert list(executor.map(work, range(4))) == [True] * 4


# ------------------------------------------------------------------------------- processes

# Forked in fresh interpreters: frameworks that other tests imported do not like to be forked.
FORK = """
import os, warnings
import numpy as np
import fastreg
from fastreg.regularizers import L1L2

warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
fastreg.set_num_threads(3)
w = np.random.default_rng(0).standard_normal(1_000_003, dtype=np.float32)
regularizer = L1L2(0.3, 0.7)

def right():
    value, gradient = regularizer.value_and_grad(w)
    return value == expected[0] and bool((gradient == expected[1]).all())

def in_child(body):
    child = os.fork()
    if child == 0:
        os._exit(0 if body() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def test_fork_after_use():
    runs(
        FORK
        + """
expected = regularizer.value_and_grad(w)
assert in_child(right)
assert in_child(lambda: right() and in_child(right) and right())
assert right()
"""
    )


def test_fork_while_a_call_runs():
    runs(
        FORK
        + """
import threading
expected = regularizer.value_and_grad(w)
stop = threading.Event()
def keep_calling():
    while not stop.is_set():
        regularizer(w)
caller = threading.Thread(target=keep_calling)
caller.start()
try:
    assert all(in_child(right) for _ in range(10))
finally:
    stop.set()
    caller.join()
assert right()
"""
    )


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(method):
    output = runs(
        f"""
        import multiprocessing, warnings
        import numpy as np
        from fastreg.regularizers import L1L2

        warnings.simplefilter("ignore", DeprecationWarning)
        regularizer = L1L2(0.3, 0.7)
        weights = [np.full(100_003 + i, 0.1 + i, np.float32) for i in range(4)]
        expected = [regularizer(w) for w in weights]
        with multiprocessing.get_context({method!r}).Pool(2) as pool:
            print(pool.map(regularizer, weights) == expected)
        """
    )
    assert output == "True\n"


# -------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (0, ValueError),
        (-1, ValueError),
        (1025, ValueError),
        (1.0, TypeError),
        ("2", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_wrong_numbers_of_threads(wrong, error):
    fastreg.set_num_threads(2)
    with pytest.raises(error, match=r"^n must be a "):
        fastreg.set_num_threads(wrong)
    assert fastreg.get_num_threads() == 2


def test_numpy_integers_are_numbers_of_threads():
    fastreg.set_num_threads(np.int32(2))
    assert fastreg.get_num_threads() == 2


def test_number_of_threads_from_the_environment():
    code = "import fastreg; print(fastreg.get_num_threads())"
    assert runs(code, FASTREG_NUM_THREADS="3") == "3\n"
    assert runs(code, FASTREG_NUM_THREADS="") == runs(code)
    limited = f"import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); {code}"
    assert runs(limited) == "1\n"
    assert runs(limited, FASTREG_NUM_THREADS="2") == "2\n"


def test_processors_are_counted_again():
    """An affinity that is set, or widened, while the process runs."""
    output = runs(
        """
        import os, time
        import fastreg
        everywhere = os.sched_getaffinity(0)
        counts = [fastreg.get_num_threads()]
        for processors in ([min(everywhere)], everywhere):
            os.sched_setaffinity(0, processors)
            time.sleep(1.2)
            counts.append(fastreg.get_num_threads())
        fastreg.set_num_threads(3)
        os.sched_setaffinity(0, [min(everywhere)])
        time.sleep(1.2)
        print(counts[0] == counts[2], counts[1], fastreg.get_num_threads())
        """
    )
    assert output == "True 1 3\n"


def test_workers_take_no_signals():
    """A signal that the program's own threads block stays pending."""
    output = runs(
        """
        import os, signal, threading
        import numpy as np
        import fastreg
        fastreg.set_num_threads(3)
        w = np.ones(3_000_003, np.float32)  # worth waking others, by any policy
        for _ in range(3):
            fastreg.regularizers.L1(0.5)(w)
        others = len(os.listdir("/proc/self/task")) - 1
        signal.signal(signal.SIGUSR1, lambda *_: print("taken"))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        os.kill(os.getpid(), signal.SIGUSR1)
        pending = signal.SIGUSR1 in signal.sigpending()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        # The pool's two, and a thread of its own where TSan watches.
        print(others >= 2, pending)
        """,
        OPENBLAS_NUM_THREADS="1",
    )
    assert output == "taken\nTrue True\n"


# Without the one that exists for tests only.
@pytest.mark.parametrize(
    "name", [name for name in _backend.instruction_sets() if name in _backend.INSTRUCTION_SETS]
)
def test_instruction_set_from_the_environment(name):
    code = "import fastreg; print(fastreg.get_instruction_set())"
    assert runs(code, FASTREG_ISA=name) == f"{name}\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("FASTREG_ISA", name)
            for name in _backend.INSTRUCTION_SETS
            if name not in _backend.instruction_sets()
        ),
        ("FASTREG_NUM_THREADS", "1025"),
        ("FASTREG_NUM_THREADS", "99999999999999999999"),
    ],
)
def test_settings_that_cannot_be_had_here(name, value):
    """They are a ValueError at import, not a silent change to the fallback."""
    result = python("import fastreg", **{name: value})
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: the environment variable {name}")
    assert repr(value) in last


# -------------------------------------------------------------------- floating-point state


def subnormals(dtype):
    size = canonical.NUMPY[dtype].itemsize
    return (np.arange(300_000) % 61 + 1).astype(f"u{size}").view(canonical.NUMPY[dtype])


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_sums_of_subnormals(backend, dtype):
    w = subnormals(dtype)[:5000]
    elements = canonical.floats(w)
    assert L1L2(0.5, 0.25)(w) == canonical.penalty(elements, 0.5, 0.25) > 0.0


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_flush_to_zero_of_torch_changes_nothing(dtype):
    torch = pytest.importorskip("torch")
    w = subnormals(dtype)
    regularizer = L1L2(0.5, 0.25)
    fastreg.set_num_threads(3)
    expected = regularizer.value_and_grad(w)
    total = _backend.canonical_sum([5e-324, 5e-324])

    def flushes():
        return float(np.multiply(np.float64(5e-324), 1.0)) == 0.0

    assert not flushes()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush to zero")
    try:
        value, gradient = regularizer.value_and_grad(w)
        sum_while_flushing = _backend.canonical_sum([5e-324, 5e-324])
        still_flushes = flushes()
    finally:
        torch.set_flush_denormal(False)
    assert still_flushes
    assert value == expected[0] > 0.0
    assert same(gradient, expected[1])
    assert sum_while_flushing == total > 0.0


def test_flush_to_zero_before_the_first_worker():
    """A new thread has the state of its creator: the pool's must not keep it."""
    pytest.importorskip("torch")
    runs(
        """
        import numpy as np, torch
        torch.set_flush_denormal(True)
        import fastreg
        from fastreg.regularizers import L1
        fastreg.set_num_threads(3)
        w = np.full(1_000_003, 5e-324)
        value = L1(1.0)(w)
        torch.set_flush_denormal(False)
        assert value == 1_000_003 * 5e-324, value
        """
    )


def test_l1_of_one_subnormal():
    assert L1(1.0)(np.array([5e-324])) == 5e-324
