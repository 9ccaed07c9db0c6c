"""``python -m fastreg bench compare``: two records, or two commits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir
from types import ModuleType
from typing import Any

import pytest

import fastreg
from fastreg.__main__ import main
from fastreg.bench import commits
from fastreg.bench.compare import mark
from fastreg.bench.options import UsageError
from fastreg.bench.peers import own
from fastreg.bench.record import read_json, write_json
from fastreg.bench.row import Row, Work
from fastreg.bench.spread import Spread
from fastreg.bench.turns import Process

pytest.importorskip("ml_dtypes")
pytest.importorskip("rich")

#: As `bench --json` wrote it before records told of caches, pages, allocator, GPUs and commit.
OLD = Path(__file__).with_name("record_schema_2.json")

SHORT = ["--sizes", "64", "--dtypes", "f32", "--terms", "L1L2", "--outputs", "value,value+add"]
SHORT += ["--repeats", "6"]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run."""
    path = tmp_path_factory.mktemp("records") / "before.json"
    arguments = ["bench", *SHORT, "--peers", "numpy", "--no-step", "--json", str(path)]
    assert main(arguments) == 0
    return path


def changed(record: Path, name: str, change: Any) -> Path:
    """A copy of a record with something changed in its document."""
    document = json.loads(record.read_text())
    change(document)
    path = record.with_name(name)
    path.write_text(json.dumps(document))
    return path


def scale(document: dict[str, Any], **factors: float) -> None:
    """Multiply the samples of variants."""
    for row in document["rows"]:
        for variant, factor in factors.items():
            found = row["variants"][variant]
            # without the noise of the machine that runs the tests
            found["samples"] = [factor * (1e-6 + n * 1e-9) for n in range(6)]


def test_a_record_is_as_fast_as_itself(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", str(record), str(record)]) == 0
    out = capsys.readouterr().out
    assert "f32 L1L2 value+add at 64" in out
    assert "2 cases: 0 faster, 0 slower; geometric mean of B / A 1.00" in out


@pytest.mark.parametrize(
    ("own", "floor", "verdict"),
    [
        (0.5, 1.0, "2 faster, 0 slower; geometric mean of B / A 0.50"),
        (3.0, 1.0, "0 faster, 2 slower; geometric mean of B / A 3.00"),
        # the floor took longer as well: it was the machine
        (3.0, 3.0, "0 faster, 0 slower; geometric mean of B / A 3.00"),
        # slower, but less so than the floor
        (2.0, 3.0, "0 faster, 0 slower; geometric mean of B / A 2.00"),
    ],
)
def test_what_is_beyond_noise_is_marked(
    own: float, floor: float, verdict: str, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = changed(record, "steady.json", lambda d: scale(d, fastreg=1.0, floor=1.0))
    after = changed(record, "after.json", lambda d: scale(d, fastreg=own, floor=floor))
    result = record.with_name("comparison.json")
    assert main(["bench", "compare", str(before), str(after), "--json", str(result)]) == 0
    assert f"2 cases: {verdict}" in capsys.readouterr().out
    (first, _) = json.loads(result.read_text())["cases"]
    assert first["case"]["outputs"] == "value"
    assert first["ratio"]["median"] == pytest.approx(own)
    assert first["mark"] == (verdict.split()[1].rstrip(",") if verdict[0] == "2" else first["mark"])


def test_a_record_of_an_older_version_is_compared(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has neither caches, pages and allocator, nor GPUs, nor the commit."""
    assert main(["bench", "compare", str(OLD), str(record)]) == 0
    out = capsys.readouterr().out
    assert "f32 L1L2 value+add at 64" in out
    assert "2 cases: " in out
    assert "memory" not in out


def test_records_of_frameworks_are_compared(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def changed_by(factor: float, usual: float) -> Path:
        work = Work("torch", "a step", usual="by hand", bare="bare")
        samples = {"bare": 1.0, "by hand": 3.0 * usual, "fastreg, a": 2.0 * factor}
        turns = {name: [second + n * 1e-3 for n in range(6)] for name, second in samples.items()}
        path = record.with_name(f"steps-{factor}-{usual}.json")
        write_json(path, read_json(record).circumstances, [Row(work, turns)])
        return path

    before = str(changed_by(1.0, 1.0))
    for factor, usual, verdict in ((2.0, 1.0, "slower"), (2.0, 2.0, ""), (0.5, 1.0, "faster")):
        assert main(["bench", "compare", before, str(changed_by(factor, usual))]) == 0
        out = capsys.readouterr().out
        (line,) = (line for line in out.splitlines() if "torch: a step, fastreg, a" in line)
        assert line.rstrip().endswith(verdict or ")")
        counts = [int(verdict == name) for name in ("faster", "slower")]
        assert "1 case: {} faster, {} slower".format(*counts) in out


def test_samples_that_are_not_in_step(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(document: dict[str, Any]) -> None:
        document["rows"][0]["variants"]["floor"]["samples"].pop()

    assert main(["bench", "compare", str(changed(record, "odd.json", change)), str(record)]) == 2
    assert "cannot be compared: it is no record of" in capsys.readouterr().err


def test_marks() -> None:
    assert mark(Spread(1.1, 1.05, 1.2)) == "slower"
    assert mark(Spread(0.9, 0.8, 1.0)) == ""


def test_differing_circumstances_are_told(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(document: dict[str, Any]) -> None:
        document["threads"] = 99
        document["rows"][0]["size"] = 65

    after = changed(record, "other.json", change)
    assert main(["bench", "compare", str(record), str(after)]) == 0
    out = capsys.readouterr().out
    assert "not the same in both: threads (" in out
    assert f"only in {after}: 1 cases" in out
    assert "1 case: " in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "it is no record of `python -m fastreg bench --json`"),
        ("[1]", "it is no record of"),
        ('{"schema": 2}', "it is no record of"),
        ('{"schema": 1}', "its schema is 1, this version reads 2; measure again"),
    ],
)
def test_what_is_no_record(
    text: str, message: str, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = record.with_name("wrong.json")
    other.write_text(text)
    assert main(["bench", "compare", str(record), str(other)]) == 2
    assert f"{other} cannot be compared: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.0, -1.0, "fast", None])
def test_times_that_are_none(
    seconds: object, record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(document: dict[str, Any]) -> None:
        document["rows"][0]["variants"]["fastreg"]["samples"][0] = seconds

    assert main(["bench", "compare", str(changed(record, "odd.json", change)), str(record)]) == 2
    assert "cannot be compared: it is no record of" in capsys.readouterr().err


def test_nothing_in_common(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = changed(record, "empty.json", lambda document: document["rows"].clear())
    assert main(["bench", "compare", str(record), str(empty)]) == 2
    assert "have no case in common" in capsys.readouterr().err


def test_refusals(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([str(record), "HEAD"], "'HEAD' is not a record (.json); compare two records, or"),
        ([str(record), "none.json"], "'none.json' is not there"),
        ([str(record), str(record), "--sizes", "5"], "--sizes: only for commits"),
        ([str(record), str(record), "--quick"], "--quick: only for commits"),
        ([str(record), str(record), "--json", "none/x"], "its directory does not exist"),
    ):
        assert main(["bench", "compare", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["bench", "--peers", "numpy", "compare", str(record), str(record)]) == 2
    assert "--peers is not for `compare`" in capsys.readouterr().err


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *names, *arguments], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of fastreg with two commits: the second one gives other values."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path / "checkout"
    package = Path(fastreg.__file__).parent
    shutil.copytree(package, root / "fastreg", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    git(tmp_path, "init", "--quiet", "checkout")
    git(root, "add", "-A")
    git(root, "commit", "--quiet", "-m", "first")
    source = root / "fastreg" / "regularizers" / "elementwise.py"
    source.write_text(source.read_text() + "\nL1L2.__call__ = lambda self, w: 1.0\n")
    git(root, "commit", "--quiet", "-a", "-m", "second")
    monkeypatch.chdir(root)
    return root


def as_it_lies(source: Path, target: Path) -> None:
    """In place of a build, which would take minutes: the fallback needs none."""
    shutil.copytree(source / "fastreg", target / "fastreg")


def test_two_commits(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commits, "build_with_pip", as_it_lies)
    monkeypatch.setenv("FASTREG_BACKEND", "numpy")
    status = git(repository, "status", "--porcelain")
    assert main(["bench", "compare", "HEAD~1", "HEAD", *SHORT]) == 0
    captured = capsys.readouterr()
    assert "building A: HEAD~1" in captured.err
    lines = [line.rstrip() for line in captured.out.splitlines() if " at 64" in line]
    assert [line.split("  ")[1].strip() for line in lines] == [
        "f32 L1L2 value at 64",
        "f32 L1L2 value+add at 64",
    ]
    # only the first value was tampered with
    assert "other bits" in lines[0]
    assert "other bits" not in lines[1]
    assert "the bits of results differ in 1 of them" in captured.out
    assert f"B: {git(repository, 'rev-parse', 'HEAD')}" in captured.out
    # nothing is left behind
    assert git(repository, "status", "--porcelain") == status
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not list(Path(gettempdir()).glob("fastreg-compare-*/*-source"))


def test_a_commit_that_does_not_build_leaves_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (repository / "pyproject.toml").write_text("[project\n")
    git(repository, "add", "-A")
    git(repository, "commit", "--quiet", "-m", "third")
    assert main(["bench", "compare", "HEAD", "HEAD", *SHORT]) == 2
    assert "A-source does not build:" in capsys.readouterr().err
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_an_interrupted_comparison_leaves_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commits, "build_with_pip", build)
    assert main(["bench", "compare", "HEAD", "HEAD", *SHORT]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_process_that_fails_is_told(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commits, "build_with_pip", lambda source, target: target.mkdir())
    monkeypatch.setenv("FASTREG_BACKEND", "numpy")
    assert main(["bench", "compare", "HEAD", "HEAD", *SHORT]) == 2
    error = capfd.readouterr().err
    assert "a measuring process ended early" in error
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_a_process_that_ends_before_it_is_asked_is_told(tmp_path: Path) -> None:
    """A broken pipe would be taken for a reader of the output that has gone, and status 0."""

    def ask() -> None:
        with Process(tmp_path, None) as process:
            process._process.wait(timeout=60)
            process.time()

    with pytest.raises(UsageError, match="ended early"):
        ask()


def test_unknown_commit(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "HEAD", "no-such-branch", *SHORT]) == 2
    assert "'no-such-branch' is neither a record (.json) nor a commit of" in capsys.readouterr().err


def test_outside_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if shutil.which("git") is not None:
        assert main(["bench", "compare", "main", "HEAD", *SHORT]) == 2
        assert f"{tmp_path} is in no checkout of fastreg" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="needs git"):
        commits.checkout()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench"], ["bench", "compare"]):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        assert stop.value.code == 0
        assert "compare" in capsys.readouterr().out


def test_builds_from_before_the_engine_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their entry points lay in another module."""
    older = ModuleType("fastreg._backend")
    monkeypatch.setitem(sys.modules, "fastreg._engine.backend", None)
    monkeypatch.setitem(sys.modules, "fastreg._backend", older)
    assert own.entry_points() is older


def test_the_processes_take_the_other_package_and_this_benchmark(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(Path(fastreg.__file__).parent, package / "fastreg")
    shutil.rmtree(package / "fastreg" / "bench")
    script = (
        "import sys; from pathlib import Path; from runpy import run_path\n"
        f"run_path({commits.__file__.replace('commits.py', 'turns.py')!r})['load']"
        f"(Path({str(package)!r}))\n"
        "import fastreg, fastreg.bench.cases as cases\n"
        "print(fastreg.__file__); print(cases.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    package_file, bench_file = done.stdout.splitlines()
    assert Path(package_file) == package / "fastreg" / "__init__.py"
    assert Path(bench_file).parent == Path(commits.__file__).parent
