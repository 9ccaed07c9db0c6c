"""Lazy parameters: rules that ask for shapes wait until there are some."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastreg  # noqa: E402
from fastreg.regularizers import L2  # noqa: E402
from fastreg.torch import attach  # noqa: E402

REG = L2(0.5)


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))


def test_a_function_is_asked_once_a_parameter_has_a_shape():
    model = lazy()
    asked = []

    def rule(name, parameter):
        asked.append((name, parameter.ndim))
        return REG if parameter.ndim > 1 else None

    penalties = attach(model, rule)
    assert asked == [("2.weight", 2), ("2.bias", 1)]
    before = penalties.accumulate()
    model(torch.ones(3, 5))
    weights = [model[0].weight.detach(), model[2].weight.detach()]
    assert before == fastreg.attach(weights[1:], REG).value()
    assert penalties.accumulate() == fastreg.attach(weights, REG).value()
    assert {name for name, row in penalties.report().items() if row.rule} == {
        "0.weight",
        "2.weight",
    }


def test_the_short_way_notices_it_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2))
    penalties = attach(model, lambda name, p: REG if p.ndim > 1 else None)
    for parameter in model[0].parameters():
        parameter.grad = torch.zeros_like(parameter)
    first = penalties.accumulate()
    assert penalties._penalties._plain is not None  # no Python loop over parameters
    model(torch.ones(3, 4)).sum().backward()
    assert penalties.accumulate() > first
    assert not torch.equal(model[1].weight.grad, torch.full((2, 4), 3.0))


def test_a_function_that_gives_nothing_once_they_are_there_is_refused():
    model = nn.LazyLinear(2)
    penalties = attach(model, lambda name, parameter: REG if parameter.ndim > 2 else None)
    assert penalties.accumulate() == 0.0
    model(torch.ones(1, 3))
    with pytest.raises(ValueError, match="gave None for all parameters"):
        penalties.accumulate()


@pytest.mark.parametrize(
    "regularizer",
    [fastreg.regularizers.L1L2(0.1, 0.2), fastreg.regularizers.OrthogonalRegularizer(0.1)],
)
def test_penalty_of_lazy_parameter_is_torchs_error(regularizer):
    with pytest.raises(ValueError, match="uninitialized parameter"):
        regularizer(nn.LazyLinear(2).weight)
