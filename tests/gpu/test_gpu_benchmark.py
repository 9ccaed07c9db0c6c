"""The benchmark for a GPU: all variants compute the same, and what a run says of itself.

The same bodies run on a GPU, where CuPy is among the peers, and on tensors in host memory.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import benchmark
import gpu_peers
import numpy as np
import pytest
from makers import AUTOGRAD

from fastreg.__main__ import main
from fastreg.bench.cases import OUTPUTS, TERMS, Case
from fastreg.bench.peers import Peer, Prepared
from fastreg.bench.shapes import MODELS
from fastreg.bench.workloads import Tensors, Workload


def workload_of(torch: Any, case: Case, place: Any) -> Workload:
    """Return a case with its arrays; the gradients are what the weights are."""
    (workload,) = gpu_peers.workloads(torch, [case], place)
    for weights, gradient in zip(workload.tensors.weights, workload.tensors.gradients, strict=True):
        gradient.copy_(weights)
    return workload


def outcome(peer: Peer, workload: Workload) -> list[np.ndarray] | None:
    """Return the value, and the gradients that a call leaves; those of a value are left alone."""
    prepared = peer.make(workload)
    if prepared is None:
        return None
    result = prepared.call()
    value = prepared.value(result) if OUTPUTS[workload.case.outputs].has_value else 0.0
    gradients = [workload.tensors.as_float64(found) for found in prepared.gradients()]
    return [np.array(value), *gradients]


@pytest.mark.needs(AUTOGRAD)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("terms", TERMS)
def test_all_variants_compute_the_same(
    maker: Any, dtype: str, terms: str, outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = maker.torch
    if not maker.on_gpu:  # what is compiled is recorded whole, but run as it is: that is quick
        monkeypatch.setattr(gpu_peers.TorchCompile, "backend", "eager")
    case = Case(dtype, terms, outputs, 4097)
    tolerance = {"f16": 2e-3, "bf16": 2e-2, "f32": 1e-5, "f64": 1e-5}[dtype]
    workload = workload_of(torch, case, maker.place(0))
    expected = outcome(gpu_peers.OnDevice(), workload)
    assert expected is not None
    assert (expected[0] != 0.0) == OUTPUTS[outputs].has_value
    unchanged = np.array_equal(
        expected[1], workload.tensors.as_float64(workload.tensors.weights[0])
    )
    assert unchanged == (outputs == "value")
    made = []
    for name, peer in gpu_peers.PEERS.items():
        if gpu_peers.usable([name], maker.on_gpu)[1]:
            continue
        found = outcome(peer, workload_of(torch, case, maker.place(0)))
        if found is None:
            continue
        made.append(name)
        for one, wanted in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, wanted, rtol=tolerance, atol=1e-6, err_msg=name)
    assert {"torch", "torch-compile"} <= set(made)


@pytest.mark.needs(AUTOGRAD)
def test_floors_move_what_a_cell_moves(maker: Any) -> None:
    workload = workload_of(maker.torch, Case("f32", "L1", "value", 100), maker.place(0))
    (weights,) = workload.as_one.weights
    assert gpu_peers.Floor("read").make(workload).call().dtype == maker.torch.float32
    copied = gpu_peers.Floor("copy").make(workload).call()
    assert copied.equal(weights)
    added = gpu_peers.Floor("add").make(workload).call()
    assert added.equal(2 * weights)


@pytest.mark.needs(AUTOGRAD)
def test_lists_compute_the_same(maker: Any) -> None:
    torch = maker.torch
    name = "12 small tensors"
    size = sum(math.prod(shape) for shape in gpu_peers.LISTS[name].values())
    case = Case("f32", "L1L2", "value+add", size, name)
    expected = outcome(gpu_peers.OnDevice(), workload_of(torch, case, maker.place(0)))
    assert expected is not None
    assert len(expected) == 13
    for peer in ("torch", "torch-foreach"):
        found = outcome(gpu_peers.PEERS[peer], workload_of(torch, case, maker.place(0)))
        assert found is not None
        assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-5)
        for mine, other in zip(expected[1:], found[1:], strict=True):
            np.testing.assert_allclose(other, mine, rtol=1.3e-6, atol=1e-5)


@pytest.mark.needs(AUTOGRAD)
def test_exact_sums_and_samples_are_those_of_the_host(maker: Any, dtype: str) -> None:
    place = maker.place(0)
    workload = workload_of(maker.torch, Case(dtype, "L1", "value", 100_003), place)
    tensors = workload.tensors
    on_host = Tensors([tensors.as_float64(w) for w in tensors.weights], [])
    assert tensors.sums == pytest.approx(on_host.sums, rel=1e-14)
    (weights,) = tensors.weights
    assert np.array_equal(tensors.sample(weights, 1000), on_host.sample(on_host.weights[0], 1000))


def test_models() -> None:
    lists = {case.model: case.size for case in benchmark.lists_of("cuda")}
    assert list(lists) == ["gpt2", "400 mixed tensors", "3,000 small tensors"]
    assert len(MODELS["gpt2"]) == 148
    assert lists["gpt2"] == 124_439_808
    assert len(gpu_peers.LISTS["3,000 small tensors"]) == 3000


def test_every_cell_once_in_order_of_weight() -> None:
    options = benchmark.parsed([])
    found = list(benchmark.cells(options.sizes, options.dtypes, options.terms, options.outputs))
    assert len(found) == len(set(found)) == 6 * 4 * 3 * 5
    assert {case.terms for case in found[: 6 * 4 * 5]} == {"L1L2"}
    assert found[0].size == 2**26


# ---- a run in host memory


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


ARGUMENTS = ("--device", "cpu", "--sizes", "1000", "--repeats", "2", "--dtypes", "f32", "--quiet")


def run(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    path = tmp_path / "rows.json"
    status = benchmark.main([*ARGUMENTS, "--json", str(path), *arguments])
    return status, json.loads(path.read_text())["stages"]["all"]


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize(("seconds", "turns"), [(0.0, 5), (100.0, 7)])
def test_a_case_ends_after_five_turns_when_the_time_is_used_up(seconds: float, turns: int) -> None:
    device = benchmark.Device("cpu", seconds, 7)
    for timer in (device.device_time, device.until_done, device.host_time):
        samples = device.in_turns(timer)({"a": lambda: None, "b": lambda: None}, 7, ())
        assert {name: len(taken) for name, taken in samples.items()} == {"a": turns, "b": turns}


@pytest.mark.usefixtures("torch")
def test_a_wrong_peer_is_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(gpu_peers.Torch):
        def make(self, workload: Workload) -> Prepared:
            return Prepared(lambda: 1.0, lambda: workload.tensors.gradients)

    monkeypatch.setitem(gpu_peers.PEERS, "torch", Wrong())
    arguments = ("--terms", "L2", "--outputs", "value", "--peers", "torch")
    status, result = run(tmp_path, *arguments)
    assert status == 1
    (row,) = result["rows"]
    assert "torch" not in row["variants"]
    assert row["blanks"]["torch"].startswith("its value is off by ")


@pytest.mark.usefixtures("torch")
def test_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = run(tmp_path, "--terms", "L1", "--peers", "torch,cupy")
    assert status == 0
    assert [row["outputs"] for row in result["rows"]] == list(OUTPUTS)
    row = result["rows"][4]
    assert set(row["variants"]) == {"fastreg", "copy", "add", "torch"}
    assert row["bytes"] == 12_000
    own = row["variants"]["fastreg"]
    assert own["gb_per_s"] == pytest.approx(12_000 / own["seconds"]["median"] / 1e9)
    assert own["errors"]["value"] < 1e-7
    assert set(result["peers_not_run"]) == {"cupy"}
    text = capsys.readouterr().out
    assert "cupy was not run" in text
    assert "say nothing about a GPU" in text


@pytest.mark.usefixtures("torch")
def test_what_there_was_no_time_for_is_named(tmp_path: Path) -> None:
    status, result = run(tmp_path, "--seconds", "0", "--peers", "torch")
    assert status == 1
    assert result["rows"] == []
    assert len(result["not_run"]) == 3 * 5
    assert {entry["reason"] for entry in result["not_run"]} == {"the time was used up"}


@pytest.mark.usefixtures("torch")
def test_a_peer_that_fails_is_told_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    class Broken(gpu_peers.Torch):
        def make(self, workload: Workload) -> Prepared | None:
            tries.append(workload.case)
            raise RuntimeError("it cannot")

    monkeypatch.setitem(gpu_peers.PEERS, "torch", Broken())
    status, result = run(tmp_path, "--terms", "L1", "--peers", "torch")
    assert status == 1
    assert len(result["rows"]) == 5
    in_rows = [case for case in tries if case.size == 1000]
    assert len(in_rows) == benchmark.MOST_FAILURES
    assert "FAILED: torch: RuntimeError: it cannot" in capsys.readouterr().out


@pytest.mark.usefixtures("torch")
def test_tables_with_and_without_rich(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, result = run(tmp_path, "--terms", "L1L2", "--outputs", "value", "--peers", "torch")
    capsys.readouterr()
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    benchmark.show(result)
    plain = capsys.readouterr().out
    assert "elements" in plain
    assert "1,000" in plain
    assert "┃" not in plain


@pytest.mark.usefixtures("torch")
def test_two_records_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    run(tmp_path, "--terms", "L1L2", "--peers", "torch", "--outputs", "value,add")
    path = str(tmp_path / "rows.json")
    capsys.readouterr()
    assert main(["bench", "compare", path, path]) == 0
    assert "2 cases: 0 faster, 0 slower; geometric mean of B / A 1.00" in capsys.readouterr().out
