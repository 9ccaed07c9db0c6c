"""What a call runs through, counted: calls, files and changes of file, by flow.

Counted with ``sys.setprofile`` in the thread that makes the call, once two calls have gone before:

- **calls** of functions that are written in files of ``fastreg``: each time that Python enters one,
  generators at each of their items, lambdas and (until Python 3.11) comprehensions too;
- **into _core**: calls of functions of the compiled core;
- **files** that they are in; **entries**: calls out of another file than the function's own;
  **re-entries**: entries less files;
- **moves**: how often execution goes from one file to another, returns included.

The caller is counted as one call, in one file. What NumPy, PyTorch, JAX and Keras run is not
counted. All of them that are installed are loaded. A trace is JAX's first: its caches are empty.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

COUNTS = ("calls", "into _core", "files", "entries", "re-entries", "moves")
Flow = Callable[[], Any]


def counted(flow: Flow, package: str) -> dict[str, int]:
    """Return the counts of one call; `package` is the path of the folder whose files count."""
    stack, visits, entered = ["caller"], ["caller"], ["caller"]
    counts = {"calls": 1, "into _core": 0}

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            counts["into _core"] += getattr(argument, "__module__", None) == "fastreg._core"
            return
        file = frame.f_code.co_filename
        if not file.startswith(package):
            return
        if event == "call":
            counts["calls"] += 1
            if stack[-1] != file:
                entered.append(file)
            stack.append(file)
            visits.append(file)
        elif event == "return":
            stack.pop()
            visits.append(stack[-1])

    sys.setprofile(profile)
    try:
        flow()
    finally:
        sys.setprofile(None)
    files = len(set(entered))
    moves = sum(one != other for one, other in pairwise(visits))
    return {
        **counts,
        "files": files,
        "entries": len(entered),
        "re-entries": len(entered) - files,
        "moves": moves,
    }


# ------------------------------------------------------------------------------- the flows


def numpy_flows() -> Iterator[tuple[str, Flow]]:
    import numpy as np

    import fastreg
    from fastreg import layers, regularizers

    reg = regularizers.L1L2(l1=1e-5, l2=1e-4)
    w, grad = np.ones((8, 8), np.float32), np.zeros((8, 8), np.float32)
    yield "L1L2.accumulate(w, grad), NumPy", lambda: reg.accumulate(w, grad)
    grads = {"one": grad, "two": np.zeros_like(grad)}
    penalties = fastreg.attach({"one": w, "two": w.copy()}, reg)
    yield "attach(...).accumulate(grads), 2 NumPy arrays", lambda: penalties.accumulate(grads)

    def dense(**options: Any) -> Any:
        return layers.Dense(8, kernel_regularizer=reg, **options)

    def forward_and_backward(model: Any) -> None:
        model.backward(model(w))

    one = dense(activation="relu", activity_regularizer=reg)
    two = layers.Sequential([dense(), dense()])
    yield "Dense forward + backward", lambda: forward_and_backward(one)
    yield "Sequential of 2 Dense forward + backward", lambda: forward_and_backward(two)


def torch_flows() -> Iterator[tuple[str, Flow]]:
    import torch

    import fastreg.torch
    from fastreg import regularizers

    reg = regularizers.L1L2(l1=1e-5, l2=1e-4)
    w, grad = torch.ones(8, 8), torch.zeros(8, 8)
    module = torch.nn.Linear(8, 8)
    penalties = fastreg.torch.attach(module, reg)

    def without_gradients() -> None:
        module.zero_grad()
        penalties.accumulate()

    def under_no_grad() -> None:
        with torch.no_grad():
            penalties.value()

    yield "L1L2.accumulate(w, grad), torch CPU", lambda: reg.accumulate(w, grad)
    yield "torch attach(...).accumulate(), .grad missing", without_gradients
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    yield "torch attach(...).accumulate(), .grad there", penalties.accumulate
    yield "torch Penalties.value()", penalties.value
    yield "torch Penalties.value() + backward", lambda: penalties.value().backward()
    yield "torch Penalties.value(), no_grad", under_no_grad
    w.requires_grad_()
    yield "reg(tensor), autograd forward", lambda: reg(w)
    yield "reg(tensor), autograd forward + backward", lambda: reg(w).backward()


def jax_flows() -> Iterator[tuple[str, Flow]]:
    import jax

    import fastreg.jax
    from fastreg import regularizers

    reg = regularizers.L1L2(l1=1e-5, l2=1e-4)
    x = jax.numpy.ones((8, 8))
    yield "reg(x), JAX eager", lambda: reg(x)
    tree = {"one": x, "two": x + 1.0}
    penalties = fastreg.jax.attach(tree, reg)

    def traced() -> None:
        jax.clear_caches()
        jax.jit(lambda x: reg(x)).lower(x)

    def traced_tree() -> None:
        jax.clear_caches()
        jax.jit(jax.value_and_grad(lambda tree: penalties.value(tree))).lower(tree)

    yield "reg(x), tracing jax.jit", traced
    yield "TreePenalties.value, tracing jit(value_and_grad)", traced_tree


FLOWS = {"numpy": numpy_flows, "torch": torch_flows, "jax": jax_flows}


def here(package: str) -> dict[str, dict[str, int]]:
    """Return the counts of all flows whose framework is there, of the package in a folder."""
    there = [framework for framework in FLOWS if find_spec(framework) is not None]
    for framework in there:  # what is loaded is looked at, also by the flows of others
        import_module(framework)
    found = {}
    for framework in there:
        for title, flow in FLOWS[framework]():
            flow()
            flow()
            found[title] = counted(flow, package)
    return found


def of_checkout(root: Path) -> dict[str, dict[str, int]]:
    """Return the counts of the flows of a checkout, which has its core beside it."""
    settings = {name: text for name, text in os.environ.items() if not name.startswith("FASTREG_")}
    result = subprocess.run(
        [sys.executable, __file__, str(root / "fastreg")],
        env=settings | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])},
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, dict[str, int]] = json.loads(result.stdout)
    return found


def table(flows: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Return the lines of a table of at most 80 columns."""
    yield f"{'':<48}calls core files in again moves"
    for name, counts in flows.items():
        calls, core, files, entries, again, moves = (counts[key] for key in COUNTS)
        yield f"{name:<48}{calls:>5}{core:>5}{files:>6}{entries:>3}{again:>6}{moves:>6}"


if __name__ == "__main__":
    print(json.dumps(here(sys.argv[1])))
