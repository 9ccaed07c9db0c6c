"""Engines that take gradients away: refused by name, or the penalty in the loss."""

import types

import pytest

torch = pytest.importorskip("torch")

from fastreg.regularizers import L1, L2  # noqa: E402
from fastreg.torch import attach, engines  # noqa: E402


def network(**mark):
    """Give a module whose parameters carry what an engine gives them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    for parameter in model.parameters():
        for name, value in mark.items():
            setattr(parameter, name, value)
    return model


@pytest.mark.parametrize(
    ("mark", "engine"),
    [
        ({"_hp_mapping": None}, "DeepSpeed (ZeRO-1"),
        ({"main_grad": torch.zeros(1)}, "Megatron"),
    ],
)
def test_what_would_be_lost_is_refused(mark, engine):
    model = network(**mark)
    penalties = attach(model, L2(0.5))
    for with_gradients in (False, True):
        if with_gradients:
            model(torch.ones(1, 5)).sum().backward()
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        with pytest.raises(RuntimeError, match=r"penalties\.value\(\) to the loss") as error:
            penalties.accumulate()
        assert engine in str(error.value)
        assert "'0.weight'" in str(error.value)
        for parameter, gradient in zip(model.parameters(), before, strict=True):
            assert gradient is None or torch.equal(parameter.grad, gradient)
            assert (parameter.grad is None) == (gradient is None)
    # Its optimizer need not be one of torch: the advice comes first.
    for optimizer in (torch.optim.SGD(model.parameters()), types.SimpleNamespace(optimizer=None)):
        with pytest.raises(RuntimeError, match=r"penalties\.value\(\) to the loss"):
            penalties.before_step(optimizer)
    model.zero_grad()
    penalties.value().backward()
    for parameter in model.parameters():
        assert torch.equal(parameter.grad, parameter.detach())


def test_an_engine_that_comes_later_is_seen():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalties = attach(model, L1(0.5))
    model(torch.ones(1, 5)).sum().backward()
    penalties.accumulate()
    penalties.before_step(optimizer)
    optimizer.step()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter._hp_mapping = None
    with pytest.raises(RuntimeError, match="DeepSpeed"):
        optimizer.step()
    for parameter, weight in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, weight)


def test_one_of_many_is_seen_where_the_engine_is_loaded(monkeypatch):
    model = network()
    penalties = attach(model, L1(0.5))
    model(torch.ones(1, 5)).sum().backward()
    model[0].bias._hp_mapping = None
    monkeypatch.setitem(engines.sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    with pytest.raises(RuntimeError, match=r"parameter '0\.bias' away"):
        penalties.accumulate()


def test_partitioned_parameters_have_no_penalty_to_give():
    for when in ("before", "after"):
        model = network()
        if when == "after":
            penalties = attach(model, L2(0.5))
        for parameter in model.parameters():
            parameter.ds_id, parameter.data = 0, torch.empty(0)
        text = r"'0\.weight' is partitioned by DeepSpeed \(ZeRO-3\)"
        if when == "before":
            with pytest.raises(TypeError, match=text):
                attach(model, L2(0.5))
            continue
        for call in (penalties.accumulate, penalties.value, penalties.report):
            with pytest.raises(TypeError, match=text):
                call()
            with torch.no_grad(), pytest.raises(TypeError, match=text):
                call()
        assert all(parameter.grad is None for parameter in model.parameters())


def test_attributes_of_others_are_not_marks():
    model = network(name_of_mine="weight")
    penalties = attach(model, L2(0.5))
    model(torch.ones(1, 5)).sum().backward()
    assert penalties.accumulate() > 0
    assert engines.owner_of([]) is None


def test_what_needs_autograd():
    model = network()
    parameters = list(model.parameters())
    assert not engines.needs_autograd(parameters)
    for register in ("register_hook", "register_post_accumulate_grad_hook"):
        handle = getattr(parameters[1], register)(lambda gradient: None)
        assert engines.needs_autograd(parameters)
        handle.remove()
        assert not engines.needs_autograd(parameters)
    parameters[0].main_grad = torch.zeros(1)
    assert engines.needs_autograd(parameters)
