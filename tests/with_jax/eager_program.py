"""What calls outside of programs do with sharded arrays on four devices: printed as JSON.

The first argument is the folder that ``XLA_FLAGS`` has XLA write its programs to.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from sharded_program import BOTH, COLLECTIVES

from fastreg.jax import attach

ROWS = 1 << 18  # of 64 float32: 64 MiB
STATUS = Path("/proc/self/status")


def cases():
    rules = {"kernel": BOTH, "bias": "l2", "step": None}
    penalties = attach({"kernel": 0, "bias": 0, "step": 0}, rules)
    return {
        "grad": lambda params: {"kernel": jax.grad(BOTH)(params["kernel"])},
        "vjp": lambda params: jax.vjp(BOTH, params["kernel"])[1](np.float32(1)),
        "strengths": lambda params: jax.grad(lambda reg: reg(params["kernel"]))(BOTH),
        "value_and_grad of value": lambda params: jax.value_and_grad(penalties.value)(params),
        "value_and_grad": penalties.value_and_grad,
        "value": penalties.value,
        "gradient": penalties.gradient,
    }


def make_params(rows, mesh):
    shardings = {"kernel": Spec("data"), "bias": Spec(), "step": Spec("data")}

    @jax.jit
    def make():
        return {
            "kernel": jnp.arange(rows * 64.0, dtype="float32").reshape(rows, 64) - rows,
            "bias": jnp.ones(64),
            "step": jnp.ones((8, 64)),
        }

    return {
        name: jax.device_put(array, NamedSharding(mesh, shardings[name]))
        for name, array in make().items()
    }


def programs_of(call, folder):
    """Return what a call gives, and the programs that it compiles."""
    before = set(folder.iterdir())
    result = jax.block_until_ready(call())
    programs = [
        path.read_text()
        for path in set(folder.iterdir()) - before
        if path.name.endswith("after_optimizations.txt")
    ]
    return result, programs


def count(programs, name):
    return sum(text.count(f" {name}(") + text.count(f" {name}-start(") for text in programs)


def memory(field):
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def grown_by(call):
    """Return by how many MiB the process grew during a call; None where nobody can tell."""
    jax.block_until_ready(call())  # what compiling takes does not count
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = memory("VmRSS")
    result = jax.block_until_ready(call())
    grown = memory("VmHWM") - before
    del result
    return grown


def facts(folder):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    large = jax.block_until_ready(make_params(ROWS, mesh))
    found = {}
    for index, (name, call) in enumerate(cases().items()):
        params = make_params(128 + 4 * index, mesh)  # of another shape: nothing is compiled yet
        result, programs = programs_of(functools.partial(call, params), folder)
        found[name] = {
            "programs": len(programs),
            "collectives": {name: count(programs, name) for name in COLLECTIVES},
            "gradients": {
                name: gradient.sharding.is_equivalent_to(params[name].sharding, gradient.ndim)
                for name, gradient in gradients_in(result).items()
            },
            "grown": grown_by(functools.partial(call, large)),
        }
    return {"size": large["kernel"].nbytes / 2**20, "cases": found}


def gradients_in(result):
    trees = [
        part
        for part in jax.tree_util.tree_leaves(result, is_leaf=lambda part: isinstance(part, dict))
        if isinstance(part, dict)
    ]
    return trees[0] if trees else {}


if __name__ == "__main__":
    json.dump(facts(Path(sys.argv[1])), sys.stdout)
