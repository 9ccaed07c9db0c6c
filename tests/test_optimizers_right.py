"""The optimizers find what is known: solutions of scikit-learn, and TensorFlow's published step."""

import numpy as np
import pytest

from fastreg import optimizers
from fastreg.regularizers import L1L2


def diabetes():
    from sklearn.datasets import load_diabetes

    matrix, target = load_diabetes(return_X_y=True, scaled=False)
    matrix = (matrix - matrix.mean(axis=0)) / matrix.std(axis=0)
    return matrix, target - target.mean()


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("ratio", [1.0, 0.7])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_solutions_of_scikit_learn(alpha, ratio, momentum):
    """Full-batch proximal steps end at Lasso and ElasticNet: support equal, coefficients to 1e-6.

    A dampening that is the momentum makes the momentum an average, which ends at the same place.
    """
    pytest.importorskip("sklearn")
    from sklearn.linear_model import ElasticNet

    matrix, target = diabetes()
    model = ElasticNet(alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-13, max_iter=10**6)
    wanted = model.fit(matrix, target).coef_
    w = np.zeros(matrix.shape[1])
    lr = 1.0 / np.linalg.eigvalsh(matrix.T @ matrix / len(matrix)).max()
    optimizer = optimizers.SGD(
        [w],
        lr,
        momentum=momentum,
        dampening=momentum,
        rules=L1L2(alpha * ratio, alpha * (1.0 - ratio) / 2.0),
    )
    gram, product = matrix.T @ matrix / len(matrix), matrix.T @ target / len(matrix)
    for _ in range(6000):
        record = optimizer.step([gram @ w - product])
    assert ((w == 0) == (wanted == 0)).all()
    assert np.abs(w - wanted).max() < 1e-6
    assert record.zeros == np.count_nonzero(wanted == 0)
    if alpha == 1.0 and ratio == 1.0:
        assert 0 < record.zeros < 10


def test_momentum_makes_the_step_and_not_the_threshold_larger():
    """At momentum m the proximal step of a strength is that of (1 - m) times it in the gradient."""
    pytest.importorskip("sklearn")
    matrix, target = diabetes()
    gram, product = matrix.T @ matrix / len(matrix), matrix.T @ target / len(matrix)
    found = []
    for momentum, strength in ((0.0, 1.0), (0.75, 4.0)):
        w = np.zeros(10)
        optimizer = optimizers.SGD(
            [w], 0.05, momentum=momentum, rules=L1L2(1.0, 0.1), strength=strength
        )
        for _ in range(6000):
            optimizer.step([gram @ w - product])
        found.append(w)
    assert np.abs(found[0] - found[1]).max() < 1e-6
    assert 0 < np.count_nonzero(found[0]) < 10


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 0.0), (0.0, 0.5), (0.3, 0.5)])
def test_the_step_that_tensorflow_has_published(l1, l2):
    """tf.compat.v1.train.ProximalGradientDescentOptimizer; its l2 is twice ours."""
    rng = np.random.default_rng(0)
    w, g, lr = rng.normal(size=999), rng.normal(size=999), 0.25
    of_loss = w - lr * g
    shrunk = np.sign(of_loss) * np.maximum(np.abs(of_loss) - lr * l1, 0.0) if l1 else of_loss
    wanted = shrunk / (1.0 + lr * (2.0 * l2))
    optimizers.SGD([w], lr, rules=L1L2(l1, l2)).step([g])
    assert ((w == 0) == (wanted == 0)).all()
    np.testing.assert_allclose(w, wanted, rtol=4e-16)
