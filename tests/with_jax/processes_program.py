"""One of two processes with two devices each, which talk by gloo.

Prints what it found as JSON, in a line that begins with ``MARK``.

Arguments: the address of process 0, the number of this process, and "dies" where process 1 ends
without a word before the last call.
"""

import inspect
import json
import os
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

import fastreg
from fastreg.jax import attach, sharded_penalty
from fastreg.regularizers import L1L2, OrthogonalRegularizer

BOTH = L1L2(0.3, 0.7)
MARK = "found: "  # gloo prints as well
HEARTBEAT = "heartbeat_timeout_seconds"  # JAX waits 100 s by default; older ones have no such name


def connect(address, rank):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    known = inspect.signature(jax.distributed.initialize).parameters
    jax.distributed.initialize(address, 2, rank, **({HEARTBEAT: 10} if HEARTBEAT in known else {}))


def make_params(host, mesh):
    specs = {"split": Spec("data"), "same": Spec(), "columns": Spec(None, "data")}
    return specs, {
        name: jax.make_array_from_callback(
            array.shape, NamedSharding(mesh, specs[name]), lambda place, array=array: array[place]
        )
        for name, array in host.items()
    }


def keeps_bits(gradient, host):
    """Return whether the shards of this process have the bits of the core."""
    expected = BOTH.gradient(host)
    return all(
        np.asarray(shard.data).tobytes() == expected[shard.index].tobytes()
        for shard in gradient.addressable_shards
    )


def facts():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rng = np.random.default_rng(0)
    shapes = {"split": (8, 6), "same": (5,), "columns": (3, 16)}
    host = {name: rng.standard_normal(shape, "float32") for name, shape in shapes.items()}
    specs, params = make_params(host, mesh)
    penalties = attach(params, BOTH)
    compiled = jax.jit(jax.value_and_grad(sharded_penalty(mesh, specs, BOTH)))
    text = compiled.lower(params).compile().as_text()
    value, gradients = compiled(params)
    eager, eager_gradients = penalties.value_and_grad(params)
    report = penalties.report(params)
    return {
        "devices": [jax.device_count(), jax.local_device_count()],
        "expected": sum(BOTH(array) for array in host.values()),
        "values": {
            "compiled": float(value),
            "eager": float(eager),
            "value": float(penalties.value(params)),
            "attach": float(fastreg.attach(params, BOTH).value()),
            "report": report.total,
        },
        "one": [float(BOTH(params["split"])), BOTH(host["split"])],
        "orthogonal": [
            float(OrthogonalRegularizer(0.5)(params["split"])),
            OrthogonalRegularizer(0.5)(host["split"]),
        ],
        "gradients": [
            keeps_bits(by_name[name], host[name])
            for by_name in (gradients, eager_gradients, {"split": jax.grad(BOTH)(params["split"])})
            for name in by_name
        ],
        "all-reduce": text.count(" all-reduce(") + text.count(" all-reduce-start("),
        "all-gather": text.count(" all-gather(") + text.count(" all-gather-start("),
        "again": lambda: float(BOTH(params["split"])),
    }


if __name__ == "__main__":
    rank, dies = int(sys.argv[2]), sys.argv[3:] == ["dies"]
    connect(sys.argv[1], rank)
    found = facts()
    again = found.pop("again")
    print(MARK + json.dumps(found), flush=True)
    if dies:
        if rank == 1:
            os._exit(17)
        print(MARK + json.dumps(again()), flush=True)
