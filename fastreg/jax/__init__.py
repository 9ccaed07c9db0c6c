"""Penalties inside programs of JAX: under jit, grad and vmap, of trees of parameters, sharded.

A regularizer of ``fastreg.regularizers`` takes what JAX traces as it takes any other array::

    def loss(params, batch):
        return error(params, batch) + reg(params["kernel"])

    jax.value_and_grad(loss)

On the CPU, and on CUDA where the CUDA backend is there, its value comes from one call of the
compiled core, with the core's bits; elsewhere ``jax.numpy`` computes it.  The gradient is always
XLA's, fused with what uses it, and has the core's bits as well.

Strengths
---------
A strength of a regularizer that a function closes over is a constant of the compiled program: a
later ``reg.l1 = ...`` is not seen.  Schedules pass it as an argument, which compiles nothing anew:

- regularizers are pytrees once this module is imported, their strengths the leaves:
  ``jax.jit(step)(params, reg)``;
- :func:`penalty` takes strengths that are traced.

>>> import jax, jax.numpy as jnp
>>> import fastreg.jax
>>> from fastreg import regularizers
>>> w = jnp.asarray([1.0, -2.0, 0.0])
>>> jax.jit(jax.grad(regularizers.L1L2(l1=0.5, l2=0.25)))(w)
Array([ 1. , -1.5,  0. ], dtype=float32)
>>> step = jax.jit(lambda w, reg: reg(w))
>>> [float(step(w, regularizers.L1(l1))) for l1 in (0.5, 1.0)]  # compiled once
[1.5, 3.0]
"""

from __future__ import annotations

from .._autodiff.jax import ffi as _ffi
from . import handler as _handler  # noqa: F401 - documented: fastreg.jax.handler.reason
from . import pytrees
from .attached import TreePenalties, attach
from .functions import penalty, sharded_penalty
from .transformations import PenaltyState, Transformation, add_penalty, proximal

__all__ = [
    "PenaltyState",
    "Transformation",
    "TreePenalties",
    "add_penalty",
    "attach",
    "penalty",
    "proximal",
    "sharded_penalty",
]

pytrees.register()
_ffi.register("cpu")

# Messages name a class by its module: by this one, whichever file holds the class. So do pickles.
for _class in (PenaltyState, Transformation, TreePenalties):
    _class.__module__ = __name__
del _class
