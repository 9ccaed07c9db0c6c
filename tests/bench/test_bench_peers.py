"""Who takes part: everyone computes the case, is checked, and leaves things as they were."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from fastreg.bench.accuracy import START, errors
from fastreg.bench.cases import DTYPES, OUTPUTS, TERMS, Case, cases
from fastreg.bench.peers import PEERS, Fastreg, Floor, Peer, Prepared, installed
from fastreg.bench.peers.with_torch import TorchCompile
from fastreg.bench.row import ONE_TENSOR
from fastreg.bench.run import measure
from fastreg.bench.workloads import Tensors, Workload, workloads

pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")

HALF = ("f16", "bf16")

#: Cells that show every branch of a peer, few enough for those that compile each one.
FEW = [
    *cases([33], [], ["f32"], ["L1L2"], list(OUTPUTS)),
    Case("f16", "L1", "value+gradient", 33),
    Case("bf16", "L2", "value+add", 33),
    Case("f64", "L1L2", "value+gradient", 33),
]
EVERY = cases([33], [], list(DTYPES), list(TERMS), list(OUTPUTS))


def session(name: str) -> Any:
    if name not in installed():
        pytest.skip(f"{name} is not installed")
    return PEERS[name].session(2)


def errors_of(peer: Peer, workload: Workload) -> Any:
    """Those of the row; the gradient's in units of the dtype's rounding."""
    row = measure(workload, [peer], repeats=1)
    assert row.blanks == {}
    if peer.name not in row.samples:
        return None
    return row.errors[peer.name]


@pytest.mark.parametrize("name", PEERS)
def test_peers_compute_the_case(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # traced as ever; .ci/run has the run with the C++ compiler, which takes seconds for each case
    monkeypatch.setattr(TorchCompile, "backend", "eager")
    few = ("torch-compile", "jax", "numba", "numba-f32", "keras")
    with session(name):
        for workload in workloads(FEW if name in few else EVERY):
            case = workload.case
            found = errors_of(PEERS[name], workload)
            has_value = OUTPUTS[case.outputs].has_value
            missing = {
                "numpy-dot": case.terms == "L1" or not has_value,
                "numba": case.dtype in HALF,
                "numba-f32": case.dtype != "f32" or not has_value,
                "numexpr": case.dtype in HALF,
            }
            if missing.get(name, False):
                assert found is None
            else:
                # Keras sums half precision in half precision
                value_bits = {"f16": 10, "bf16": 7}.get(case.dtype, 20) if name == "keras" else 20
                assert (found.value is not None) == has_value
                assert (found.value or 0.0) < 2.0**-value_bits
                # two roundings to the gradient's dtype
                bits = {"f16": 11, "bf16": 8, "f32": 24, "f64": 53}[case.dtype]
                assert (found.gradient is not None) == (case.outputs != "value")
                assert (found.gradient or 0.0) < 2 * 2.0**-bits


@pytest.mark.parametrize("name", PEERS)
def test_peers_do_all_tensors_of_a_model(
    name: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchCompile, "backend", "eager")
    with session(name):
        for outputs in OUTPUTS:
            (workload,) = workloads([Case("f32", "L1L2", outputs, 43, tiny_model)])
            found = errors_of(PEERS[name], workload)
            if OUTPUTS[outputs].has_value or name not in ("numpy-dot", "numba-f32"):
                assert (found.value or 0.0) < 2.0**-20
                assert (found.gradient or 0.0) < 2.0**-22


@pytest.mark.parametrize("dtype", DTYPES)
def test_fastreg_is_exact(dtype: str, tiny_model: str) -> None:
    for workload in workloads(cases([1, 33], [tiny_model], [dtype], list(TERMS), list(OUTPUTS))):
        case = workload.case
        row = measure(workload, [], repeats=1)
        assert set(row.samples) == {"fastreg", "floor", *([ONE_TENSOR] if case.model else [])}
        assert (row.errors["fastreg"].value or 0.0) < 1e-15
        bits = {"f16": 11, "bf16": 8, "f32": 23, "f64": 52}[dtype]
        assert (row.errors["fastreg"].gradient or 0.0) <= 2.0**-bits
        share = row.seconds("floor").median / row.seconds("fastreg").median
        assert row.share_of_floor("fastreg").median == pytest.approx(share)


def test_fastreg_writes_the_preallocated_gradients(tiny_model: str) -> None:
    for model in ("", tiny_model):
        for outputs in ("gradient", "value+gradient", "add", "value+add"):
            (workload,) = workloads([Case("f32", "L1L2", outputs, 43, model)])
            Fastreg().make(workload).call()
            assert all(gradient.all() for gradient in workload.tensors.gradients)


@pytest.mark.parametrize("dtype", DTYPES)
def test_floors_do_their_work(dtype: str) -> None:
    for workload in workloads(cases([64], [], [dtype], ["L1"], list(OUTPUTS))):
        Floor().make(workload).call()
    # the copy, then two additions: one for add, one for value+add
    (weights,), scratch = workload.as_one.weights, workload.scratch
    if dtype in ("f32", "f64"):
        assert np.array_equal(scratch, weights + weights + weights)
    else:
        assert np.array_equal(
            scratch.view(np.float32), 3 * weights.view(np.float32), equal_nan=True
        )
    assert not workload.tensors.gradients[0].any()


class Stub(Peer):
    """Return a value, the right one unless told, and puts a number into the gradients."""

    name = "stub"
    summary = "wrong"

    def __init__(self, value: float | None, gradient: float = 0.0) -> None:
        self.value, self.gradient = value, gradient

    def make(self, workload: Workload) -> Prepared | None:
        right = workload.case.strengths[0] * workload.tensors.sums[0]

        def call() -> float:
            workload.fill_gradients(self.gradient)
            return right if self.value is None else self.value

        return Prepared(call, lambda: workload.tensors.gradients)


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        (Stub(1.0), "its value is off by "),
        (Stub(float("nan")), "its value is off by inf%"),
        (Stub(None), "its gradient is off by 100.0%"),
        (Stub(None, float("nan")), "its gradient is off by inf%"),
    ],
)
def test_a_wrong_peer_is_a_blank(stub: Stub, reason: str) -> None:
    (workload,) = workloads([Case("f32", "L1", "value+gradient", 64)])
    row = measure(workload, [stub], repeats=1)
    assert set(row.samples) == {"fastreg", "floor"}
    assert row.blanks["stub"].startswith(reason)


def test_a_peer_that_fails_is_a_blank() -> None:
    class Failing(Stub):
        def make(self, workload: Workload) -> Prepared | None:
            raise RuntimeError("no compiler\nsee the manual")

    (workload,) = workloads([Case("f32", "L1", "value", 64)])
    row = measure(workload, [Failing(0.0)], repeats=1)
    assert row.blanks == {"stub": "RuntimeError: no compiler see the manual"}


def test_fastreg_must_be_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fastreg, "make", Stub(1.0).make)
    (workload,) = workloads([Case("f32", "L1", "value", 64)])
    with pytest.raises(RuntimeError, match="fastreg's result is wrong on f32 L1 value at 64"):
        measure(workload, [], repeats=1)


def test_keras_overflows_in_half_precision() -> None:
    with session("keras"):
        (workload,) = workloads([Case("f16", "L1", "value", 1 << 21)])
        row = measure(workload, [PEERS["keras"]], repeats=1)
    assert row.blanks == {"keras": "its value is off by inf%"}


def test_errors_are_of_every_tensor() -> None:
    weights = [np.full(3, 0.5), np.full(2, -0.25)]
    case = Case("f64", "L2", "value+add", 5)
    right = [START + 2e-2 * w for w in weights]
    value = 1e-2 * (3 * 0.25 + 2 * 0.0625)
    exact = errors(case, Tensors(weights, []), value, right)
    assert (exact.value, exact.gradient) == (pytest.approx(0, abs=1e-15), 0.0)
    right[1][1] += 1e-3
    off = errors(case, Tensors(weights, []), 1.1 * value, right)
    assert off.value == pytest.approx(0.1)
    assert off.gradient == pytest.approx(1e-3 / (START + 1e-2))


def test_threads_are_put_back() -> None:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with PEERS["torch"].session(before + 1) as threads:
        assert threads == torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_jax_computes_in_float64_for_a_while() -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    with PEERS["jax"].session(2):
        assert jax.config.jax_enable_x64
    assert jax.config.jax_enable_x64 == before


def printed(script: str) -> list[str]:
    """The lines that a process of its own prints."""
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_only_those_asked_for_are_imported() -> None:
    script = (
        "import sys; from fastreg.__main__ import main; "
        "main(['bench', '--sizes', '8', '--repeats', '1', '--peers', 'numpy', '--no-step']); "
        "heavy = {'torch', 'jax', 'numba', 'numexpr', 'keras', 'matplotlib'}; "
        "print(sorted(heavy & {*sys.modules}))"
    )
    assert printed(script)[-1] == "[]"


def test_jax_starts_with_the_threads_asked_for() -> None:
    if "jax" not in installed():
        pytest.skip("jax is not installed")
    script = (
        "import os; from fastreg.bench.peers import PEERS\n"
        "with PEERS['jax'].session(1) as threads:\n"
        "    print(threads, 'NPROC' in os.environ)\n"
        "with PEERS['jax'].session(2) as threads:\n"
        "    print(threads)\n"
    )
    assert printed(script) == ["1 False", "0"]
