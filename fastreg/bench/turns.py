"""A process that measures one build of fastreg, a turn at a time; and the handle on it.

Contract: one line of JSON each way. ``{"case": ...}`` makes the arrays and the call, and answers
with a fingerprint of its result; ``{"time": true}`` runs one batch and answers with seconds per
call. The benchmark's modules are those of the process that asks, whatever the build has: only
what is measured differs. What anything prints goes to standard error.

Run as a script, this file is the other process: ``turns.py PACKAGE_DIRECTORY``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


class Process(AbstractContextManager["Process"]):
    """The process for the package in a directory."""

    def __init__(self, package: Path, threads: int | None) -> None:
        settings = {} if threads is None else {"FASTREG_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **settings},
        )

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what it was asked and did not read, having ended before
            self._process.stdin.close()  # the end of its input ends it
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def prepare(self, case: Any) -> str:
        """Make the call of a ``Case``; what its result looks like."""
        return str(self._ask({"case": asdict(case)}))

    def time(self) -> float:
        """Run one batch of the prepared call; seconds per call."""
        return float(self._ask({"time": True}))

    def _ask(self, request: dict[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            from fastreg.bench.options import UsageError

            raise UsageError("a measuring process ended early; its error is above")
        return json.loads(answer)


def load(package: Path) -> None:
    """Import fastreg from a directory, with this file's package in the place of its benchmark."""
    here = Path(__file__).parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here.resolve()]
    sys.path.insert(0, str(package))
    # an editable installation of fastreg brings a finder that would come before the path
    sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
    import fastreg

    if Path(fastreg.__file__).resolve().parent.parent != package.resolve():
        raise ImportError(f"fastreg came from {fastreg.__file__}, not from {package}")
    bench = ModuleType("fastreg.bench")
    bench.__path__ = [str(here)]
    sys.modules["fastreg.bench"] = bench
    fastreg.bench = bench


def serve() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    from fastreg.bench.cases import Case
    from fastreg.bench.measure import batch_time, loops_for, no_collection
    from fastreg.bench.peers import Fastreg, Prepared
    from fastreg.bench.workloads import Workload, workloads

    workload: Workload | None = None
    prepared: Prepared | None = None
    loops = 1
    with no_collection():
        for line in sys.stdin:
            request = json.loads(line)
            if "case" in request:
                workload = prepared = None  # its arrays go before the next ones come
                workload = next(iter(workloads([Case(**request["case"])])))
                prepared = Fastreg().make(workload)
                answer: object = fingerprint(workload, prepared)
                loops = loops_for(prepared.call)
            else:
                assert prepared is not None
                answer = batch_time(prepared.call, loops) / loops
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def fingerprint(workload: Any, prepared: Any) -> str:
    """Return the value's bits and a checksum of the gradients' after one call."""
    from zlib import crc32

    from fastreg.bench.accuracy import START

    workload.fill_gradients(START)
    outputs = workload.case.returns
    result = prepared.call()
    value = prepared.value(result).hex() if outputs.has_value else ""
    checksum = 0
    for gradient in prepared.gradients():
        checksum = crc32(gradient.reshape(-1).view("u1"), checksum)
    return f"{value} {checksum:08x}"


if __name__ == "__main__":
    load(Path(sys.argv[1]))
    serve()
