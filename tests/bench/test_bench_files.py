"""What a run of the benchmark writes: whole or not at all, and refused before the run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from interpreter import runs

from fastreg.__main__ import main
from fastreg._base import files as _files
from fastreg.bench import compare, plot
from fastreg.bench.record import WORK_COLUMNS, read_json, write_csv, write_json
from fastreg.bench.row import Row

pytest.importorskip("rich")

#: A run of one case that takes a moment.
SHORT = ["bench", "--sizes", "64", "--dtypes", "f32", "--terms", "L1L2", "--outputs", "value"]
SHORT += ["--repeats", "1", "--peers", "numpy", "--no-step"]
DEV_FULL = Path("/dev/full")


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> Row:
        raise AssertionError("the run has begun")

    monkeypatch.setattr("fastreg.bench.cli.measure", measure)
    monkeypatch.setattr("fastreg.bench.cli.rows_of", measure)


def test_a_full_disk_leaves_the_old_record(tmp_path: Path) -> None:
    """A limit of the size of files stands for it."""
    output = runs(
        f"""
        import contextlib, io, os, resource
        from pathlib import Path
        from fastreg.__main__ import main

        os.chdir({str(tmp_path)!r})
        files = ["--json", "a.json", "--csv", "a.csv", "--plot", "a.png"]
        arguments = {SHORT!r} + files
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(arguments) == 0
        before = {{name: Path(name).read_bytes() for name in os.listdir()}}
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            status = main(arguments)
        assert {{name: Path(name).read_bytes() for name in os.listdir()}} == before
        print(status, len(before))
        print(said.getvalue())
        """,
        MPLCONFIGDIR=str(tmp_path.parent),
    )
    assert output.startswith("1 3\n")
    for name in ("json", "csv", "png"):
        option = {"png": "plot"}.get(name, name)
        assert (
            f"--{option}: [Errno 27] File too large; nothing has been replaced: 'a.{name}'"
            in output
        )


@pytest.mark.skipif(not DEV_FULL.exists(), reason="a device of Linux")
def test_one_file_that_cannot_be_written_is_told_and_the_others_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "a.csv"
    assert main([*SHORT, "--json", str(DEV_FULL), "--csv", str(table)]) == 1
    captured = capsys.readouterr()
    assert "--json: [Errno 28] No space left on device" in captured.err
    assert "f32 L1L2 value" in captured.out
    assert table.read_text().startswith("dtype,terms,")
    assert DEV_FULL.is_char_device()


@pytest.mark.parametrize("kind", ["json", "csv", "png", "compare", "frameworks", "frameworks csv"])
def test_each_writer_replaces_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    record = tmp_path / "record.json"
    assert main([*SHORT, "--json", str(record)]) == 0
    found = read_json(record)
    circumstances, rows = found.circumstances, found.rows
    path = tmp_path / ("old.png" if kind == "png" else "old")
    path.write_text("old")
    write = {
        "json": lambda: write_json(path, circumstances, rows, None),
        "csv": lambda: write_csv(path, rows),
        "png": lambda: plot.save(path, circumstances, rows),
        "compare": lambda: compare.write_json(path, "a", "b", []),
        "frameworks": lambda: write_json(path, circumstances, []),
        "frameworks csv": lambda: write_csv(path, [], WORK_COLUMNS),
    }[kind]

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == [path, record] or path.name == "old.png"
    write()
    assert path.read_bytes() != b"old"
    assert sorted(tmp_path.iterdir()) == sorted([path, record])


@pytest.mark.usefixtures("no_measuring")
@pytest.mark.parametrize("command", [["bench"], ["bench", "frameworks"]])
@pytest.mark.parametrize("option", ["json", "csv"])
def test_files_that_cannot_be_written_are_refused_before_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    option: str,
) -> None:
    if "frameworks" in command:
        pytest.importorskip("torch")

    def refused(path: Path, words: str) -> None:
        assert main([*command, f"--{option}", str(path)]) == 2
        assert f"--{option} was {path}" in (said := capsys.readouterr().err)
        assert words in said

    refused(tmp_path / "none" / "a", "its directory does not exist")
    refused(tmp_path, "Is a directory")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "a", "which cannot be written: [Errno 20]")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(tmp_path / "a", "which cannot be written: [Errno 13] Permission denied")


@pytest.mark.usefixtures("no_measuring")
def test_one_file_for_two_things_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to("a")
    files = ["--json", str(tmp_path / "a"), "--csv", str(tmp_path / "link")]
    assert main([*SHORT, *files]) == 2
    assert "--json and --csv are one file" in capsys.readouterr().err


def test_a_record_can_go_into_a_pipe() -> None:
    output = runs(
        f"""
        import contextlib, io
        from fastreg.__main__ import main
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main({SHORT!r} + ["--json", "/dev/stdout"]) == 0
        """
    )
    assert json.loads(output)["rows"]
