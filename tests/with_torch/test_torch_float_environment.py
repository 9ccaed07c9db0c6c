"""The caller's floating point environment changes no strength that is multiplied in Python."""

import pytest
import torch
from float_environments import NAMES, environment

from fastreg.regularizers import L1, L1L2


@pytest.mark.parametrize("name", NAMES)
def test_differentiable_penalties(name):
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    rules = [(L1L2(0.1, 0.3), 3.0), (L1L2(0.7, 1e-5), 1.0 / 7.0), (L1(3e-308), 0.01)]

    def results():
        found = []
        for rule, scale in rules:
            value = rule(w, scale=scale)
            (gradient,) = torch.autograd.grad(value, w)
            found += [value.detach().numpy().tobytes(), gradient.numpy().tobytes()]
        return found

    expected = results()
    with environment(name):
        found = results()
    assert found == expected
