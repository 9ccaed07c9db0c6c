"""``python -m fastreg bench``: what a run prints, writes, draws and refuses."""

from __future__ import annotations

import argparse
import csv
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fastreg
from fastreg.__main__ import main
from fastreg.bench import options as bench_options
from fastreg.bench.cases import Case
from fastreg.bench.peers import PEERS, installed
from fastreg.bench.record import CSV_COLUMNS, SCHEMA, read_json
from fastreg.bench.row import Row

pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")

SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}
#: A run of two cases that takes a moment.
SHORT = ["--sizes", "64", "--dtypes", "f32", "--terms", "L1L2", "--outputs", "value,value+add"]
SHORT += ["--repeats", "1", "--peers", "numpy", "--no-step"]


def test_a_run_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = fastreg.get_num_threads()
    record, table = tmp_path / "bench.json", tmp_path / "bench.csv"
    arguments = ["bench", "--sizes", "64,1e3", "--repeats", "3", "--threads", "1"]
    arguments += ["--dtypes", "f32,bf16", "--terms", "L1,L1L2", "--outputs", "value,value+add"]
    arguments += ["--peers", "numpy,numpy-dot", "--json", str(record), "--csv", str(table)]
    assert main(arguments) == 0
    assert fastreg.get_num_threads() == threads

    out = capsys.readouterr().out
    cells = 2 * 2 * 2 * 2
    for variant, count in (("fastreg", cells), ("numpy", cells), ("numpy-dot", cells // 2)):
        assert sum(f" {variant} " in line for line in out.splitlines()) >= count
    assert "bf16 L1L2 value+add" in out
    assert "1,000 elements" in out
    assert "against the best peer of each case: geometric mean" in out
    assert "no penalty" in out  # the training step

    data = json.loads(record.read_text())
    assert data["schema"] == SCHEMA
    assert data["command"] == "python -m fastreg " + " ".join(arguments)
    assert data["repeats"] == 3
    assert data["threads"] == 1
    assert data["peer_threads"]["numpy"] == 1
    assert set(data["machine"]) == {"processor", "cores", "system", "python"}
    assert set(data["versions"]) == {"fastreg", "numpy"}
    assert set(data["memory"]) == {"caches", "page_bytes", "huge_pages", "allocator"}
    assert data["memory"]["page_bytes"] >= 4096
    assert isinstance(data["gpus"], list)
    assert data["commit"] is None or len(data["commit"].removesuffix("-dirty")) == 40
    assert len(data["rows"]) == cells
    first = data["rows"][0]
    assert {key: value for key, value in first.items() if key != "variants"} == {
        "dtype": "f32",
        "terms": "L1",
        "outputs": "value",
        "size": 64,
        "model": "",
        "memory": "aligned",
        "before": "nothing",
        "threads": 0,
        "bytes": 256,
        "floor": "read",
        "blanks": {},
    }
    for row in data["rows"]:
        for found in row["variants"].values():
            median = found["seconds"]["median"]
            assert found["gb_per_s"] == pytest.approx(row["bytes"] / median / 1e9)
            assert len(found["samples"]) == 3
            for spread in (found["seconds"], found["share_of_floor"], found["times_fastreg"]):
                assert 0 < spread["low"] <= spread["median"] <= spread["high"]
        assert row["variants"]["fastreg"]["errors"]["value"] < 1e-15
        assert row["variants"]["numpy"]["errors"]["value"] < 1e-6

    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert len(lines) == cells * 4 + cells // 2
    variants = ["fastreg", "floor", "floor-numpy", "numpy"]
    assert [line["variant"] for line in lines[:4]] == variants
    assert float(lines[0]["seconds"]) == data["rows"][0]["variants"]["fastreg"]["seconds"]["median"]
    assert lines[0]["gradient_error"] == ""


def test_a_record_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    assert main(["bench", *SHORT, "--json", str(path)]) == 0
    record = read_json(path)
    assert [row.case for row in record.rows] == [
        Case("f32", "L1L2", "value", 64),
        Case("f32", "L1L2", "value+add", 64),
    ]
    assert set(record.rows[0].compared) == {"numpy"}
    assert record.circumstances.repeats == 1


@pytest.mark.parametrize("suffix", bench_options.PLOT_SUFFIXES)
def test_a_picture(suffix: str, tmp_path: Path, tiny_model: str) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"bench{suffix}"
    assert main(["bench", *SHORT, "--models", tiny_model, "--plot", str(picture)]) == 0
    assert picture.read_bytes().startswith(SIGNATURES[suffix])


def test_a_model_beside_one_tensor(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    arguments = ["bench", "--models", tiny_model, *SHORT[2:], "--json", str(path)]
    assert main(arguments) == 0
    assert "one tensor" in capsys.readouterr().out
    data = json.loads(path.read_text())
    assert [(row["model"], row["size"]) for row in data["rows"]] == [("tiny", 43)] * 2
    variants = {"fastreg", "floor", "floor-numpy", "one tensor", "numpy"}
    assert set(data["rows"][0]["variants"]) == variants


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench_options.add_to(parser)
    options = parser.parse_args(arguments)
    bench_options.complete(options)
    return options


def test_quick_is_shorter_but_what_is_given_stays() -> None:
    quick = parsed("--quick", "--sizes", "5")
    assert (quick.sizes, quick.repeats) == ([5], bench_options.QUICK_REPEATS)
    assert (quick.terms, quick.peers) == (["L1L2"], installed(quick=True))
    assert not {"torch-compile", "numba", "numba-f32"} & {*quick.peers}
    assert parsed("--quick", "--terms", "L1").terms == ["L1"]
    full = parsed()
    assert (full.sizes, full.repeats) == (list(bench_options.SIZES), 31)
    assert full.dtypes == ["f16", "bf16", "f32", "f64"]
    assert (full.models, full.peers) == ([], installed())


def test_models_come_instead_of_sizes_unless_both_are_given() -> None:
    assert parsed("--models", "gpt2").sizes == []
    both = parsed("--models", "gpt2", "--sizes", "5")
    assert (both.sizes, both.models) == ([5], ["gpt2"])


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
        (["--models", "vgg"], "'vgg' is not one of resnet50,"),
        (["--sizes", "1e30"], "'1e30' is more than an array can have"),
        (["--threads", "1025"], "'1025' is more than 1024"),
        (["--sise", "3"], "unrecognized arguments: --sise"),
        (["--quick", "--sise", "3", "frameworks"], "unrecognized arguments: --sise"),
        (["compare", "--sise", "3", "a", "b"], "unrecognized arguments: --sise"),
        (["1000"], "invalid choice: '1000' (choose from"),
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
    assert {*message.partition("python -m pip install ")[2].split()} == hidden


def test_a_missing_peer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(PEERS["numba"]), "available", lambda _: False)
    assert main(["bench", "--peers", "numpy,numba"]) == 2
    message = capsys.readouterr().err
    assert "--peers has what is not installed: numba." in message
    assert "python -m pip install numba" in message


@pytest.mark.parametrize("option", ["json", "csv", "plot"])
def test_a_missing_directory_is_refused_before_the_run(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_measuring: None
) -> None:
    assert main(["bench", f"--{option}", str(tmp_path / "none" / "bench.png")]) == 2
    assert "its directory does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench.jpg", "bench"])
def test_an_unknown_suffix_is_refused_before_the_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_measuring: None
) -> None:
    path = tmp_path / name
    assert main(["bench", "--plot", str(path)]) == 2
    assert f"--plot was {path}; its suffix must be one of .png,.svg,.pdf" in capsys.readouterr().err


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> Row:
        raise AssertionError("the run has begun")

    monkeypatch.setattr("fastreg.bench.cli.measure", measure)


@pytest.mark.parametrize(
    ("stop", "status", "note"),
    [(KeyboardInterrupt, 130, "interrupted"), (MemoryError, 1, "out of memory: this is what")],
)
def test_an_interrupted_run_keeps_what_it_has(
    stop: type[BaseException],
    status: int,
    note: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fastreg.bench import cli

    measure, rows = cli.measure, []

    def interrupted(*arguments: Any, **options: Any) -> Row:
        if rows:
            raise stop
        rows.append(measure(*arguments, **options))
        return rows[0]

    monkeypatch.setattr(cli, "measure", interrupted)
    path = tmp_path / "bench.json"
    assert main(["bench", *SHORT, "--json", str(path)]) == status
    captured = capsys.readouterr()
    assert note in captured.err
    assert "f32 L1L2 value" in captured.out
    assert len(json.loads(path.read_text())["rows"]) == 1


def test_files_are_written_although_the_reader_of_the_table_has_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fastreg.bench import cli

    def gone(*_: object) -> None:
        raise OSError("no space left on the device of standard output")

    monkeypatch.setattr(cli, "show_table", gone)
    path = tmp_path / "bench.json"
    with pytest.raises(OSError, match="no space left"):
        main(["bench", *SHORT, "--json", str(path)])
    assert len(read_json(path).rows) == 2


def test_a_peer_that_does_not_start_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def session(*_: object) -> object:
        raise OSError("libgomp.so.1: no such file")

    monkeypatch.setattr(type(PEERS["numpy-dot"]), "session", session)
    arguments = list(SHORT)
    arguments[arguments.index("numpy")] = "numpy,numpy-dot"
    assert main(["bench", *arguments]) == 0
    captured = capsys.readouterr()
    assert "numpy-dot is left out: OSError: libgomp.so.1" in captured.err
    assert "numpy-dot" not in captured.out
