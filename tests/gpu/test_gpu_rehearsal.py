"""The whole check on the stand-in for a GPU: green, and red for each fault that is planted.

It runs where FASTREG_CUDA_LIBRARY names the stand-in's library and FASTREG_REHEARSAL the directory
that it was built in (tests/cuda/CMakeLists.txt).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check
import pytest
from gpu_commands import own_environment
from recorder import LOST, read_lines

BUILD = os.environ.get("FASTREG_REHEARSAL", "")
LIBRARY = os.environ.get("FASTREG_CUDA_LIBRARY", "")
SCRIPT = str(Path(check.__file__))
FEW = "test_values and L1L2 and not f64"

pytestmark = pytest.mark.skipif(not BUILD, reason="FASTREG_REHEARSAL names no build directory")


def command(output: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, SCRIPT, "--device", "stand-in", "--library", LIBRARY,
        "--build-directory", BUILD, "--output", str(output), *arguments,
    ]  # fmt: skip


def rehearse(output: Path, *arguments: str, **environment: str) -> tuple[int, str, dict[str, Any]]:
    """Run a check; return its status, what it printed and its result."""
    done = subprocess.run(
        command(output, *arguments),
        env=own_environment() | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    result = json.loads((output / "check.json").read_text(encoding="utf-8"))
    return done.returncode, done.stdout + done.stderr, result


def planted(fault: str, test: str, only: str = FEW) -> dict[str, str]:
    return {"PLANTED": f"{fault} {test}", "PYTEST_ADDOPTS": f"-p planted -k '{only}'"}


def test_all_of_it(tmp_path: Path) -> None:
    status, printed, result = rehearse(tmp_path, "--minutes", "20")
    assert status == 0, printed
    states = {name: part["state"] for name, part in result["parts"].items()}
    assert list(states) == list(check.PLAN)
    expected = dict.fromkeys(("build", "bare", "torch", "jax", "headline", "cells", "compiled"))
    without_gpu = {"cupy", "memcheck", "racecheck", "initcheck", "synccheck"}
    absent = {"torch", "headline", "cells", "compiled"} if not has("torch", result) else set()
    absent |= {"jax"} if not has("jax", result) else set()
    for name in set(expected) - absent:
        assert states[name] == "self-check passed", (name, result["parts"][name]["reason"])
    for name in without_gpu | absent:
        assert states[name] == "not run", name
    assert result["parts"]["bare"]["figures"]["passed"] > 200
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) <= 8
    assert {"check.json", "log.txt", "bare.jsonl"} <= set(files)
    summary = printed[printed.index("== summary") :].splitlines()
    assert len(summary) < 100
    assert max(map(len, summary)) <= 100
    assert "this says nothing about a GPU" in printed


def has(package: str, result: dict[str, Any]) -> bool:
    return result["machine"]["packages"][package] is not None


def test_a_wrong_bit(tmp_path: Path) -> None:
    test = "test_values[stand_in-f32-L1L2]"
    status, printed, result = rehearse(tmp_path, "--parts", "bare", **planted("wrong_bit", test))
    assert status == 1
    part = result["parts"]["bare"]
    assert part["state"] == "failed"
    assert [name for name in part["figures"]["failures"] if test in name]
    assert part["figures"]["passed"] >= 2
    assert f"FAILED bare: tests/gpu/test_gpu_bits.py::{test}" in printed.replace("../", "")


@pytest.mark.parametrize("fault", ["hang", "crash"])
def test_a_hang_or_crash_is_named_and_the_others_run(tmp_path: Path, fault: str) -> None:
    test = "test_values[stand_in-f16-L1L2]"
    arguments = ("--parts", "bare", "--test-seconds", "5")
    status, _, result = rehearse(tmp_path, *arguments, **planted(fault, test))
    assert status == 1
    figures = result["parts"]["bare"]["figures"]
    assert len(figures["ended_the_process"]) == 1
    assert test in figures["ended_the_process"][0]
    assert test in result["parts"]["bare"]["reason"]
    assert figures["passed"] >= 2


def test_a_lost_device_spoils_no_other_test(tmp_path: Path) -> None:
    test = "test_values[stand_in-f16-L1L2]"
    status, _, result = rehearse(tmp_path, "--parts", "bare", **planted("lost_device", test))
    assert status == 1
    part = result["parts"]["bare"]
    assert [done["return_code"] for done in part["commands"]] == [LOST, 0]
    assert len(part["figures"]["failures"]) == 1
    assert part["figures"]["passed"] >= 2


def test_a_build_that_fails(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "cmake").write_text("#!/bin/sh\necho 'it does not compile'; exit 1\n")
    (tools / "cmake").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    status, printed, result = rehearse(tmp_path / "out", "--parts", "build", PATH=path)
    assert status == 1
    assert result["parts"]["build"]["state"] == "failed"
    assert "it does not compile" in result["parts"]["build"]["commands"][0]["tail"]
    assert "build" in printed


@contextlib.contextmanager
def started(output: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(output, "--parts", "bare"),
        env=own_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_an_end_at_any_moment_leaves_what_there_is(tmp_path: Path, number: int) -> None:
    record = tmp_path / "bare.jsonl"
    with started(tmp_path) as process:
        give_up = time.monotonic() + 120
        while len(read_lines(record)) < 6 and time.monotonic() < give_up:
            time.sleep(0.05)
        time.sleep(random.uniform(0.0, 1.0))
        process.send_signal(number)
        printed, _ = process.communicate(timeout=60)
    result = json.loads((tmp_path / "check.json").read_text(encoding="utf-8"))
    assert len(read_lines(record)) >= 6
    if number == signal.SIGTERM:
        assert process.returncode == 1
        assert result["interrupted"] == "SIGTERM"
        assert "INTERRUPTED by SIGTERM" in printed
        assert result["parts"]["bare"]["state"] == "failed"
        time.sleep(0.5)
        before = len(read_lines(record))
        time.sleep(1.5)
        assert len(read_lines(record)) == before, "a child goes on"
    else:
        assert result["parts"]["bare"]["state"] == "not run"
