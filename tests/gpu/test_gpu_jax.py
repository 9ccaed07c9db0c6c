"""Penalties in functions that JAX compiles, on a GPU or in host memory: the core's bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import RULES, numbers, same_bits, same_value
from makers import TRACED

pytest.importorskip("jax")

import fastreg.jax

pytestmark = pytest.mark.needs(TRACED)


@pytest.mark.parametrize("terms", RULES)
def test_jit(maker: Any, dtype: str, terms: str) -> None:
    rule = RULES[terms]  # it can be set, so it has no hash, which jit asks for
    w = numbers((301, 41), dtype)
    assert same_value(maker.jax.jit(lambda x: rule(x))(maker.make(w)), rule(w))


@pytest.mark.parametrize("terms", RULES)
def test_grad(maker: Any, dtype: str, terms: str) -> None:
    rule = RULES[terms]
    w = numbers((301, 41), dtype)
    value, gradient = maker.jax.jit(maker.jax.value_and_grad(rule))(maker.make(w))
    assert same_value(value, rule(w))
    assert same_bits(np.asarray(gradient), rule.gradient(w))


def test_the_foreign_call_is_in_the_program(maker: Any) -> None:
    """The value is the core's: by XLA's own sum it would have other bits at other sizes."""
    x = maker.make(numbers(5000, "f32"))
    text = maker.jax.jit(lambda x: RULES["L1L2"](x)).lower(x).as_text()
    assert "custom_call" in text
    assert "fastreg" in text


def test_a_tree_with_a_schedule(maker: Any) -> None:
    hosts = {"kernel": numbers((64, 33), "f32"), "bias": numbers(33, "f32", 1)}
    params = {name: maker.make(w) for name, w in hosts.items()}
    penalties = fastreg.jax.attach(params, {"*kernel*": RULES["L1L2"], "*bias*": None})

    @maker.jax.jit
    def step(params: Any, scale: Any) -> Any:
        return maker.jax.value_and_grad(lambda p: penalties.value(p, scale=scale))(params)

    for scale in (1.0, 0.25):
        value, gradients = step(params, scale)
        assert same_value(value, RULES["L1L2"](hosts["kernel"], scale=scale))
        expected = RULES["L1L2"].gradient(hosts["kernel"], scale=scale)
        assert same_bits(np.asarray(gradients["kernel"]), expected)
        assert not np.asarray(gradients["bias"]).any()
