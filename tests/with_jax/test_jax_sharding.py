"""Penalties of sharded arrays, on four devices of the host in a process of their own."""

import json
from pathlib import Path

import interpreter
import pytest

PROGRAM = Path(__file__).with_name("sharded_program.py")
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
def test_on_explicit_axes(facts, case):
    found = facts[case]["explicit"]
    if found is None:
        pytest.skip("this JAX has no jax.set_mesh, and so no explicit axes")
    assert same(found["value"], 1e-12 if case == "float64" else 2e-7)
    assert found["collectives"] == dict.fromkeys(found["collectives"], 0) | {"all-reduce": 1}
    assert found["gradient_is_sharded"]
