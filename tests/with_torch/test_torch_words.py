"""A module where an array belongs: the error says what would do."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastreg  # noqa: E402
from fastreg.regularizers import L2, OrthogonalRegularizer  # noqa: E402

ADVICE = r"layer\.weight for example, or call fastreg\.torch\.attach\(module, rules\)"


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 2), lambda: nn.Sequential(nn.Linear(2, 2))])
def test_modules(make):
    module = make()
    weight = torch.ones(2, 2)
    for call in (
        L2(0.1),
        L2(0.1).gradient,
        L2(0.1).value_and_grad,
        OrthogonalRegularizer(),
        lambda one: L2(0.1).accumulate(one, weight),
        lambda one: L2(0.1).accumulate(weight, one),
        lambda one: fastreg.attach(one, "l2"),
        lambda one: fastreg.attach([one], "l2"),
        lambda one: fastreg.attach({"one": one}, "l2"),
    ):
        with pytest.raises(TypeError, match=ADVICE):
            call(module)


def test_lists_of_parameters_are_sequences():
    weights = [torch.ones(2), torch.ones(3)]
    for tensors in (
        nn.ParameterList(weights),
        nn.ParameterDict(dict(zip("ab", weights, strict=True))),
    ):
        with torch.no_grad():
            assert fastreg.attach(tensors, L2(1.0)).value() == 5.0
