"""The gate on instructions can fail: its judgement, its reading of counts, its exit status."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import budget as gate
import pytest
from budget import Finding, Group

CELL = "f32 L1L2 VGA"
WORK = "65536 elements"
STEPS = (
    *("norms", "scale", "SGD momentum proximal", "AdamW", "AdamW proximal"),
    *("AdamW measure data", "AdamW measure total"),
)


def group(instructions: int, compiler: str = "GNU 12.2.0") -> Group:
    return Group({CELL: {WORK: instructions}}, {"compiler": compiler}, "valgrind-3.19.0")


@pytest.fixture
def budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record that is not the project's."""
    path = tmp_path / "budget.json"
    monkeypatch.setattr(gate, "BUDGET", path)
    monkeypatch.setattr(gate.platform, "machine", lambda: "x86_64")
    return path


@pytest.fixture
def count(budget: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the check as if this had been counted for AVX2; give its exit status."""

    def run(group: Group, *arguments: str, missing: dict[str, str] | None = None) -> int:
        monkeypatch.setattr(gate, "count_all", lambda *_: ({"avx2": group}, missing or {}))
        return gate.main(arguments)

    return run


@pytest.mark.parametrize(
    ("counted", "budget", "verdict"),
    [
        (1000, 1000, "within"),
        (1020, 1000, "within"),
        (1021, 1000, "over"),
        (950, 1000, "within"),
        (949, 1000, "under"),
        (108, 100, "within"),  # 8 %, but a few instructions
        (109, 100, "over"),
        (92, 100, "within"),
        (91, 100, "under"),
        (0, 1000, "under"),
        (1000, None, "new"),
        (None, 1000, "gone"),
    ],
)
def test_verdict(counted: int | None, budget: int | None, verdict: str) -> None:
    assert Finding(CELL, WORK, counted, budget).verdict(gate.TOLERANCE) == verdict


def test_tolerance_elsewhere_is_wider() -> None:
    finding = Finding(CELL, WORK, 1250, 1000)
    assert finding.verdict(gate.TOLERANCE) == "over"
    assert finding.verdict(gate.TOLERANCE_ELSEWHERE) == "within"
    assert Finding(CELL, WORK, 1251, 1000).verdict(gate.TOLERANCE_ELSEWHERE) == "over"


def test_compare_pairs_by_cell_and_work() -> None:
    counted = {"a": {"64 elements": 1, "400 tensors": 2}, "b": {"64 elements": 3}}
    recorded = {"b": {"64 elements": 4}, "a": {"64 elements": 5}, "c": {"64 elements": 6}}
    assert gate.compare(counted, recorded) == [
        Finding("a", "64 elements", 1, 5),
        Finding("a", "400 tensors", 2, None),
        Finding("b", "64 elements", 3, 4),
        Finding("c", "64 elements", None, 6),
    ]


def test_what_counting_takes_is_taken_off() -> None:
    counts = {f"avx2/{CELL}/{WORK}": 109, "avx2/nothing": 9, f"portable/{CELL}/{WORK}": 7}
    assert gate.engine_counts(counts, "avx2") == {CELL: {WORK: 100}}


def test_last_of_several_counts_holds() -> None:
    assert gate.by_cell([("f/64 elements", 9), ("f/64 elements", 5)]) == {"f": {"64 elements": 5}}


def test_end_of_the_program_is_no_count() -> None:
    text = """\
part: 1
desc: Timerange: Basic block 0 - 5
desc: Trigger: Client Request: avx2/f32 L1 V/64 elements
events: Ir
ob=(1) /a/program
fn=(1)
0 594
totals: 594
part: 2
desc: Trigger: Program termination
ob=(1)
fn=(1)
0 3
totals: 3
"""
    assert gate.read_dumps(text) == [("avx2/f32 L1 V/64 elements", 594)]


@pytest.mark.parametrize(
    "other",
    ["/usr/bin/python3.11", "/lib/libpython3.13.so.1.0", "/numpy/_core/_multiarray_umath.so"],
)
def test_instructions_of_python_are_not_counted(other: str) -> None:
    """They depend on who has built it: 31 more of 1,177 where the same version is another's."""
    text = f"""\
desc: Trigger: Client Request: f/64 elements
ob=(13) /build/_core.cpython-311-x86_64-linux-gnu.so
fl=(12) ???
fn=(9) fastreg::python::to_outputs(_object*)
0 5
cob=(2) {other}
cfi=(5) ???
cfn=(11) PyLong_AsLong
calls=1 0
0 12
+3 1
ob=(2)
fn=(11)
0 12
ob=(13)
fn=(12) fastreg::evaluate
* 2
ob=(3) /lib/libc.so.6
fn=(14) malloc
0 40
"""
    assert gate.read_dumps(text) == [("f/64 elements", 48)]


def test_needless_instruction_fails(count, capsys: pytest.CaptureFixture[str]) -> None:
    assert count(group(226510), "--record") == 0
    assert count(group(226510)) == 0
    one_more_in_eight_elements = group(226510 + 65536 // 8)
    assert count(one_more_in_eight_elements) == 1
    assert f"FAILED avx2 {CELL}, {WORK}: 234,702 for 226,510 (+3.6%): over" in (
        capsys.readouterr().out
    )


def test_fewer_instructions_are_no_failure_but_worth_a_record(
    count, capsys: pytest.CaptureFixture[str]
) -> None:
    count(group(1000), "--record")
    assert count(group(900)) == 0
    assert f"NOTE avx2 {CELL}, {WORK}: 900 for 1,000 (-10.0%): renew" in capsys.readouterr().out


def test_another_compiler_is_said_and_allowed_more(
    count, capsys: pytest.CaptureFixture[str]
) -> None:
    count(group(1000), "--record")
    assert count(group(1200, "Clang 19.1.0")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "made with {'compiler': 'Clang 19.1.0'}" in printed
    assert "25% are allowed instead of 2%" in printed
    assert count(group(1300, "Clang 19.1.0")) == 1


def test_no_record_fails(count, budget: Path) -> None:
    budget.write_text("{}")
    assert count(group(1000)) == 1


def test_record_file_that_is_missing_is_said(
    count, budget: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert count(group(1000)) == 2
    assert "--record" in capsys.readouterr().err


def test_what_cannot_be_counted_is_said(count, capsys: pytest.CaptureFixture[str]) -> None:
    count(group(1000), "--record")
    assert count(group(1000), missing={"avx512": "this processor does not have it"}) == 0
    assert "NOTE avx512: not counted, because this processor does not have it" in (
        capsys.readouterr().out
    )


def test_no_build_is_said(budget: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.main(["--build", str(tmp_path)]) == 2
    assert "fastreg_instructions" in capsys.readouterr().err


def test_record_keeps_what_was_not_counted_and_has_a_line_per_cell(count, budget: Path) -> None:
    other = {"made with": {}, "counted with": "trap flag", "instructions": {CELL: {WORK: 5}}}
    budget.write_text(json.dumps({"x86_64": {"avx512": other}, "aarch64": {"neon": other}}))
    assert count(group(1000), "--record") == 0
    recorded = json.loads(budget.read_text())
    assert recorded["x86_64"]["avx512"] == other
    assert recorded["aarch64"] == {"neon": other}
    assert recorded["x86_64"]["avx2"]["instructions"] == {CELL: {WORK: 1000}}
    assert f'        "{CELL}": {{"{WORK}": 1000}}\n' in budget.read_text()


def test_committed_budget_has_every_cell() -> None:
    recorded = json.loads(gate.BUDGET.read_text())["x86_64"]
    cells = {
        " ".join(parts)
        for parts in itertools.product(
            ("f16", "bf16", "f32", "f64"), ("L1", "L2", "L1L2"), ("V", "G", "VG", "GA", "VGA")
        )
    }
    for instruction_set in ("portable", "avx2", "avx512"):
        counts = recorded[instruction_set]["instructions"]
        assert cells <= set(counts)
        for cell in cells:
            dtype, _, outputs = cell.split()
            kinds = 2 + (outputs in ("G", "VG")) + (dtype == "f32")
            assert len(counts[cell]) == kinds, cell
            assert all(number > 0 for number in counts[cell].values())
        for dtype in ("f16", "bf16", "f32", "f64"):
            for name in STEPS:
                assert len(counts[f"{dtype} {name}"]) == 2 + (dtype == "f32"), name
            for terms, outputs in itertools.product(("L1", "L2", "L1L2"), ("P", "VP")):
                assert len(counts[f"{dtype} {terms} {outputs}"]) == 2
    assert set(recorded["calls from Python"]["instructions"]) == {
        f"{function} {outputs}"
        for function in ("evaluate_one", "evaluate_many")
        for outputs in ("V", "VGA")
    }


def test_table_without_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    findings = [Finding(CELL, WORK, 226510, 220000), Finding(CELL, "400 tensors", 400, 400)]
    gate.show("avx2", findings)
    assert capsys.readouterr().out == (
        "\navx2\n"
        "instructions for   32 elements  a tensor of 64\n"
        "    f32 L1L2 VGA  110.6  +3.0%        1  +0.0%\n"
    )


def test_tool_that_is_missing_is_said() -> None:
    with pytest.raises(gate.CannotCountError, match="there is no a-tool"):
        gate.run(["a-tool"])
