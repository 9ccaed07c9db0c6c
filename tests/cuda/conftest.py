"""What tests on the stand-in share.

torch_cases.py puts a module in the place of torch: nobody but test_torch.py runs it.
"""

from __future__ import annotations

import gc
import os
import sys
import types
from collections.abc import Iterator

import pytest
from device_fakes import Runtime, fake_cupy, fake_jax

from fastreg._arrays import cuda_results

if "FAKE_TORCH_TABLE" not in os.environ:
    collect_ignore = ["torch_cases.py"]


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    runtime = Runtime()
    yield runtime
    runtime.drain()
    cuda_results.held.clear()
    gc.collect()
    runtime.drain()
    runtime.free_dropped()


@pytest.fixture
def cupy(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = fake_cupy(runtime)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def jax(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    modules = fake_jax(runtime)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules["jax"]
