"""Norms of arrays on a device, and clips by them, have the bits of the host's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from inputs import SIZES, finite, numbers, patterns, same_bits, same_value
from makers import GRADIENTS, GRAPHS, LAYOUTS, STREAMS, Maker
from test_gpu_bits import lists
from test_gpu_layouts import INTEGERS, views

import fastreg


def same_norms(found: Any, expected: Any) -> bool:
    return str(dict(found)) == str(dict(expected)) and str(found.total) == str(expected.total)


def check(maker: Maker, host: list[np.ndarray], max_norm: float, on_nonfinite: str) -> None:
    """Clip copies on the device and on the host."""
    hosts = [w.copy() for w in host]
    arrays = [maker.make(w) for w in hosts]
    with np.errstate(all="ignore"):
        found = fastreg.clip_by_global_norm(arrays, max_norm, on_nonfinite=on_nonfinite)
        expected = fastreg.clip_by_global_norm(hosts, max_norm, on_nonfinite=on_nonfinite)
    assert same_value(found, expected)
    for array, w in zip(arrays, hosts, strict=True):
        assert same_bits(maker.host(array), w)


def test_norms(maker: Maker, dtype: str) -> None:
    host = [numbers(size, dtype) for size in SIZES]
    assert same_norms(fastreg.norms([maker.make(w) for w in host]), fastreg.norms(host))


def test_norms_of_every_pattern(maker: Maker, dtype: str) -> None:
    host = patterns(dtype)
    with np.errstate(all="ignore"):
        kept = finite(host)
    for w in (host, kept):
        assert same_norms(fastreg.norms([maker.make(w)]), fastreg.norms([w]))


@pytest.mark.needs(LAYOUTS)
def test_norms_in_any_layout(maker: Maker, dtype: str) -> None:
    for w in views(dtype).values():
        if min(w.strides) >= 0 or maker.has_negative_strides:
            assert same_norms(fastreg.norms([maker.viewed(w)]), fastreg.norms([w]))


@pytest.mark.needs(LAYOUTS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_norms_of_integers(maker: Maker, kind: str) -> None:
    w = np.random.default_rng(3).integers(0, 100, (301, 41)).astype(kind)
    for array in (w, w[::2, 5:]):
        assert same_norms(fastreg.norms([maker.viewed(array)]), fastreg.norms([array]))


@pytest.mark.parametrize("count", [1, 7, 300])
def test_norms_of_models(maker: Maker, count: int) -> None:
    host, _ = lists(count, maker.dtypes)
    tensors = {name: maker.make(w) for name, w in host.items()}
    assert same_norms(fastreg.norms(tensors), fastreg.norms(host))


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("on_nonfinite", ["raise", "ignore"])
def test_clips(maker: Maker, dtype: str, on_nonfinite: str) -> None:
    host = [numbers(size, dtype, size) for size in SIZES]
    for max_norm in (0.0, 0.5, 1e9, np.inf):
        check(maker, host, max_norm, on_nonfinite)


@pytest.mark.needs(GRADIENTS)
def test_clips_of_what_is_not_finite(maker: Maker, dtype: str) -> None:
    w = numbers(5000, dtype)
    for number in (np.inf, np.nan):
        w[17] = number
        check(maker, [numbers(9, "f32"), w], 0.5, "ignore")
        array = maker.make(w)
        with pytest.raises(
            ValueError, match=r"tensors\['0'\] has 1 element that is infinite or NaN"
        ):
            fastreg.clip_by_global_norm([array], 0.5)
        assert same_bits(maker.host(array), w)


@pytest.mark.needs(GRADIENTS)
@pytest.mark.parametrize("on_nonfinite", ["raise", "ignore"])
def test_clips_of_any_magnitude(maker: Maker, on_nonfinite: str) -> None:
    for number in (1e300, 1e200, 1e-200, 5e-324):
        for max_norm in (1e-310, 0.5, 1e250):
            host = [np.full(20_003, number), np.zeros(3)]
            if number > 1.0:
                host.append(numbers(100, "f16"))
            check(maker, host, max_norm, on_nonfinite)


@pytest.mark.needs(GRADIENTS, LAYOUTS)
@pytest.mark.parametrize("on_nonfinite", ["raise", "ignore"])
def test_clips_in_any_layout(maker: Maker, dtype: str, on_nonfinite: str) -> None:
    for w in views(dtype).values():
        if min(w.strides) < 0 and not maker.has_negative_strides:
            continue
        array, host = maker.viewed(w), w.copy("C")
        expected = fastreg.norms([w]).total.l2
        found = fastreg.clip_by_global_norm([array], 0.5, on_nonfinite=on_nonfinite)
        assert same_value(found, expected)
        real = np.float64 if dtype == "f64" else np.float32
        factor = real(min(1.0, 0.5 / (expected + 1e-6)))
        assert same_bits(maker.host(array), (host.astype(real) * factor).astype(w.dtype))


@pytest.mark.needs(GRADIENTS, LAYOUTS)
@pytest.mark.parametrize("on_nonfinite", ["raise", "ignore"])
def test_sanitized_clips(maker: Maker, dtype: str, on_nonfinite: str) -> None:
    check(maker, [numbers(4097 + 33, dtype), numbers(40, "f64") * 1e250], 0.5, on_nonfinite)
    strided = numbers((140, 37), dtype)[::2]
    assert same_norms(fastreg.norms([maker.viewed(strided)]), fastreg.norms([strided]))


@pytest.mark.needs(GRADIENTS, STREAMS)
def test_a_clip_waits_for_nothing(maker: Maker) -> None:
    host = [numbers(100_003, "f32"), numbers(4097, "f64")]
    arrays = [maker.make(w) for w in host]
    stream, found = maker.stream(), []

    def clip(max_norm: float) -> None:
        found.append(fastreg.clip_by_global_norm(arrays, max_norm, on_nonfinite="ignore"))

    with maker.using(stream):
        clip(100.0)  # the first call makes room, loads kernels, and may wait for that
        clip(50.0)
        with maker.unwaited(stream):
            clip(25.0)
        for norm, max_norm in zip(found, (100.0, 50.0, 25.0), strict=True):
            assert same_value(norm, fastreg.clip_by_global_norm(host, max_norm))
    for array, w in zip(arrays, host, strict=True):
        assert same_bits(maker.host(array), w)


@pytest.mark.needs(GRADIENTS, STREAMS, GRAPHS)
def test_a_captured_clip(maker: Maker) -> None:
    w = numbers(5000, "f32")
    array, other = maker.make(w), maker.make(w)
    stream = maker.stream()
    with maker.using(stream):
        fastreg.clip_by_global_norm([other], 0.5, on_nonfinite="ignore")
    maker.host(other)
    replay = maker.captured(
        lambda: fastreg.clip_by_global_norm([array], 0.5, on_nonfinite="ignore")
    )
    with maker.using(stream):
        for _ in range(3):
            replay()
    for _ in range(3):
        fastreg.clip_by_global_norm([w], 0.5)
    assert same_bits(maker.host(array), w)
