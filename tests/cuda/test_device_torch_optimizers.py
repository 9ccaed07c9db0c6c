"""The optimizers for torch with parameters that say they are on CUDA, on the stand-in for a GPU.

Its memory is the host's, so torch's own tensors can be there: only their row says where they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from device_fakes import Runtime, numbers
from stand_in_arrays import LEGACY_STREAM, LIBRARY

torch = pytest.importorskip("torch")

import fastreg.torch  # noqa: E402
from fastreg._arrays import torch_arrays  # noqa: E402
from fastreg._arrays.cuda_memory import View  # noqa: E402
from fastreg.regularizers import L1, L1L2  # noqa: E402

pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")

RULES = {"a": L1(0.1), "b": (L1L2(0.2, 0.1), "gradient")}
SHAPES = {"a": ((40, 50), torch.float32), "b": ((300,), torch.bfloat16), "c": ((9,), torch.float64)}
KINDS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "dampening": 0.2},
    "AdamW": {"lr": 0.01, "amsgrad": True},
}


@pytest.fixture
def there(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The parameters, gradients and state that are on the device: those of this list."""
    marked: list[Any] = []
    row = torch_arrays.Torch

    def is_there(x: Any) -> bool:
        if any(x is one for one in marked):
            return True
        known = [one for one in marked if isinstance(one, torch.optim.Optimizer)]
        return any(
            x is kept for one in known for state in one.state.values() for kept in state.values()
        ) or bool(known and getattr(x, "made_for_the_device", False))

    monkeypatch.setattr(row, "is_on_cuda", lambda _, x: is_there(x))
    monkeypatch.setattr(row, "stream", lambda _, x: LEGACY_STREAM)
    monkeypatch.setattr(row, "cuda_view", lambda self, x, *_: View(*self._at(x, "x"), 0))
    new = fastreg.torch.optimizers.state.new

    def made(parameter: Any) -> Any:
        x = new(parameter)
        x.made_for_the_device = any(parameter is one for one in marked)
        return x

    monkeypatch.setattr(fastreg.torch.optimizers.state, "new", made)
    yield marked
    runtime.drain()


def parameters() -> dict[str, Any]:
    return {
        name: torch.nn.Parameter(torch.from_numpy(numbers(shape, np.float64)).to(dtype))
        for name, (shape, dtype) in SHAPES.items()
    }


class Pair:
    """One optimizer with its parameters on the device, and the same one on the host."""

    def __init__(self, marked: list[Any], kind: str, **options: Any) -> None:
        self.marked = marked
        self.on_device, self.on_host = parameters(), parameters()
        marked += self.on_device.values()
        make = getattr(fastreg.torch, kind)
        options = {**KINDS[kind], "rules": RULES, **options}
        self.there = make([*self.on_device.items()], **options)
        self.here = make([*self.on_host.items()], **options)
        marked.append(self.there)

    def step(self, runtime: Runtime, seed: int, bad: bool = False, **scaling: Any) -> None:
        for name, (shape, dtype) in SHAPES.items():
            g = torch.from_numpy(numbers(shape, np.float64, seed)).to(dtype)
            if bad and name == "b":
                g[7] = float("nan")
            if seed == 2 and name == "c":
                self.on_device[name].grad = self.on_host[name].grad = None
                continue
            self.on_device[name].grad, self.on_host[name].grad = g.clone(), g
            self.marked.append(self.on_device[name].grad)
        for optimizer in (self.there, self.here):
            for name, number in scaling.items():
                x = torch.tensor(number, dtype=torch.float32)
                setattr(optimizer, name, x)
                if optimizer is self.there:
                    self.marked.append(x)
            optimizer.step()
        self.compare(runtime)

    def compare(self, runtime: Runtime) -> None:
        runtime.drain()
        found, expected = self.there.last, self.here.last
        assert float(found.penalty) == expected.penalty
        assert int(found.zeros) == expected.zeros
        assert bool(found.skipped) == expected.skipped
        if expected.norm is not None:
            assert float(found.norm).hex() == expected.norm.hex()
        for name, one in self.on_host.items():
            assert torch.equal(self.on_device[name].detach(), one.detach()), name

    def compare_states(self, runtime: Runtime) -> None:
        runtime.drain()
        found, expected = (one.state_dict() for one in (self.there, self.here))
        assert found["param_groups"] == expected["param_groups"]
        assert [*found["state"]] == [*expected["state"]]
        for key, kept in expected["state"].items():
            assert [*found["state"][key]] == [*kept], key
            for name, x in kept.items():
                assert torch.equal(found["state"][key][name], x), (key, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_nonfinite", [None, "skip", "raise"])
def test_steps(runtime: Runtime, there: list[Any], kind: str, on_nonfinite: Any) -> None:
    pair = Pair(there, kind, on_nonfinite=on_nonfinite)
    for seed in range(4):
        waits = runtime.waits
        pair.step(runtime, seed)
        assert (runtime.waits > waits) or on_nonfinite != "raise"
    assert pair.there.steps == pair.here.steps == 4
    pair.compare_states(runtime)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_skips_there_what_is_not_finite(
    runtime: Runtime, there: list[Any], kind: str
) -> None:
    pair = Pair(there, kind, max_norm=0.5)
    pair.here._on_nonfinite = "skip"  # the default there
    for seed in range(4):
        pair.step(runtime, seed, bad=seed % 2 == 0)
        assert pair.here.last.skipped == (seed % 2 == 0)
    assert pair.there.steps == pair.here.steps == 2
    pair.compare_states(runtime)
    pair.step(runtime, 5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_scaler_leaves_is_read_there(runtime: Runtime, there: list[Any], kind: str) -> None:
    pair = Pair(there, kind)
    for seed in range(4):
        pair.step(runtime, seed, grad_scale=64.0, found_inf=float(seed % 2 == 0))
    assert pair.there.steps == pair.here.steps == 2
    pair.compare_states(runtime)
    # The counts outlive new groups and loading.
    pair.there.load_state_dict(pair.there.state_dict())
    pair.here.load_state_dict(pair.here.state_dict())
    pair.step(runtime, 7, grad_scale=64.0, found_inf=0.0)
    assert pair.there.steps == pair.here.steps == 3


def test_raise_names_the_parameter(runtime: Runtime, there: list[Any]) -> None:
    pair = Pair(there, "SGD", on_nonfinite="raise")
    before = pair.on_device["a"].detach().clone()
    with pytest.raises(ValueError, match="the gradient of the parameter 'b' has 1 element"):
        pair.step(runtime, 1, bad=True)
    runtime.drain()
    assert torch.equal(pair.on_device["a"].detach(), before)
    assert pair.there.steps == 0
    assert not pair.there.state
