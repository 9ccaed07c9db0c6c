"""Bad input on a device is refused, the message names it, and nothing is written."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from inputs import RULES, numbers, same_bits
from makers import EXHAUSTION, GRADIENTS, STREAMS, Maker

import fastreg

pytestmark = pytest.mark.needs(GRADIENTS, STREAMS)


def refused(maker: Maker, kind: type[Exception], match: str, weight: Any, grad: Any) -> None:
    def content() -> np.ndarray:
        return grad.copy() if isinstance(grad, np.ndarray) else maker.host(grad)

    before = content()
    with pytest.raises(kind, match=match):
        RULES["L2"].accumulate(weight, grad)
    assert same_bits(content(), before)


def test_memory_of_the_host_among_a_devices(maker: Maker) -> None:
    w = numbers((50, 4), "f32")
    weight = maker.make(w)
    refused(maker, TypeError, "grad is in host memory", weight, w.copy())
    refused(maker, TypeError, "w is in host memory", w, weight)
    with pytest.raises(TypeError, match=r"tensors\['b'\] is in host memory"):
        fastreg.attach({"a": weight, "b": w}, "l2").value()


def test_a_gradient_that_does_not_fit(maker: Maker) -> None:
    w = numbers((50, 4), "f32")
    weight = maker.make(w)
    double = maker.make(numbers((50, 4), "f64"))
    refused(maker, TypeError, "grad has dtype float64, but w has float32", weight, double)
    flat = maker.make(w.reshape(-1))
    refused(maker, ValueError, r"grad has shape \(200,\), but w has \(50, 4\)", weight, flat)


def test_strengths_beyond_the_gradients_type(maker: Maker) -> None:
    weight, grad = (maker.make(numbers(40, "f32", seed)) for seed in (0, 1))
    before = maker.host(grad)
    with pytest.raises(ValueError, match="must be finite in float32"):
        RULES["L2"].accumulate(weight, grad, grad_scale=1e39)
    assert same_bits(maker.host(grad), before)


def test_one_bad_tensor_among_many(maker: Maker) -> None:
    hosts = {f"w{place}": numbers(100, "f32", place) for place in range(20)}
    weights = {name: maker.make(w) for name, w in hosts.items()}
    grads = {name: maker.make(w) for name, w in hosts.items()}
    grads["w19"] = maker.make(numbers(99, "f32"))
    with pytest.raises(ValueError, match=r"grads\['w19'\] has shape \(99,\)"):
        fastreg.attach(weights, "l2").accumulate(grads)
    for name, w in hosts.items():
        if name != "w19":
            assert same_bits(maker.host(grads[name]), w)


def test_tensors_on_two_devices(maker: Maker) -> None:
    if maker.device_count() < 2:
        pytest.skip("there is one device")
    w = numbers(100, "f32")
    weight, other = maker.make(w), maker.make(w, device=1)
    refused(maker, ValueError, "grad is on CUDA device 1, but w on device 0", weight, other)
    with pytest.raises(ValueError, match=r"tensors\['b'\] is on CUDA device 1"):
        fastreg.attach({"a": weight, "b": other}, "l2").value()


@pytest.mark.needs(EXHAUSTION)
def test_out_of_memory(maker: Maker) -> None:
    """A call that finds no room for its table says so; with room again it works."""
    w, g = numbers(100_000, "f32"), numbers(100_000, "f32", 1)
    weight, grad = maker.make(w), maker.make(g)
    out = maker.make(g)
    RULES["L2"].gradient(weight, out)  # what is loaded at the first call is there
    stream = maker.stream()
    with maker.using(stream):
        with maker.exhausted(), pytest.raises(MemoryError, match="out of memory"):
            RULES["L2"].gradient(weight, grad)
        assert same_bits(maker.host(grad), g)
        gc.collect()
        RULES["L2"].gradient(weight, grad)
    assert same_bits(maker.host(grad), RULES["L2"].gradient(w))
