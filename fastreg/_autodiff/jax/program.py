"""What one device computes in a program of JAX: values of penalties, without their derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from . import ffi
from .strengths import TERM_L1, TERM_L2, as_reals, real


class Form(NamedTuple):
    """The static arguments of a call: a program is compiled for each."""

    which: tuple[int, ...]
    terms: tuple[int | None, ...]
    constants: tuple[float, ...]
    """Strengths in pairs, for CUDA, where operands are in device memory; else empty."""
    dtype: Any
    """Of the results."""
    platforms: tuple[str, ...]
    """Platforms on which the core is called."""
    mesh: Any = None
    """Where the caller says that the tensors are sharded; None where they say so themselves."""
    specs: tuple[Any, ...] = ()


def local(form: Form, weights: Any, operands: Any, slopes: Any) -> tuple[Any, Any]:
    """Compute one device's program: by the core on the platforms that it serves."""

    def core(platform: str) -> Any:
        return lambda weights, operands, slopes: ffi.call(
            platform, weights, operands, form.which, form.constants, form.dtype
        )

    def plain(weights: Any, operands: Any, slopes: Any) -> tuple[Any, Any]:
        return _plain(form, weights, operands, slopes)

    if not form.platforms:
        return plain(weights, operands, slopes)
    branches = {platform: core(platform) for platform in form.platforms}
    result: tuple[Any, Any] = jax.lax.platform_dependent(
        weights, operands, slopes, default=plain, **branches
    )
    return result


def _plain(form: Form, weights: Any, operands: Any, slopes: Any) -> tuple[Any, Any]:
    values = []
    for w, rule in zip(weights, form.which, strict=True):
        terms = form.terms[rule]
        strengths = as_reals(operands[rule], slopes[rule])
        x = w.astype(real())
        value = jnp.zeros((), real())
        for term, strength, power in (
            (TERM_L1, strengths[0], jnp.abs),
            (TERM_L2, strengths[1], jnp.square),
        ):
            if terms is None:
                value += jnp.where(strength != 0, strength * power(x).sum(), 0)
            elif terms & term:
                value += strength * power(x).sum()
        values.append(value)
    stacked = jnp.stack(values)
    return stacked.astype(form.dtype), stacked.sum().astype(form.dtype)
