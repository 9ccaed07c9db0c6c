"""Objects that several Python threads use at once, with the interpreter's lock and without.

A Python without the lock (3.13t and later) runs these threads at the same time; with it they change
places as often as Python lets them.
"""

import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from interpreter import runs

import fastreg
from fastreg._engine import backend as _backend
from fastreg.penalties import names
from fastreg.penalties.plan import Plan, Selection
from fastreg.regularizers import L1L2, OrthogonalRegularizer

THREADS = 4
ROUNDS = 300


@pytest.fixture(autouse=True)
def eager_switches():
    """Have Python change threads a thousand times as often as it would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*bodies):
    """Run each body in a thread of its own, all from one moment on, and return what they return."""
    start = threading.Barrier(len(bodies))

    def run(body):
        start.wait()
        return body()

    with ThreadPoolExecutor(len(bodies)) as executor:
        return list(executor.map(run, bodies))


def numbers(size, seed):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the lock"
)
def test_import_leaves_the_lock_off():
    assert (
        runs("""
        import sys
        import numpy
        import fastreg
        from fastreg import layers, models, optimizers
        from fastreg.regularizers import L2
        assert L2(0.5)(numpy.ones(3)) == 1.5
        print(sys._is_gil_enabled())
    """)
        == "False\n"
    )


def test_strengths_that_are_set_while_others_compute(backend):
    """Each call has strengths of one moment between its begin and its end."""
    w = numbers(70, 0)
    rule = L1L2(l1=0.25, l2=0.5)
    penalties = fastreg.attach({"w": w}, rule)
    allowed, gradients = set(), set()
    for l1 in (0.25, 4.0):
        rule.l1 = l1
        allowed.add(rule(w))
        gradients.add(rule.gradient(w).tobytes())
    stop = threading.Event()

    def compute():
        seen = [(rule(w), penalties.value(), rule.gradient(w).tobytes()) for _ in range(ROUNDS)]
        return all(
            value in allowed and total in allowed and gradient in gradients
            for value, total, gradient in seen
        )

    def change():
        while not stop.is_set():
            rule.l1 = 4.0
            rule.l1 = 0.25
        return True

    def computes():
        try:
            return all(at_once(*[compute] * (THREADS - 1)))
        finally:
            stop.set()

    assert at_once(computes, change) == [True, True]


def test_one_attach_in_many_threads(backend):
    """Gradients come in the order of each caller's own collection."""
    params = {name: numbers(40 + place, place) for place, name in enumerate("abcd")}
    penalties = fastreg.attach(params, L1L2(0.25, 0.5))
    value, expected = penalties.value_and_grad()

    def work(order):
        def body():
            for _ in range(ROUNDS):
                grads = {name: np.zeros_like(params[name]) for name in order}
                assert penalties.accumulate(grads) == value
                for name in order:
                    assert (grads[name] == expected[name]).all(), name
            return True

        return body

    orders = ("abcd", "dcba", "bdac", "abcd")
    assert all(at_once(*map(work, orders)))


def test_gradients_of_equal_shapes_go_to_their_own_names():
    """Where arrays fit under any name, a mistaken order would go unnoticed."""
    params = {name: numbers(16, place) for place, name in enumerate("abcd")}
    penalties = fastreg.attach(params, {"a": L1L2(0.25, 0.5), "*": L1L2(3.0, 0.0)})
    _, expected = penalties.value_and_grad()

    def work(order):
        def body():
            for _ in range(3 * ROUNDS):
                grads = {name: np.zeros(16, np.float32) for name in order}
                penalties.accumulate(grads)
                for name in order:
                    assert (grads[name] == expected[name]).all(), name
            return True

        return body

    assert all(at_once(*map(work, ("abcd", "dcba", "cdab", "badc"))))


def test_the_order_that_another_thread_has_put_there_is_not_used():
    """As if it came between the two steps of one thread, which chance seldom does."""

    class Contested(Plan):
        __slots__ = ()

        @property
        def _gradients(self):
            return Plan._gradients.__get__(self)

        @_gradients.setter
        def _gradients(self, selection):
            Plan._gradients.__set__(self, Selection(["a", "b"], ["a", "b"]))

    params = {"a": numbers(8, 0), "b": numbers(8, 1)}
    penalties = fastreg.attach(params, {"a": L1L2(0.25, 0.5), "b": L1L2(3.0, 0.0)})
    _, expected = penalties.value_and_grad()
    penalties._planner._plan.__class__ = Contested
    grads = {name: np.zeros(8, np.float32) for name in "ba"}
    penalties.accumulate(grads)
    assert (grads["a"] == expected["a"]).all()
    assert (grads["b"] == expected["b"]).all()


def test_the_numbers_that_another_thread_has_put_there_are_not_used(monkeypatch):
    class Contested(list):
        def __len__(self):
            names._numbers = ["0"]
            return super().__len__()

    monkeypatch.setattr(names, "_numbers", Contested("01234"))
    assert names.numbered(3) == ["0", "1", "2"]


def test_one_attach_whose_tensors_are_replaced(backend):
    """Each call has for each name an array that lay there during the call."""
    old, new = numbers(50, 1), numbers(50, 2)
    params = {"w": old, "bias": numbers(3, 3)}
    penalties = fastreg.attach(params, {"w": L1L2(0.25, 0.5)})
    allowed = {penalties.value(tensors={**params, "w": w}) for w in (old, new)}
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            params["w"] = new
            params["w"] = old
        return True

    def compute():
        try:
            return {penalties.value() for _ in range(ROUNDS)} <= allowed
        finally:
            stop.set()

    assert at_once(compute, replace) == [True, True]


def test_models_of_different_names_with_one_attach():
    """The plan that is kept is that of the last names, in whichever thread."""
    rule = L1L2(0.25, 0.5)
    penalties = fastreg.attach({"a": numbers(9, 0)}, rule)
    models = [
        {name: numbers(9, place) for name in order}
        for place, order in enumerate(("a", "ab", "xyz", "c"))
    ]
    expected = [fastreg.attach(model, rule).value() for model in models]

    def work(place):
        return lambda: all(
            penalties.value(tensors=models[place]) == expected[place] for _ in range(ROUNDS)
        )

    assert all(at_once(*map(work, range(len(models)))))


def test_sequences_of_different_lengths():
    """Their names are numbers, which are kept."""
    rule = L1L2(0.25, 0.5)
    for _ in range(20):
        names._numbers = []
        lengths = (3, 9, 5, 7)
        assert at_once(*[lambda count=n: len(names.numbered(count)) for n in lengths]) == [*lengths]
    models = [[numbers(9, place) for place in range(n)] for n in lengths]
    expected = [fastreg.attach(model, rule).value() for model in models]
    penalties = fastreg.attach(models[0], rule)
    values = at_once(*[lambda m=model: penalties.value(tensors=m) for model in models])
    assert values == expected


def test_orthogonal_and_proximal_steps_in_many_threads(backend):
    w = numbers(400, 5).reshape(20, 20)
    orthogonal, rule = OrthogonalRegularizer(0.1), L1L2(0.25, 0.5)
    expected = orthogonal(w), rule.prox(w, 0.5)

    def work():
        for _ in range(20):
            assert orthogonal(w) == expected[0]
            assert (rule.prox(w, 0.5) == expected[1]).all()
        return True

    assert all(at_once(*[work] * THREADS))


def test_instruction_sets_that_are_chosen_while_others_compute():
    """All of them have the same bits."""
    if fastreg.get_instruction_set() == "numpy":
        pytest.skip("the fallback has none to choose from")
    before = fastreg.get_instruction_set()
    sets = _backend.instruction_sets()
    w = numbers(5000, 6)
    rule = L1L2(0.25, 0.5)
    expected = rule(w)

    def choose():
        for turn in range(ROUNDS):
            fastreg.set_instruction_set(sets[turn % len(sets)])
        return True

    try:
        assert all(
            at_once(
                choose, *[lambda: all(rule(w) == expected for _ in range(ROUNDS))] * (THREADS - 1)
            )
        )
    finally:
        fastreg.set_instruction_set(before)


def test_first_uses_of_all_threads_at_once():
    """What is imported, learned and looked up at the first call."""
    assert (
        runs("""
        import threading
        import numpy
        import fastreg

        start = threading.Barrier(4)
        failed = []

        def work():
            start.wait()
            try:
                from fastreg.regularizers import L1L2
                value, gradient = L1L2(0.5, 0.25).value_and_grad(numpy.ones(70_000, numpy.float32))
                assert value == 52_500.0, value
                assert fastreg.layers.Dense(2, kernel_regularizer="l2") is not None
                assert fastreg.norms([numpy.ones(4)]).total.l2 == 2.0
                assert fastreg.__version__
            except BaseException as error:
                failed.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        print(failed)
    """)
        == "[]\n"
    )
