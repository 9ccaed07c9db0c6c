"""Calls on a device keep the order of streams, wait for nothing, and can be captured."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from inputs import RULES, numbers, same_bits, same_value
from makers import GRAPHS, STREAMS, Maker

import fastreg
import fastreg.cuda
from fastreg.regularizers import L1L2

pytestmark = pytest.mark.needs(STREAMS)

SIZE = 50_021


def arrays(maker: Maker, *seeds: int, device: int = 0) -> list[Any]:
    return [maker.make(numbers(SIZE, "f32", seed), device=device) for seed in seeds]


@pytest.mark.parametrize("side", [True, False], ids=["side stream", "default stream"])
def test_a_call_comes_after_what_its_stream_holds(maker: Maker, side: bool) -> None:
    """What is queued before a call, behind something long, is seen by it, and so is the reverse."""
    w, g = numbers(SIZE, "f32", 2), numbers(SIZE, "f32", 2)
    expected = RULES["L1L2"].accumulate(w, g)
    stream = maker.stream() if side else None
    for _ in range(maker.rounds):
        weight, gradient, other, kept = arrays(maker, 0, 1, 2, 3)
        with maker.using(stream) if side else contextlib.nullcontext():
            if side:
                maker.occupy(stream)
            maker.assign(weight, other)
            maker.assign(gradient, other)
            found = RULES["L1L2"].accumulate(weight, gradient)
            maker.assign(kept, gradient)
            maker.assign(gradient, other)
            assert same_value(found, expected)
        assert same_bits(maker.host(kept), g)
        assert same_bits(maker.host(gradient), numbers(SIZE, "f32", 2))


def test_two_streams_at_once(maker: Maker) -> None:
    """A call on an idle stream is not held up by another's, nor are their sums mixed."""
    streams = [maker.stream(), maker.stream()]
    for _ in range(maker.rounds):
        weights, gradients = arrays(maker, 0, 1), arrays(maker, 2, 3)
        found: list[Any] = [None, None]
        for turn in range(3):
            for place, stream in enumerate(streams):
                with maker.using(stream):
                    if turn == 1 and place == 0:
                        maker.occupy(stream)
                    found[place] = RULES["L1L2"].accumulate(weights[place], gradients[place])
        for place, stream in enumerate(streams):
            w, g = numbers(SIZE, "f32", place), numbers(SIZE, "f32", place + 2)
            for _ in range(3):
                expected = RULES["L1L2"].accumulate(w, g)
            with maker.using(stream):
                assert same_value(found[place], expected)
            assert same_bits(maker.host(gradients[place]), g)


def test_nothing_waits_for_the_device(maker: Maker) -> None:
    """Calls whose tensors the device knows return while it is busy with something else."""
    weight, gradient, out = arrays(maker, 0, 1, 2)
    penalties = fastreg.attach({"kernel": weight}, RULES["L1L2"])
    stream = maker.stream()
    kept = []

    def calls() -> None:
        kept.append(RULES["L1"](weight))
        RULES["L2"].gradient(weight, out)
        kept.append(RULES["L1L2"].value_and_grad(weight, out)[0])
        kept.append(penalties.accumulate({"kernel": gradient}))

    with maker.using(stream):
        calls()  # the first call makes room, loads kernels, and may wait for that
        calls()
        with maker.unwaited(stream):
            calls()
        w, g = numbers(SIZE, "f32"), numbers(SIZE, "f32", 1)
        for _ in range(3):
            expected = RULES["L1L2"].accumulate(w, g)
        assert same_value(kept[-1], expected)
    assert same_bits(maker.host(gradient), g)


def test_penalties_that_are_dropped_wait_for_nothing(maker: Maker) -> None:
    """Giving back a penalty's memory must not wait, though freeing device memory usually does."""
    weight, gradient = arrays(maker, 0, 1)
    stream = maker.stream()
    with maker.using(stream):
        for _ in range(3):
            RULES["L1L2"].accumulate(weight, gradient)
        with maker.unwaited(stream):
            for _ in range(3):
                RULES["L1L2"].accumulate(weight, gradient)
    g = numbers(SIZE, "f32", 1)
    for _ in range(6):
        RULES["L1L2"].accumulate(numbers(SIZE, "f32"), g)
    assert same_bits(maker.host(gradient), g)


def test_a_second_device(maker: Maker) -> None:
    """Kernels run where the tensors are, whichever device is current; and on both at once."""
    if maker.device_count() < 2:
        pytest.skip("there is one device")
    places = {device: arrays(maker, 0, 1, device=device) for device in (0, 1)}
    found = {
        device: RULES["L1L2"].accumulate(weight, gradient)
        for device, (weight, gradient) in places.items()
    }
    w, g = numbers(SIZE, "f32"), numbers(SIZE, "f32", 1)
    expected = RULES["L1L2"].accumulate(w, g)
    for device, (_, gradient) in places.items():
        assert same_value(found[device], expected)
        assert same_bits(maker.host(gradient), g)


@pytest.mark.needs(GRAPHS)
def test_a_captured_call_is_replayed(maker: Maker) -> None:
    """A replay reads the weights of its time, and other calls between replays do no harm."""
    weight, gradient, other = arrays(maker, 0, 1, 2)
    rule = L1L2(0.01, 0.3)
    w, g = numbers(SIZE, "f32"), numbers(SIZE, "f32", 1)
    stream = maker.stream()
    with maker.using(stream):
        rule.gradient(weight, gradient)
    maker.host(gradient)
    replay = maker.captured(lambda: rule.gradient(weight, gradient))
    with maker.using(stream):
        maker.assign(gradient, other)
        replay()
    rule.gradient(w, g)
    assert same_bits(maker.host(gradient), g)
    with maker.using(stream):
        RULES["L1"].gradient(other, gradient)
        maker.assign(weight, other)
        replay()
    rule.gradient(numbers(SIZE, "f32", 2), g)
    assert same_bits(maker.host(gradient), g)


@pytest.mark.needs(GRAPHS)
def test_a_captured_call_over_many_tensors(maker: Maker) -> None:
    hosts = [numbers(1 + 37 * place, "f32", place) for place in range(40)]
    gradients = [numbers(w.shape, "f32", 99) for w in hosts]
    weights, outs = ([maker.make(x) for x in xs] for xs in (hosts, gradients))
    penalties = fastreg.attach(weights, RULES["L2"])

    def gradients_of_all() -> None:
        for weight, out in zip(weights, outs, strict=True):
            RULES["L2"].gradient(weight, out)

    gradients_of_all()
    for out in outs:
        maker.host(out)
    replay = maker.captured(gradients_of_all)
    penalties.accumulate(outs)
    with maker.using(maker.stream()):
        for out in outs:
            maker.host(out)  # the default stream's work is done
        replay()
    for w, out in zip(hosts, outs, strict=True):
        assert same_bits(maker.host(out), RULES["L2"].gradient(w, np.empty_like(w)))


@pytest.mark.needs(GRAPHS)
def test_a_schedule_reaches_a_captured_call(maker: Maker) -> None:
    """Strengths lie in device memory: a replay reads those of its place on the stream."""
    weight, gradient = arrays(maker, 0, 1)
    rule = L1L2(0.01, 0.3)
    stream = maker.stream()
    with maker.using(stream):
        rule.gradient(weight, gradient)
    maker.host(gradient)
    with fastreg.cuda.recording() as recording:
        replay = maker.captured(lambda: rule.gradient(weight, gradient))
    kept = arrays(maker, *range(5))
    with maker.using(stream):
        maker.occupy(stream)
        for step, copy in enumerate(kept):
            rule.l1 = step / 100
            recording.update()
            replay()
            maker.assign(copy, gradient)
    for step, copy in enumerate(kept):
        rule.l1 = step / 100
        assert same_bits(maker.host(copy), rule.gradient(numbers(SIZE, "f32")))
    recording.close()
