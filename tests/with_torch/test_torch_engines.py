"""Engines that take gradients away: refused by name, or the penalty in the loss."""

import importlib.util
import os
import re
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import fastreg  # noqa: E402
from fastreg._autodiff.torch import engines  # noqa: E402
from fastreg.regularizers import L1, L2  # noqa: E402
from fastreg.torch import attach  # noqa: E402


def network(**mark):
    """Return a module whose parameters carry what an engine gives them."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    for parameter in model.parameters():
        for name, value in mark.items():
            setattr(parameter, name, value)
    return model


@pytest.mark.parametrize(
    ("mark", "engine", "advice"),
    [
        ({"_hp_mapping": None}, "DeepSpeed (ZeRO-1", "penalties.value() to the loss"),
        ({"main_grad": torch.zeros(1)}, "Megatron", "parameter.main_grad.add_(rule.gradient("),
    ],
)
def test_what_would_be_lost_is_refused(mark, engine, advice):
    model = network(**mark)
    penalties = attach(model, L2(0.5))
    for with_gradients in (False, True):
        if with_gradients:
            model(torch.ones(1, 5)).sum().backward()
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        with pytest.raises(RuntimeError, match=re.escape(advice)) as error:
            penalties.accumulate()
        assert engine in str(error.value)
        assert "'0.weight'" in str(error.value)
        for parameter, gradient in zip(model.parameters(), before, strict=True):
            assert gradient is None or torch.equal(parameter.grad, gradient)
            assert (parameter.grad is None) == (gradient is None)
    # Its optimizer need not be one of torch: the advice comes first.
    for optimizer in (torch.optim.SGD(model.parameters()), types.SimpleNamespace(optimizer=None)):
        with pytest.raises(RuntimeError, match=re.escape(advice)):
            penalties.before_step(optimizer, max_norm=None)
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
    penalties.before_step(optimizer, max_norm=None)
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


def partition(model):
    """Take the elements away, as ZeRO-3 does between passes, and return a way back."""
    kept = []
    for parameter in model.parameters():
        kept.append((parameter, parameter.data))
        parameter.ds_id, parameter.ds_numel = 0, parameter.numel()
        parameter.data = torch.empty(0)

    def gather():
        for parameter, data in kept:
            parameter.data = data

    return gather


def test_partitioned_parameters_have_no_penalty_to_give(monkeypatch):
    text = r"parameter '0\.weight' is partitioned by DeepSpeed \(ZeRO-3\)"
    model = network()
    partition(model)
    with pytest.raises(TypeError, match=text):
        attach(model, L2(0.5))

    model = network()
    penalties = attach(model, L2(0.5))
    expected = penalties.value()
    gather = partition(model)
    for call in (penalties.accumulate, penalties.value, penalties.report):
        with pytest.raises(TypeError, match=text):
            call()
        with torch.no_grad(), pytest.raises(TypeError, match=text):
            call()
    words = r"w is partitioned by DeepSpeed .* forward pass of its"
    with pytest.raises(TypeError, match=words):
        L2(0.5)(model[0].weight)
    with torch.no_grad(), pytest.raises(TypeError, match=words):
        L2(0.5)(model[0].weight)
    monkeypatch.setitem(engines.sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    plain = fastreg.attach(dict(model.named_parameters()), L2(0.5))
    with torch.no_grad(), pytest.raises(TypeError, match="partitioned by DeepSpeed"):
        plain.value()
    assert all(parameter.grad is None for parameter in model.parameters())

    # In the forward pass of its layer it has its elements; .grad is the engine's even then.
    gather()
    assert penalties.value() == expected
    L2(0.5)(model[0].weight).backward()
    assert torch.equal(model[0].weight.grad, model[0].weight.detach())
    with pytest.raises(RuntimeError, match="ZeRO-3"):
        penalties.accumulate()


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


WORKER = Path(__file__).with_name("deepspeed_worker.py")


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeed(stage, tmp_path):
    (loopback, *_) = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": loopback,
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(WORKER.parents[2])]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path / "store"), str(rank), str(stage)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
