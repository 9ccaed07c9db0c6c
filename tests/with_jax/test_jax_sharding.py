"""Penalties of sharded arrays, on four devices of the host in a process of their own."""

import json
from pathlib import Path

import interpreter
import pytest

PROGRAM = Path(__file__).with_name("sharded_program.py")
EAGER = Path(__file__).with_name("eager_program.py")
CASES = ("float32", "float32_with_float64", "float64")


@pytest.fixture(scope="module")
def facts():
    printed = interpreter.runs(
        f"import runpy; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')",
        XLA_FLAGS="--xla_force_host_platform_device_count=4",
        JAX_PLATFORMS="cpu",
    )
    return json.loads(printed)


def same(pair, tolerance):
    value, expected = pair
    return value == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_sharded_parameters(facts, case):
    found = facts[case]
    # One device gives the same: to the last digits of what JAX sums in, and of the result.
    assert same(found["value"], 1e-12 if case == "float64" else 2e-7)
    assert found["dtype"] == ("float64" if case == "float64" else "float32")
    assert found["collectives"] == dict.fromkeys(found["collectives"], 0) | {"all-reduce": 1}
    assert found["gradient_keeps_bits"]
    assert found["gradient_keeps_sharding"]
    assert found["prox_keeps_bits"]
    assert found["prox_keeps_sharding"]
    assert len(found["transformations"]) >= 10
    assert all(found["transformations"])


@pytest.mark.parametrize("case", CASES)
def test_sharded_arrays_outside_of_programs(facts, case):
    found = facts[case]
    assert same(found["eager"], 1e-12 if case == "float64" else 2e-7)
    assert same(found["replicated"], 1e-12 if case == "float64" else 2e-7)
    assert found["eager_gradient_keeps_sharding"]


@pytest.mark.parametrize("case", CASES)
def test_inside_a_shard_map(facts, case):
    assert same(facts[case]["shard_map"], 1e-12 if case == "float64" else 2e-7)


@pytest.mark.parametrize("case", CASES)
def test_gradients_inside_a_shard_map(facts, case):
    gradients = facts[case]["shard_map_gradients"]
    if gradients is None:
        pytest.skip("this JAX cannot tell what devices share")
    assert len(gradients) == 4
    assert max(gradients) <= (1e-12 if case == "float64" else 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients_by_name_inside_a_shard_map(facts, case):
    errors = facts[case]["named_gradients_inside"]
    if errors is None:
        pytest.skip("this JAX cannot tell what devices share")
    assert len(errors) == 6
    assert max(errors) <= (1e-12 if case == "float64" else 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_on_explicit_axes(facts, case):
    found = facts[case]["explicit"]
    if found is None:
        pytest.skip("this JAX has no jax.set_mesh, and so no explicit axes")
    assert same(found["value"], 1e-12 if case == "float64" else 2e-7)
    assert found["collectives"] == dict.fromkeys(found["collectives"], 0) | {"all-reduce": 1}
    assert found["gradient_is_sharded"]


# ------------------------------------------------------------------- outside of programs


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    printed = interpreter.runs(
        f"""
        import runpy, sys
        sys.path.insert(0, {str(EAGER.parent)!r})
        sys.argv = ["", {str(folder)!r}]
        runpy.run_path({str(EAGER)!r}, run_name="__main__")
        """,
        XLA_FLAGS="--xla_force_host_platform_device_count=4 --xla_dump_hlo_as_text "
        f"--xla_dump_to={folder}",
        JAX_PLATFORMS="cpu",
    )
    return json.loads(printed)


@pytest.mark.parametrize(
    "case", ["value", "grad", "vjp", "strengths", "value_and_grad", "value_and_grad of value"]
)
def test_one_all_reduce_and_no_gathering_outside_of_programs(eager, case):
    found = eager["cases"][case]
    assert found["programs"] > 0
    all_reduces = {"strengths": 3}.get(case, 1)  # for strengths, the two sums as well
    assert found["collectives"] == dict.fromkeys(found["collectives"], 0) | {
        "all-reduce": all_reduces
    }


def test_a_gradient_alone_has_no_collective(eager):
    found = eager["cases"]["gradient"]
    assert found["programs"] > 0
    assert set(found["collectives"].values()) == {0}


@pytest.mark.parametrize("case", ["grad", "gradient", "value_and_grad", "value_and_grad of value"])
def test_gradients_are_where_the_parameters_are(eager, case):
    found = eager["cases"][case]["gradients"]
    if case == "value_and_grad of value":
        del found["step"]  # JAX makes these zeros, for what the value does not depend on
    assert found
    assert all(found.values())


@pytest.mark.parametrize(
    ("case", "arrays"), [("value", 0), ("grad", 1), ("gradient", 1), ("value_and_grad", 1)]
)
def test_memory_outside_of_programs(eager, case, arrays):
    grown = eager["cases"][case]["grown"]
    if grown is None:
        pytest.skip("this system cannot reset the peak of a process's memory")
    assert grown < (arrays + 0.5) * eager["size"]
