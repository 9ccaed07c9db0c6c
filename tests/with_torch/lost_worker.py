"""The processes of test_torch_lost_process.py: one is lost before the others ask for a value.

``python lost_worker.py DIRECTORY RANK END``: the process of rank 1 ends as END says.  The other one
asks in each way, with a new process group for each, and prints one line of JSON for it: how many
seconds the error took, and its kind and text.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fastreg import regularizers
from fastreg.torch import attach

TIMEOUT = datetime.timedelta(seconds=5)
ENDS = {
    "exits": lambda: os._exit(7),
    "is_killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stops": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


def ask(penalties, way):
    if way == "value":
        penalties.value()
    elif way == "accumulate":
        penalties.accumulate()
    else:
        penalties.check()


def main(directory, rank, end, way):
    torch.set_num_threads(1)
    store = Path(directory, "store").resolve()
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=2, timeout=TIMEOUT
    )
    model = nn.Linear(4, 4)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    penalties = attach(model, regularizers.L2(0.5))
    ask(penalties, way)  # while all are there
    if rank == 1:
        ENDS[end]()
    start, error = time.monotonic(), None
    try:
        ask(penalties, way)
    except Exception as found:
        error = f"{type(found).__name__}: {found}"
    line = {"seconds": time.monotonic() - start, "error": error}
    os.write(1, (json.dumps(line) + "\n").encode())
    os._exit(0)  # what destroys a process group may wait for the lost process


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
