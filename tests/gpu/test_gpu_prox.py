"""Proximal steps on a device have the bits of the host's, and so have their penalty and zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import SIZES, numbers, patterns, same_bits, same_value
from makers import AUTOGRAD, GRADIENTS, GRAPHS, LAYOUTS, OFFSETS, STREAMS, Maker
from test_gpu_bits import lists
from test_gpu_layouts import views

import fastreg
from fastreg.regularizers import L1, L1L2, L2

pytestmark = pytest.mark.needs(GRADIENTS)

RULES = {"none": L1L2(0.0, 0.0), "L1": L1(0.3), "L2": L2(0.7), "L1L2": L1L2(0.3, 0.7)}
STEP, SCALE = 0.9, 0.5


def same_record(found: Any, expected: Any) -> bool:
    return (
        same_value(found.penalty, expected.penalty)
        and int(found.zeros) == expected.zeros
        and found.size == expected.size
    )


def copied(w: np.ndarray) -> np.ndarray:
    """Return a copy with the same strides, gaps included: they say in which order sums are."""
    base: Any = w
    while isinstance(base.base, np.ndarray):
        base = base.base
    start = w.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    return np.ndarray(w.shape, w.dtype, bytearray(base.tobytes("A")), start, w.strides)


def check(maker: Maker, rule: Any, w: np.ndarray, offset: int = 0, view: bool = False) -> None:
    """Take a step elsewhere and in place, on the device and on the host."""

    def made() -> Any:
        return maker.viewed(w) if view else maker.make(w, offset=offset)

    expected = rule.prox(w, STEP, scale=SCALE)
    weight, out = made(), maker.make(np.zeros_like(w))
    assert rule.prox(weight, STEP, out, scale=SCALE) is out
    assert same_bits(maker.host(out), expected)
    assert same_bits(maker.host(weight), w)
    host = copied(w)
    record = fastreg.attach([weight], rule).prox(STEP, scale=SCALE)
    assert same_record(record, fastreg.attach([host], rule).prox(STEP, scale=SCALE))
    assert same_bits(maker.host(weight), expected)


@pytest.mark.parametrize("terms", RULES)
def test_steps(maker: Maker, dtype: str, terms: str) -> None:
    for size in SIZES:
        check(maker, RULES[terms], numbers(size, dtype))


@pytest.mark.parametrize("terms", RULES)
def test_steps_of_every_pattern(maker: Maker, dtype: str, terms: str) -> None:
    with np.errstate(all="ignore"):
        check(maker, RULES[terms], patterns(dtype))


@pytest.mark.needs(OFFSETS)
def test_steps_of_unaligned_arrays(maker: Maker, dtype: str) -> None:
    for offset in (1, 7):
        for size in (1, 33, 4097, 20_003):
            check(maker, RULES["L1L2"], numbers(size, dtype), offset)


@pytest.mark.needs(LAYOUTS)
@pytest.mark.parametrize("terms", RULES)
def test_steps_in_any_layout(maker: Maker, dtype: str, terms: str) -> None:
    for w in views(dtype).values():
        if min(w.strides) >= 0 or maker.has_negative_strides:
            check(maker, RULES[terms], w, view=True)


@pytest.mark.needs(LAYOUTS)
def test_sanitized_steps(maker: Maker, dtype: str) -> None:
    check(maker, RULES["L1L2"], numbers(4097 + 33, dtype))
    check(maker, RULES["L1L2"], numbers((140, 37), dtype)[::2], view=True)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_steps_of_models(maker: Maker, count: int) -> None:
    weights, _ = lists(count, maker.dtypes)
    rules = {"*bias": RULES["L1"], "*kernel": RULES["L1L2"]} if count > 1 else RULES["L1L2"]
    on_device = {name: maker.make(w) for name, w in weights.items()}
    there, here = fastreg.attach(on_device, rules), fastreg.attach(weights, rules)
    for _ in range(3):
        assert same_record(there.prox(0.1), here.prox(0.1))
    for name, w in weights.items():
        assert same_bits(maker.host(on_device[name]), w), name


@pytest.mark.needs(STREAMS)
def test_steps_wait_for_nothing(maker: Maker) -> None:
    weight, out = maker.make(numbers(100_003, "f32")), maker.make(numbers(100_003, "f32", 1))
    penalties = fastreg.attach([weight], RULES["L1L2"])
    stream, records = maker.stream(), []
    host = numbers(100_003, "f32")
    on_host = fastreg.attach([host], RULES["L1L2"])

    def steps() -> None:
        RULES["L1"].prox(weight, STEP, out)
        records.append(penalties.prox(0.01))

    with maker.using(stream):
        steps()  # the first call makes room, loads kernels, and may wait for that
        steps()
        with maker.unwaited(stream):
            steps()
        for record in records:
            expected = RULES["L1"].prox(host, STEP)
            assert same_record(record, on_host.prox(0.01))
    assert same_bits(maker.host(out), expected)
    assert same_bits(maker.host(weight), host)


@pytest.mark.needs(STREAMS, GRAPHS)
def test_a_captured_step_follows_its_schedule(maker: Maker) -> None:
    w = numbers(5000, "f32")
    weight, rule = maker.make(w), L1L2(0.1, 0.2)
    other = maker.make(w)
    stream = maker.stream()
    with maker.using(stream):
        rule.prox(other, 0.0, other)
    maker.host(other)
    with fastreg.cuda.recording() as recording:
        replay = maker.captured(lambda: rule.prox(weight, 0.5, weight))
    with maker.using(stream):
        for turn in range(4):
            rule.l1 = 0.05 * turn
            recording.update(step=0.1 * turn)
            replay()
    for turn in range(4):
        rule.l1 = 0.05 * turn
        rule.prox(w, 0.1 * turn, w)
    assert same_bits(maker.host(weight), w)
    recording.close()


@pytest.mark.needs(AUTOGRAD)
def test_steps_of_parameters(maker: Any) -> None:
    w = numbers((40, 50), "f32")
    parameter = maker.torch.nn.Parameter(maker.make(w))
    penalties = fastreg.attach({"w": parameter}, RULES["L1"])
    with pytest.raises(TypeError, match="requires a gradient while torch records"):
        penalties.prox(STEP)
    before = parameter._version
    with maker.torch.no_grad(), maker.strict():
        record = penalties.prox(STEP)
    assert parameter._version == before + 1
    assert same_record(record, fastreg.attach([w], RULES["L1"]).prox(STEP))
    assert same_bits(maker.host(parameter), w)
    found = RULES["L1"].prox(parameter, STEP)
    assert not found.requires_grad
    assert same_bits(maker.host(found), RULES["L1"].prox(w, STEP))
