"""Proximal steps of a whole model: in place, all or none, with penalty and zeros of the result."""

import canonical
import numpy as np
import pytest

import fastreg
from fastreg.penalties import ProxRecord
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer


def params(dtype="f32", seed=1):
    sizes = {"a/kernel": 4097, "a/bias": 33, "b/kernel": 64, "b/bias": 5, "empty/kernel": 0}
    return {
        name: canonical.array(canonical.numbers(size, dtype, seed + place), dtype)
        for place, (name, size) in enumerate(sizes.items())
    }


RULES = {"a/kernel": L1L2(0.3, 0.7), "*kernel": L1(0.2), "a/bias": L2(0.4)}


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_each_tensor_as_alone(backend, dtype, scale):
    weights = params(dtype)
    before = {name: array.copy() for name, array in weights.items()}
    penalties = fastreg.attach(weights, RULES)
    record = penalties.prox(0.1, scale=scale)
    names = ["a/kernel", "a/bias", "b/kernel", "empty/kernel"]
    rules = [RULES["a/kernel"], RULES["a/bias"], RULES["*kernel"], RULES["*kernel"]]
    for name, rule in zip(names, rules, strict=True):
        wanted = canonical.bits(rule.prox(before[name], 0.1, scale=scale))
        assert (canonical.bits(weights[name]) == wanted).all()
    assert (canonical.bits(weights["b/bias"]) == canonical.bits(before["b/bias"])).all()
    assert type(record) is ProxRecord
    assert record.penalty == penalties.value(scale=scale)
    assert record.zeros == sum((np.asarray(weights[n], np.float64) == 0).sum() for n in names)
    assert record.zeros > 0
    assert record.size == 4097 + 33 + 64
    assert record.sparsity == record.zeros / record.size


def test_record():
    assert repr(ProxRecord(0.5, 1, 4)) == "ProxRecord(penalty=0.5, zeros=1, size=4)"
    assert ProxRecord(0.0, 0, 0).sparsity == 0.0
    assert fastreg.attach({}, {}).prox(0.1) == ProxRecord(0.0, 0, 0)


def test_strengths_of_zero_count_zeros_and_change_nothing(backend):
    payload = np.array([0x7FF8000000000123, 0x8000000000000000, 0], np.uint64)
    w = payload.view(np.float64).copy()
    assert fastreg.attach([w], L1L2(0.0, 0.0)).prox(0.1) == ProxRecord(0.0, 2, 3)
    assert (w.view(np.uint64) == payload).all()


def test_other_tensors_and_schedules(backend):
    rule = L1(0.0)
    penalties = fastreg.attach({"w": np.ones(3)}, {"w": rule})
    rule.l1 = 0.5
    other = np.array([1.0, 0.1, -2.0])
    assert penalties.prox(1.0, tensors={"w": other}) == ProxRecord(1.0, 1, 3)
    assert other.tolist() == [0.5, 0.0, -1.5]


def test_tied_tensors_step_once(backend):
    w = np.array([[3.0, 1.0], [0.1, -2.0]])
    record = fastreg.attach({"in": w, "out": w.T}, L1(0.5)).prox(1.0)
    assert record == ProxRecord(2.25, 1, 4)
    assert w.tolist() == [[2.5, 0.5], [0.0, -1.5]]


# ------------------------------------------------------------------------- all or nothing


def bad_tensors():
    frozen = np.ones(3)
    frozen.setflags(write=False)
    whole = np.ones(5)
    yield {"x": np.arange(3)}, TypeError, r"^tensors\['x'\] has dtype int64: there is no proximal"
    yield {"x": frozen}, BufferError, r"^tensors\['x'\] is a read-only array"
    yield {"x": [1.0]}, TypeError, r"^tensors\['x'\] must be an array, not a list"
    yield {"x": whole[:4], "y": whole[1:]}, ValueError, r"overlaps tensors\['[xy]'\] in memory"


@pytest.mark.parametrize(("bad", "kind", "message"), list(bad_tensors()))
@pytest.mark.parametrize("others", [False, True])
def test_one_bad_tensor_stops_all(backend, bad, kind, message, others):
    good = np.array([1.0, -2.0])
    rules = {"mine": Soft(0.5), "*": L1(0.5)} if others else {"*": L1(0.5)}
    mine = {"mine": np.ones(2)} if others else {}
    with pytest.raises(kind, match=message):
        fastreg.attach({"good": good, **mine, **bad}, rules).prox(1.0)
    assert good.tolist() == [1.0, -2.0]
    assert all(array.tolist() == [1.0, 1.0] for array in mine.values())


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize(
    ("step", "scale"), [(-1.0, 1.0), (np.nan, 1.0), (1.0, -0.5), (1e300, 1e300)]
)
def test_numbers_that_are_refused(backend, step, scale, others):
    weights = [np.ones(2), np.ones(2)]
    rules = {"0": Soft(0.5), "1": L1(0.5)} if others else L1(0.5)
    with pytest.raises(ValueError, match="finite"):
        fastreg.attach(weights, rules).prox(step, scale=scale)
    assert [array.tolist() for array in weights] == [[1.0, 1.0]] * 2


# ------------------------------------------------------------------------------ callables


class Soft:
    """L1 by a user."""

    def __init__(self, strength):
        self.strength = strength

    def __call__(self, w):
        return self.strength * float(np.abs(np.asarray(w, np.float64)).sum())

    def prox(self, w, step):
        w = np.asarray(w, np.float64)
        return np.sign(w) * np.maximum(np.abs(w) - step * self.strength, 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_callables_with_a_prox_of_their_own(backend, dtype, scale):
    mine, same = params(dtype), params(dtype)
    rules = {"a/kernel": Soft(0.5), "*": L1L2(0.3, 0.7)}
    record = fastreg.attach(mine, rules).prox(0.25, scale=scale)
    expected = fastreg.attach(same, {**rules, "a/kernel": L1(0.5)}).prox(0.25, scale=scale)
    for name, array in mine.items():
        if name == "a/kernel":  # in float64, rounded once
            exact = Soft(0.5).prox(params(dtype)[name], 0.25 * scale)
            assert (np.asarray(array, np.float64) == exact.astype(array.dtype)).all()
        else:
            assert (canonical.bits(array) == canonical.bits(same[name])).all()
    assert record.penalty == pytest.approx(expected.penalty, rel=1e-3)
    assert record.zeros == sum(
        (np.asarray(array, np.float64) == 0).sum() for array in mine.values()
    )
    assert record.size == expected.size


class Double(L1):
    def __call__(self, w, **kwargs):
        return 2.0 * super().__call__(w, **kwargs)


class DoubleWithProx(Double):
    def prox(self, w, step):
        return super().prox(w, 2.0 * step)


class Steeper(L1):
    """Has the penalty of L1, and takes other steps."""

    def prox(self, w, step):
        return super().prox(w, 3.0 * step)


class Whole(L1):
    def gradient(self, w):
        return np.sign(w)


@pytest.mark.parametrize("rule", [OrthogonalRegularizer(0.1), Double(0.5), lambda w: 0.0, np.sum])
def test_rules_without_one_are_refused_by_name(backend, rule):
    weights = {"good": np.ones(2), "w": np.eye(2)}
    with pytest.raises(
        TypeError, match=r"^the rule of tensors\['w'\], .*, offers no prox\(w, step\)"
    ):
        fastreg.attach(weights, {"w": rule, "good": L1(0.5)}).prox(0.1)
    assert weights["good"].tolist() == [1.0, 1.0]


def test_subclasses(backend):
    weights = [np.array([3.0, -0.1]) for _ in range(3)]
    rules = {"0": DoubleWithProx(0.5), "1": Steeper(0.5), "2": Whole(0.5)}
    record = fastreg.attach(weights, rules).prox(1.0)
    assert [w.tolist() for w in weights] == [[2.0, 0.0], [1.5, 0.0], [2.5, 0.0]]
    assert record == ProxRecord(2.0 + 0.75 + 1.25, 3, 6)


@pytest.mark.parametrize("given", [np.ones(3), 1.0, "x", None])
def test_what_a_callable_gives_must_fit(backend, given):
    class Wrong(Soft):
        def prox(self, w, step):
            return given

    weights = {"good": np.ones(2), "w": np.ones(2)}
    with pytest.raises((TypeError, ValueError), match=r"the proximal step that the rule of tens"):
        fastreg.attach(weights, {"w": Wrong(1.0), "good": L1(0.5)}).prox(0.1)
    assert weights["good"].tolist() == weights["w"].tolist() == [1.0, 1.0]


def test_a_callable_that_fails_leaves_all_as_it_was(backend):
    class Fails(Soft):
        prox = Soft.prox

        def __call__(self, w):
            raise RuntimeError("no")

    weights = {"good": np.ones(2), "w": np.ones(2)}
    with pytest.raises(RuntimeError, match=r"^no$"):
        fastreg.attach(weights, {"w": Fails(1.0), "good": L1(0.5)}).prox(0.1)
    assert weights["good"].tolist() == weights["w"].tolist() == [1.0, 1.0]


# ------------------------------------------------------------------- what it is good for


def descended(matrix, target, regularizer, steps):
    """Return what gradient steps on the mean of squares / 2, and proximal ones, come to."""
    matrix = matrix.astype(np.float64)
    count = len(target)
    step = count / np.linalg.norm(matrix, 2) ** 2
    w = np.zeros(matrix.shape[1])
    penalties = fastreg.attach([w], regularizer)
    for _ in range(steps):
        w -= step * (matrix.T @ (matrix @ w - target)) / count
        record = penalties.prox(step)
    assert record.zeros == np.count_nonzero(w == 0)
    return w


@pytest.mark.parametrize(("l1", "l2"), [(0.2, 0.0), (0.2, 0.05), (0.0, 0.3), (5.0, 1.0)])
def test_closed_form_of_an_orthonormal_design(l1, l2):
    """Each coefficient by itself: that of least squares, shrunk."""
    matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 6)))[0] * np.sqrt(40)
    target = matrix @ np.array([2.0, -1.0, 0.1, 0.0, -0.05, 0.7])
    free = matrix.T @ target / 40
    wanted = np.sign(free) * np.maximum(np.abs(free) - l1, 0.0) / (1.0 + 2.0 * l2)
    found = descended(matrix, target, L1L2(l1, l2), 60)
    assert ((found == 0) == (wanted == 0)).all() or l1 == 0.0
    assert np.abs(found - wanted).max() < 1e-12


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 0.7])
def test_solutions_of_scikit_learn(alpha, ratio):
    """Lasso and ElasticNet on the diabetes data: the same support, coefficients to 1e-6."""
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import ElasticNet

    matrix, target = load_diabetes(return_X_y=True, scaled=False)
    matrix = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    target = target - target.mean()
    model = ElasticNet(alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-13, max_iter=10**6)
    wanted = model.fit(matrix, target).coef_
    # scikit-learn's penalty is alpha * (ratio * |w| + (1 - ratio) / 2 * w**2).
    reg = L1L2(alpha * ratio, alpha * (1.0 - ratio) / 2.0)
    found = descended(matrix, target, reg, 20_000)
    assert ((found == 0) == (wanted == 0)).all()
    assert np.abs(found - wanted).max() < 1e-6
    assert alpha < 1.0 or ratio < 1.0 or 0 < np.count_nonzero(found) < 10
