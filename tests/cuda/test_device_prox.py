"""Proximal steps of device arrays, on the stand-in for a GPU."""

from __future__ import annotations

import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_fakes import DeviceArray, Producer, Runtime, Taken, numbers
from stand_in_arrays import LIBRARY

import fastreg
from fastreg._arrays.device_array import DeviceCount, DeviceValue
from fastreg.penalties import ProxRecord
from fastreg.regularizers import L1, L1L2, L2

pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")

RULE = L1L2(0.3, 0.7)


def on_host(record: ProxRecord) -> ProxRecord:
    return ProxRecord(float(record.penalty), int(record.zeros), record.size)


def test_a_record_stays_on_the_device(runtime: Runtime) -> None:
    host = {
        "a": numbers((70, 80), np.float32),
        "b": numbers(5000, np.float16),
        "c": numbers(9, "d"),
    }
    stream = runtime.stream()
    tensors = {name: DeviceArray(runtime, w, stream=stream) for name, w in host.items()}
    penalties = fastreg.attach(tensors, {"a": RULE, "b": L1(0.5)})
    penalties.prox(0.0)  # makes room
    waits = runtime.waits
    record = penalties.prox(0.5)
    assert runtime.waits == waits
    assert (type(record.penalty), type(record.zeros)) == (DeviceValue, DeviceCount)
    assert repr(record.zeros) == "<a number on CUDA device 0; int(...) copies it>"
    expected_penalties = fastreg.attach(host, {"a": RULE, "b": L1(0.5)})
    expected_penalties.prox(0.0)
    expected = expected_penalties.prox(0.5)
    assert 0 < expected.zeros < expected.size
    assert on_host(record) == expected
    assert record.zeros.item() == expected.zeros
    assert record.sparsity == expected.sparsity
    for name, w in host.items():
        assert tensors[name].host().tobytes() == w.tobytes()
    taken = Taken(record.zeros.__dlpack__(stream=stream))
    assert (taken.shape, taken.type) == ((), (0, 64, 1))
    assert float(L1(1.0)(record.zeros)) == expected.zeros  # an array as any other


def test_a_penalty_of_zero_strength_counts_zeros(runtime: Runtime) -> None:
    w = numbers(5000, np.float32)
    w[::7] = -0.0
    weight = DeviceArray(runtime, w)
    record = fastreg.attach([weight], L1L2(0.0, 0.0)).prox(1.0)
    assert on_host(record) == fastreg.attach([w.copy()], L1L2(0.0, 0.0)).prox(1.0)
    assert int(record.zeros) == np.count_nonzero(w == 0)
    assert weight.host().tobytes() == w.tobytes()


def test_by_dlpack(runtime: Runtime) -> None:
    w = numbers((70, 80), ml_dtypes.bfloat16)
    weight = Producer(runtime, w)
    assert RULE.prox(weight, 0.5, weight) is weight
    assert weight.host().tobytes() == RULE.prox(w, 0.5).tobytes()


def test_cupy(runtime: Runtime, cupy: Any) -> None:
    w = numbers((60, 90), np.float32)
    for device in (0, 1):
        cupy.state.update(device=device, stream=runtime.stream(device))
        weight = cupy.array(w)
        made = RULE.prox(weight, 0.5)
        assert type(made) is cupy.ndarray
        assert made.host().tobytes() == RULE.prox(w, 0.5).tobytes()
        waits = runtime.waits
        record = fastreg.attach([weight], RULE).prox(0.5)
        assert runtime.waits == waits
        host = w.copy()
        assert on_host(record) == fastreg.attach([host], RULE).prox(0.5)
        for one, kind in ((record.penalty, np.float64), (record.zeros, np.int64)):
            assert (type(one), one.dtype, one.shape) == (cupy.ndarray, kind, ())
            assert one.device.id == device
        assert weight.host().tobytes() == host.tobytes()


def test_jax(runtime: Runtime, jax: Any) -> None:
    w = numbers((60, 90), np.float32)
    weight = jax.Array(w)
    made = RULE.prox(weight, 0.5)
    assert type(made) is jax.Array
    assert made.host().tobytes() == RULE.prox(w, 0.5).tobytes()
    with pytest.raises(BufferError, match=r"^tensors\['0'\] is a JAX array, which is immutable"):
        fastreg.attach([weight], RULE).prox(0.5)


def test_refusals_write_nothing(runtime: Runtime) -> None:
    w = numbers((50, 4), np.float32)
    weight, locked = DeviceArray(runtime, w), DeviceArray(runtime, w, read_only=True)
    whole = DeviceArray(runtime, np.arange(9, dtype=np.int32))

    class Halving:
        def __call__(self, x: Any) -> float:
            return 0.0

        def prox(self, x: Any, step: float) -> Any:
            return x

    def refused(error: type[Exception], match: str, call: Any, *arguments: Any) -> None:
        with pytest.raises(error, match=match):
            call(*arguments)
        assert weight.host().tobytes() == w.tobytes()

    other = DeviceArray(runtime, w, device=1)
    refused(TypeError, r"^w is a DeviceArray on CUDA.*pass out=", RULE.prox, weight, 1.0)
    refused(BufferError, "^out is a read-only", RULE.prox, weight, 1.0, locked)
    refused(TypeError, "^out is in host memory, but w is on CUDA", RULE.prox, weight, 1.0, w.copy())
    refused(ValueError, "^out is on CUDA device 1", RULE.prox, weight, 1.0, other)
    refused(ValueError, "^step must be .*0", RULE.prox, weight, -1.0, weight)
    refused(ValueError, r"^step \* l1, of strengths", L1(1e30).prox, weight, 1e30, weight)
    both = {"a": weight, "b": locked}
    refused(BufferError, r"^tensors\['b'\] is a read-only", fastreg.attach(both, RULE).prox, 1.0)
    both = {"a": weight, "b": whole}
    refused(TypeError, "there is no proximal step", fastreg.attach(both, RULE).prox, 1.0)
    both = {"a": weight, "b": w.copy()}
    refused(TypeError, "is in host memory", fastreg.attach(both, RULE).prox, 1.0)
    rules = {"a": RULE, "b": Halving()}
    both = {"a": weight, "b": DeviceArray(runtime, w)}
    penalties = fastreg.attach(both, rules)
    refused(TypeError, r"^tensors\['a'\] is on CUDA, where the proximal", penalties.prox, 1.0)


def test_steps_in_a_graph(runtime: Runtime) -> None:
    host = {"a": numbers(5000, np.float32), "b": numbers((3, 50), np.float16)}
    stream = runtime.stream()
    tensors = {name: DeviceArray(runtime, w, stream=stream) for name, w in host.items()}
    rule, other = L1L2(0.1, 0.2), L2(0.5)
    penalties, expected = fastreg.attach(tensors, rule), fastreg.attach(host, rule)
    with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
        record = penalties.prox(0.25)
        value = other(tensors["a"])
    assert tensors["a"].host().tobytes() == host["a"].tobytes()  # captured, not run
    for strengths, step in (
        ((0.1, 0.2), 0.25),
        ((0.0, 0.3), 0.5),
        ((0.0, 0.0), 1.0),
        ((0.2, 0), 0),
    ):
        rule.l1, rule.l2 = strengths
        waits = runtime.waits
        recording.update(step=step)
        replays[0]()
        assert runtime.waits == waits
        runtime.drain()
        found = expected.prox(step)
        assert (on_host(record), float(value)) == (found, other(host["a"]))
        for name, w in host.items():
            assert tensors[name].host().tobytes() == w.tobytes()
    rule.l1 = 1e30
    with pytest.raises(ValueError, match=r"^step \* l1, of strengths times scale, must be finite"):
        recording.update(step=1e10)
    with pytest.raises(ValueError, match=r"^scale must be .*>= 0"):
        recording.update(scale=-1.0)
    with pytest.raises(ValueError, match=r"^step must be"):
        recording.update(step=-1.0)
    recording.close()
    with fastreg.cuda.recording() as recording, runtime.capture(stream):
        other(tensors["a"])
    with pytest.raises(RuntimeError, match=r"^step was given, but no proximal step was captured"):
        recording.update(step=1.0)
    recording.close()


def test_each_tensor(runtime: Runtime) -> None:
    """What sharded parameters ask for: a record of each tensor, on the host."""
    from fastreg._base.penalty import VALUE_AND_PROXIMAL
    from fastreg._engine import calls

    host = [numbers(size, np.float32, size) for size in (5000, 1, 0, 70)]
    weights = tuple(DeviceArray(runtime, w) for w in host)
    arguments = ((0.3, 0.7),), (0,) * 4, 1.0, 0.5, True
    names = ("a", "b", "c", "d")
    found = calls.evaluate_many(VALUE_AND_PROXIMAL, names, weights, weights, *arguments)
    given = tuple(host)
    assert found == calls.evaluate_many(VALUE_AND_PROXIMAL, names, given, given, *arguments)


def test_keras_variables(runtime: Runtime, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Variable:
        def __init__(self, value: Any) -> None:
            self.value = value

    monkeypatch.setitem(
        sys.modules, "keras", types.SimpleNamespace(Variable=Variable, KerasTensor=())
    )
    w = numbers(500, np.float32)
    weight = Variable(cupy.array(w))
    record = fastreg.attach([weight], RULE).prox(0.5)
    assert type(record.zeros) is cupy.ndarray
    assert on_host(record) == fastreg.attach([w], RULE).prox(0.5)
    assert weight.value.host().tobytes() == w.tobytes()
