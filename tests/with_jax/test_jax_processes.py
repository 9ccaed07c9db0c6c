"""Penalties of arrays that two processes hold together, on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import interpreter
import jax
import pytest

PROGRAM = Path(__file__).with_name("processes_program.py")
SECONDS = 200


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def run(*arguments):
    """Run both processes to their ends; return their statuses, outputs and error outputs."""
    (loopback, *_) = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    settings = os.environ | {
        "GLOO_SOCKET_IFNAME": loopback,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(interpreter.ROOT)]),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), address, str(rank), *arguments],
            env=settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    end = time.monotonic() + SECONDS
    try:
        printed = [process.communicate(timeout=end - time.monotonic()) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, found_in(output), errors)
        for process, (output, errors) in zip(processes, printed, strict=True)
    ]


def found_in(output):
    mark = "found: "
    return [json.loads(x.removeprefix(mark)) for x in output.splitlines() if x.startswith(mark)]


@pytest.fixture(scope="module")
def facts():
    ended = run()
    for status, found, errors in ended:
        assert status == 0, errors
        assert len(found) == 1
    return [found[0] for _, found, _ in ended]


def test_both_have_the_value_of_one_process(facts):
    for found in facts:
        assert found["devices"] == [4, 2]
        for value in found["values"].values():
            assert value == pytest.approx(found["expected"], rel=2e-7)
        for name in ("one", "orthogonal"):
            value, expected = found[name]
            assert value == pytest.approx(expected, rel=2e-7 if name == "one" else 1e-6)
    assert facts[0]["values"] == facts[1]["values"]


def test_gradients_have_the_bits_of_the_core_in_both(facts):
    for found in facts:
        assert len(found["gradients"]) == 7
        assert all(found["gradients"])


def test_one_all_reduce_and_no_gathering(facts):
    for found in facts:
        assert (found["all-reduce"], found["all-gather"]) == (1, 0)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 6), reason="this JAX waits 100 s for a process that died"
)
def test_a_process_that_dies_ends_the_other_and_gives_no_value():
    (status, found, errors), (died, found_before, _) = run("dies")
    assert died == 17
    assert len(found_before) == 1
    assert len(found) == 1, "a value came back though the other process was gone"
    assert status != 0
    assert "died" in errors or "heartbeat" in errors or "closed" in errors or "reset" in errors
