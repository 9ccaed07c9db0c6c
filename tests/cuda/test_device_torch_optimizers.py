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

STREAM = {"current": LEGACY_STREAM}
RULES = {"a": L1(0.1), "b": (L1L2(0.2, 0.1), "gradient")}
DECOUPLED = {"a": (L1(0.1), "decoupled")}
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
    monkeypatch.setattr(row, "stream", lambda _, x: STREAM["current"])
    monkeypatch.setattr(row, "cuda_view", lambda self, x, *_: View(*self._at(x, "x"), 0))
    new = fastreg.torch.optimizers.state.new

    def made(parameter: Any) -> Any:
        x = new(parameter)
        x.made_for_the_device = any(parameter is one for one in marked)
        return x

    monkeypatch.setattr(fastreg.torch.optimizers.state, "new", made)
    yield marked
    STREAM["current"] = LEGACY_STREAM
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


class Captured(Pair):
    """A pair of which the one on the device is captured with a learning rate that lies there."""

    def __init__(self, runtime: Runtime, marked: list[Any], kind: str, **options: Any) -> None:
        STREAM["current"] = runtime.stream()
        self.lr = torch.tensor(0.1)
        self.strength = torch.tensor(1.0, dtype=torch.float64)
        marked += [self.lr, self.strength]
        super().__init__(marked, kind, **options)
        for group in self.there.param_groups:
            group["lr"] = self.lr
        self.there.strength = self.strength
        self.grad_scale, self.found_inf = torch.tensor(64.0), torch.tensor(0.0)
        self.grads = {name: torch.zeros_like(one) for name, one in self.on_device.items()}
        marked += [self.grad_scale, self.found_inf, *self.grads.values()]
        for name, one in self.on_device.items():
            one.grad = self.grads[name]
        self.there.grad_scale, self.there.found_inf = self.grad_scale, self.found_inf
        self.write(0)
        self.there.step()
        self.here.step()
        self.compare(runtime)

    def write(self, seed: int, found_inf: bool = False) -> None:
        self.lr.fill_(0.1 / (1 + seed))
        self.strength.fill_(seed % 3)
        self.grad_scale.fill_(2.0**seed)
        self.found_inf.fill_(found_inf)
        for name, (shape, dtype) in SHAPES.items():
            g = torch.from_numpy(numbers(shape, np.float64, seed)).to(dtype)
            self.grads[name].copy_(g)
            self.on_host[name].grad = g
        self.here.param_groups[0]["lr"] = self.lr.clone()
        self.here.strength = self.strength.item()
        self.here.grad_scale, self.here.found_inf = (
            one.clone() for one in (self.grad_scale, self.found_inf)
        )

    def replay(self, runtime: Runtime, replay: Any, seed: int, found_inf: bool = False) -> None:
        self.write(seed, found_inf)
        waits = runtime.waits
        replay()
        assert runtime.waits == waits
        runtime.drain()
        self.here.step()
        if not found_inf:  # then the host does not look at the norm
            self.compare(runtime)


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_is_replayed(
    runtime: Runtime, there: list[Any], kind: str, max_norm: Any
) -> None:
    one = Captured(runtime, there, kind, max_norm=max_norm)
    one.there.param_groups[0]["of the user"] = one.lr  # which no step reads
    with runtime.capture(STREAM["current"]) as replays:
        one.there.step()
        with pytest.raises(RuntimeError, match="a copy to the host is waited for"):
            _ = one.there.steps
    del one.there.param_groups[0]["of the user"]
    for seed in range(1, 5):
        one.replay(runtime, replays[0], seed, found_inf=seed == 2)
    assert one.there.steps == one.here.steps == 4
    for optimizer in (one.there, one.here):
        optimizer.param_groups[0]["lr"] = 0.1  # compared as it is saved
    one.compare_states(runtime)


def test_a_step_that_the_host_skips_has_the_strength_that_lies_there(
    runtime: Runtime, there: list[Any]
) -> None:
    one = Captured(runtime, there, "SGD")
    one.write(2, found_inf=True)
    one.there.found_inf = one.found_inf.to(torch.float64)  # the host reads another dtype
    one.there.step()
    one.here.step()
    one.compare(runtime)
    assert one.here.last.skipped


def test_a_captured_step_is_updated(runtime: Runtime, there: list[Any]) -> None:
    """Schedulers that set numbers reach replays by the recording."""
    STREAM["current"] = runtime.stream()
    rules = {"a": (L1(0.1), "decoupled"), "b": L1L2(0.2, 0.1)}
    pair = Pair(there, "AdamW", rules=rules, independent=True, capturable=False)
    pair.step(runtime, 1)
    with fastreg.cuda.recording() as recording, runtime.capture(STREAM["current"]) as replays:
        pair.there.step()
    for turn in range(3):
        rules["a"][0].l1 = 0.2 * turn
        for optimizer in (pair.there, pair.here):
            optimizer.param_groups[0].update(lr=0.03 / (1 + turn), weight_decay=0.1 * turn)
            optimizer.strength = 1.0 + turn
        recording.update()
        replays[0]()
        runtime.drain()
        pair.here.step()
        pair.compare(runtime)
    pair.there.param_groups[0]["amsgrad"] = False
    with pytest.raises(RuntimeError, match="begun or ended a momentum or amsgrad"):
        recording.update()
    lr = torch.tensor(0.1)
    there.append(lr)
    pair.there.param_groups[0].update(amsgrad=True, lr=lr)
    with pytest.raises(RuntimeError, match="'lr'] is no longer the array that was captured"):
        recording.update()
    pair.there.param_groups[0]["lr"] = 0.1
    pair.there.load_state_dict(pair.there.state_dict())
    with pytest.raises(RuntimeError, match="or has loaded a state; capture again"):
        recording.update()
    runtime.drain()
    recording.close()


def test_an_initial_rate_on_the_device_is_read_once(runtime: Runtime, there: list[Any]) -> None:
    """Schedulers of torch put a copy of a tensor into the group."""
    one = Captured(runtime, there, "SGD", rules=DECOUPLED, independent=True)
    initial = torch.tensor(0.25)
    there.append(initial)
    one.there.param_groups[0]["initial_lr"], one.here.param_groups[0]["initial_lr"] = initial, 0.25
    for seed in range(3):
        one.write(seed)
        waits = runtime.waits
        one.there.step()
        assert runtime.waits == waits
        one.here.step()
        one.compare(runtime)


def test_capturable_counts_on_the_device(runtime: Runtime, there: list[Any]) -> None:
    pair = Pair(there, "AdamW", capturable=True)
    for seed in range(3):
        pair.there.param_groups[0]["capturable"] = True
        pair.here.param_groups[0]["capturable"] = False
        pair.step(runtime, seed)
    assert pair.there._counts is not None
    pair.here.param_groups[0]["capturable"] = True
    pair.compare_states(runtime)


def test_what_a_captured_step_cannot_do_is_refused(runtime: Runtime, there: list[Any]) -> None:
    STREAM["current"] = runtime.stream()

    def refused(match: str, pair: Pair, **scaling: Any) -> None:
        before = pair.on_device["a"].detach().clone()
        for name, one in pair.on_device.items():
            one.grad = torch.ones_like(one)
            there.append(one.grad)
            del name
        with runtime.capture(STREAM["current"]), pytest.raises(RuntimeError, match=match):
            pair.there.step()
        assert torch.equal(pair.on_device["a"].detach(), before)
        assert pair.there.steps == 0

    for kind in KINDS:
        refused("the parameter 'a' has no state yet", Pair(there, kind))
    refused('^on_nonfinite="raise" waits', Pair(there, "SGD", on_nonfinite="raise"))
    refused("^strength is a function", Pair(there, "SGD", strength=lambda step: 1.0))
    pair = Pair(there, "AdamW")
    pair.there.param_groups[0]["betas"] = torch.tensor(0.9), 0.999
    there.append(pair.there.param_groups[0]["betas"][0])
    refused(r"^param_groups\[0\]\['betas'\] has a tensor on the device", pair)
    pair.there.param_groups[0]["betas"] = [*pair.there.param_groups[0]["betas"]]
    refused(r"^param_groups\[0\]\['betas'\] has a tensor on the device", pair)
    pair = Pair(there, "SGD", momentum=0.0, dampening=0.0, rules=DECOUPLED, independent=True)
    initial = torch.tensor(0.1)
    there.append(initial)
    pair.there.param_groups[0]["initial_lr"] = initial
    refused(r"^param_groups\[0\]\['initial_lr'\] is a tensor on the device that no step", pair)
    pair = Pair(there, "SGD", momentum=0.0, dampening=0.0)
    pair.there.found_inf = torch.tensor(1.0)
    refused("^found_inf was known on the host", pair)


@pytest.fixture
def mesh() -> Iterator[Any]:
    """The mesh of one process."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch has no gloo")
    store = distributed.HashStore()
    distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("on_nonfinite", ["ignore", "skip", "raise"])
def test_sharded_parameters(
    runtime: Runtime,
    there: list[Any],
    mesh: Any,
    monkeypatch: pytest.MonkeyPatch,
    on_nonfinite: str,
) -> None:
    """Their local tensors are on the device; a clip and a guard ask the other processes."""
    tensors = torch.distributed.tensor

    def sharded(x: Any) -> Any:
        return tensors.distribute_tensor(x, mesh, [tensors.Shard(0)])

    w = torch.from_numpy(numbers((40, 50), np.float32))
    on_device, on_host = torch.nn.Parameter(sharded(w.clone())), torch.nn.Parameter(w.clone())
    options: dict[str, Any] = {"lr": 0.01, "rules": {"w": L1(0.1)}, "max_norm": 0.5}
    optimizers = [
        fastreg.torch.AdamW([("w", one)], **options, on_nonfinite=on_nonfinite)
        for one in (on_device, on_host)
    ]
    for seed in range(3):
        g = torch.from_numpy(numbers((40, 50), np.float32, 1 + seed))
        if seed == 1 and on_nonfinite == "skip":
            g[3, 4] = float("inf")
        on_device.grad, on_host.grad = sharded(g), g
        with monkeypatch.context() as everything:
            everything.setattr(torch_arrays.Torch, "is_on_cuda", lambda _, x: True)
            optimizers[0].step()
        optimizers[1].step()
        runtime.drain()
        found, expected = (one.last for one in optimizers)
        assert found == expected
        assert expected.skipped == (seed == 1 and on_nonfinite == "skip")
        assert torch.equal(on_device.detach().to_local(), on_host.detach())
    STREAM["current"] = runtime.stream()
    refusal = "waits for the gradients' norm" if on_nonfinite == "raise" else "are sharded"
    monkeypatch.setattr(torch_arrays.Torch, "is_on_cuda", lambda _, x: True)
    with runtime.capture(STREAM["current"]), pytest.raises(RuntimeError, match=refusal):
        optimizers[0].step()
