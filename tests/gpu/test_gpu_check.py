"""The script for a GPU machine: its logic, where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import check
import check_parts
import check_summary
import gpu_machine
import pytest
from check import Check
from check_parts import Bench, Part, conclude, sanitizer_verdict
from gpu_commands import Command, Runner, own_environment

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SCRIPT = Path(check.__file__)
SETTINGS = """echo "FASTREG_BACKEND=$FASTREG_BACKEND"; echo "${FASTREG_ISA-none}" """


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=own_environment() | NO_GPU | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def facts(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "nvcc": None,
        "compute_sanitizer": None,
        "packages": {"torch": "1"},
        "devices": [{"name": "a device", "capability": [9, 0]}],
        "no_device": None,
        "driver": "580",
        "sources": "0123456789abcdef",
        "commit": None,
    }
    return found | changes


def a_check(tmp_path: Path, *arguments: str, **changes: Any) -> Check:
    folders = ["--build-directory", str(tmp_path / "b"), "--output", str(tmp_path)]
    return Check(check.parsed([*folders, *arguments]), facts(**changes))


def written(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    return result


# ---- the command


def test_help() -> None:
    result = python(str(SCRIPT), "--help")
    assert result.returncode == 0
    assert "--parts" in result.stdout


def test_without_a_device_it_ends_at_once(tmp_path: Path) -> None:
    result = python(str(SCRIPT), "--output", str(tmp_path))
    assert result.returncode == 2
    assert "there is no CUDA device here" in result.stdout
    assert written(tmp_path)["machine"]["no_device"]
    assert (written(tmp_path)["on_gpu"], written(tmp_path)["parts"]) == (False, {})


def test_the_output_is_what_the_environment_names(tmp_path: Path) -> None:
    assert python(str(SCRIPT), OUT=str(tmp_path / "out")).returncode == 2
    assert written(tmp_path / "out")["machine"]["sources"]


def test_a_dry_run_shows_every_command_and_runs_none(tmp_path: Path) -> None:
    arguments = ("--dry-run", "--output", str(tmp_path), "--build-directory", str(tmp_path / "b"))
    result = python(str(SCRIPT), *arguments)
    assert result.returncode == 0, result.stderr
    parts = written(tmp_path)["parts"]
    assert {part["state"] for part in parts.values()} == {"not run"}
    told = {name: [c["command"] for c in part["commands"]] for name, part in parts.items()}
    assert list(told) == list(check.PLAN)
    assert told["build"][0][:2] == ["cmake", "-S"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in told["build"][0]
    assert told["build"][1][-1] == "python_package"
    for maker in check_parts.MAKERS:
        (command,) = told[maker]
        assert command[command.index("--makers") + 1] == maker
    assert [told[name][0][2] for name in check_parts.SANITIZERS] == list(check_parts.SANITIZERS)
    assert "--stage" in told["headline"][0]
    assert all(
        command["return_code"] is None for part in parts.values() for command in part["commands"]
    )


def test_bits_come_before_everything_that_measures() -> None:
    names = list(check.PLAN)
    assert names[:2] == ["build", "bare"]
    kinds = [planned.kind for planned in check.PLAN.values()]
    assert kinds.index("benchmark") > max(i for i, kind in enumerate(kinds) if kind == "tests")
    assert names.index("memcheck") < names.index("racecheck") < names.index("cells")


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_its_own_logic_on_the_host(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--output", str(tmp_path), "--parts", "memcheck,headline"]
    result = python(str(SCRIPT), *arguments, "--build-directory", str(tmp_path / "b"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert written(tmp_path)["on_gpu"] is False
    sanitizer, headline = (written(tmp_path)["parts"][name] for name in ("memcheck", "headline"))
    assert sanitizer["state"] == "not run"
    assert len(sanitizer["commands"]) == 1
    assert headline["state"] == "self-check passed"
    figures = headline["figures"]
    assert figures["means_something"] is False
    assert len(figures["rows"]) == 5
    assert len(figures["launches"]) == 5
    assert len(figures["many_tensors"]) == 2
    assert len(figures["steps"]) == 1
    assert not figures["failures"]
    assert "this says nothing about a GPU" in result.stdout


def test_wrong_parts_are_refused() -> None:
    result = python(str(SCRIPT), "--parts", "build,bake")
    assert result.returncode == 2
    assert "'bake' is none of build, tests, benchmark, sanitizers" in result.stderr


# ---- tests that are skipped, or not


@pytest.mark.parametrize(
    ("required", "status", "words"),
    [("", 0, "skipped"), ("1", 1, "FASTREG_REQUIRE_CUDA=1, but"), ("torch", 0, "skipped")],
)
def test_a_missing_device_is_a_failure_where_it_is_required(
    tmp_path: Path, required: str, status: int, words: str
) -> None:
    command = a_check(tmp_path).bench.pytest("-k", "test_values and bare and f16", "-ra")[1:]
    test = str(SCRIPT.parent / "test_gpu_bits.py")
    paths = os.pathsep.join(filter(None, sys.path))
    result = python(*command, test, FASTREG_REQUIRE_CUDA=required, PYTHONPATH=paths)
    assert result.returncode == status, result.stdout
    assert words in result.stdout


@pytest.mark.parametrize("required", ["bare"])
def test_the_sanitizers_have_tests_to_run(tmp_path: Path, required: str) -> None:
    bench = a_check(tmp_path).bench
    command = check_parts.sanitizer_command(bench, "compute-sanitizer", "memcheck")
    own = command[command.index(sys.executable) + 1 :]
    paths = os.pathsep.join(filter(None, sys.path))
    result = python(*own, "--collect-only", FASTREG_REQUIRE_CUDA=required, PYTHONPATH=paths)
    assert result.returncode == 0, result.stdout
    for part in ("test_sanitized[bare-bf16", "test_lists[bare-7", "test_two_streams_at_once[bare"):
        assert part in result.stdout
    chosen = [line for line in result.stdout.splitlines() if "::" in line]
    assert chosen
    assert not [line for line in chosen if "3000" in line or "[torch" in line]


# ---- steps


def fake_sanitizer(tmp_path: Path, script: str) -> str:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return str(tool)


CLEAN = "echo '6 passed'; echo '== ERROR SUMMARY: 0 errors'; echo '== RACECHECK SUMMARY: 0 hazards'"


@pytest.mark.parametrize(
    ("script", "state", "words"),
    [
        (CLEAN, "passed", ""),
        ("echo '6 passed'", "failed", "it did not say"),
        (f"{CLEAN}; exit 86", "failed", "exit status 86"),
        ("echo '== ERROR SUMMARY: 1 error'; exit 86", "failed", "exit status 86"),
        (CLEAN.replace("6 passed", "6 deselected"), "failed", "no test ran"),
        ("echo '== Error: Device not supported'; exit 1", "not run", "Device not supported"),
    ],
)
def test_verdicts_of_sanitizers(tmp_path: Path, script: str, state: str, words: str) -> None:
    tool = fake_sanitizer(tmp_path, script)
    run = a_check(tmp_path, "--parts", "sanitizers", compute_sanitizer=tool)
    assert run.run() == {"passed": 0, "failed": 1, "not run": 3}[state]
    assert len(run.parts) == 4
    for part in run.parts.values():
        assert part.state == state
        assert words in part.reason
        assert len(part.commands) == 1


def test_a_missing_tool_is_not_run_and_not_passed(tmp_path: Path) -> None:
    run = a_check(tmp_path, "--parts", "sanitizers,benchmark", packages={"torch": None})
    assert run.run() == 3
    assert {part.state for part in run.parts.values()} == {"not run"}
    assert run.parts["memcheck"].reason == "missing: compute-sanitizer"
    assert run.parts["headline"].reason == "missing: torch"


def test_a_build_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(gpu_machine, "pybind11_package", lambda folder: None)
    run = a_check(tmp_path, "--parts", "build")
    assert run.run() == 3
    reason = run.parts["build"].reason
    for name in ("cmake", "ninja or make", "a C++ compiler", "nvcc", "pybind11 3"):
        assert name in reason


def test_a_part_that_raises_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(bench: Bench, part: Part) -> None:
        raise RuntimeError("something unforeseen")

    monkeypatch.setitem(check.PLAN, "memcheck", check.Planned("sanitizers", 1.0, broken))
    run = a_check(tmp_path, "--parts", "memcheck,headline", packages={"torch": None})
    assert run.run() == 1
    parts = written(tmp_path)["parts"]
    assert parts["memcheck"]["reason"] == "RuntimeError: something unforeseen"
    assert parts["headline"]["state"] == "not run"


def test_a_command_out_of_time_is_ended_with_its_children(tmp_path: Path) -> None:
    runner = Runner(tmp_path / "log.txt")
    start = time.monotonic()
    script = "echo started; /bin/sleep 50 & wait"
    done = runner.run(["/bin/sh", "-c", script], directory=tmp_path, most=1.0)
    assert time.monotonic() - start < 20
    assert done.timed_out
    assert not done.succeeded
    assert done.tail == "started\n"
    assert (tmp_path / "log.txt").read_text().endswith("started\n")
    part = Part(commands=[done])
    conclude(part, ())
    assert part.state == "failed"
    assert part.reason.startswith("out of time: /bin/sh -c")


def test_settings_of_fastreg_do_not_reach_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTREG_ISA", "portable")
    settings = {"FASTREG_BACKEND": "native"}
    done = Runner().run(["/bin/sh", "-c", SETTINGS], directory=tmp_path, environment=settings)
    assert done.tail == "FASTREG_BACKEND=native\nnone\n"


def test_a_record_is_counted(tmp_path: Path) -> None:
    ends = {"one": "passed", "two": "failed", "four": "skipped"}
    lines = []
    for name in ("one", "two", "three", "four", "five"):
        lines.append({"test": name, "event": "begin"})
        if name in ends:
            outcome = {"outcome": ends[name], "seconds": 1.0, "words": "there is one device"}
            lines.append({"test": name, "event": "end", **outcome})
    record = tmp_path / "bare.jsonl"
    text = "\n".join(map(json.dumps, lines))
    record.write_text(text + '\n{"test": "six", "ev')  # killed in the midst of a line
    found = check_parts.read_record(record)
    assert [found[key] for key in ("passed", "failed", "skipped")] == [1, 1, 1]
    assert found["reasons_of_skips"] == {"there is one device": 1}
    assert found["failures"] == ["two"]
    assert found["ended_the_process"] == ["three", "five"]


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        ({"passed": 3}, 0, ("passed", "")),
        ({"passed": 3, "failed": 1, "failures": ["a::b"]}, 1, ("failed", "failed: a::b")),
        ({"passed": 3, "ended_the_process": ["a"]}, 0, ("failed", "hung or crashed in a")),
        ({"passed": 3}, 87, ("failed", "the device was lost")),
        ({"skipped": 1, "reasons_of_skips": {"no GPU": 1}}, 0, ("not run", "no GPU")),
        ({}, 5, ("failed", "exit status 5: nothing collected")),
        ({}, 0, ("failed", "no test passed")),
    ],
)
def test_verdicts_of_tests(changes: dict[str, Any], code: int, expected: tuple[str, str]) -> None:
    figures: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "reasons_of_skips": {}}
    figures |= {"failures": [], "ended_the_process": [], **changes}
    done = Command(["pytest"], return_code=code, tail="nothing collected\n")
    assert check_parts.verdict_of_tests(figures, done) == expected


def test_a_summary_is_short(tmp_path: Path) -> None:
    run = a_check(
        tmp_path,
        packages={"torch": "2", "numpy": "2"},
    )
    run.parts["bare"].figures = {"failures": [f"test.py::{'x' * 90}{i}" for i in range(200)]}
    lines = check_summary.summary(run.result(), tmp_path).splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) <= 100
    assert any("lines are left out: see check.json" in line for line in lines)


def test_nothing_watched_is_no_verdict() -> None:
    done = Command(["compute-sanitizer"], return_code=0, tail="6 passed")
    assert sanitizer_verdict(done, "ERROR SUMMARY: 0 errors").startswith("failed: it did not say")


# ---- the machine


@pytest.mark.parametrize(
    ("capability", "known", "expected"),
    [
        ((9, 0), [75, 80, 90, 100], "90-real"),
        ((12, 0), [75, 80, 90], "90-virtual"),
        ((8, 7), [75, 80, 90], "80-virtual"),
        ((7, 0), [75, 80], "70-real"),  # nvcc will say that it cannot
        ((9, 0), [], "90-real"),
    ],
)
def test_architectures(capability: Any, known: Any, expected: str) -> None:
    assert gpu_machine.architecture(capability, known) == expected


def test_headers_without_a_package_get_one(tmp_path: Path) -> None:
    gpu_machine.write_package(tmp_path / "pybind11", tmp_path / "include", "3.0.4")
    text = (tmp_path / "pybind11" / "pybind11Config.cmake").read_text()
    assert f'SYSTEM PRIVATE "{(tmp_path / "include").as_posix()}"' in text
    assert "3.0.4" in (tmp_path / "pybind11" / "pybind11ConfigVersion.cmake").read_text()


def test_headers_that_are_too_old_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = tmp_path / "torch" / "include" / "pybind11" / "detail" / "common.h"
    header.parent.mkdir(parents=True)
    origin = type("Spec", (), {"origin": str(tmp_path / "torch" / "__init__.py")})
    monkeypatch.setattr(gpu_machine, "output_of", lambda command: None)
    monkeypatch.setattr(gpu_machine.importlib.util, "find_spec", lambda name: origin)
    lines = "#define PYBIND11_VERSION_MAJOR {}\n#define PYBIND11_VERSION_MINOR 1\n"
    header.write_text(lines.format(2))
    assert gpu_machine.pybind11_package(tmp_path / "package") is None
    header.write_text(lines.format(3))
    assert gpu_machine.pybind11_package(tmp_path / "package") == str(tmp_path / "package")


def test_facts_are_json() -> None:
    found = gpu_machine.facts(check.ROOT)
    assert json.loads(json.dumps(found)) == found
    assert bool(found["devices"]) != bool(found["no_device"])
