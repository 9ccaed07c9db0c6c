"""Specs, meshes and a partly manual shard_map, on four devices in a process of their own."""

import json
from pathlib import Path

import interpreter
import pytest

PROGRAM = Path(__file__).with_name("specs_program.py")

REFUSALS = {
    "uneven": ("ValueError", "params['a'] has 7 elements along axis 0, which 2 devices ('data')"),
    "both axes": ("ValueError", "6 elements along axis 0, which 4 devices ('data', 'model')"),
    "unknown": ("ValueError", "the spec of params['a'], ", "names 'dat'", "are 'data', 'model'"),
    "long": ("ValueError", "the spec of params, ", "has more entries than its shape (8, 6)"),
    "other mesh": ("ValueError", "the sharding of params['a'] is over the mesh {'x': 4}"),
    "no spec": ("TypeError", "the spec of params['a'] must be a PartitionSpec", "not None"),
    "text": ("TypeError", "must be a PartitionSpec or NamedSharding, not str 'data'"),
    "missing": ("ValueError", "specs must be a PartitionSpec, or a tree of them"),
    "no mesh": ("TypeError", "specs are those of a mesh, which is missing"),
    "text as mesh": ("TypeError", "mesh must be a jax.sharding.Mesh, not str 'data'"),
    "specs alone": ("TypeError", "pass mesh as well"),
}


@pytest.fixture(scope="module")
def facts():
    printed = interpreter.runs(
        f"""
        import runpy, sys
        sys.path.insert(0, {str(PROGRAM.parent)!r})
        runpy.run_path({str(PROGRAM)!r}, run_name="__main__")
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_PLATFORMS="cpu",
    )
    return json.loads(printed)


@pytest.mark.parametrize("case", REFUSALS)
def test_what_does_not_fit_is_refused_by_name(facts, case):
    kind, message = facts["refusals"][case]
    expected, *parts = REFUSALS[case]
    assert kind == expected
    for part in parts:
        assert part in message


@pytest.mark.parametrize("case", ["shardings", "tree of shardings", "report"])
def test_shardings_are_specs(facts, case):
    value, expected = facts["values"][case]
    assert value == pytest.approx(expected, rel=2e-7)


def test_rules_as_an_argument_are_a_schedule(facts):
    found = facts["values"]
    assert found["scheduled"] == pytest.approx(found["expected"], rel=2e-7)
    assert found["compiled"] == 1


def test_a_report_counts_zeros_of_sharded_leaves(facts):
    assert facts["values"]["zeros"] == 1 / 8


@pytest.mark.parametrize("penalty", ["one", "tree", "sharded"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_inside_a_shard_map_over_some_axes(facts, kind, penalty):
    if facts["partly_manual"] is None:
        pytest.skip("this JAX has no jax.set_mesh")
    found = facts["partly_manual"][kind][penalty]
    assert found["value"] == pytest.approx(facts["expected"], rel=2e-7)
    assert found["eager"] == pytest.approx(facts["expected"], rel=2e-7)
    assert found["gradient"]


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_penalty_over_axes_that_are_taken_is_refused(facts, kind):
    if facts["partly_manual"] is None:
        pytest.skip("this JAX has no jax.set_mesh")
    whole, own = facts["partly_manual"][kind]["refused"]
    assert "inside a shard_map over all axes" in whole[1]
    assert "names 'data', which is no axis of the mesh, or one of a shard_map" in own[1]
