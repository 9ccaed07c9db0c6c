"""Records of processors, and the tables that the documents have of them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("rich")

from fastreg.__main__ import main
from fastreg.bench import headline, options, page
from fastreg.bench.cases import Case
from fastreg.bench.circumstances import Circumstances, processor_name
from fastreg.bench.peers import PEERS
from fastreg.bench.record import row_as_json, write_stage
from fastreg.bench.row import Row, Work

SHORT = "--sizes 64 --dtypes f32 --terms L1L2 --outputs value,value+add --memory numpy"
CIRCUMSTANCES = Circumstances.here("python -m fastreg bench", 3, {}, [])


def recorded(path: Path, processor: str, slower: float = 1.0) -> None:
    """Write a record with a row for each table."""

    def document(rows: list[Row], threads: int = 2) -> dict[str, object]:
        facts = replace(
            CIRCUMSTANCES,
            threads=threads,
            machine={**CIRCUMSTANCES.machine, "processor": processor, "cores": 2},
            processor={"family": "25", "model": "17"},
        )
        return {**asdict(facts), "rows": [row_as_json(row) for row in rows], "missing": ["jax"]}

    times = {"fastreg": [slower * 1e-3] * 3, "floor": [1e-3] * 3, "floor-numpy": [2e-3] * 3}
    peers = {**times, "numba": [0.5e-3] * 3, "numpy": [9e-3] * 3, "jax": [2e-3] * 3}
    value = Case("f32", "L1L2", "value", 16_777_216, memory="numpy")
    floors = [Row(value, times), Row(replace(value, memory="torch", before="torch"), times)]
    new = {"fastreg": [1e-3] * 3, "floor-numpy": [1e-3] * 3, "floor-numpy-add": [0.9e-3] * 3}
    model = Case("f32", "L1L2", "value", 25_557_032, "resnet50", "numpy")
    work = Work("torch", "a step", "usual", "bare", "addition", "fastreg, accumulate")
    step = {"bare": [1.0] * 3, "addition": [1.1] * 3, "usual": [2.0] * 3}
    step["fastreg, accumulate"] = [1.2] * 3
    stages = {
        "floors": document(floors),
        "floors-1": document(floors[:1], threads=1),
        "half": document([Row(replace(value, dtype="bf16"), times)]),
        "new": document([Row(replace(value, outputs="new-gradient"), new)]),
        "cache": document([Row(replace(value, size=1000), peers)]),
        "policies": document([Row(value, {**times, "fastreg-near": [0.8e-3] * 3})]),
        "models": document([Row(model, {**times, "one tensor": [1e-3] * 3})]),
        "torch": document([Row(work, step)]),
    }
    for name, stage in stages.items():
        write_stage(path, name, stage)


def test_the_pages_are_what_the_records_give() -> None:
    if not headline.RECORDS_FOLDER.is_dir():
        pytest.skip("there is no checkout around the package")
    assert page.regenerate(write=False) == []
    for path in page.PAGES:
        assert page.MARKED.search(path.read_text(encoding="utf-8")), path


def test_a_page_is_renewed_between_its_marks(tmp_path: Path) -> None:
    records, document = tmp_path / "records", tmp_path / "page.md"
    records.mkdir()
    recorded(records / "a.json", "Processor A")
    text = "before\n<!-- records: floors -->\nold\n<!-- end of records -->\nafter\n"
    document.write_text(text)
    assert page.regenerate(False, [document], records) == [document]
    assert document.read_text() == text
    assert page.regenerate(True, [document], records) == [document]
    renewed = document.read_text()
    assert renewed.startswith("before\n<!-- records: floors -->\n| dtype | outputs |")
    assert renewed.endswith("<!-- end of records -->\nafter\n")
    assert "old" not in renewed
    assert page.regenerate(True, [document], records) == []


def test_every_table_tells_what_was_recorded(tmp_path: Path) -> None:
    recorded(tmp_path / "a.json", "Processor A", slower=1.2)
    found = page.processors(tmp_path)
    texts = {name: table(found) for name, table in page.TABLES.items()}
    assert "Processor A (family 25, model 17), 2 cores" in texts["processors"]
    assert "Not installed there: jax" in texts["processors"]
    floors = texts["floors"].splitlines()
    assert floors[0] == "| dtype | outputs | memory | threads | 16,777,216 |"
    assert floors[2:5] == [
        "| float32 | value | NumPy's | 2 | **1.20 (1.20-1.20) b** |",
        "| | | torch's, after torch | 2 | **1.20 (1.20-1.20) b** |",
        "| | | NumPy's | 1 | **1.20 (1.20-1.20) b** |",
    ]
    assert "bfloat16 | value | NumPy's | 2 | 1.20 (1.20-1.20) b |" in texts["half"]
    assert "| **1.11 (1.11-1.11) a** |" in texts["new"]
    assert "**0.42 (0.42-0.42)**" in texts["peers"]
    assert "7.50 (7.50-7.50)" in texts["peers"]
    assert "| float32 | value | 2 | **1.50 (1.50-1.50) near** |" in texts["policies"]
    assert "| resnet50 | value | NumPy's | 2 |" in texts["models"]
    assert "| value | 1,000 | 1.20 ms | 83 % | 7.50 |" in texts["short"]
    assert "**10.0 (10.0-10.0) %**" in texts["torch"]


def test_processors_stand_side_by_side(tmp_path: Path) -> None:
    recorded(tmp_path / "a.json", "Processor A")
    recorded(tmp_path / "b.json", "Processor B", slower=2.0)
    lines = page.from_memory(page.processors(tmp_path)).splitlines()
    assert lines[0] == "| dtype | outputs | memory | threads | processor | 16,777,216 |"
    assert "Processor A" in lines[2]
    assert "1.00 (1.00-1.00) b" in lines[2]
    assert "Processor B" in lines[3]
    assert "**2.00 (2.00-2.00) b**" in lines[3]


def test_what_misses_its_bar_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    recorded(path, "Processor A", slower=1.2)
    first, *others = page.shortfalls(path)
    assert first.startswith("11 figures have a bar, ")
    assert any("to the floor: 1.2 (1.2-1.2), bar <= 1.05" in line for line in others)
    assert any(line.endswith("numba: 0.417 (0.417-0.417), bar >= 1") for line in others)


@pytest.fixture
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = headline.Stage("a moment", SHORT, ("numpy", "numba"))
    monkeypatch.setattr(headline, "STAGES", {"floors": stage})
    monkeypatch.setattr(type(PEERS["numba"]), "available", lambda _: False)


@pytest.mark.usefixtures("one_stage")
def test_a_record_is_made_stage_by_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ml_dtypes")
    path = tmp_path / "record.json"
    assert main(["bench", "record", "--repeats", "2", "--out", str(path)]) == 0
    captured = capsys.readouterr()
    assert "floors: a moment" in captured.err
    assert "2 figures have a bar" in captured.out
    document = json.loads(path.read_text())
    stage = document["stages"]["floors"]
    assert stage["command"].startswith(f"python -m fastreg bench {SHORT} --repeats 2 --threads ")
    assert "numba" in stage["missing"]
    assert stage["processor"] is not None
    assert len(stage["rows"]) == 2
    assert page.read(path).rows("floors")[0].case.memory == "numpy"


@pytest.mark.usefixtures("one_stage")
def test_a_stage_that_fails_is_left_out_and_the_record_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ml_dtypes")
    path = tmp_path / "record.json"
    recorded(path, "Processor A")
    before = path.read_text()
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(failing))
    assert main(["bench", "record", "--out", str(path)]) == 1
    assert "floors is left out: its process ended with status 3" in capsys.readouterr().err
    assert path.read_text() == before


def test_the_record_of_this_machine_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert options.default_record().name == f"{processor_name()}.json"
    assert " " not in processor_name()


@pytest.mark.parametrize("command", ["record", "page"])
def test_help_tells_all(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", command, "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    if command == "record":
        assert all(name in said for name in headline.STAGES)
    else:
        assert "<!-- records: NAME -->" in said


def test_stages_have_options_that_bench_knows() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    options.add_to(parser)
    for stage in headline.STAGES.values():
        if not stage.is_framework:
            chosen = parser.parse_args(stage.arguments.split())
            options.complete(chosen)
            assert set(stage.peers) <= {*PEERS}


def test_the_readmes_figures_stand_in_the_order_of_the_processors(tmp_path: Path) -> None:
    recorded(tmp_path / "a.json", "A")
    recorded(tmp_path / "b.json", "B", slower=2.0)
    document = json.loads((tmp_path / "a.json").read_text())
    rows = document["stages"]["cache"]["rows"]
    rows.insert(0, {**rows[0], "size": 64})  # its rows are at other places now
    (tmp_path / "a.json").write_text(json.dumps(document))
    shown = page.short(page.processors(tmp_path))
    assert "| value | 1,000 | 1.00 ms, 2.00 ms | 100 %, 50 % | 9.00, 4.50 |" in shown
    assert shown.endswith("(in this order).")

    del document["stages"]["cache"]
    (tmp_path / "a.json").write_text(json.dumps(document))
    assert "| value | 1,000 | -, 2.00 ms | -, 50 % | -, 4.50 |" in page.short(
        page.processors(tmp_path)
    )
