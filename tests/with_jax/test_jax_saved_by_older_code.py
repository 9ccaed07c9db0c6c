"""What users of JAX have pickled loads: see ``tests/fixtures/make_fixtures.py``."""

import importlib.util
import pickle

import jax
import pytest
from interpreter import runs
from saved_pickles import FIXTURES, PROTOCOLS, unpickled

import fastreg.jax
from fastreg import regularizers


@pytest.fixture(params=PROTOCOLS)
def pickled(request):
    # Structures of trees are pickled by JAX, under private names of the version that did it.
    if importlib.util.find_spec("jaxlib._jax") is None:
        pytest.skip("this version of JAX does not read structures that JAX 0.10 has pickled")

    def load(name):
        return unpickled("jax_pickles.json", name, request.param)

    return load


def test_penalties(pickled):
    penalties = pickled("attach")
    assert type(penalties) is fastreg.jax.TreePenalties
    assert repr(penalties) == "<TreePenalties on 1 of 2 leaves: 'kernel'>"
    tree = {"kernel": jax.numpy.asarray([1.0, -2.0]), "bias": jax.numpy.asarray([3.0])}
    assert penalties.value(tree) == 2.75
    value, gradient = jax.jit(jax.value_and_grad(penalties.value))(tree)
    assert value == 2.75
    assert gradient["kernel"].tolist() == [1.0, -1.5]
    assert gradient["bias"].tolist() == [0.0]
    assert jax.tree_util.tree_leaves(penalties) == [0.5, 0.25]


def test_structure_of_regularizers(pickled):
    made = jax.tree_util.tree_unflatten(pickled("structure"), [0.5, 0.25])
    assert made == [regularizers.L1(0.5), regularizers.L2(0.25)]
    assert pickled("structure") == jax.tree_util.tree_structure(made)


def test_a_function_by_its_name():
    # Pickle names a function by its module: that of fastreg.jax.attach is as it was.
    assert pickle.loads(b"cfastreg.jax.attached\nattach\n.") is fastreg.jax.attach
    assert fastreg.jax.attach.__module__ == "fastreg.jax.attached"


def test_exported_program():
    pytest.importorskip("fastreg._core")
    pytest.importorskip("flatbuffers")  # jax.export needs it, and does not bring it
    # In a process of its own: it calls the core, which nothing but fastreg.jax is to register.
    printed = runs(f"""
        from pathlib import Path
        import jax
        import fastreg.jax
        saved = bytearray(Path({str(FIXTURES / "jax_program.bin")!r}).read_bytes())
        value, gradient = jax.export.deserialize(saved).call(jax.numpy.asarray([1.0, -2.0]))
        print(float(value), gradient.tolist())
    """)
    assert printed == "2.75 [1.0, -1.5]\n"
