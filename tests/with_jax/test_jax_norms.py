"""fastreg.norms and fastreg.clip_by_global_norm of JAX's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fastreg


def test_norms(backend):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 99)), jnp.bfloat16)
    found = fastreg.norms({"x": x})["x"]
    assert found == fastreg.norms([np.asarray(x)])["0"]


def test_clip_is_refused(backend):
    good = np.full(3, 9.0)
    with pytest.raises(BufferError, match=r"tensors\['x'\] is a JAX array, which is immutable"):
        fastreg.clip_by_global_norm({"good": good, "x": jnp.ones(3)}, 1.0)
    assert (good == 9.0).all()


def test_tracers_are_refused(backend):
    with pytest.raises(TypeError, match=r"tensors\['0'\] is a JAX tracer.*outside of jax.jit"):
        jax.jit(lambda x: fastreg.norms([x]))(jnp.ones(3))
