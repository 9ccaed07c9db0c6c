"""What specs, meshes and a partly manual shard_map come to on four devices: printed as JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec
from sharded_program import BOTH, IS_RECENT

from fastreg.jax import attach, sharded_penalty
from fastreg.regularizers import L1

HOST = np.random.default_rng(0).standard_normal((8, 6)).astype("float32")


def error_of(call):
    try:
        call()
    except (TypeError, ValueError) as error:
        return [type(error).__name__, str(error)]
    return None


def refusals(mesh):
    other = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), Spec("x"))
    rows, uneven = Spec("data"), {"a": jnp.ones((7, 3)), "b": jnp.ones(3)}
    calls = {
        "uneven": lambda: sharded_penalty(mesh, {"a": rows, "b": Spec()}, BOTH)(uneven),
        "both axes": lambda: sharded_penalty(mesh, Spec(("data", "model")), BOTH)(HOST[:6]),
        "unknown": lambda: sharded_penalty(mesh, {"a": Spec("dat")}, BOTH)({"a": HOST}),
        "long": lambda: sharded_penalty(mesh, Spec(None, None, "data"), BOTH)(HOST),
        "other mesh": lambda: sharded_penalty(mesh, {"a": other}, BOTH)({"a": HOST}),
        "no spec": lambda: sharded_penalty(mesh, {"a": None}, BOTH)({"a": HOST}),
        "text": lambda: sharded_penalty(mesh, "data", BOTH)(HOST),
        "missing": lambda: sharded_penalty(mesh, {"a": rows}, BOTH)({"a": HOST, "b": HOST}),
        "no mesh": lambda: sharded_penalty(None, rows, BOTH)(HOST),
        "text as mesh": lambda: sharded_penalty("data", rows, BOTH)(HOST),
        "specs alone": lambda: attach(HOST, BOTH).value(HOST, specs=rows),
    }
    return {name: error_of(call) for name, call in calls.items()}


def values(mesh):
    sharding = NamedSharding(mesh, Spec("data", "model"))
    w = jax.device_put(HOST, sharding)
    tree = {"a": w, "b": w}
    by_shardings = sharded_penalty(mesh, jax.tree_util.tree_map(lambda x: x.sharding, tree), BOTH)
    step = jax.jit(lambda w, rules: sharded_penalty(mesh, Spec("data"), BOTH)(w, rules=rules))
    scheduled = [float(step(w, L1(l1))) for l1 in (0.5, 0.25, 0.0)]
    report = attach({"a": w}, BOTH).report({"a": w.at[0].set(0.0)})
    return {
        "shardings": [float(sharded_penalty(mesh, sharding, BOTH)(w)), float(BOTH(HOST))],
        "tree of shardings": [float(jax.jit(by_shardings)(tree)), 2 * float(BOTH(HOST))],
        "scheduled": scheduled,
        "expected": [float(L1(l1)(HOST)) for l1 in (0.5, 0.25, 0.0)],
        "compiled": step._cache_size(),
        "zeros": report["a"].zeros,
        "report": [report.total, float(BOTH(HOST[1:]))],
    }


def partly_manual(kind):
    """Return values and gradients inside a shard_map over one of two axes."""
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    w = jax.device_put(HOST, NamedSharding(mesh, Spec("data", "model")))
    penalties = {
        "one": lambda w: BOTH(w),
        "tree": lambda w: attach({"w": w}, BOTH).value({"w": w}),
        "sharded": lambda w: sharded_penalty(mesh, Spec(None, "model"), BOTH)(w),
    }
    found = {}
    with jax.set_mesh(mesh):
        for name, penalty in penalties.items():
            function = jax.shard_map(
                lambda w, penalty=penalty: jax.lax.psum(penalty(w), "data"),
                in_specs=Spec("data"),
                out_specs=Spec(),
                axis_names={"data"},
            )
            gradient = np.asarray(jax.jit(jax.grad(function))(w))
            found[name] = {
                "value": float(jax.jit(function)(w)),
                "eager": float(function(w)),
                "gradient": gradient.tobytes() == BOTH.gradient(HOST).tobytes(),
            }
        whole = jax.shard_map(
            lambda w: sharded_penalty(mesh, Spec(), BOTH)(w),
            in_specs=Spec("data", "model"),
            out_specs=Spec(),
        )
        own = jax.shard_map(
            lambda w: jax.lax.psum(sharded_penalty(mesh, Spec("data"), BOTH)(w), "data"),
            in_specs=Spec("data"),
            out_specs=Spec(),
            axis_names={"data"},
        )
        found["refused"] = [error_of(lambda: whole(w)), error_of(lambda: own(w))]
    return found


if __name__ == "__main__":
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    facts = {"refusals": refusals(mesh), "values": values(mesh), "expected": float(BOTH(HOST))}
    facts["partly_manual"] = (
        {kind: partly_manual(kind) for kind in ("Auto", "Explicit")} if IS_RECENT else None
    )
    json.dump(facts, sys.stdout)
