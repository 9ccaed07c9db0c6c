"""A module where an array belongs: the error says what would do."""

import jax
import pytest

import fastreg
from fastreg.regularizers import L2


def equinox_module():
    equinox = pytest.importorskip("equinox")
    return equinox.nn.Linear(2, 3, key=jax.random.key(0))


def nnx_module():
    nnx = pytest.importorskip("flax.nnx")
    return nnx.Linear(2, 3, rngs=nnx.Rngs(0))


def linen_module():
    return pytest.importorskip("flax.linen").Dense(3)


@pytest.mark.parametrize("make", [equinox_module, nnx_module, linen_module])
def test_modules(make):
    module = make()
    for call in (L2(0.1), L2(0.1).gradient, lambda one: fastreg.attach(one, "l2")):
        with pytest.raises(TypeError, match=r"an array of it, layer\.\w+ .*fastreg\.jax\.attach\("):
            call(module)
