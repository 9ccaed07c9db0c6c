"""The benchmark for a GPU: all variants compute the same, and what a run says of itself.

The same bodies run on a GPU, where CuPy is among the peers, and on tensors in host memory.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import benchmark
import gpu_peers
import numpy as np
import pytest
from makers import AUTOGRAD

from fastreg.bench.cases import OUTPUTS, TERMS, Case


def numbers_of(torch: Any, x: Any) -> Any:
    if x is None:
        return None
    if isinstance(x, torch.Tensor):
        return x.double().cpu().numpy()
    if hasattr(x, "get"):  # CuPy's
        x = x.get()
    return np.asarray(x, np.float64)


@pytest.mark.needs(AUTOGRAD)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("terms", TERMS)
def test_all_variants_compute_the_same(
    maker: Any, dtype: str, terms: str, outputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = maker.torch
    if not maker.on_gpu:  # what is compiled is recorded whole, but run as it is: that is quick
        recorded = functools.partial(torch.compile, backend="eager")
        monkeypatch.setattr(torch, "compile", recorded)
    case = Case(dtype, terms, outputs, 4097)
    tolerance = {"f16": 2e-3, "bf16": 2e-2, "f32": 1e-5, "f64": 1e-5}[dtype]

    def fresh() -> gpu_peers.Workload:
        workload = gpu_peers.Workload(torch, case, maker.place(0))
        workload.gradient.copy_(workload.weights)
        return workload

    expected = [numbers_of(torch, x) for x in gpu_peers.fastreg_variant(fresh())()]
    assert (expected[0] is not None) == OUTPUTS[outputs].has_value
    assert (expected[1] is not None) == (outputs != "value")
    made = []
    for name, make in gpu_peers.PEERS.items():
        if benchmark.usable_peers([name], maker.on_gpu)[1]:
            continue
        variant = make(fresh())
        if variant is None:
            continue
        made.append(name)
        for found, wanted in zip(variant(), expected, strict=True):
            assert (found is None) == (wanted is None), name
            if wanted is not None:
                np.testing.assert_allclose(
                    numbers_of(torch, found), wanted, rtol=tolerance, atol=1e-6, err_msg=name
                )
    assert {"torch", "torch.compile"} <= set(made)


@pytest.mark.needs(AUTOGRAD)
def test_floors_move_what_a_cell_moves(maker: Any) -> None:
    workload = gpu_peers.Workload(maker.torch, Case("f32", "L1", "value", 100), maker.place(0))
    assert gpu_peers.floor_variant(workload, "read")()[0].dtype == maker.torch.float32
    copied = gpu_peers.floor_variant(workload, "copy")()[1]
    assert copied.equal(workload.weights)
    added = gpu_peers.floor_variant(workload, "add")()[1]
    assert added.equal(2 * workload.weights)


@pytest.mark.needs(AUTOGRAD)
def test_lists_compute_the_same(maker: Any) -> None:
    torch = maker.torch
    weights = [torch.randn(shape, device=maker.place(0)) for shape in [(3,), (40, 50), (1000,)]]
    results = []
    for make in (gpu_peers.foreach_variant, gpu_peers.loop_variant):
        grads = [torch.zeros_like(w) for w in weights]
        total = make(torch, weights, grads, 0.01, 0.3)()
        results.append([total, *grads])
    rule = gpu_peers.L1L2(0.01, 0.3)
    grads = [torch.zeros_like(w) for w in weights]
    total = sum(float(rule.accumulate(w, g)) for w, g in zip(weights, grads, strict=True))
    for found in results:
        assert float(found[0]) == pytest.approx(total, rel=1e-5)
        for mine, other in zip(grads, found[1:], strict=True):
            torch.testing.assert_close(mine, other)


def test_models() -> None:
    shapes = gpu_peers.gpt2_small()
    assert len(shapes) == 148
    assert sum(map(math.prod, shapes)) == 124_439_808
    assert len(gpu_peers.small_tensors()) == 3000


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
def test_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, result = run(tmp_path, "--terms", "L1", "--peers", "torch,cupy")
    assert status == 0
    assert [row["outputs"] for row in result["rows"]] == list(OUTPUTS)
    row = result["rows"][4]
    assert set(row["seconds"]) == {"fastreg", "copy", "add", "torch"}
    assert row["bytes"] == 12_000
    seconds = row["seconds"]["fastreg"]["median"]
    assert row["gb_per_s"] == pytest.approx(12_000 / seconds / 1e9)
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

    def broken(workload: gpu_peers.Workload) -> gpu_peers.Variant:
        tries.append(workload.case)
        raise RuntimeError("it cannot")

    monkeypatch.setitem(gpu_peers.PEERS, "torch", broken)
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
