"""Training with torch on a GPU, or in host memory: what users write, held to the host's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import RULES, same_bits, same_value
from makers import AUTOGRAD

from fastreg.regularizers import L1L2

pytest.importorskip("torch")

import fastreg.torch

pytestmark = pytest.mark.needs(AUTOGRAD)

RULE = L1L2(1e-3, 1e-2)


def network(maker: Any) -> tuple[Any, Any, Any]:
    """Return a module, inputs and labels, the same each time."""
    torch = maker.torch
    torch.manual_seed(0)
    layers = torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
    inputs = torch.randn(128, 20).to(maker.place(0))
    return torch.nn.Sequential(*layers).to(maker.place(0)), inputs, inputs[:, :3].argmax(1)


def backward(maker: Any, model: Any, inputs: Any, labels: Any) -> None:
    maker.torch.nn.functional.cross_entropy(model(inputs), labels).backward()


def copies(maker: Any, model: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return weights and gradients by name, as they are now."""
    named = dict(model.named_parameters())
    return (
        {name: maker.host(p).copy() for name, p in named.items()},
        {name: maker.host(p.grad).copy() for name, p in named.items()},
    )


RULES_BY_NAME = {"*weight": RULE, "*bias": None}


def test_accumulate_before_a_step(maker: Any) -> None:
    model, inputs, labels = network(maker)
    penalties = fastreg.torch.attach(model, RULES_BY_NAME)
    optimizer = maker.torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for _ in range(3):
        optimizer.zero_grad()
        backward(maker, model, inputs, labels)
        weights, gradients = copies(maker, model)
        with maker.strict():
            penalty = penalties.accumulate()
        expected = fastreg.attach(weights, RULES_BY_NAME).accumulate(gradients)
        assert same_value(penalty, expected)
        for name, parameter in model.named_parameters():
            assert same_bits(maker.host(parameter.grad), gradients[name]), name
        optimizer.step()


def test_in_the_loss(maker: Any) -> None:
    """``loss + penalties.value()``: gradients as autograd has them of an expression."""
    model, inputs, labels = network(maker)
    penalties = fastreg.torch.attach(model, RULES_BY_NAME)
    loss = maker.torch.nn.functional.cross_entropy(model(inputs), labels)
    value = penalties.value()
    (loss + value).backward()
    other, _, _ = network(maker)
    loss = maker.torch.nn.functional.cross_entropy(other(inputs), labels)
    for layer in (other[0], other[2]):
        w = layer.weight
        loss = loss + RULE.l1 * w.abs().sum() + RULE.l2 * w.square().sum()
    loss.backward()
    weights, _ = copies(maker, model)
    assert same_value(value.detach(), fastreg.attach(weights, RULES_BY_NAME).value())
    for mine, wanted in zip(model.parameters(), other.parameters(), strict=True):
        maker.torch.testing.assert_close(mine.grad, wanted.grad, rtol=1e-5, atol=1e-6)


def test_a_hook_before_the_step(maker: Any) -> None:
    model, inputs, labels = network(maker)
    optimizer = maker.torch.optim.SGD(model.parameters(), lr=0.1)
    penalties = fastreg.torch.attach(model, RULES_BY_NAME)
    penalties.before_step(optimizer, max_norm=None)
    backward(maker, model, inputs, labels)
    weights, gradients = copies(maker, model)
    optimizer.step()
    expected = fastreg.attach(weights, RULES_BY_NAME).accumulate(gradients)
    assert same_value(penalties.last, expected)
    for name, parameter in model.named_parameters():
        assert same_bits(maker.host(parameter.grad), gradients[name]), name


def test_a_report(maker: Any) -> None:
    model, _, _ = network(maker)
    with maker.torch.no_grad():
        model[0].weight[:32] = 0.0
    report = fastreg.torch.attach(model, RULES_BY_NAME).report()
    assert report["0.weight"].zeros == 0.5
    assert same_value(report["2.weight"].penalty, RULE(maker.host(model[2].weight)))


def test_a_callable_gives_values(maker: Any) -> None:
    model, _, _ = network(maker)
    penalties = fastreg.torch.attach(model, {"2.weight": lambda w: w.square().mean()})
    with maker.torch.no_grad():
        found = penalties.value()
    expected = np.square(maker.host(model[2].weight).astype(np.float64)).mean()
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_a_compiled_step(maker: Any) -> None:
    """Forward, penalty and backward under torch.compile, whole and without a break."""
    torch = maker.torch
    model, inputs, labels = network(maker)
    backend = "inductor" if maker.on_gpu else "aot_eager"

    def loss(inputs: Any, labels: Any) -> Any:
        data = torch.nn.functional.cross_entropy(model(inputs), labels)
        return data + RULES["L1L2"](model[0].weight)

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    value = compiled(inputs, labels)
    value.backward()
    found = [maker.host(p.grad).copy() for p in model.parameters()]
    model.zero_grad()
    eager = loss(inputs, labels)
    eager.backward()
    assert float(value.detach()) == pytest.approx(float(eager.detach()), rel=1e-5)
    for mine, parameter in zip(found, model.parameters(), strict=True):
        np.testing.assert_allclose(mine, maker.host(parameter.grad), rtol=1e-4, atol=1e-5)


def test_attached_penalties_in_a_graph(maker: Any) -> None:
    """A captured accumulate(), and a schedule that reaches it by a recording."""
    model, inputs, labels = network(maker)
    rule = L1L2(1e-3, 1e-2)
    penalties = fastreg.torch.attach(model, {"*weight": rule, "*bias": None})
    backward(maker, model, inputs, labels)
    penalties.accumulate()  # what a first call makes is there
    if not maker.on_gpu:
        return  # in host memory there is no graph
    with fastreg.cuda.recording() as recording:
        replay = maker.captured(penalties.accumulate)
    for step in range(3):
        rule.l1 = 1e-3 * step
        weights, gradients = copies(maker, model)
        recording.update()
        replay()
        fastreg.attach(weights, {"*weight": rule, "*bias": None}).accumulate(gradients)
        for name, parameter in model.named_parameters():
            assert same_bits(maker.host(parameter.grad), gradients[name]), name
    recording.close()
