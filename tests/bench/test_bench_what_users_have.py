"""Memory as allocators give it, what runs before a call, new outputs, and the fastest floor."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastreg.__main__ import main
from fastreg._info import native_core
from fastreg.bench.bars import best_policy, floor_limit, judged, peer_limit
from fastreg.bench.cases import DTYPES, MEMORIES, NEW_OUTPUTS, Case, cases
from fastreg.bench.compare import records
from fastreg.bench.measure import interleave, straight_after
from fastreg.bench.peers import FLOORS, PEERS, TorchFloor
from fastreg.bench.peers.own import Fastreg
from fastreg.bench.record import read_json, stages_from_json, write_stage
from fastreg.bench.row import ONE_TENSOR, Row, Work
from fastreg.bench.run import measure
from fastreg.bench.workloads import ALIGNMENT, LIBC_HEADER, workloads

pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")

WITHOUT_TORCH = [name for name in MEMORIES if name != "torch"]
#: A run of one case that takes a moment.
SHORT = ["bench", "--sizes", "64", "--dtypes", "f32", "--terms", "L1L2", "--outputs", "value"]
SHORT += ["--repeats", "1", "--peers", "none", "--no-step"]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_case_is_computed_in_every_memory(dtype: str, memory: str) -> None:
    if memory == "torch":
        pytest.importorskip("torch")
    outputs = ["value", "value+add", "add", *NEW_OUTPUTS]
    for workload in workloads(cases([33], [], [dtype], ["L1L2"], outputs, [memory])):
        row = measure(workload, [PEERS["numpy"]], 1, floors=FLOORS)
        assert set(row.samples) >= {"fastreg", "floor-numpy"}
        assert ("numpy" in row.samples) == (not workload.case.makes_arrays)
        assert ("floor" in row.samples) == (not workload.case.makes_arrays)
        assert ("floor-numpy-add" in row.samples) == workload.case.makes_arrays
        assert row.floor in row.floors


def test_a_new_gradient_is_new() -> None:
    (workload,) = workloads([Case("f32", "L1L2", "new-gradient", 33)])
    prepared = Fastreg().make(workload)
    (first,), (second,) = prepared.gradients(), prepared.gradients()
    assert not np.shares_memory(first, second)
    assert not workload.tensors.gradients[0].any()


def test_where_arrays_begin() -> None:
    size = 1 << 16
    starts = {}
    for workload in workloads(cases([size], [], ["f64"], ["L1"], ["value"], WITHOUT_TORCH)):
        starts[workload.case.memory] = workload.tensors.weights[0].ctypes.data
    assert starts["aligned"] % ALIGNMENT == 0
    assert starts["small-pages"] % 4096 == LIBC_HEADER


def test_torch_sees_the_memory_that_torch_gave() -> None:
    pytest.importorskip("torch")
    (workload,) = workloads([Case("f32", "L1", "value+add", 1000, memory="torch")])
    assert workload.tensors.weights[0].ctypes.data % ALIGNMENT == 0
    Fastreg().make(workload).call()
    assert workload.tensors.gradients[0].all()


def test_tensors_of_a_model_are_allocated_one_by_one(tiny_model: str) -> None:
    (workload,) = workloads([Case("f32", "L1L2", "value+add", 43, tiny_model, "numpy")])
    weights = workload.tensors.weights
    assert [w.shape for w in weights] == [(5, 7), (7,), (1,)]
    assert len({w.base is None for w in weights}) == 1
    assert not any(np.shares_memory(w, workload.as_one.weights[0]) for w in weights)
    row = measure(workload, [], repeats=1)
    assert row.errors["fastreg"].value == pytest.approx(0, abs=1e-15)
    assert ONE_TENSOR in row.samples


def test_each_call_is_straight_after_the_operation() -> None:
    events: list[str] = []
    calls: dict[str, Callable[[], object]] = {
        name: lambda name=name: events.append(name)  # type: ignore[misc]
        for name in "ab"
    }
    interleave(calls, 5, timer=straight_after(lambda: events.append("operation")))
    assert events[::2] == ["operation"] * 10
    assert {*events[1::2]} == {"a", "b"}


def test_an_operation_of_torch_runs_before() -> None:
    pytest.importorskip("torch")
    (workload,) = workloads([Case("f32", "L1L2", "value+add", 1000, before="torch")])
    with TorchFloor().session(2):
        row = measure(workload, [], 3, floors=[*FLOORS, TorchFloor()])
    assert {len(sample) for sample in row.samples.values()} == {3}
    assert "floor-torch" in row.samples


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_floors_of_torch_do_their_work(dtype: str) -> None:
    pytest.importorskip("torch")
    for workload in workloads(cases([64], [], [dtype], ["L1"], ["gradient", "value+add"])):
        prepared = TorchFloor().make(workload)
        assert prepared is not None
        prepared.call()
    (weights,), scratch = workload.as_one.weights, workload.scratch
    if dtype in ("f32", "f64"):
        assert np.array_equal(scratch, weights + weights)
    assert scratch.any()


def test_the_floor_is_the_fastest_loop() -> None:
    samples = {
        "fastreg": [2.0, 2.0],
        "floor": [4.0, 4.0],
        "floor-numpy": [9.0, 1.0],
        "floor-torch": [1.0, 1.0],
        "torch": [5.0, 5.0],
    }
    row = Row(Case("f32", "L1L2", "value", 16_777_216), samples)
    assert row.floor == "floor-torch"
    assert row.times_floor("fastreg").median == 2.0
    assert row.share_of_floor("fastreg").median == 0.5
    assert row.yardstick == "floor"
    assert row.compared == ["torch"]


def test_bars() -> None:
    def limit(size: int, **settings: str) -> float | None:
        return floor_limit(
            Case(**{"dtype": "f32", "terms": "L1L2", "outputs": "value", **settings}, size=size)
        )

    large, small = 16_777_216, 4_194_304
    assert limit(large) == limit(large, memory="torch", before="torch") == 1.05
    assert limit(large, memory="numpy", before="torch") == 1.1
    assert limit(small) == 1.15
    assert limit(large, dtype="bf16") == 1.3
    assert limit(large, outputs="new-gradient") == 1.05
    assert limit(1000) is limit(large, outputs="gradient") is None
    case = Case("f32", "L1L2", "value+add", 1_048_576)
    assert peer_limit(case, "numba-f32", 2**25) == 0.75
    assert peer_limit(case, "numba-f32", 2**20) == peer_limit(case, "numba", 2**25) == 1.0


def test_what_misses_its_bar_is_told() -> None:
    samples = {"fastreg": [2.0, 2.0], "floor": [1.0, 1.0], "numba": [1.0, 3.0]}
    row = Row(Case("f32", "L1L2", "value", 16_777_216), samples)
    found = {one.what.rpartition(", ")[2]: one for one in judged(row, 2**25)}
    assert (found["to the floor"].meets, found["numba"].meets) == (False, True)
    assert str(found["to the floor"]).endswith("to the floor: 2 (2-2), bar <= 1.05")

    work = Work("torch", "a step", "usual", "bare", "addition", "fastreg, accumulate")
    step = {"bare": [10.0], "addition": [11.0], "fastreg, accumulate": [11.5], "usual": [20.0]}
    (one,) = judged(Row(work, step), 0)
    assert (one.figure.median, one.meets) == (5.0, False)
    small = Row(Work("torch", "400", "usual"), {"usual": [1.0], "fastreg, accumulate": [90e-6]})
    (one,) = judged(small, 0)
    assert one.meets


def test_options_choose_memory_and_what_runs_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.json"
    arguments = [*SHORT, "--memory", "numpy,small-pages", "--json", str(path)]
    assert main(arguments) == 0
    assert "memory small-pages" in capsys.readouterr().out
    assert [row.case.memory for row in read_json(path).rows] == ["numpy", "small-pages"]
    found, _ = records(path, path)
    assert len(found) == 2


def test_torch_is_asked_for_by_memory_only_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastreg.bench import options

    find_spec = options.find_spec
    monkeypatch.setattr(
        options, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    for option in ("--memory", "--before"):
        assert main([*SHORT, option, "torch"]) == 2
        assert f"torch (for {option} torch)" in capsys.readouterr().err


def test_new_outputs_are_not_of_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--models", "gpt2", "--outputs", "new-gradient"]) == 2
    assert "--outputs has new-gradient: for --sizes, not for --models" in capsys.readouterr().err


def test_torch_takes_part_as_a_floor_where_it_takes_part(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = tmp_path / "a.json"
    assert main([*SHORT, "--before", "torch", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert "floor-torch" in document["rows"][0]["variants"]
    assert "torch" in document["versions"]
    assert "torch" in sys.modules


def test_stages_that_differ_in_threads_have_cases_that_do(tmp_path: Path) -> None:
    path, stage = tmp_path / "stages.json", tmp_path / "stage.json"
    assert main([*SHORT, "--json", str(stage)]) == 0
    for threads in (1, 2):
        write_stage(path, f"on {threads}", {**json.loads(stage.read_text()), "threads": threads})
    stages = stages_from_json(json.loads(path.read_text()))
    assert [run.rows[0].case.threads for run in stages.values()] == [1, 2]
    found, _ = records(path, path)
    assert [str(one.case) for one in found] == [
        "f32 L1L2 value at 64, 1 thread",
        "f32 L1L2 value at 64, 2 threads",
    ]


def test_policies_are_forced_in_turn_and_put_back(tmp_path: Path) -> None:
    core = native_core()
    if core is None:
        pytest.skip("there is no compiled core")
    before, path = core.policy(), tmp_path / "a.json"
    assert main([*SHORT, "--policies", "all", "--json", str(path)]) == 0
    assert core.policy() == before
    (row,) = read_json(path).rows
    assert row.own == ["fastreg", *(f"fastreg-{name}" for name in core.policy_names())]
    assert row.compared == []
    assert best_policy(row) in row.own


def test_what_a_variant_needs_comes_before_each_batch() -> None:
    events: list[str] = []
    calls = {name: partial(events.append, name) for name in "ab"}
    before = {"a": partial(events.append, "before a")}
    interleave(calls, 3, timer=straight_after(lambda: None), before=before)
    assert [events[place - 1] for place, event in enumerate(events) if event == "a"] == [
        "before a"
    ] * 3
    assert events.count("before a") == 3
