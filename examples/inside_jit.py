"""What a penalty costs inside one program of JAX, and what its value costs beside it.

A step of gradient descent, ``p - rate * g``, jitted and with the parameters' memory donated: bare;
with the gradient of L1L2 in the same program; with the value in there as well; and with the
gradient in the program and the value by fastreg, which reads the JAX array without a copy. The
variants take turns.

    python examples/inside_jit.py --sizes 65536,1048576,16777216 --threads 1
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import fastreg
from fastreg.bench.measure import interleave
from fastreg.bench.spread import Spread
from fastreg.bench.table import duration, ratio
from fastreg.regularizers import L1L2

RATE, STRENGTH_L1, STRENGTH_L2 = 1e-3, 1e-3, 1e-2


def variants(jax: Any, size: int) -> dict[str, Callable[[], object]]:
    """The four steps, each on parameters of its own."""
    jnp = jax.numpy
    rng = np.random.default_rng(0)
    g = jnp.array(rng.standard_normal(size, dtype=np.float32))

    def slope(p: Any) -> Any:
        return STRENGTH_L1 * jnp.sign(p) + 2 * STRENGTH_L2 * p

    def bare(p: Any, g: Any) -> Any:
        return p - RATE * g, None

    def with_gradient(p: Any, g: Any) -> Any:
        return p - RATE * (g + slope(p)), None

    def with_both(p: Any, g: Any) -> Any:
        value = STRENGTH_L1 * jnp.abs(p).sum() + STRENGTH_L2 * jnp.square(p).sum()
        return p - RATE * (g + slope(p)), value

    regularizer = L1L2(STRENGTH_L1, STRENGTH_L2)

    def call(step: Callable[[Any, Any], Any], value_of: Callable[[Any], Any]) -> Any:
        compiled = jax.jit(step, donate_argnums=0)
        state = [jnp.array(0.05 * rng.standard_normal(size, dtype=np.float32))]

        def run() -> object:
            before = value_of(state[0])
            state[0], value = compiled(state[0], g)
            state[0].block_until_ready()
            return before if value is None else value

        return run

    return {
        "bare step": call(bare, lambda p: None),
        "gradient inside": call(with_gradient, lambda p: None),
        "gradient and value inside": call(with_both, lambda p: None),
        "gradient inside, value by fastreg": call(with_gradient, regularizer),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a penalty costs inside jax.jit.")
    parser.add_argument("--sizes", default="65536,1048576,16777216", help="%(default)s")
    parser.add_argument("--threads", type=int, default=1, help="of both (%(default)s)")
    parser.add_argument("--repeats", type=int, default=31, help="turns (%(default)s)")
    options = parser.parse_args(arguments)
    os.environ["NPROC"] = str(options.threads)  # how many threads XLA starts
    import jax

    fastreg.set_num_threads(options.threads)
    result = Table(title=f"jax {jax.__version__}, threads: {options.threads}, float32")
    for heading in ("elements", "step", "time", "times the bare step"):
        result.add_column(heading, justify="left" if heading == "step" else "right")
    for size in map(int, options.sizes.split(",")):
        samples = interleave(variants(jax, size), options.repeats)
        for name, sample in samples.items():
            times = Spread.of_ratio(sample, samples["bare step"])
            result.add_row(
                f"{size:,}",
                name,
                duration(Spread.quartiles(sample)),
                ratio(times),
                end_section=name == list(samples)[-1],
            )
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(result)


if __name__ == "__main__":
    main()
