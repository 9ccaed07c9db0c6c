"""Factors of tensors that torch follows: checked as the core checks them, and in float64."""

import numpy as np
import pytest
import torch

import fastreg
from fastreg.regularizers import L1L2, OrthogonalRegularizer

MATRIX = torch.tensor([[1.0, -2.0], [3.0, 4.0]])


def _calls():
    followed = MATRIX.clone().requires_grad_()
    regularizer, rows = L1L2(0.1, 0.3), OrthogonalRegularizer(0.1)
    names = fastreg.attach([followed], lambda one: one.abs().sum())
    return [
        lambda factor: torch.vmap(lambda w: regularizer.gradient(w, scale=factor))(MATRIX[None]),
        lambda factor: rows(followed, scale=factor),
        lambda factor: names.value(scale=factor),
    ]


@pytest.mark.parametrize(
    "factor", ["2", None, 1j, np.ones(2), float("nan"), 10**400], ids=lambda factor: str(factor)[:8]
)
def test_wrong_factors_are_refused_by_name(factor):
    for call in _calls():
        with pytest.raises((TypeError, ValueError), match=r"^scale must be a finite number"):
            call(factor)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_a_numpy_factor_is_not_the_precision_of_the_product(kind):
    for call in _calls():
        assert torch.equal(call(kind(1 / 3)), call(float(kind(1 / 3))))


def test_a_factor_may_be_differentiated():
    factor = torch.tensor(2.0, requires_grad=True)
    followed = MATRIX.clone().requires_grad_()
    fastreg.attach([followed], lambda one: one.abs().sum()).value(scale=factor).backward()
    assert factor.grad == 10.0
