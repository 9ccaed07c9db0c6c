"""The headline cells, in stages: what the record of a processor holds.

Contract: a stage is a run of ``bench`` or ``bench frameworks`` in a process of its own, since pools
of threads and memory of one would disturb the other; its command is in its document. A peer that is
not installed is left out and named among the stage's ``missing``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastreg.bench.peers import PEERS

#: Where the records of a checkout lie.
RECORDS_FOLDER = Path(__file__).parents[2] / "docs" / "records"


@dataclass(frozen=True)
class Stage:
    """A run: the arguments of its command, and who takes part."""

    summary: str
    arguments: str
    peers: Sequence[str] = ()
    #: None: those that a process has by itself.
    threads: int | None = None
    #: Without what needs torch where torch is not installed.
    is_framework: bool = False


FLOATS = "--dtypes f32,f64 --terms L1L2"
SUMS = ("numba", "numba-f32", "jax", "torch-compile")
THREE = "--outputs value,value+gradient,value+add --memory numpy"
LARGE = "16777216,40000000"

STAGES = {
    "floors": Stage(
        "from DRAM, NumPy's and torch's memory, rested and after an operation of torch",
        f"--sizes 4194304,{LARGE} {FLOATS} --outputs value,value+add --memory numpy,torch "
        "--before nothing,torch",
    ),
    "floors-1": Stage(
        "from DRAM on one thread",
        f"--sizes 4194304,{LARGE} {FLOATS} --outputs value,value+add --memory numpy,torch",
        threads=1,
    ),
    "pages": Stage(
        "from DRAM in small pages and from a line on",
        f"--sizes 16777216 {FLOATS} --outputs value,value+add --memory small-pages,aligned",
    ),
    "half": Stage(
        "half precision",
        "--sizes 16777216 --dtypes f16,bf16 --terms L1L2 --outputs value,value+add "
        "--memory numpy,torch",
    ),
    "half-1": Stage(
        "half precision on one thread",
        "--sizes 16777216 --dtypes f16,bf16 --terms L1L2 --outputs value,value+add --memory numpy",
        threads=1,
    ),
    "new": Stage(
        "new gradients",
        f"--sizes 1048576,{LARGE} {FLOATS} --outputs new-gradient,value+new-gradient "
        "--memory numpy",
    ),
    "new-1": Stage(
        "new gradients on one thread",
        f"--sizes 1048576,{LARGE} {FLOATS} --outputs new-gradient --memory numpy",
        threads=1,
    ),
    "cache": Stage(
        "peers in the caches",
        f"--sizes 1000,65536,1048576 {FLOATS} {THREE}",
        ("numpy", *SUMS),
    ),
    "cache-1": Stage(
        "peers in the caches on one thread",
        f"--sizes 65536,1048576 {FLOATS} {THREE}",
        SUMS,
        threads=1,
    ),
    "peers": Stage(
        "peers from DRAM", f"--sizes 4194304,16777216 {FLOATS} {THREE}", ("numpy", *SUMS)
    ),
    "peers-1": Stage(
        "peers from DRAM on one thread", f"--sizes 16777216 {FLOATS} {THREE}", SUMS, threads=1
    ),
    "largest": Stage("peers at 64 million elements", f"--sizes 64000000 {FLOATS} {THREE}", SUMS),
    "policies": Stage(
        "the policy in use beside each of the others",
        f"--sizes 65536,1048576,4194304,{LARGE} {FLOATS} --outputs value,value+gradient,value+add "
        "--memory numpy --policies all",
    ),
    "models": Stage(
        "a model, tensors allocated one by one",
        "--models resnet50 --dtypes f32 --terms L1L2 --outputs value,value+add "
        "--memory aligned,numpy,torch",
    ),
    "torch": Stage(
        "400 small parameters, and a step of 12 x Linear(512)", "--frameworks torch", (), None, True
    ),
}


def measure(name: str, repeats: int, threads: int) -> dict[str, Any]:
    """Run a stage, and return what a record says of it.

    Raises
    ------
    RuntimeError
        Its process has failed; what it said is on standard error.
    """
    stage = STAGES[name]
    missing = [peer for peer in stage.peers if not PEERS[peer].available()]
    arguments = [*stage.arguments.split(), "--repeats", str(repeats)]
    if stage.is_framework:
        arguments = ["frameworks", *arguments]
    else:
        peers = ",".join(peer for peer in stage.peers if peer not in missing) or "none"
        arguments += ["--threads", str(stage.threads or threads), "--peers", peers, "--no-step"]
    if not PEERS["torch"].available():
        arguments = [text.removesuffix(",torch") for text in arguments]
        missing = list(dict.fromkeys([*missing, "torch"]))
    with TemporaryDirectory(prefix="fastreg-record-") as folder:
        path = Path(folder) / "stage.json"
        command = [sys.executable, "-m", "fastreg", "bench", *arguments, "--json", str(path)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"its process ended with status {done.returncode}")
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    document["command"] = " ".join(["python -m fastreg bench", *arguments])
    return {**rounded(document), "missing": missing}


def rounded(found: Any) -> Any:
    """Return what JSON can say with numbers of four digits.

    Examples
    --------
    >>> rounded({"seconds": [0.0123456, 31]})
    {'seconds': [0.01235, 31]}
    """
    if isinstance(found, dict):
        return {key: rounded(one) for key, one in found.items()}
    if isinstance(found, list):
        return [rounded(one) for one in found]
    return float(f"{found:.4g}") if isinstance(found, float) else found
