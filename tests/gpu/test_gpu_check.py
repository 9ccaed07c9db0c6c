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
import gpu_machine
import pytest
from check import Check, Command, Runner, Step, conclude, sanitizer_verdict

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
SCRIPT = Path(check.__file__)
SETTINGS = """echo "FASTREG_BACKEND=$FASTREG_BACKEND"; echo "${FASTREG_ISA-none}" """


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=check.own_environment() | NO_GPU | environment,
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
    }
    return found | changes


def a_check(tmp_path: Path, *arguments: str, **changes: Any) -> Check:
    options = check.parsed(["--build-directory", str(tmp_path / "b"), *arguments])
    return Check(options, facts(**changes))


# ---- the command


def test_help() -> None:
    result = python(str(SCRIPT), "--help")
    assert result.returncode == 0
    assert "--steps" in result.stdout


def test_without_a_device_it_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    result = python(str(SCRIPT), "--json", str(path))
    assert result.returncode == 2
    assert "there is no CUDA device here" in result.stdout
    written = json.loads(path.read_text())
    assert written["machine"]["no_device"]
    assert (written["on_gpu"], written["steps"]) == (False, {})


def test_a_dry_run_shows_every_command_and_runs_none(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    arguments = ("--dry-run", "--json", str(path), "--build-directory", str(tmp_path / "b"))
    result = python(str(SCRIPT), *arguments)
    assert result.returncode == 0, result.stderr
    steps = json.loads(path.read_text())["steps"]
    assert {step["state"] for step in steps.values()} == {"not run"}
    told = {name: [c["command"] for c in step["commands"]] for name, step in steps.items()}
    assert told["build"][0][:2] == ["cmake", "-S"]
    assert "-DCMAKE_CUDA_ARCHITECTURES=90-real" in told["build"][0]
    assert any("gpu" in command for command in told["tests"])
    assert [command[2] for command in told["sanitizers"]] == list(check.SANITIZERS)
    assert "--device" in told["benchmark"][0]
    assert all(
        command["return_code"] is None for step in steps.values() for command in step["commands"]
    )


@pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")
def test_its_own_logic_on_the_host(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    arguments = ["--device", "cpu", "--json", str(path), "--build-directory", str(tmp_path / "b")]
    result = python(str(SCRIPT), *arguments, "--steps", "sanitizers,benchmark")
    assert result.returncode == 0, result.stdout + result.stderr
    written = json.loads(path.read_text())
    assert written["on_gpu"] is False
    sanitizers, benchmark = (written["steps"][name] for name in ("sanitizers", "benchmark"))
    assert sanitizers["state"] == "not run"
    assert len(sanitizers["commands"]) == 4
    assert benchmark["state"] == "self-check passed"
    figures = benchmark["figures"]
    assert figures["means_something"] is False
    assert len(figures["rows"]) == 4 * 5
    assert len(figures["launches"]) == 5
    assert len(figures["many_tensors"]) == 2
    assert not figures["failures"]


def test_wrong_steps_are_refused() -> None:
    result = python(str(SCRIPT), "--steps", "build,bake")
    assert result.returncode == 2
    assert "'bake' is none of build, tests, sanitizers, benchmark" in result.stderr


# ---- tests that are skipped, or not


@pytest.mark.parametrize(
    ("required", "status", "words"),
    [("", 0, "skipped"), ("1", 1, "FASTREG_REQUIRE_CUDA=1, but"), ("torch", 0, "skipped")],
)
def test_a_missing_device_is_a_failure_where_it_is_required(
    tmp_path: Path, required: str, status: int, words: str
) -> None:
    command = a_check(tmp_path).pytest("-k", "test_values and bare and f16", "-ra")[1:]
    test = str(SCRIPT.parent / "test_gpu_bits.py")
    paths = os.pathsep.join(filter(None, sys.path))
    result = python(*command, test, FASTREG_REQUIRE_CUDA=required, PYTHONPATH=paths)
    assert result.returncode == status, result.stdout
    assert words in result.stdout


@pytest.mark.parametrize("required", ["bare"])
def test_the_sanitizers_have_tests_to_run(tmp_path: Path, required: str) -> None:
    command = a_check(tmp_path).sanitizer_command("compute-sanitizer", "memcheck")
    own = command[command.index(sys.executable) + 1 :]
    paths = os.pathsep.join(filter(None, sys.path))
    result = python(*own, "--collect-only", FASTREG_REQUIRE_CUDA=required, PYTHONPATH=paths)
    assert result.returncode == 0, result.stdout
    for part in ("test_unaligned[bare-bf16", "test_lists[bare-7", "test_two_streams_at_once[bare"):
        assert part in result.stdout
    assert "3000" not in result.stdout
    assert "torch" not in result.stdout


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
    run = a_check(tmp_path, "--steps", "sanitizers", compute_sanitizer=tool)
    assert run.run() == {"passed": 0, "failed": 1, "not run": 3}[state]
    step = run.steps["sanitizers"]
    assert step.state == state
    assert words in step.reason
    assert len(step.commands) == 4


def test_a_missing_tool_is_not_run_and_not_passed(tmp_path: Path) -> None:
    run = a_check(tmp_path, "--steps", "sanitizers,benchmark", packages={"torch": None})
    assert run.run() == 3
    assert {step.state for step in run.steps.values()} == {"not run"}
    assert run.steps["sanitizers"].reason == "missing: compute-sanitizer"
    assert run.steps["benchmark"].reason == "missing: torch"


def test_a_build_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_machine.shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(gpu_machine, "pybind11_package", lambda folder: None)
    run = a_check(tmp_path, "--steps", "build")
    assert run.run() == 3
    reason = run.steps["build"].reason
    for name in ("cmake", "ninja or make", "a C++ compiler", "nvcc", "pybind11 3"):
        assert name in reason


def test_a_step_that_raises_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: Step) -> None:
        raise RuntimeError("something unforeseen")

    run = a_check(tmp_path, "--steps", "sanitizers,benchmark", packages={"torch": None})
    monkeypatch.setattr(run, "step_sanitizers", broken)
    assert run.run() == 1
    written = json.loads(run.options.json.read_text())
    assert written["steps"]["sanitizers"]["reason"] == "RuntimeError: something unforeseen"
    assert written["steps"]["benchmark"]["state"] == "not run"


def test_a_command_out_of_time_is_ended_with_its_children() -> None:
    runner = Runner(dry_run=False)
    runner.end = time.monotonic() + 60
    start = time.monotonic()
    done = runner.run(["/bin/sh", "-c", "echo started; /bin/sleep 50 & wait"], most=1.0)
    assert time.monotonic() - start < 20
    assert done.timed_out
    assert not done.succeeded
    assert done.tail == "started\n"
    runner.step.commands = [done]
    conclude(runner.step, ())
    assert runner.step.state == "failed"
    assert runner.step.reason.startswith("out of time: /bin/sh -c")


def test_settings_of_fastreg_do_not_reach_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTREG_ISA", "portable")
    runner = Runner(dry_run=False)
    runner.end = time.monotonic() + 60
    done = runner.run(["/bin/sh", "-c", SETTINGS], environment={"FASTREG_BACKEND": "native"})
    assert done.tail == "FASTREG_BACKEND=native\nnone\n"


def test_a_report_is_counted(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        "<testcase classname='a' name='one'/>"
        "<testcase classname='a' name='two'><failure message='no'/></testcase>"
        "<testcase classname='a' name='three'><error message='no'/></testcase>"
        "<testcase classname='a' name='four'><skipped message='there is one device'/></testcase>"
        "</testsuite></testsuites>"
    )
    assert check.read_report(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "reasons_of_skips": {"there is one device": 1},
        "failures": ["a::two", "a::three"],
    }


def test_nothing_watched_is_no_verdict() -> None:
    done = Command(["compute-sanitizer"], return_code=0, tail="6 passed")
    assert sanitizer_verdict(done, "ERROR SUMMARY: 0 errors").startswith("it did not say")


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
