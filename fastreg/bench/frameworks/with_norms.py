"""Norms, and clipping by the global norm, of one tensor and of many: beside loops that only read.

The numbers are of one magnitude: torch sums the squares of float32 in float32, and its norm of 16
million random ones is off by 7e-4.  Each call clips to a little less than the one before, so that
all of them scale.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

import fastreg
from fastreg._info import native_core
from fastreg.bench.frameworks.base import Setting, Settings, Variant
from fastreg.bench.frameworks.sizes import Sizes
from fastreg.bench.row import Work

TENSORS = 400
#: What each clip takes off: more than torch's norm of 16 million float32 elements is off by, or a
#: clip that comes after torch's has nothing to do.
SMALLER = 0.98


def settings(sizes: Sizes) -> Settings:
    """Yield the settings: float32, in one tensor and in 400."""
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(20260101)
    count = sizes.norm_elements
    for tensors in (1, TENSORS):
        source = torch.randn(count // tensors * tensors).sign_().mul_(0.5)
        parts = list(source.split(count // tensors))
        words = "one tensor" if tensors == 1 else f"{tensors} tensors"
        what = f"of {words}, {source.numel()} float32 elements together"
        yield _norms(torch, source, parts, f"norm {what}")
        yield _clip(torch, source, parts, f"clip by the norm {what}")


def _norms(torch: Any, source: Any, parts: Sequence[Any], what: str) -> Setting:
    found = [0.0]
    arrays = [part.numpy() for part in parts]

    def variant(norm: Callable[[], Any], number: Callable[[Any], float] = float) -> Variant:
        def call() -> None:
            found[0] = norm()

        return Variant(lambda: call, lambda: None, lambda: [np.array([number(found[0])])])

    ways = {
        "read": variant(partial(_read, source), lambda _: 0.0),
        "torch, foreach": variant(partial(torch.nn.utils.get_total_norm, parts, foreach=True)),
        "numpy.linalg.norm": variant(lambda: np.linalg.norm([np.linalg.norm(a) for a in arrays])),
        "fastreg.norms": variant(lambda: fastreg.norms(parts), lambda norms: norms.total.l2),
    }
    if find_spec("jax") and find_spec("optax"):
        ways["optax under jit"] = Variant(
            partial(_optax_norm, arrays, found), lambda: None, lambda: [np.array([found[0]])]
        )
    return Setting(Work("norms", what, usual="torch, foreach", bare="read"), ways)


def _clip(torch: Any, source: Any, parts: Sequence[Any], what: str) -> Setting:
    at_start = source.clone()
    parameters = [torch.nn.Parameter(torch.empty_like(part)) for part in parts]
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part

    bound = [1.0]

    def start() -> None:
        source.copy_(at_start)
        bound[0] = 1.0

    def variant(clip: Callable[[float], Any]) -> Variant:
        def call() -> None:
            bound[0] *= SMALLER
            clip(bound[0])

        return Variant(lambda: call, start, lambda: [source.numpy()])

    def read_and_scale(most: float) -> None:
        _read(source)
        source.mul_(SMALLER)

    ways = {
        "read, then mul_": variant(read_and_scale),
        "torch, foreach": variant(
            lambda most: torch.nn.utils.clip_grad_norm_(parameters, most, foreach=True)
        ),
        "fastreg": variant(lambda most: fastreg.clip_by_global_norm(parts, most)),
    }
    return Setting(Work("norms", what, usual="torch, foreach", bare="read, then mul_"), ways)


def _read(source: Any) -> object:
    """Read the bytes and do next to nothing with them."""
    core: Any = native_core()
    array = source.numpy()
    if core is None:
        return np.bitwise_or.reduce(array.view(np.uint32))
    return core.floor_read(array)


def _optax_norm(arrays: Sequence[Any], found: list[float]) -> Callable[[], object]:
    jax: Any = importlib.import_module("jax")
    optax: Any = importlib.import_module("optax")
    tree = [jax.device_put(array) for array in arrays]
    norm = jax.jit(optax.tree.norm)

    def call() -> None:
        found[0] = float(norm(tree))

    return call
