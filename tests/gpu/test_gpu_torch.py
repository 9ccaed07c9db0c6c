"""Torch's tensors on a GPU: beside autograd, in training, in graphs, and what is refused.

The same bodies run on tensors in host memory, where no GPU is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import RULES, numbers, same_bits, same_value
from makers import AUTOGRAD, numpy_array

import fastreg
from fastreg.regularizers import L1L2, L2

pytestmark = pytest.mark.needs(AUTOGRAD)

#: A few roundings of the type that autograd computes in.
TOLERANCES = {"f16": 4e-3, "bf16": 3e-2, "f32": 1e-6, "f64": 1e-14}


def by_autograd(torch: Any, w: Any) -> Any:
    leaf = w.detach().clone().requires_grad_()
    (0.01 * leaf.abs().sum() + 0.3 * leaf.square().sum()).backward()
    return leaf.grad


@pytest.mark.parametrize("shape", [(1,), (300, 41), (4097,), (100_003,)])
def test_gradients_are_those_of_autograd(maker: Any, dtype: str, shape: Any) -> None:
    w = numbers(shape, dtype)
    weight = maker.make(w)
    value, gradient = RULES["L1L2"].value_and_grad(weight)
    assert type(gradient) is maker.torch.Tensor
    assert gradient.device == weight.device
    assert gradient.dtype == weight.dtype
    expected = by_autograd(maker.torch, weight)
    maker.torch.testing.assert_close(
        gradient, expected, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype]
    )
    host_value, host_gradient = RULES["L1L2"].value_and_grad(w)
    assert same_bits(maker.host(gradient), host_gradient)
    assert same_value(value, host_value)
    double = weight.double()
    by_hand = float(0.01 * double.abs().sum() + 0.3 * double.square().sum())
    assert float(value) == pytest.approx(by_hand, rel=1e-6 if dtype != "f64" else 1e-12)


def test_half_precision_does_not_overflow(maker: Any) -> None:
    weight = maker.torch.full((100_000,), 100.0, dtype=maker.torch.float16, device=maker.place(0))
    assert weight.square().sum().isinf().item()
    assert float(L2(0.5)(weight)) == 5e8


def test_values_are_tensors_of_the_device(maker: Any, dtype: str) -> None:
    weight = maker.make(numbers(1000, dtype))
    value = RULES["L1"](weight)
    assert isinstance(value, maker.torch.Tensor)
    assert value.shape == ()
    assert value.device == weight.device
    wanted = maker.torch.float64 if dtype == "f64" else maker.torch.float32
    assert value.dtype == wanted


def test_penalties_are_differentiable(maker: Any, dtype: str) -> None:
    w = numbers((300, 41), dtype)
    weight = maker.torch.nn.Parameter(maker.make(w))
    bias = maker.torch.nn.Parameter(maker.make(w[0]))
    value = RULES["L1L2"](weight)
    assert value.device == weight.device
    assert same_value(value.detach(), RULES["L1L2"](w))
    value.backward()
    assert same_bits(maker.host(weight.grad), RULES["L1L2"].gradient(w))
    penalties = fastreg.attach({"weight": weight, "bias": bias}, RULES["L1L2"])
    weight.grad = None
    total = penalties.value()
    total.backward()
    host = fastreg.attach({"weight": w, "bias": w[0]}, RULES["L1L2"])
    assert same_value(total.detach(), host.value())
    assert same_bits(maker.host(bias.grad), RULES["L1L2"].gradient(w[0]))
    with maker.torch.no_grad():
        assert same_value(RULES["L1L2"](weight), RULES["L1L2"](w))


def test_penalties_of_a_list_stay_on_the_device(maker: Any) -> None:
    from fastreg._autodiff.torch import functions

    arrays = [numbers(n, "f32", n) for n in (1, 5000, 70)]
    weights = [maker.torch.nn.Parameter(maker.make(w)) for w in arrays]
    values = functions.values(weights, ((0.25, 0.5), (0.0, 1.0)), (0, 1, 0), 1.0)
    rules = L1L2(0.25, 0.5), L2(1.0), L1L2(0.25, 0.5)
    for value, rule, w in zip(values, rules, arrays, strict=True):
        assert value.device == weights[0].device
        assert same_value(value.detach(), rule(w))
    values[1].backward()
    assert same_bits(maker.host(weights[1].grad), L2(1.0).gradient(arrays[1]))


def test_a_target_that_autograd_follows_is_refused(maker: Any) -> None:
    weight = maker.torch.nn.Parameter(maker.make(numbers(100, "f32")))
    target = maker.make(numbers(100, "f32", 1)).requires_grad_()
    with pytest.raises(TypeError, match="requires a gradient while torch records"):
        RULES["L2"].accumulate(weight, target)
    assert same_bits(numpy_array(maker.torch, target), numbers(100, "f32", 1))


def test_autograd_notices_what_is_written(maker: Any) -> None:
    weight = maker.make(numbers(100, "f32"))
    factor = maker.make(numbers(100, "f32", 1)).requires_grad_()
    target = maker.make(numbers(100, "f32", 2))
    product = (factor * target).sum()  # autograd keeps `target` for the gradient of `factor`
    RULES["L2"].accumulate(weight, target)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_channels_last(maker: Any, dtype: str) -> None:
    torch = maker.torch
    w, g = numbers((8, 3, 5, 7), dtype), numbers((8, 3, 5, 7), dtype, 1)
    weight, grad = (maker.make(x).to(memory_format=torch.channels_last) for x in (w, g))
    found = RULES["L1L2"].accumulate(weight, grad)
    # In memory order, as dense arrays are summed.
    w, g = (np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (w, g))
    assert same_value(found, RULES["L1L2"].accumulate(w, g))
    assert same_bits(maker.host(grad).transpose(0, 2, 3, 1), g)


def test_training(maker: Any) -> None:
    """Five steps: each adds to what backward() left what the host would add to it."""
    torch = maker.torch
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)
    ).to(maker.place(0))
    inputs = torch.randn(128, 20, device=maker.place(0))
    labels = inputs[:, :3].argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parameters = dict(model.named_parameters())
    rules = {"*weight": L1L2(1e-4, 1e-3), "*bias": None}
    penalties = fastreg.attach(parameters, rules)
    losses = []
    for step in range(5):
        rules["*weight"].l1 = 1e-4 * step  # a schedule
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        grads = {name: p.grad for name, p in parameters.items()}
        host_weights = {name: maker.host(p) for name, p in parameters.items()}
        host_grads = {name: maker.host(grad).copy() for name, grad in grads.items()}
        with maker.strict():
            penalty = penalties.accumulate(grads)
        expected = fastreg.attach(host_weights, rules).accumulate(host_grads)
        assert same_value(penalty, expected)
        for name, grad in grads.items():
            assert same_bits(maker.host(grad), host_grads[name]), name
        losses.append(loss.item() + float(penalty))
        optimizer.step()
    assert losses[-1] < losses[0]


def test_torch_sees_no_wait(maker: Any) -> None:
    """Torch's own check of hidden waits; what does not go through torch, test_gpu_streams sees."""
    weight, grad = (maker.make(numbers(5000, "f32", seed)) for seed in (0, 1))
    out = maker.torch.empty_like(weight)
    penalties = fastreg.attach({"kernel": weight}, RULES["L1L2"])
    with maker.strict():
        values = [
            RULES["L1"](weight),
            RULES["L2"].value_and_grad(weight, out)[0],
            RULES["L1L2"].accumulate(weight, grad),
            penalties.accumulate({"kernel": grad}),
            penalties.value(),
        ]
    g = numbers(5000, "f32", 1)
    for _ in range(2):
        expected = RULES["L1L2"].accumulate(numbers(5000, "f32"), g)
    assert same_bits(maker.host(grad), g)
    assert all(same_value(value, expected) for value in values[2:])


def test_a_value_in_a_graph(maker: Any) -> None:
    weight, grad, other = (maker.make(numbers(5000, "f32", seed)) for seed in (0, 1, 2))
    kept = maker.torch.zeros((), dtype=maker.torch.float64, device=maker.place(0))

    def step() -> None:
        value = RULES["L1L2"].accumulate(weight, grad)
        if isinstance(value, float):  # in host memory
            kept.fill_(value)
        else:
            kept.copy_(value)

    w, g = numbers(5000, "f32"), numbers(5000, "f32", 1)
    step()
    RULES["L1L2"].accumulate(w, g)
    replay = maker.captured(step)
    for new in (w, numbers(5000, "f32", 2)):
        replay()
        expected = RULES["L1L2"].accumulate(new, g)
        assert same_value(kept, expected)
        assert same_bits(maker.host(grad), g)
        weight.copy_(other)
