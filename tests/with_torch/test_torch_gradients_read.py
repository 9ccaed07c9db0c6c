"""Where the core reads ``.grad`` and ``requires_grad`` of parameters, and where it asks torch: the
same bits, refusals and marks both ways.
"""

import pytest

torch = pytest.importorskip("torch")
core = pytest.importorskip("fastreg._core")

import fastreg.torch  # noqa: E402
from fastreg import regularizers  # noqa: E402
from fastreg._arrays import torch_memory  # noqa: E402

HAS_TABLE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")


@pytest.fixture(params=["read", "asked"])
def way(request):
    attached(module())[1].accumulate()  # the core learns torch
    if request.param == "asked":
        assert not core.learn_torch_gradients([], None)
    elif HAS_TABLE:
        assert torch_memory.teach_gradients(core)
    yield request.param
    torch_memory.teach_gradients(core)


def module():
    made = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    for parameter in made.parameters():
        torch.nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    return made


def attached(made):
    return made, fastreg.torch.attach(made, regularizers.L1(0.5))


def test_gradients_are_added_and_marked(way):
    made, penalties = attached(module())
    versions = [parameter.grad._version for parameter in made.parameters()]
    assert penalties.accumulate() == 5.5
    for parameter, version in zip(made.parameters(), versions, strict=True):
        assert parameter.grad.eq(0.5).all()
        assert parameter.grad._version > version


def test_another_gradient_and_none_are_seen(way):
    made, penalties = attached(module())
    penalties.accumulate()
    before = made[0].weight.grad
    made[0].weight.grad = torch.ones(2, 3)
    made[1].weight.grad = None
    penalties.accumulate()
    assert before.eq(0.5).all()
    assert made[0].weight.grad.eq(1.5).all()
    assert made[1].weight.grad.eq(0.5).all()


def test_gradients_that_python_has_not_seen(way):
    made, penalties = attached(module())
    made.zero_grad()
    made(torch.ones(1, 3)).sum().backward()
    penalties.accumulate()
    assert made[1].bias.grad.tolist() == [1.5]


def test_a_frozen_parameter_has_no_penalty(way):
    made, penalties = attached(module())
    penalties.accumulate()
    made[0].weight.requires_grad_(False)
    assert penalties.accumulate() == 2.5
    assert made[0].weight.grad.eq(0.5).all()
    made[0].weight.requires_grad_(True)
    assert penalties.accumulate() == 5.5


@pytest.mark.parametrize("kind", ["leaf", "graph", "view"])
def test_a_gradient_in_a_graph_is_refused(way, kind):
    made, penalties = attached(module())
    leaf = torch.zeros(1, requires_grad=True)
    made[1].bias.grad = {"leaf": leaf, "graph": leaf * 2, "view": leaf[:]}[kind]
    with pytest.raises((TypeError, ValueError, RuntimeError), match="grad"):
        penalties.accumulate()
    assert made[0].weight.grad.eq(0).all()


@pytest.mark.skipif(not HAS_TABLE, reason="this torch has no exchange table")
def test_a_mode_of_torch_functions_sees_the_getters(way):
    _, penalties = attached(module())
    penalties.accumulate()
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Mode():
        assert penalties.accumulate() == 5.5
    assert torch.Tensor.grad.__get__ in seen


def test_samples_that_do_not_agree_teach_nothing(way):
    x = torch.empty(3)
    followed = torch.empty(3, requires_grad=True)
    assert not core.learn_torch_gradients([(followed, x)], None)
    made, penalties = attached(module())
    assert penalties.accumulate() == 5.5
    assert made[1].bias.grad.tolist() == [0.5]
