"""JAX: a jitted step of gradient descent on one array, which is donated."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fastreg.bench.frameworks.base import Setting, Settings, Variant
from fastreg.bench.frameworks.sizes import L1_STRENGTH, L2_STRENGTH, LEARNING_RATE, Sizes
from fastreg.bench.row import Work
from fastreg.regularizers import L1L2


def settings(sizes: Sizes) -> Settings:
    """Yield the settings of JAX."""
    jax: Any = importlib.import_module("jax")
    importlib.import_module("fastreg.jax")
    for elements in sizes.jax_elements:
        yield step(jax, elements)


def step(jax: Any, elements: int) -> Setting:
    """Value and gradient of a squared distance, with a penalty, and the update."""
    jnp = jax.numpy
    rng = np.random.default_rng(20260101)
    numbers, goal = (rng.standard_normal(elements, dtype=np.float32) for _ in range(2))
    goal = jnp.asarray(goal)
    reg = L1L2(L1_STRENGTH, L2_STRENGTH)

    def plain(w: Any) -> Any:
        return L1_STRENGTH * jnp.abs(w).sum() + L2_STRENGTH * jnp.square(w).sum()

    def variant(penalty: Callable[[Any], Any]) -> Variant:
        latest: list[Any] = [jnp.asarray(numbers), 0.0]

        def loss(w: Any, goal: Any) -> Any:
            return 0.5 * jnp.square(w - goal).sum() + penalty(w)

        def updated(w: Any, goal: Any) -> Any:
            value, gradient = jax.value_and_grad(loss)(w, goal)
            return w - LEARNING_RATE * gradient, value

        def make() -> Callable[[], object]:
            program = jax.jit(updated, donate_argnums=0)

            def call() -> None:
                latest[:] = jax.block_until_ready(program(latest[0], goal))

            return call

        def start() -> None:
            latest[0] = jnp.array(numbers)

        return Variant(make, start, lambda: latest)

    work = Work(
        "jax",
        f"jitted step on {elements:,} elements of float32",
        usual="jax.numpy",
        bare="no penalty",
    )
    return Setting(
        work,
        {
            "no penalty": variant(lambda w: 0.0),
            "jax.numpy": variant(plain),
            "fastreg, reg(w)": variant(lambda w: reg(w)),
        },
    )
