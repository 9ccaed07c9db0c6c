"""Norms of device arrays, and clips by them, on the stand-in for a GPU."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_fakes import DeviceArray, Memory, Producer, Runtime, numbers
from stand_in_arrays import LIBRARY

import fastreg
from fastreg._arrays.device_array import DeviceValue

pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")


def arrays() -> dict[str, np.ndarray]:
    return {
        "a": numbers((70, 80), np.float32),
        "b": numbers(5000, np.float16, 1),
        "c": numbers((40, 30), np.float64, 2)[::2, 3:],
        "d": numbers((3, 0), np.float32),
    }


def on_device(runtime: Runtime, host: dict[str, np.ndarray], **places: Any) -> dict[str, Any]:
    return {name: DeviceArray(runtime, w, **places) for name, w in host.items()}


def same(found: Any, expected: Any) -> bool:
    return str(dict(found)) == str(dict(expected)) and str(found.total) == str(expected.total)


def test_norms_wait_once(runtime: Runtime) -> None:
    host = {**arrays(), "e": np.arange(-3000, 3000, dtype=np.int16)}
    tensors = on_device(runtime, host, stream=runtime.stream())
    fastreg.norms(tensors)  # makes room
    waits = runtime.waits
    found = fastreg.norms(tensors)
    assert runtime.waits == waits + 1
    assert same(found, fastreg.norms(host))


@pytest.mark.parametrize("number", [1e300, 1e-200, np.inf, np.nan, 0.0])
def test_norms_of_any_magnitude(runtime: Runtime, number: float) -> None:
    host = arrays()
    host["c"][...] = number
    host["f"] = np.full(5000, number)
    assert same(fastreg.norms(on_device(runtime, host)), fastreg.norms(host))
    alone = {"f": host["f"]}
    assert same(fastreg.norms(on_device(runtime, alone)), fastreg.norms(alone))


def test_an_array_that_is_there_twice_counts_once(runtime: Runtime) -> None:
    w = numbers((4, 6), np.float32)
    memory = Memory(runtime, w)
    tensors = {
        "w": DeviceArray(runtime, w, memory=memory),
        "transposed": DeviceArray(runtime, w.T, memory=memory),
    }
    host = {"w": w, "transposed": w.T}
    assert same(fastreg.norms(tensors), fastreg.norms(host))
    for on_nonfinite in ("raise", "ignore"):
        norm = fastreg.clip_by_global_norm(tensors, 0.5, on_nonfinite=on_nonfinite)
        expected = fastreg.clip_by_global_norm(host, 0.5, on_nonfinite=on_nonfinite)
        assert float(norm) == expected
        assert bytes(memory.host()) == w.tobytes()


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6, np.inf])
def test_clips(runtime: Runtime, max_norm: float) -> None:
    for on_nonfinite, waited in (("raise", 1), ("ignore", 0)):
        host = arrays()
        tensors = on_device(runtime, host, stream=runtime.stream())
        fastreg.clip_by_global_norm(tensors, np.inf, on_nonfinite=on_nonfinite)  # makes room
        waits = runtime.waits
        norm = fastreg.clip_by_global_norm(tensors, max_norm, on_nonfinite=on_nonfinite)
        assert runtime.waits == waits + waited
        assert type(norm) is (float if waited else DeviceValue)
        expected = fastreg.clip_by_global_norm(host, max_norm, on_nonfinite=on_nonfinite)
        assert float(norm) == expected
        for name, w in host.items():
            assert tensors[name].host().tobytes() == w.tobytes(), name


@pytest.mark.parametrize("number", [1e300, 1e-200, np.inf, np.nan])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e250, np.inf])
def test_clips_of_any_magnitude(runtime: Runtime, number: float, max_norm: float) -> None:
    host = {"a": numbers(50, np.float32), "c": np.full(5000, number), "b": numbers(9, np.float16)}
    tensors = on_device(runtime, host)
    norm = fastreg.clip_by_global_norm(tensors, max_norm, on_nonfinite="ignore")
    with np.errstate(all="ignore"):
        expected = fastreg.clip_by_global_norm(host, max_norm, on_nonfinite="ignore")
    assert float(norm).hex() == expected.hex()
    for name, w in host.items():
        np.testing.assert_array_equal(tensors[name].host(), w)


def test_a_number_that_is_not_finite_is_named(runtime: Runtime) -> None:
    host = arrays()
    host["b"][7], host["b"][9] = np.inf, np.nan
    tensors = on_device(runtime, host)
    with pytest.raises(
        ValueError, match=r"^tensors\['b'\] has 2 elements that are infinite or NaN"
    ):
        fastreg.clip_by_global_norm(tensors, 0.5)
    for name, w in host.items():
        assert tensors[name].host().tobytes() == w.tobytes()


def test_by_dlpack(runtime: Runtime) -> None:
    w = numbers((70, 80), ml_dtypes.bfloat16)
    for on_nonfinite in ("raise", "ignore"):
        weight, host = Producer(runtime, w), w.copy()
        assert same(fastreg.norms([weight]), fastreg.norms([host]))
        norm = fastreg.clip_by_global_norm([weight], 0.5, on_nonfinite=on_nonfinite)
        assert float(norm) == fastreg.clip_by_global_norm([host], 0.5)
        assert weight.host().tobytes() == host.tobytes()


def test_cupy(runtime: Runtime, cupy: Any) -> None:
    w = numbers((60, 90), np.float32)
    for device in (0, 1):
        cupy.state.update(device=device, stream=runtime.stream(device))
        weight, host = cupy.array(w), w.copy()
        assert same(fastreg.norms([weight]), fastreg.norms([host]))
        norm = fastreg.clip_by_global_norm([weight, None], 0.5, on_nonfinite="ignore")
        assert (type(norm), norm.dtype, norm.shape) == (cupy.ndarray, np.float64, ())
        assert norm.device.id == device
        assert float(norm) == fastreg.clip_by_global_norm([host], 0.5)
        assert weight.host().tobytes() == host.tobytes()


def test_jax(runtime: Runtime, jax: Any) -> None:
    w = numbers((60, 90), np.float32)
    weight = jax.Array(w)
    assert same(fastreg.norms([weight]), fastreg.norms([w]))
    with pytest.raises(BufferError, match=r"^tensors\['0'\] is a JAX array, which is immutable"):
        fastreg.clip_by_global_norm([weight], 0.5, on_nonfinite="ignore")


def test_streams_are_ordered(runtime: Runtime) -> None:
    for on_nonfinite in ("raise", "ignore"):
        for _ in range(10):
            first, second = runtime.stream(), runtime.stream()
            a, b = numbers(5000, np.float32), numbers(5000, np.float32, 1)
            there = [DeviceArray(runtime, a, stream=first), DeviceArray(runtime, b, stream=second)]
            runtime.clear(there[1].address, 100, second)
            norm = fastreg.clip_by_global_norm(there, 0.5, on_nonfinite=on_nonfinite)
            b[:25] = 0
            assert float(norm) == fastreg.clip_by_global_norm([a, b], 0.5)
            runtime.clear(there[1].address, 4, second)
            b[0] = 0
            assert there[0].host().tobytes() == a.tobytes()
            assert there[1].host().tobytes() == b.tobytes()


@pytest.mark.parametrize("on_nonfinite", ["raise", "ignore"])
def test_refusals_write_nothing(runtime: Runtime, on_nonfinite: str) -> None:
    w = numbers(300, np.float32)
    memory = Memory(runtime, w)
    weight = DeviceArray(runtime, w, memory=memory)
    part = DeviceArray(runtime, w[100:], memory=memory)
    part.address = memory.low + 400
    locked = DeviceArray(runtime, w, read_only=True)
    counts = DeviceArray(runtime, np.arange(9))
    broadcast = DeviceArray(runtime, np.broadcast_to(w[:1], (5,)), memory=Memory(runtime, w))

    def refused(error: type[Exception], match: str, *others: Any) -> None:
        with pytest.raises(error, match=match):
            fastreg.clip_by_global_norm([weight, *others], 0.1, on_nonfinite=on_nonfinite)
        assert bytes(memory.host()) == w.tobytes()

    refused(ValueError, r"^tensors\['1'\] overlaps tensors\['0'\] in memory", part)
    refused(BufferError, r"^tensors\['1'\] is a read-only array", locked)
    refused(TypeError, r"^tensors\['1'\] has dtype int64, whose elements cannot be scaled", counts)
    refused(ValueError, r"^tensors\['1'\] overlaps itself|read-only", broadcast)
    refused(TypeError, r"^tensors\['1'\] is in host memory, but tensors\['0'\]", w.copy())
    other = DeviceArray(runtime, w, device=1)
    refused(ValueError, r"^tensors\['1'\] is on CUDA device 1, but tensors\['0'\]", other)
    with pytest.raises(TypeError, match=r"^tensors\['a'\] is in host memory, but tensors\['b'\]"):
        fastreg.norms({"a": w, "b": weight})


def test_a_clip_in_a_graph(runtime: Runtime) -> None:
    host = {"a": numbers(5000, np.float32), "b": numbers((3, 50), np.float64)}
    stream = runtime.stream()
    tensors = on_device(runtime, host, stream=stream)
    with runtime.capture(stream), pytest.raises(RuntimeError, match="norms are waited for"):
        fastreg.clip_by_global_norm(tensors, 0.5)
    with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
        norm = fastreg.clip_by_global_norm(tensors, 0.5, on_nonfinite="ignore")
    assert len(recording) == 1
    assert tensors["a"].host().tobytes() == host["a"].tobytes()  # captured, not run
    for _ in range(3):
        recording.update()
        waits = runtime.waits
        replays[0]()
        assert runtime.waits == waits
        runtime.drain()
        assert float(norm) == fastreg.clip_by_global_norm(host, 0.5)
        for name, w in host.items():
            assert tensors[name].host().tobytes() == w.tobytes()
    recording.close()
