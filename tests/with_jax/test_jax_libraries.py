"""Whose array: classes of JAX in the table of libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

from fastreg._arrays import libraries  # noqa: E402
from fastreg._arrays.jax_arrays import JAX  # noqa: E402
from fastreg.regularizers import L2  # noqa: E402


def test_arrays_and_tracers():
    for x in (jnp.ones(3), jax.random.key(0)):
        row = libraries.library_of(type(x))
        assert type(row) is JAX
        assert not row.is_tracer
        assert libraries.TABLE[type(x)] is row

    def traced(x):
        row = libraries.library_of(type(x))
        assert type(row) is JAX
        assert row.is_tracer
        assert libraries.is_tracer(x)
        return x.sum()

    for transformed in (jax.jit(traced), jax.grad(traced), jax.vmap(traced)):
        transformed(jnp.ones((2, 3)) if transformed.__name__ == "vmap" else jnp.ones(3)[None])


def test_holders_of_arrays():
    class Holder:
        def __jax_array__(self):
            return jnp.full(3, 2.0)

    class Derived(Holder):
        pass

    for kind in (Holder, Derived):
        x = kind()
        assert libraries.holds_jax_array(x)
        row, array = libraries.owner(x)
        assert type(row) is JAX
        assert isinstance(array, jax.Array)
        assert L2(0.5)(x) == 6.0
    assert not libraries.holds_jax_array(jnp.ones(3))


def test_jax_is_imported_after_fastreg():
    code = """if True:
        import fastreg, sys
        rule = fastreg.regularizers.L1(0.5)
        assert "jax" not in sys.modules
        class Holder:
            def __jax_array__(self):
                import jax.numpy
                return jax.numpy.full(3, 2.0)
        try:
            rule(Holder())
        except TypeError:
            pass
        else:
            raise AssertionError
        import jax
        assert isinstance(rule(Holder()), jax.Array)
        assert float(rule(Holder())) == 3.0
        assert float(jax.jit(lambda w: rule(w))(jax.numpy.full(3, 2.0))) == 3.0
    """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
