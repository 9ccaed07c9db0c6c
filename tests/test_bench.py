"""``python -m fastreg bench``: what a run measures, refuses, writes and draws."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from time import sleep

import numpy as np
import pytest

import fastreg
from fastreg.__main__ import main
from fastreg.bench import options as bench_options
from fastreg.bench.cases import DTYPES, OUTPUTS, TERMS, Case, Workload, arrays, workloads
from fastreg.bench.measure import BATCH_SECONDS, Spread, interleave, loops_for
from fastreg.bench.peers import PEERS, Fastreg, Floor
from fastreg.bench.run import measure

pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")

PNG_SIGNATURE = b"\x89PNG"


def test_every_cell_once_in_order() -> None:
    found = [w.case for w in workloads([8, 9], list(DTYPES), list(TERMS), list(OUTPUTS))]
    assert len(found) == len(set(found)) == 2 * 4 * 3 * 5
    assert found[0] == Case("f16", "L1", "value", 8)
    assert found[-1] == Case("f64", "L1L2", "value+add", 9)


@pytest.mark.parametrize(
    ("outputs", "streams", "floor"),
    [
        ("value", 1, "read"),
        ("gradient", 2, "copy"),
        ("value+gradient", 2, "copy"),
        ("add", 3, "add"),
        ("value+add", 3, "add"),
    ],
)
def test_bytes_and_floor_of_a_cell(outputs: str, streams: int, floor: str) -> None:
    for dtype, item in (("f16", 2), ("bf16", 2), ("f32", 4), ("f64", 8)):
        case = Case(dtype, "L1L2", outputs, 1000)
        assert (case.bytes, case.floor) == (1000 * item * streams, floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 33])
def test_all_variants_compute_the_same(dtype: str, size: int) -> None:
    for workload in workloads([size], [dtype], list(TERMS), list(OUTPUTS)):
        row = measure(workload, PEERS.values(), repeats=1)
        has_value = "value" in row.case.outputs
        expected = {"fastreg", "floor", "numpy"}
        if has_value and row.case.terms != "L1":
            expected.add("numpy-dot")
        assert set(row.seconds) == expected
        assert row.share_of_floor.median == pytest.approx(
            row.seconds["floor"].median / row.seconds["fastreg"].median
        )


def test_a_wrong_peer_is_not_timed() -> None:
    class Wrong:
        name = "wrong"

        def available(self) -> bool:
            return True

        def make(self, workload: Workload) -> object:
            return lambda: 1.0

    workload = next(workloads([8], ["f32"], ["L1"], ["value"]))
    with pytest.raises(RuntimeError, match="wrong and fastreg disagree on f32 L1 value at 8"):
        measure(workload, [Wrong()], repeats=1)  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", DTYPES)
def test_floors_do_their_work(dtype: str) -> None:
    weights, gradient, scratch = arrays(dtype, 64)
    for outputs in OUTPUTS:
        Floor().make(Workload(Case(dtype, "L1", outputs, 64), weights, gradient, scratch))()
    # the copy, then two additions: one for add, one for value+add
    if dtype in ("f32", "f64"):
        assert np.array_equal(scratch, weights + weights + weights)
    else:
        assert np.array_equal(
            scratch.view(np.float32), 3 * weights.view(np.float32), equal_nan=True
        )
    assert not gradient.any()


def test_fastreg_writes_the_preallocated_gradient() -> None:
    weights, gradient, scratch = arrays("f32", 64)
    for outputs in ("gradient", "value+gradient", "add", "value+add"):
        gradient.fill(0)
        Fastreg().make(Workload(Case("f32", "L1L2", outputs, 64), weights, gradient, scratch))()
        assert gradient.all()


def test_turns_are_in_step_and_in_changing_order() -> None:
    calls: list[str] = []

    def make(name: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(name)
            sleep(2 * BATCH_SECONDS)  # long enough for a batch of one

        return call

    samples = interleave({"a": make("a"), "b": make("b")}, repeats=9)
    assert {name: len(times) for name, times in samples.items()} == {"a": 9, "b": 9}
    turns = ["".join(calls[start : start + 2]) for start in range(2, len(calls), 2)]
    assert len(turns) == 9
    assert set(turns) == {"ab", "ba"}


def test_tiny_calls_are_timed_in_batches() -> None:
    assert loops_for(lambda: None) > 100


def test_spread_of_one_and_of_ratios() -> None:
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)
    assert Spread.of_ratio([4.0, 40.0], [1.0, 10.0]) == Spread(4.0, 4.0, 4.0)


def test_a_run_prints_writes_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    threads = fastreg.get_num_threads()
    record, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["bench", "--sizes", "64,1e3", "--repeats", "3", "--threads", "1"]
    arguments += ["--dtypes", "f32,bf16", "--terms", "L1,L1L2", "--outputs", "value,value+add"]
    arguments += ["--json", str(record), "--plot", str(picture)]
    assert main(arguments) == 0
    assert fastreg.get_num_threads() == threads
    assert picture.read_bytes().startswith(PNG_SIGNATURE)

    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if "value" in line and "%" in line]
    assert len(rows) == 2 * 2 * 2 * 2
    assert all(word in rows[-1] for word in ("1,000", "bf16", "L1L2", "value+add"))

    data = json.loads(record.read_text())
    assert data["schema"] == 1
    assert data["command"] == "python -m fastreg " + " ".join(arguments)
    assert data["repeats"] == 3
    assert data["threads"] == 1
    assert set(data["machine"]) == {"processor", "cores", "system", "python"}
    assert set(data["versions"]) == {"fastreg", "numpy"}
    assert len(data["rows"]) == len(rows)
    first = data["rows"][0]
    assert {key: first[key] for key in ("dtype", "terms", "outputs", "size", "bytes", "floor")} == {
        "dtype": "f32",
        "terms": "L1",
        "outputs": "value",
        "size": 64,
        "bytes": 256,
        "floor": "read",
    }
    for row in data["rows"]:
        median = row["seconds"]["fastreg"]["median"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / median / 1e9)
        for spread in (row["share_of_floor"], row["ratio_to_peer"]["numpy"]):
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]


def test_quick_is_shorter_but_what_is_given_stays() -> None:
    parser = argparse.ArgumentParser()
    bench_options.add_to(parser)
    quick = parser.parse_args(["--quick", "--sizes", "5"])
    bench_options.complete(quick)
    assert (quick.sizes, quick.repeats) == ([5], bench_options.QUICK_REPEATS)
    full = parser.parse_args([])
    bench_options.complete(full)
    assert (full.sizes, full.repeats) == (list(bench_options.SIZES), 31)
    assert full.dtypes == ["f16", "bf16", "f32", "f64"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0"], "'0' is not a whole number of 1 or more"),
        (["--sizes", "10,1.5"], "'1.5' is not a whole number"),
        (["--sizes", "many"], "'many' is not a whole number"),
        (["--repeats", "3,4"], "'3,4' is not one number"),
        (["--dtypes", "f8"], "'f8' is not one of f16,bf16,f32,f64"),
        (["--outputs", "value,typo"], "'typo' is not one of value,gradient,"),
        (["--peers", "fortran"], "'fortran' is not one of numpy,"),
    ],
)
def test_wrong_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = {"rich", "matplotlib", "ml_dtypes"}
    monkeypatch.setattr(
        bench_options, "find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    assert main(["bench", "--plot", "bench.png"]) == 2
    message = capsys.readouterr().err
    for name in hidden:
        assert f"{name} (for " in message
    assert "'fastreg-kernels[bench]'" in message


def test_a_missing_directory_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--json", str(tmp_path / "none" / "bench.json")]) == 2
    assert "its directory does not exist" in capsys.readouterr().err
