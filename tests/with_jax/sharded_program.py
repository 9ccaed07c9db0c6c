"""What the tests of sharding look at, from one process with four devices: printed as JSON."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from fastreg._autodiff.jax.sharding import shard_map
from fastreg.jax import add_penalty, attach, proximal, sharded_penalty
from fastreg.regularizers import L1L2, OrthogonalRegularizer

BOTH = L1L2(0.3, 0.7)
# Explicit axes, and gradients inside of a shard_map by what its devices share.
IS_RECENT = hasattr(jax, "set_mesh")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def gradients_inside(mesh, penalties_of):
    """Return gradients by weights and strengths, of which the devices hold parts and the same."""

    def local(weights, regularizer):
        return jax.grad(penalties_of, (0, 1))(weights, regularizer)

    specs = ({"split": Spec("data"), "same": Spec()}, Spec())
    return jax.jit(shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs))


def shard_map_gradients(mesh, mixed):
    by_fastreg, by_jax = (
        jax.tree_util.tree_leaves(gradients_inside(mesh, penalties_of)(mixed, BOTH))
        for penalties_of in (
            lambda weights, regularizer: attach(weights, regularizer).value(weights),
            lambda weights, regularizer: sum(
                regularizer._l1 * jnp.abs(w).sum() + regularizer._l2 * jnp.square(w).sum()
                for w in weights.values()
            ),
        )
    )
    return [
        float(jnp.abs(one - other).max() / jnp.abs(other).max())
        for one, other in zip(by_fastreg, by_jax, strict=True)
    ]


def named_gradients_inside(mesh, mixed):
    """Return the greatest errors of gradients asked for by name: each is of this device's part."""
    specs = {"split": Spec("data"), "same": Spec()}

    def local(weights):
        penalties = attach(weights, BOTH)
        value, by_value = penalties.value_and_grad(weights)
        rows = OrthogonalRegularizer(0.5).value_and_grad(weights["split"])[1]
        return jax.lax.psum(value, "data"), by_value, penalties.gradient(weights), rows

    value, *trees, rows = jax.jit(
        shard_map(
            local,
            mesh=mesh,
            in_specs=(specs,),
            out_specs=(Spec(), specs, specs, specs["split"]),
        )
    )(mixed)
    host = {name: np.asarray(w) for name, w in mixed.items()}
    expected = {name: BOTH.gradient(w) for name, w in host.items()}
    parts = mesh.shape["data"]
    total = BOTH(host["split"]) + parts * BOTH(host["same"])
    angles = [OrthogonalRegularizer(0.5).gradient(w) for w in np.split(host["split"], parts)]
    pairs = [(tree[name], expected[name]) for tree in trees for name in host]
    pairs += [(value, total), (rows, np.concatenate(angles))]
    return [float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs]


def facts(dtype):
    rng = np.random.default_rng(0)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"))
    specs = {"kernel": Spec("data", None), "both": Spec(None, ("data", "model")), "bias": Spec()}
    host = {
        "kernel": rng.standard_normal((512, 64)).astype(dtype),
        "both": rng.standard_normal((3, 64)).astype(dtype),
        "bias": rng.standard_normal(64).astype(dtype),
    }
    params = {
        name: jax.device_put(array, NamedSharding(mesh, specs[name]))
        for name, array in host.items()
    }
    expected = sum(BOTH(array.astype(np.float64)) for array in host.values())
    program = jax.jit(jax.value_and_grad(sharded_penalty(mesh, specs, BOTH)))
    value, gradients = program(params)
    text = program.lower(params).compile().as_text()
    kernel = params["kernel"]
    inside = jax.jit(
        shard_map(
            lambda w: jax.lax.psum(BOTH(w), "data"),
            mesh=mesh,
            in_specs=Spec("data", None),
            out_specs=Spec(),
        )
    )
    one = float(BOTH(host["kernel"]))
    whole = jax.device_put(host["kernel"], NamedSharding(mesh, Spec()))
    return {
        "value": [float(value), expected],
        "dtype": str(value.dtype),
        "collectives": {name: text.count(f" {name}(") for name in COLLECTIVES},
        "calls": text.count(" custom-call("),
        "gradient_keeps_bits": all(
            np.asarray(gradients[name]).tobytes() == BOTH.gradient(array).tobytes()
            for name, array in host.items()
        ),
        "gradient_keeps_sharding": all(
            gradients[name].sharding.is_equivalent_to(params[name].sharding, array.ndim)
            for name, array in host.items()
        ),
        "prox_keeps_bits": all(
            np.asarray(step(kernel)).tobytes() == BOTH.prox(host["kernel"], 0.1).tobytes()
            for step in (lambda w: BOTH.prox(w, 0.1), jax.jit(lambda w: BOTH.prox(w, 0.1)))
        ),
        "prox_keeps_sharding": all(
            moved.sharding.is_equivalent_to(params[name].sharding, moved.ndim)
            for moves in (attach(params, BOTH).prox, jax.jit(attach(params, BOTH).prox))
            for name, moved in moves(params, 0.1).items()
        ),
        "transformations": transformation_facts(host, params),
        "eager": [float(BOTH(kernel)), one],
        "eager_gradient_keeps_sharding": BOTH.gradient(kernel).sharding.is_equivalent_to(
            kernel.sharding, 2
        ),
        "replicated": [float(BOTH(whole)), one],
        "shard_map": [float(inside(kernel)), one],
        "shard_map_gradients": (
            shard_map_gradients(mesh, {"split": kernel, "same": params["bias"]})
            if IS_RECENT
            else None
        ),
        "named_gradients_inside": (
            named_gradients_inside(mesh, {"split": kernel, "same": params["bias"]})
            if IS_RECENT
            else None
        ),
        "explicit": explicit_facts(host["kernel"], one) if IS_RECENT else None,
    }


def transformation_facts(host, params):
    """Return whether updates lie as the parameters do, with the numbers of one device."""
    found = []
    alone = {name: jnp.asarray(array) for name, array in host.items()}
    for transformation in (add_penalty(BOTH), proximal(BOTH, lambda count: 0.1 + count)):
        state = transformation.init(params)
        program = jax.jit(transformation.update)
        text = program.lower(params, state, params).compile().as_text()
        made = [update(params, state, params)[0] for update in (program, transformation.update)]
        wanted, _ = transformation.update(alone, state, alone)
        found += [not any(f" {name}(" in text for name in COLLECTIVES)]
        found += [
            one.sharding.is_equivalent_to(params[name].sharding, one.ndim)
            and np.allclose(one, wanted[name], rtol=1e-6, atol=1e-6)
            for each in made
            for name, one in each.items()
        ]
    return found


def explicit_facts(host, one):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    w = jax.device_put(host, NamedSharding(mesh, Spec("data", None)))
    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(BOTH))
        text = program.lower(w).compile().as_text()
        value, gradient = program(w)
    return {
        "value": [float(value), one],
        "collectives": {name: text.count(f" {name}(") for name in COLLECTIVES},
        "gradient_is_sharded": gradient.sharding.is_equivalent_to(w.sharding, 2),
    }


if __name__ == "__main__":
    results = {"float32": facts("float32")}
    jax.config.update("jax_enable_x64", True)
    results |= {"float32_with_float64": facts("float32"), "float64": facts("float64")}
    json.dump(results, sys.stdout)
