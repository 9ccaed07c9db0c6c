"""Runs a worker's cases in several processes, and reads what became of them.

A worker is a script with a table ``WORLDS`` of cases (functions) by the number of processes.
It prints one line of JSON for each case and rank, as ``sharding_worker.main`` does.
"""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 240
NO_FSDP2 = "AttributeError: 'Stream' object has no attribute 'record_event'\n"


def cases(worker):
    """Read a worker's table, without the modules that it loads: the world of each case by name."""
    for node in ast.parse(worker.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WORLDS":
            worlds = zip(node.value.keys, node.value.values, strict=True)
            return {case.id: world.value for world, cases in worlds for case in cases.elts}
    raise AssertionError("no WORLDS")


def environment():
    """Return the environment of processes that meet on this machine alone."""
    (loopback, *_) = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return {
        **os.environ,
        "GLOO_SOCKET_IFNAME": loopback,
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
    }


def run(worker, directory):
    """Run the processes once, and return what they printed: outcomes by case and rank, stderr."""
    command = [sys.executable, str(worker), str(directory)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment(),
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the processes that it forked are of its group
        output, errors = process.communicate()
        errors += f"\nended after {SECONDS} s"
    found = {}
    for line in output.splitlines():
        outcome = json.loads(line)
        found[outcome["case"], outcome["rank"]] = outcome["error"]
    return found, errors


def require_good(outcomes, case, world):
    """Fail with the tracebacks of the ranks where a case failed or did not end."""
    found, errors = outcomes
    for rank in range(world):
        assert (case, rank) in found, f"rank {rank} did not end this case; stderr:\n{errors}"
    failed = {rank: found[case, rank] for rank in range(world) if found[case, rank]}
    if len(failed) == world and all(text.endswith(NO_FSDP2) for text in failed.values()):
        pytest.skip("FSDP2 of this torch (2.6) needs a GPU")
    assert not failed, "\n".join(f"rank {rank}:\n{text}" for rank, text in failed.items())
