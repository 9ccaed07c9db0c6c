"""Rules that do nothing: a name or a class whose strengths are 0 is warned of."""

import warnings

import numpy as np
import pytest

import fastreg
from fastreg.layers import Dense
from fastreg.regularizers import L1, L1L2, L2

TENSORS = {"kernel": np.ones(3), "bias": np.ones(2)}


class Own(L1L2):
    """A subclass, with no strengths by default."""


@pytest.mark.parametrize("rule", ["l1l2", "L1L2", L1L2, Own])
def test_names_and_classes_without_strengths(rule):
    what = repr(rule) if isinstance(rule, str) else f"the class {rule.__name__}"
    for rules, label in ((rule, "rules"), ({"bias": L2(0.1), "*": rule}, r"rules\['\*'\]")):
        with pytest.warns(UserWarning, match=f"^{label} is {what}, whose strengths are 0") as seen:
            fastreg.attach(TENSORS, rules)
        assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match=f"^kernel_regularizer is {what}"):
        Dense(2, input_dim=2, kernel_regularizer=rule)


@pytest.mark.parametrize(
    "rule", ["l1", "l1_l2", L1, L2, L1L2(0.0, 0.0), {"class_name": "L1L2", "config": {}}, None]
)
def test_what_has_strengths_or_can_be_given_some(rule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastreg.attach(TENSORS, {"*": rule})
        Dense(2, input_dim=2, activity_regularizer=rule)


def test_strengths_that_are_set_later():
    rule = L1L2(0.0, 0.0)
    penalties = fastreg.attach(TENSORS, rule)
    assert penalties.value() == 0.0
    rule.l1 = 0.5
    assert penalties.value() == 2.5
