"""Steps of optimizers on a device have the bits of the host's, and so have their records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import numbers, patterns, same_bits, same_value
from makers import AUTOGRAD, GRADIENTS, GRAPHS, LAYOUTS, STREAMS, Maker
from test_gpu_bits import lists
from test_gpu_layouts import views
from test_gpu_prox import copied

import fastreg
from fastreg.optimizers import SGD, AdamW
from fastreg.regularizers import L1, L1L2

pytestmark = pytest.mark.needs(GRADIENTS)

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "scaled": (AdamW, {"lr": 0.01, "rules": L1L2(0.01, 0.1), "amsgrad": True}),
    "gradient": (AdamW, {"lr": 0.01, "rules": L1(0.3), "mode": "gradient", "maximize": True}),
    "decoupled": (SGD, {"lr": 0.1, "rules": L1L2(0.3, 0.7), "mode": "decoupled", "cautious": True}),
}


def same_record(found: Any, expected: Any) -> bool:
    return (
        same_value(found.penalty, expected.penalty)
        and int(found.zeros) == expected.zeros
        and bool(found.skipped) == expected.skipped
        and (found.norm is None) == (expected.norm is None)
        and (expected.norm is None or same_value(found.norm, expected.norm))
    )


def check(maker: Maker, kind: str, w: np.ndarray, view: bool = False, **options: Any) -> None:
    """Take two steps on the device and on the host."""
    make = maker.viewed if view else maker.make
    optimizer, own = KINDS[kind]
    host, weight = copied(w), make(w)
    there = optimizer([weight], **{**own, **options})
    here = optimizer([host], **{**own, **options})
    with np.errstate(all="ignore"):
        for seed in (1, 2):
            g = np.ascontiguousarray(numbers(max(w.size, 1), "f32", seed)[: w.size])
            g = g.reshape(w.shape).astype(w.dtype)
            assert same_record(there.step([maker.make(g)]), here.step([g]))
    assert same_bits(maker.host(weight), host)


@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_steps(maker: Maker, dtype: str, kind: str) -> None:
    for size in (0, 1, 33, 4097, 20_003):
        check(maker, kind, numbers(size, dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_optimizer_steps_of_every_pattern(maker: Maker, dtype: str, kind: str) -> None:
    check(maker, kind, patterns(dtype))


@pytest.mark.needs(LAYOUTS)
@pytest.mark.parametrize("kind", ["momentum", "scaled"])
def test_optimizer_steps_in_any_layout(maker: Maker, dtype: str, kind: str) -> None:
    for w in views(dtype).values():
        if min(w.strides) >= 0 or maker.has_negative_strides:
            check(maker, kind, w, view=True)


@pytest.mark.parametrize("clip", ["total", "data"])
@pytest.mark.parametrize("on_nonfinite", ["ignore", "skip", "raise"])
def test_clipped_steps_of_models(maker: Maker, on_nonfinite: str, clip: str) -> None:
    weights, _ = lists(120, maker.dtypes)
    rules = {"*bias": (L1(0.3), "gradient"), "*kernel": L1L2(0.3, 0.7)}
    options: dict[str, Any] = {"rules": rules, "max_norm": 0.5, "clip": clip}
    options["on_nonfinite"] = on_nonfinite
    on_device = {name: maker.make(w) for name, w in weights.items()}
    there, here = AdamW(on_device, 0.01, **options), AdamW(weights, 0.01, **options)
    for seed in range(3):
        grads = {
            name: numbers(max(w.size, 1), "f32", seed)[: w.size].reshape(w.shape).astype(w.dtype)
            for name, w in weights.items()
        }
        if seed == 1 and on_nonfinite == "skip":
            next(g for g in grads.values() if g.size).flat[0] = np.inf
        sent = {name: maker.make(g) for name, g in grads.items()}
        assert same_record(there.step(sent), here.step(grads))
    assert there.steps == here.steps == (2 if on_nonfinite == "skip" else 3)
    for name, w in weights.items():
        assert same_bits(maker.host(on_device[name]), w), name
    for key, value in here.state_dict().items():
        assert np.array_equal(there.state_dict()[key], value, equal_nan=False), key


@pytest.mark.needs(STREAMS)
def test_optimizer_steps_wait_for_nothing(maker: Maker) -> None:
    w, g = numbers(100_003, "f32"), numbers(100_003, "f32", 1)
    weight, gradient = maker.make(w), maker.make(g)
    there = AdamW([weight], 0.01, rules=L1(0.01), max_norm=0.5, on_nonfinite="skip")
    here = AdamW([w], 0.01, rules=L1(0.01), max_norm=0.5, on_nonfinite="skip")
    stream, records = maker.stream(), []
    with maker.using(stream):
        for _ in range(2):  # the first makes room, loads kernels, and may wait for that
            records.append(there.step([gradient]))
        with maker.unwaited(stream):
            records.append(there.step([gradient]))
        for record in records:
            assert same_record(record, here.step([g]))
    assert same_bits(maker.host(weight), w)


@pytest.mark.needs(GRAPHS)
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps(maker: Maker, kind: str) -> None:
    """Each replay takes the next step, with the learning rate that is there then, or skips it."""
    optimizer, own = KINDS[kind]
    size, turns = 20_003, 5
    grads = [numbers(size, "f32", 1 + turn) for turn in range(turns)]
    grads[2][77] = np.inf
    rates = [np.array(0.1 / (1 + turn), np.float32) for turn in range(turns)]
    w = numbers(size, "f32")
    weight, gradient, rate = maker.make(w), maker.make(grads[0]), maker.make(rates[0])
    sent = [(maker.make(g), maker.make(lr)) for g, lr in zip(grads, rates, strict=True)]
    options = {**own, "max_norm": 0.5, "on_nonfinite": "skip"}
    there = optimizer([weight], **{**options, "lr": rate})
    here = optimizer([w], **{**options, "lr": rates[0].item()})
    stream, records = maker.stream(), []
    with maker.using(stream):
        there.step([gradient])  # state is made outside of the graph
    maker.host(weight)
    here.step([grads[0]])
    replay = maker.captured(lambda: records.append(there.step([gradient])))
    with maker.using(stream):
        for g, lr in sent:
            maker.assign(gradient, g)
            maker.assign(rate, lr)
            replay()
        for g, lr in zip(grads, rates, strict=True):
            here.lr = lr.item()
            expected = here.step([g])
        assert same_bits(maker.host(weight), w)
        assert same_record(records[0], expected)
        assert there.steps == here.steps == turns


@pytest.mark.needs(GRAPHS)
def test_a_schedule_reaches_a_captured_step(maker: Maker) -> None:
    w, g = numbers(20_003, "f32"), numbers(20_003, "f32", 1)
    weight, gradient = maker.make(w), maker.make(g)
    rule = L1(0.3)
    there, here = (AdamW([one], 0.1, rules=rule) for one in (weight, w))
    stream = maker.stream()
    with maker.using(stream):
        there.step([gradient])
    maker.host(weight)
    here.step([g])
    with fastreg.cuda.recording() as recording:
        replay = maker.captured(lambda: there.step([gradient]))
    with maker.using(stream):
        for turn in range(3):
            there.lr = here.lr = 0.01 * (1 + turn)
            rule.l1 = 0.1 * turn
            recording.update()
            replay()
            here.step([g])
        assert same_bits(maker.host(weight), w)
    recording.close()


@pytest.mark.needs(AUTOGRAD)
@pytest.mark.needs(GRAPHS)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_captured_steps_of_torch(maker: Any, kind: str) -> None:
    """The scaler's numbers and the learning rate are tensors, as torch's capturable has them."""
    torch = maker.torch
    w, g = numbers(5000, "f32"), numbers(5000, "f32", 1)
    there, here = (torch.nn.Parameter(x) for x in (maker.make(w), torch.from_numpy(w.copy())))
    there.grad, here.grad = maker.make(g), torch.from_numpy(g.copy())
    options: dict[str, Any] = {"rules": {"w": L1(0.01)}, "max_norm": 1.0, "on_nonfinite": "skip"}
    if kind == "SGD":
        options.update(momentum=0.9)
    on_device, on_host = (
        getattr(fastreg.torch, kind)([("w", one)], lr=lr, **options)
        for one, lr in ((there, torch.tensor(0.1, device=there.device)), (here, 0.1))
    )
    for optimizer, one in ((on_device, there), (on_host, here)):
        optimizer.grad_scale = torch.tensor(256.0, device=one.device)
        optimizer.found_inf = torch.tensor(0.0, device=one.device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        on_device.step()
    torch.cuda.synchronize()
    on_host.step()
    replay = maker.captured(on_device.step)
    for turn in range(4):
        lr = torch.tensor(0.1 / (1 + turn))
        on_device.param_groups[0]["lr"].copy_(lr)
        on_host.param_groups[0]["lr"] = lr
        for optimizer in (on_device, on_host):
            optimizer.found_inf.fill_(float(turn == 1))
        replay()
        on_host.step()
        assert same_bits(maker.host(there), here.detach().numpy())
    assert on_device.steps == on_host.steps == 4
    saved = on_device.state_dict()["state"][0]
    for key, value in on_host.state_dict()["state"][0].items():
        assert torch.equal(saved[key].cpu(), value), key


@pytest.mark.needs(AUTOGRAD)
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("on_nonfinite", ["ignore", "skip"])
def test_optimizers_of_torch(maker: Any, kind: str, on_nonfinite: str) -> None:
    """Bits are those of parameters on the host; torch's fused optimizer is near."""
    torch = maker.torch
    w = numbers((40, 50), "f32")
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9} if kind == "SGD" else {"lr": 0.01}
    ours = {"rules": {"w": L1(0.01)}, "max_norm": 1.0, "on_nonfinite": on_nonfinite}
    there, here = (torch.nn.Parameter(x) for x in (maker.make(w), torch.from_numpy(w.copy())))
    plain = torch.nn.Parameter(maker.make(w))
    on_device, on_host = (
        getattr(fastreg.torch, kind)([("w", one)], **options, **ours) for one in (there, here)
    )
    bare = torch.nn.Parameter(maker.make(w))
    without_rules = getattr(fastreg.torch, kind)([bare], **options)
    fused = getattr(torch.optim, kind)([plain], **options, fused=True)
    for seed in range(3):
        g = numbers((40, 50), "f32", seed)
        for one in (there, plain, bare):
            one.grad = maker.make(g)
        here.grad = torch.from_numpy(g.copy())
        for optimizer in (on_device, on_host, fused, without_rules):
            optimizer.step()
        assert same_record(on_device.last, on_host.last)
    assert same_bits(maker.host(there), here.detach().numpy())
    reference = maker.host(plain)
    difference = np.abs(maker.host(bare) - reference).max()
    assert difference <= 1e-6 * np.abs(reference).max()
    saved = on_device.state_dict()["state"][0]
    for key, value in on_host.state_dict()["state"][0].items():
        assert torch.equal(saved[key].cpu(), value), key


@pytest.mark.needs(AUTOGRAD)
def test_an_overflow_is_skipped_there(maker: Any) -> None:
    """GradScaler's scale and what it found are read by the kernels."""
    torch = maker.torch
    w, g = numbers(5000, "f32"), numbers(5000, "f32", 1)
    there, here = (torch.nn.Parameter(x) for x in (maker.make(w), torch.from_numpy(w.copy())))
    on_device, on_host = (fastreg.torch.AdamW([one], lr=0.01) for one in (there, here))
    for turn in range(4):
        there.grad, here.grad = maker.make(g), torch.from_numpy(g.copy())
        for optimizer, device in ((on_device, there.device), (on_host, "cpu")):
            optimizer.grad_scale = torch.tensor(256.0, device=device)
            optimizer.found_inf = torch.tensor(float(turn % 2), device=device)
            optimizer.step()
        assert same_bits(maker.host(there), here.detach().numpy())
    assert on_device.steps == on_host.steps == 2
