"""A process that is lost is an error in the others, at the latest with the group's timeout."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from worlds import environment

torch = pytest.importorskip("torch")
if not torch.distributed.is_available() or not hasattr(signal, "SIGSTOP"):
    pytest.skip("torch without torch.distributed, or no SIGSTOP", allow_module_level=True)

WORKER = Path(__file__).with_name("lost_worker.py")
TIMEOUT = 5  # seconds, of the worker's process group


@pytest.mark.parametrize(
    ("end", "way"), [("exits", "value"), ("is_killed", "check"), ("stops", "accumulate")]
)
def test_the_others_learn_it(end, way, tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(tmp_path), str(rank), end, way],
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if rank == 0 else subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        for rank in range(2)
    ]
    try:
        output, _ = processes[0].communicate(timeout=120)
    finally:
        for process in processes:
            process.kill()  # a stopped one too
            process.communicate()
    assert processes[0].returncode == 0, output
    found = json.loads(output.splitlines()[-1])
    assert found["error"] is not None, "rank 0 has a value of half a model"
    assert "disagree" not in found["error"]
    assert found["seconds"] < (TIMEOUT if end != "stops" else 6 * TIMEOUT), found
    assert processes[1].returncode == (7 if end == "exits" else -signal.SIGKILL)
