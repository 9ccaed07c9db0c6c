"""Rules for modules that do nothing are warned of, wherever they are given."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from fastreg.regularizers import L1L2, L2  # noqa: E402
from fastreg.torch import attach, kernels  # noqa: E402


@pytest.mark.parametrize("rule", ["l1l2", L1L2])
def test_rules_without_strengths(rule):
    layer = nn.Linear(3, 2)
    for make, label in (
        (lambda: attach(layer, rule), "rules"),
        (lambda: attach(layer, {"weight": rule}), r"rules\['weight'\]"),
        (lambda: kernels(rule), "regularizer"),
        (lambda: attach(layer, {}, {"": rule}), r"activity_regularizer\[''\]"),
    ):
        with pytest.warns(UserWarning, match=f"^{label} is .*whose strengths are 0") as seen:
            make()
        assert [len(seen), seen[0].filename] == [1, __file__]


def test_a_function_that_gives_rules_without_strengths():
    rules = {"weight": L1L2, "bias": L2(0.1)}
    with pytest.warns(UserWarning, match=r"rules\('weight', parameter\) is the class L1L2"):
        attach(nn.Linear(3, 2), lambda name, parameter: rules[name])
