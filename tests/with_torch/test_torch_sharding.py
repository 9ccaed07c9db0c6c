"""DTensors, FSDP2, HSDP and DDP: several processes with gloo give what one process gives."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fastreg import regularizers

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not hasattr(os, "fork"):
    pytest.skip("torch without torch.distributed, or no fork", allow_module_level=True)

WORKER = Path(__file__).with_name("sharding_worker.py")
ROOT = WORKER.parents[2]
SECONDS = 240


def _cases():
    """Read the worker's table of worlds, without the modules that it loads."""
    for node in ast.parse(WORKER.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WORLDS":
            worlds = zip(node.value.keys, node.value.values, strict=True)
            return {case.id: world.value for world, cases in worlds for case in cases.elts}
    raise AssertionError("no WORLDS")


CASES = _cases()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run the processes once, and give what they printed: outcomes by case and rank, and stderr."""
    (loopback, *_) = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    command = [sys.executable, str(WORKER), str(tmp_path_factory.mktemp("stores"))]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "GLOO_SOCKET_IFNAME": loopback,
            "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(ROOT)]),
        },
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


@pytest.mark.parametrize("case", CASES)
def test_processes(outcomes, case):
    found, errors = outcomes
    for rank in range(CASES[case]):
        assert (case, rank) in found, f"rank {rank} did not end this case; stderr:\n{errors}"
    failed = {rank: found[case, rank] for rank in range(CASES[case]) if found[case, rank]}
    assert not failed, "\n".join(f"rank {rank}:\n{text}" for rank, text in failed.items())


# Dynamo's own way with functions of autograd.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_in_one_graph():
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        shard = torch.linspace(-1.0, 1.0, 6).reshape(2, 3)
        weight = torch.nn.Parameter(DTensor.from_local(shard, mesh, [Shard(0)]))
        reg = regularizers.L1L2(0.1, 0.2)
        value = torch.compile(lambda w: reg(w), backend="aot_eager", fullgraph=True)(weight)
        assert torch.equal(value, reg(weight))  # the other process has no elements
        value.backward()
        assert weight.grad.placements == weight.placements
        assert torch.equal(weight.grad.to_local(), reg.gradient(shard))
    finally:
        distributed.destroy_process_group()
        torch.compiler.reset()
