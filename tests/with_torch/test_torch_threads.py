"""Whose threads take the tasks of a call on torch's tensors: torch's, within what torch allows.

Each case is a process of its own: OpenMP reads its settings once, and forking is part of it.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from interpreter import SANITIZED, runs

pytest.importorskip("fastreg._core", exc_type=ImportError)

PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = [
    pytest.mark.skipif(PROCESSORS < 2, reason="needs Linux and two processors"),
    pytest.mark.skipif(SANITIZED, reason="torch's threads are not instrumented"),
]

#: Of OpenMP, whatever the tests were started with.
OPENMP = ("OMP_", "GOMP_", "KMP_")

#: A large call, whether its result is right, and who takes it. No child waits for ever.
START = """
import os, signal, sys, threading, time, warnings
import numpy as np
import torch
import fastreg
from fastreg import _core
from fastreg._engine import reference
from fastreg.regularizers import L1L2

warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads
rule = L1L2(0.3, 0.7)
w = torch.from_numpy(np.random.default_rng(0).standard_normal(3_000_003, dtype=np.float32))
expected = np.zeros(w.shape, np.float32)
value = reference.evaluate_one(7, w.numpy(), expected, 0.3, 0.7, 1.0, 1.0)

def right():
    grads = torch.from_numpy(np.zeros_like(expected)), np.zeros_like(expected)
    values = rule.accumulate(w, grads[0]), rule.accumulate(w.numpy(), grads[1])
    return values == (value, value) and all((np.asarray(each) == expected).all() for each in grads)

def whose():
    return _core.torch_threads()[0]

def threads():
    return len(os.listdir("/proc/self/task"))

def mapped(name):
    with open("/proc/self/maps") as lines:
        return {line.split()[-1] for line in lines if name in line}

def in_child(body):
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if body() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def parallel():
    torch.ones(4_000_000).mul_(2.0)

rule.accumulate(torch.ones(3), torch.ones(3))  # learns torch
torch.set_num_threads(int(os.environ.get("TORCH", 2)))
fastreg.set_num_threads(int(os.environ.get("OURS", 2)))
"""


@pytest.fixture(autouse=True)
def no_settings_of_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take out what the environment says of OpenMP."""
    for name in list(os.environ):
        if name.startswith(OPENMP):
            monkeypatch.delenv(name)


def prints(code: str, **settings: str) -> str:
    """Run a case; return what it prints."""
    return runs(START + code, **settings).strip()


LARGE_CALLS = """
grad = torch.zeros_like(w)
before = threads()
for _ in range(3):
    parallel()
    rule.accumulate(w, grad)
print(whose(), threads() - before, right())
"""


def test_large_calls_make_no_thread_of_ours_while_torchs_spin() -> None:
    # Where others are busy, a thread that spins may be waiting for a processor, at one call of
    # twenty as good as always: so few calls, and several tries.
    tries = (prints(LARGE_CALLS, FASTREG_TORCH_THREADS="torch") for _ in range(10))
    assert "torch 0 True" in tries
    assert prints(LARGE_CALLS, FASTREG_TORCH_THREADS="own") == "own 1 True"


def test_threads_of_torch_that_sleep_are_not_woken() -> None:
    """They may come late, by milliseconds, as those of torch's own operations do."""
    code = """
grad = torch.zeros_like(w)
rule.accumulate(w, grad)
before = threads()
time.sleep(0.2)
rule.accumulate(w, grad)
print(threads() - before, right())
"""
    assert prints(code, GOMP_SPINCOUNT="1000") == "1 True"


def test_an_array_of_numpy_goes_to_the_team_while_it_spins() -> None:
    code = """
assert right()
pool = threads()  # the second call of right() may have had our pool
grad = np.zeros_like(expected)
_core.set_torch_threads("torch")
for _ in range(200):
    parallel()
    rule.accumulate(w.numpy(), grad)
print(threads() <= pool + 1, right())
"""
    assert prints(code) == "True True"


@pytest.mark.parametrize(
    ("torchs", "ours", "expected"),
    [
        ("1", "2", "('torch', 1, '') 0"),
        ("2", "1", "('torch', 1, '') 0"),
        ("2", "2", "('torch', 2, '') 0"),
        (str(PROCESSORS + 1), "2", "('own', 2, 'torch has more threads than there are"),
    ],
)
def test_no_more_threads_than_either_allows(torchs: str, ours: str, expected: str) -> None:
    code = """
grad = torch.zeros_like(w)
before = threads()
for _ in range(5):
    rule.accumulate(w, grad)
allowed = min(torch.get_num_threads(), fastreg.get_num_threads())
print(_core.torch_threads(), threads() - before if allowed == 1 else 0)
assert right()
"""
    assert prints(code, TORCH=torchs, OURS=ours).startswith(expected)


def test_a_new_thread_has_what_torch_would_give_it() -> None:
    """OpenMP's own number for a new thread is the one of the environment, not torch's."""
    code = """
found = []
thread = threading.Thread(target=lambda: found.append((_core.torch_threads()[1], right())))
thread.start(); thread.join()
print(found)
"""
    assert prints(code, TORCH="1") == "[(1, True)]"
    assert prints(code) == "[(2, True)]"


def test_several_threads_at_once() -> None:
    code = """
found = []
def work():
    parallel()
    found.extend(right() for _ in range(20))
callers = [threading.Thread(target=work) for _ in range(4)]
for caller in callers: caller.start()
for caller in callers: caller.join()
print(whose(), len(found), all(found))
"""
    assert prints(code) == "torch 80 True"


@pytest.mark.parametrize(
    "settings",
    [
        {"OMP_NUM_THREADS": "1"},
        {"OMP_WAIT_POLICY": "passive"},
        {"OMP_WAIT_POLICY": "active"},
        {"GOMP_SPINCOUNT": "0"},
        {"GOMP_SPINCOUNT": "infinite"},
        {"OMP_THREAD_LIMIT": "1"},
        {"OMP_DYNAMIC": "true"},
        {"OMP_PROC_BIND": "true"},
        {"OMP_PROC_BIND": "spread", "OMP_PLACES": "cores"},
        {"OMP_STACKSIZE": "64k"},
    ],
    ids=lambda settings: " ".join("=".join(pair) for pair in settings.items()),
)
def test_settings_of_openmp(settings: dict[str, str]) -> None:
    code = """
parallel()
print(whose(), all(right() for _ in range(10)))
"""
    assert prints(code, **settings) == "torch True"


def test_the_environment_of_openmp_stands() -> None:
    """Without torch.set_num_threads: as launchers of many processes start them."""
    code = START.replace("torch.set_num_threads(", "(") + "print(_core.torch_threads(), right())"
    assert runs(code, OMP_NUM_THREADS="1") == "('torch', 1, '') True\n"


def test_subnormals_are_kept_on_the_team() -> None:
    code = """
torch.set_flush_denormal(True)  # of this thread, and of those that it makes
parallel()
w = torch.from_numpy(np.full(3_000_000, 5e-324))
grad = torch.from_numpy(np.zeros(3_000_000))
for _ in range(10):
    L1L2(0.0, 1.0).accumulate(w, grad)
torch.set_flush_denormal(False)
print(whose(), (grad.numpy() == 10 * 2 * 5e-324).all())
"""
    assert prints(code) == "torch True"


def test_inside_a_region_of_openmp() -> None:
    code = """
import ctypes
(path,) = mapped("/torch/lib/libgomp")
openmp = ctypes.CDLL(path)
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
found = []
openmp.GOMP_parallel(region(lambda _: found.append((whose(), right()))), None, 2, 0)
print(found, whose())
"""
    assert prints(code) == "[('own', True), ('own', True)] torch"


# ------------------------------------------------------------------------------- processes


@pytest.mark.parametrize("used", ["parallel()", "right()", "parallel(); right()", "pass"])
def test_a_forked_child_has_threads_of_its_own(used: str) -> None:
    code = f"""
assert whose() == "torch"
{used}
assert in_child(lambda: whose() == "own" and right())
assert in_child(lambda: right() and in_child(lambda: whose() == "own" and right()))
print(whose(), right())
"""
    assert prints(code) == "torch True"


def test_a_child_that_a_thread_forks() -> None:
    code = """
parallel(); assert right()
found = []
def fork():
    parallel()
    found.append(in_child(right))
for _ in range(3):
    thread = threading.Thread(target=fork)
    thread.start(); thread.join()
print(found, right())
"""
    assert prints(code) == "[True, True, True] True"


def test_a_child_forked_while_the_first_large_call_runs() -> None:
    """That call looks for torch's team, under a mutex that nobody in the child would release."""
    code = """
sys.setswitchinterval(1e-6)
import time

def first_call(delay):
    begins = threading.Event()
    thread = threading.Thread(target=lambda: (begins.set(), rule(w)))
    thread.start(); begins.wait()
    end = time.perf_counter() + delay
    while time.perf_counter() < end: pass
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        rule(w)
        os._exit(0)
    thread.join()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

print(all(in_child(lambda: first_call(i * 1e-5)) for i in range(20)))
"""
    assert prints(code) == "True"


def test_a_child_that_imports_us_after_it_was_forked() -> None:
    """Nobody of ours has seen the fork, and the parent's team is gone all the same."""
    code = (
        """
import os, signal
import torch
torch.ones(4_000_000).mul_(2.0)
child = os.fork()
if child != 0:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
"""
        + START.replace("import os, signal, ", "import ").replace(
            "os.environ", "__import__('os').environ"
        )
        + "print(whose(), right(), flush=True)"
    )
    assert runs(code) == "own True\n"


def test_workers_of_a_data_loader() -> None:
    code = """
class Data(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, index):
        signal.alarm(60)
        torch.set_num_threads(2)
        return torch.tensor(float(right())), torch.tensor(float(whose() == "own"))

parallel(); assert right()
loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
print([tuple(each.item() for each in pair) for pair in loader])
"""
    assert prints(code) == str([(1.0, 1.0)] * 4)


# ---------------------------------------------------------------------------- other runtimes


@pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")
@pytest.mark.parametrize("first", ["sklearn", "torch"])
def test_a_second_runtime_is_left_alone(first: str) -> None:
    """scikit-learn brings a libgomp of its own: its team would spin beside torch's."""
    code = (
        f"import {first}\nimport sklearn.ensemble\n"
        + START
        + """
before = threads()
assert right()
parallel()
grad = torch.zeros_like(w)
for _ in range(10):
    rule.accumulate(w, grad)
print(whose(), len(mapped("libgomp")), threads() - before <= 2)
"""
    )
    assert runs(code) == "torch 2 True\n"


#: Intel's runtime, where its distribution `intel-openmp` is installed.
LIBIOMP5 = Path(sys.prefix) / "lib" / "libiomp5.so"


@pytest.mark.skipif(not LIBIOMP5.is_file(), reason="needs intel-openmp")
@pytest.mark.parametrize("blocktime", ["0", "200", "infinite"])
def test_a_runtime_that_was_put_before_torchs(blocktime: str) -> None:
    """LD_PRELOAD gives torch another runtime than the one that it was linked to."""
    code = """
parallel()
before = threads()
assert all(right() for _ in range(10))
print(whose(), len(mapped("libiomp5")), in_child(lambda: whose() == "own" and right()), right())
"""
    assert prints(code, LD_PRELOAD=str(LIBIOMP5), KMP_BLOCKTIME=blocktime) == "torch 1 True True"


# ------------------------------------------------------------------------------------ info


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "for tensors of torch: 2, torch's"),
        (
            {"FASTREG_TORCH_THREADS": "own"},
            "for tensors of torch: 2, own, as FASTREG_TORCH_THREADS is",
        ),
    ],
)
def test_info_says_whose_threads(settings: dict[str, str], expected: str) -> None:
    code = """
import sys
from fastreg.__main__ import main
main(["info"])
print("torch" in sys.modules)
main(["info", "--torch"])
"""
    limits = {"OMP_NUM_THREADS": "2", "FASTREG_NUM_THREADS": "2"}
    before, after = runs(code, **limits, **settings).split("False\n")
    assert "torch's where they are found (info --torch looks)" in " ".join(before.split())
    assert expected in " ".join(after.split())
