"""Policies: the same bits under each, and the one that the environment names."""

import json

import numpy as np
import pytest
from interpreter import runs

import fastreg
from fastreg import _info
from fastreg._engine import backend
from fastreg.regularizers import L1, L1L2

core = _info.native_core()
pytestmark = pytest.mark.skipif(core is None, reason="needs the compiled core")

WEIGHTS = {
    dtype: (np.random.default_rng(1).standard_normal(300_001) * 0.01).astype(dtype)
    for dtype in (np.float16, np.float32, np.float64)
}


@pytest.fixture(autouse=True)
def _own_policy_and_instruction_set():
    instruction_set = core.instruction_set()
    forced = core.policy()["name"] if core.policy()["forced"] else ""
    yield
    core.set_policy(forced)
    core.set_instruction_set(instruction_set)


def results(dtype, count):
    """Return the bits of all outputs: value, gradient, both, and both added."""
    reg, weights = L1L2(l1=1e-4, l2=1e-3), WEIGHTS[dtype][:count]
    new = reg.gradient(weights)
    given = np.empty_like(weights)
    value = reg.value_and_grad(weights, out=given)[0]
    added = np.full_like(weights, 0.5)
    summed = reg.accumulate(weights, added)
    return [float(x).hex() for x in (reg(weights), value, summed)] + [
        array.tobytes() for array in (new, given, added)
    ]


def results_of_steps(dtype, count):
    """Return the bits of norms, of a proximal step, and of steps after each kind of clip."""
    weights = WEIGHTS[dtype][:count]
    found = [
        repr(fastreg.norms({"w": weights}).total),
        L1L2(1e-4, 1e-3).prox(weights, 0.5).tobytes(),
    ]
    for clip, mode in (("data", "proximal"), ("total", "gradient")):
        parameters = {"w": weights.copy()}
        optimizer = fastreg.optimizers.AdamW(
            parameters, lr=1e-2, rules=L1(1e-3), mode=mode, max_norm=1e-3, clip=clip
        )
        taken = optimizer.step({"w": weights[::-1].copy()})
        found += [taken.penalty.hex(), taken.norm.hex(), taken.zeros, parameters["w"].tobytes()]
    return found


def test_python_has_the_names():
    assert tuple(core.policy_names()) == backend.POLICIES


@pytest.mark.parametrize(
    ("found", "count"),
    [(results, 1), (results, 1000), (results, 300_001), (results_of_steps, 300_001)],
)
@pytest.mark.parametrize("dtype", WEIGHTS, ids=lambda dtype: dtype.__name__)
def test_the_same_bits_under_every_policy(dtype, found, count):
    core.set_policy("plain")
    core.set_instruction_set("portable")
    expected = found(dtype, count)
    for instruction_set in core.instruction_sets():
        core.set_instruction_set(instruction_set)
        for policy in backend.POLICIES:
            core.set_policy(policy)
            assert found(dtype, count) == expected, (instruction_set, policy)


@pytest.mark.parametrize("name", backend.POLICIES)
def test_policy_of_the_environment(name):
    code = "import json; from fastreg import _core; print(json.dumps(_core.policy()))"
    facts = json.loads(runs(code, FASTREG_POLICY=name))
    assert facts["name"] == name
    assert facts["forced"] is True
    assert facts["reason"] == "forced by FASTREG_POLICY"


def test_a_wrong_name_in_the_environment_is_told_all_names():
    code = """
        try:
            import fastreg
        except ValueError as error:
            print(error)
    """
    printed = runs(code, FASTREG_POLICY="bogus")
    assert all(repr(name) in printed for name in backend.POLICIES), printed


def test_a_wrong_name_changes_nothing():
    core.set_policy("near")
    with pytest.raises(ValueError, match=r"^name must be one of 'default', .*, not 'fast'$"):
        core.set_policy("fast")
    assert core.policy()["name"] == "near"
    core.set_policy("")
    assert core.policy()["forced"] is False
