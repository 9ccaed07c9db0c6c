"""An in-place call changes all gradients or none, whatever interrupt or lack of memory meets it.

Each instruction of fastreg's Python code is a place where Ctrl-C may come, and each allocation of
Python's a place where memory may be out.  ``FASTREG_TEST_FAULTS=all`` goes over all of them, which
takes minutes; without it only some of them are taken.
"""

import importlib.util
import itertools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import fastreg
from fastreg import attach
from fastreg._engine import backend as _backend
from fastreg._engine import canonical
from fastreg.optimizers import AdamW
from fastreg.regularizers import L1L2, OrthogonalRegularizer

BACKENDS = ["numpy", "native"] if importlib.util.find_spec("fastreg._core") else ["numpy"]
PACKAGE = str(Path(fastreg.__file__).parent)
REG = L1L2(0.5, 0.25)


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    before = _backend.name
    _backend.select(request.param)
    monkeypatch.setattr(canonical, "SLAB", canonical.CHUNK)  # several slabs of few elements
    yield request.param
    _backend.select(before)


@pytest.fixture(autouse=True)
def torch_as_it_was():
    """An interrupt between a context's entry and its block leaves torch's states behind."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_grad_enabled(True)
        torch._C._set_torch_function_state(torch._C._TorchFunctionState.ENABLED)


class Rule:
    """A penalty that the core does not know."""

    def __call__(self, w):
        return float(np.abs(w).sum())

    def gradient(self, w):
        return np.sign(w)


class Interrupting:
    """Raises KeyboardInterrupt before the instruction of fastreg's that has this number."""

    def __init__(self, number):
        self.number = number
        self.seen = -1

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, kind, error, traceback):
        sys.settrace(None)
        return kind is KeyboardInterrupt

    def trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.seen += 1
            if self.seen == self.number:
                raise KeyboardInterrupt
        return self.trace


class WithoutMemory:
    """Has one allocation of Python's fail, the one that has this number."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        import _testcapi

        self.restore = _testcapi.remove_mem_hooks
        _testcapi.set_nomemory(self.number + 1, self.number + 2)
        return self

    def __exit__(self, kind, error, traceback):
        self.restore()
        return kind is not None and issubclass(kind, Exception)  # NumPy makes others of it


STEPS = {Interrupting: 197, WithoutMemory: 5}


def arrays(*dtypes):
    return {f"{i}": np.linspace(-1.0, 2.0, 9000 - 7 * i).astype(d) for i, d in enumerate(dtypes)}


def many(rules):
    def make():
        weights = arrays("f4", "f8", "f2", "f4")
        grads = {name: np.ones_like(w) for name, w in weights.items()}
        grads["3"] = np.ones((2, *grads["3"].shape), "f4").T[:, 0]  # with gaps
        penalties = attach(weights, rules)
        return list(grads.values()), lambda: penalties.accumulate(grads)

    return make


def one(act):
    def make():
        w, grad = np.linspace(-1.0, 2.0, 100 * 100).reshape(100, 100), np.ones((100, 100))
        return [grad], lambda: act(w, grad)

    return make


def optimizer():
    """The second step of an optimizer: its parameters and moments."""
    weights = arrays("f4", "f8", "f2", "f4")
    grads = {name: np.ones_like(w) for name, w in weights.items()}
    made = AdamW(weights, 0.1, rules=REG, max_norm=1.0)
    made.step(grads)
    moments = [one for kept in made._kept.arrays for one in kept.values()]
    return [*weights.values(), *moments], lambda: made.step(grads)


CALLS = {
    "many": many(REG),
    "many with callables": many({"1": Rule(), "2": Rule(), "*": REG}),
    "callables alone": many(Rule()),
    "one": one(lambda w, grad: REG.accumulate(w, grad)),
    "one, not added": one(lambda w, grad: REG.gradient(w, out=grad)),
    "in place": one(lambda w, grad: REG.accumulate(grad, grad)),
    "optimizer": optimizer,
    "orthogonal": one(lambda w, grad: OrthogonalRegularizer(0.5).accumulate(w[:40], grad[:40])),
}


def torch_module(rules):
    torch = pytest.importorskip("torch")
    import fastreg.torch

    class Rule:
        def __call__(self, w):
            return w.abs().sum()

    def make():
        torch.set_grad_enabled(True)
        module = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.full((9000,), 0.5 + i)) for i in range(4)]
        )
        for parameter in list(module)[::2]:  # the others have none yet
            parameter.grad = torch.ones_like(parameter)
        penalties = fastreg.torch.attach(module, {"1": Rule(), "*": REG} if rules else REG)
        return module, penalties.accumulate

    return make


def states(before, after, grads):
    """Return which of the gradients are as they were, and which are as the call leaves them."""
    same = [np.array_equal(one, other) for one, other in zip(grads, before, strict=True)]
    done = [np.array_equal(one, other) for one, other in zip(grads, after, strict=True)]
    return same, done


def go_through(make, read, fault):
    """Return how often a fault met a call, and the numbers of those that left it half done."""
    grads, call = make()
    before = read(grads)
    call()
    after = read(grads)
    torn, unharmed, met = [], 0, 0
    step = 1 if os.environ.get("FASTREG_TEST_FAULTS") == "all" else STEPS[fault]
    for number in itertools.count(0, step):
        grads, call = make()
        finished = False
        with fault(number):
            call()
            finished = True
        same, done = states(before, after, read(grads))
        if not (all(same) or all(done)):
            torn.append(number)
        met += not finished
        # Not at the first call that ends: Python itself can do without some allocations.
        unharmed = unharmed + step if finished else 0
        if unharmed > 60:
            return met, torn


def copies(grads):
    return [grad.copy() for grad in grads]


@pytest.mark.parametrize("name", CALLS)
def test_all_gradients_or_none_under_interrupts(backend, name):
    tried, torn = go_through(CALLS[name], copies, Interrupting)
    print(f"{backend}, {name}, interrupts: {tried} tried, {len(torn)} torn")
    assert torn == []
    assert tried > 0


# Nothing but Python's own: 3.13.5 crashes, which its allocator for debugging shows at once.
OWN_LOOPS = """
import _testcapi
shape, strides = (3, 4), (16, 4)
def work():
    sorted(zip((abs(stride) for stride in strides), shape))
    for _ in zip(shape, strides, strict=True):
        pass
    any(extent == 0 for extent in shape), all(strides)
for number in 14 * 3 * [*range(14)]:
    _testcapi.set_nomemory(number + 1, number + 2)
    try:
        work()
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
    work()
"""


def test_all_gradients_or_none_without_memory(backend):
    """In a process of its own: other libraries that are loaded may crash without memory."""
    pytest.importorskip("_testcapi", reason="this Python cannot have allocations fail")
    command = [sys.executable, "-c", OWN_LOOPS]
    environment = {**os.environ, "PYTHONMALLOC": "debug"}
    if subprocess.run(command, env=environment, capture_output=True, check=False).returncode:
        pytest.skip("this Python crashes in its own loops where memory fails")
    script = f"""
        import test_all_or_nothing as tests
        tests._backend.select({backend!r})
        tests.canonical.SLAB = tests.canonical.CHUNK
        for name, make in tests.CALLS.items():
            if name == "orthogonal":  # where NumPy itself may crash
                continue
            tried, torn = tests.go_through(make, tests.copies, tests.WithoutMemory)
            print(f"{backend}, {{name}}, allocations: {{tried}} tried, {{len(torn)}} torn")
            assert torn == [], (name, torn)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("with_callable", [False, True])
def test_all_gradients_of_a_module_or_none(backend, with_callable):
    """A missing gradient is part of the state.  (Without memory torch itself may crash.)"""
    nothing = np.zeros(0)

    def read(module):
        return [
            nothing if parameter.grad is None else parameter.grad.numpy().copy()
            for parameter in module
        ]

    try:
        tried, torn = go_through(torch_module(with_callable), read, Interrupting)
    finally:
        # An interrupt before a context's exit leaves torch under its no_grad().
        pytest.importorskip("torch").set_grad_enabled(True)
    print(f"{backend}, module, callables {with_callable}: {tried} tried, {len(torn)} torn")
    assert torn == []
    assert tried > 0
