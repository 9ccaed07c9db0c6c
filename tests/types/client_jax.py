"""What a user of JAX has of the types; checked, and run."""

# pyright: reportUnknownMemberType=false
# What JAX itself has not annotated.

import jax
import jax.numpy as jnp
from typing_extensions import assert_type

import fastreg.jax
from fastreg import penalties
from fastreg.regularizers import L1, L1L2, L2

w = jnp.ones((3, 4))
params = {"dense": {"kernel": w, "bias": jnp.zeros(4)}}

# One array.
assert_type(L1(0.01)(w), jax.Array)
assert_type(L2(0.01).gradient(w, scale=0.5), jax.Array)
assert_type(L2(0.01).value_and_grad(w), tuple[jax.Array, jax.Array])
assert_type(L1(0.01).prox(w, 0.1), jax.Array)
assert_type(fastreg.jax.penalty(w, l1=jnp.asarray(0.5), l2=1e-4), jax.Array)


def scheduled(w: jax.Array, factor: jax.Array) -> jax.Array:  # to be traced
    assert_type(L1(0.01).prox(w, factor), jax.Array)
    return L2(0.01)(w, scale=factor)


jax.jit(scheduled)(w, jnp.asarray(0.5))

# A tree.
attached = fastreg.jax.attach(params, {"*kernel": L1L2(l1=1e-5, l2=1e-4)})
assert_type(attached, fastreg.jax.TreePenalties)
assert_type(attached.value(params, scale=0.5), jax.Array)
assert_type(attached.gradient(params), dict[str, dict[str, jax.Array]])
assert_type(attached.value_and_grad(params), tuple[jax.Array, dict[str, dict[str, jax.Array]]])
assert_type(attached.prox(params, 0.1), dict[str, dict[str, jax.Array]])
assert_type(attached.report(params), penalties.Report)
assert_type(fastreg.attach({"w": w}, "l2").gradient(), dict[str, jax.Array])

# For optax.
transformation = fastreg.jax.proximal({"*kernel": L1(0.01)}, lambda count: 0.1)
assert_type(transformation, fastreg.jax.Transformation)
assert_type(fastreg.jax.add_penalty("l2", scale=0.5), fastreg.jax.Transformation)
state = transformation.init(params)

mesh = jax.sharding.Mesh(jax.devices(), ("data",))
spec = jax.sharding.PartitionSpec("data")  # type: ignore[no-untyped-call]
sharded = fastreg.jax.sharded_penalty(mesh, spec, L1(0.01))
assert_type(sharded(params), jax.Array)
