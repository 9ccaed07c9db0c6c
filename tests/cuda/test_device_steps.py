"""Optimizers over device arrays, on the stand-in for a GPU: the bits of the host's."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_fakes import DeviceArray, Memory, Producer, Runtime, numbers
from stand_in_arrays import LIBRARY

import fastreg
from fastreg._arrays.device_array import DeviceCount, DeviceValue
from fastreg.optimizers import SGD, AdamW
from fastreg.regularizers import L1, L1L2

pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")

RULES = {"a": L1(0.3), "b": (L1L2(0.2, 0.1), "gradient"), "c": (L1L2(0.2, 0.1), "decoupled")}


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    return {
        "a": numbers((70, 80), np.float32, seed),
        "b": numbers(5000, np.float16, seed + 1),
        "c": numbers((40, 30), np.float64, seed + 2)[::2, 3:],
        "d": np.asfortranarray(numbers((30, 7), np.float32, seed + 3)),
        "e": numbers((3, 0), np.float32, seed),
    }


def on_device(runtime: Runtime, host: dict[str, np.ndarray], **places: Any) -> dict[str, Any]:
    return {name: DeviceArray(runtime, w, **places) for name, w in host.items()}


def gradients(seed: int) -> dict[str, np.ndarray]:
    found = arrays(100 * seed + 7)
    found["b"] = found["b"].astype(np.float32)  # the type of the arithmetic
    return found


def same_numbers(found: Any, expected: Any) -> None:
    assert float(found.penalty).hex() == float(expected.penalty).hex()
    assert int(found.zeros) == expected.zeros
    assert bool(found.skipped) == expected.skipped
    assert found.size == expected.size
    if expected.norm is None:
        assert found.norm is None
    else:
        assert float(found.norm).hex() == expected.norm.hex()


def same_arrays(tensors: dict[str, Any], host: dict[str, np.ndarray]) -> None:
    for name, w in host.items():
        assert tensors[name].host().tobytes() == w.tobytes(), name


def same_state(found: Any, expected: Any) -> None:
    assert [*found] == [*expected]
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, key)


OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.1, "momentum": 0.0}),
    "momentum": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.01}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
    "adamw": (AdamW, {"lr": 0.01}),
    "amsgrad": (AdamW, {"lr": 0.01, "amsgrad": True, "cautious": True, "scaled": False}),
}


@pytest.mark.parametrize("clip", [None, "total", "data"])
@pytest.mark.parametrize("on_nonfinite", ["ignore", "skip", "raise"])
@pytest.mark.parametrize("option", OPTIONS)
def test_steps(runtime: Runtime, option: str, on_nonfinite: str, clip: str | None) -> None:
    kind, options = OPTIONS[option]
    options = {**options, "rules": RULES, "on_nonfinite": on_nonfinite}
    if clip is not None:
        options.update(max_norm=0.5, clip=clip)
    host = arrays()
    tensors = on_device(runtime, host, stream=runtime.stream())
    there, here = kind(tensors, **options), kind(host, **options)
    for turn in range(3):
        grads = gradients(turn)
        if turn == 1:
            grads["d"] = None
        expected = here.step(grads, loss_scale=8.0)
        sent = {name: None if g is None else DeviceArray(runtime, g) for name, g in grads.items()}
        waits = runtime.waits
        found = there.step(sent, loss_scale=8.0)
        looks = on_nonfinite != "ignore" or clip is not None
        if turn == 2:  # the first steps make room
            assert runtime.waits == waits + (on_nonfinite == "raise")
            assert type(found.penalty) is DeviceValue
            assert type(found.zeros) is DeviceCount
            assert (type(found.norm) is DeviceValue) == (looks and on_nonfinite != "raise")
        same_numbers(found, expected)
        same_arrays(tensors, host)
    assert there.steps == here.steps == 3
    same_state(there.state_dict(), here.state_dict())


def test_without_rules_a_record_has_plain_numbers(runtime: Runtime) -> None:
    host = {"w": numbers(300, np.float32)}
    tensors = on_device(runtime, host)
    grads = {"w": numbers(300, np.float32, 1)}
    found = AdamW(tensors, 0.01).step(on_device(runtime, grads))
    assert found == AdamW(host, 0.01).step(grads)
    same_arrays(tensors, host)


@pytest.mark.parametrize("number", [np.inf, np.nan])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_step_that_is_not_finite_is_skipped_there(
    runtime: Runtime, option: str, number: float
) -> None:
    """Neither parameters, state nor counts change, and nothing waits; the first one too."""
    kind, options = OPTIONS[option]
    host = arrays()
    tensors = on_device(runtime, host)
    there = kind(tensors, **options, rules=RULES, max_norm=0.5)
    here = kind(host, **options, rules=RULES, max_norm=0.5, on_nonfinite="skip")
    for turn in range(4):
        grads = gradients(turn)
        if turn in (0, 2):
            grads["c"][3, 5] = number
        waits = runtime.waits
        found = there.step(on_device(runtime, grads))
        if turn == 3:
            assert runtime.waits == waits
        expected = here.step(grads)
        assert expected.skipped == (turn in (0, 2))
        same_numbers(found, expected)
        same_arrays(tensors, host)
    assert there.steps == here.steps == 2
    for name, taken in here.state_dict().items():
        if name.startswith("step/"):
            assert there.state_dict()[name] == taken
    same_state(there.state_dict(), here.state_dict())


def test_raise_names_the_first_bad_tensor_and_writes_nothing(runtime: Runtime) -> None:
    host = arrays()
    tensors = on_device(runtime, host)
    there = SGD(tensors, 0.1, momentum=0.9, rules=RULES, on_nonfinite="raise")
    grads = gradients(1)
    grads["b"][3] = np.nan
    with pytest.raises(ValueError, match=r"^grads\['b'\] has 1 element that is infinite or NaN"):
        there.step(on_device(runtime, grads))
    same_arrays(tensors, host)
    assert there.steps == 0


def test_found_inf_stays_on_the_device(runtime: Runtime) -> None:
    host = arrays()
    tensors = on_device(runtime, host)
    there, here = (AdamW(one, 0.01, rules=RULES) for one in (tensors, host))
    for turn in range(4):
        is_found = np.array(turn % 2, np.float32)
        grads = gradients(turn)
        sent, flag = on_device(runtime, grads), DeviceArray(runtime, is_found)
        waits = runtime.waits
        found = there.step(sent, found_inf=flag)
        if turn == 3:
            assert runtime.waits == waits
        same_numbers(found, here.step(grads, found_inf=bool(is_found)))
        same_arrays(tensors, host)
    assert there.steps == here.steps == 2
    same_state(there.state_dict(), here.state_dict())
    # One that the host knows, then the device's counts again.
    same_numbers(there.step(sent, found_inf=True), here.step(grads, found_inf=True))
    same_numbers(there.step(sent), here.step(grads))
    same_arrays(tensors, host)
    with pytest.raises(TypeError, match="found_inf on a device must be one float32 number"):
        there.step(sent, found_inf=DeviceArray(runtime, np.array([1, 2])))


def test_functions_of_the_step_see_no_skipped_one(runtime: Runtime) -> None:
    seen: dict[str, list[int]] = {"there": [], "here": []}

    def rate(where: str) -> Any:
        def lr(step: int) -> float:
            seen[where].append(step)
            return 0.1 / (1 + step)

        return lr

    host = arrays()
    tensors = on_device(runtime, host)
    options: dict[str, Any] = {"rules": RULES, "max_norm": 1.0, "on_nonfinite": "skip"}
    there, here = SGD(tensors, rate("there"), **options), SGD(host, rate("here"), **options)
    for turn in range(3):
        grads = gradients(turn)
        if turn == 1:
            grads["a"][0, 0] = np.inf
        same_numbers(there.step(on_device(runtime, grads)), here.step(grads))
    assert seen["there"] == seen["here"] == [0, 1, 1]
    same_arrays(tensors, host)


@pytest.mark.parametrize("option", ["momentum", "amsgrad"])
def test_state_goes_from_the_device_to_the_host_and_back(runtime: Runtime, option: str) -> None:
    kind, options = OPTIONS[option]
    options = {**options, "rules": RULES}
    host = arrays()
    tensors = on_device(runtime, host)
    there, here = kind(tensors, **options), kind(host, **options)
    for turn in range(2):
        there.step(on_device(runtime, gradients(turn)))
        here.step(gradients(turn))
    again, elsewhere = kind(tensors, **options), kind(host, **options)
    again.load_state_dict(here.state_dict())
    elsewhere.load_state_dict(there.state_dict())
    same_state(again.state_dict(), here.state_dict())
    same_numbers(again.step(on_device(runtime, gradients(5))), elsewhere.step(gradients(5)))
    same_arrays(tensors, host)


def test_by_dlpack(runtime: Runtime) -> None:
    w, g = numbers((70, 80), ml_dtypes.bfloat16), numbers((70, 80), ml_dtypes.bfloat16, 1)
    weight, host = Producer(runtime, w), w.copy()
    there = AdamW([weight], 0.01, rules="l1", max_norm=1.0)
    here = AdamW([host], 0.01, rules="l1", max_norm=1.0)
    for _ in range(2):
        same_numbers(there.step([Producer(runtime, g)]), here.step([g]))
        assert weight.host().tobytes() == host.tobytes()


def test_cupy(runtime: Runtime, cupy: Any) -> None:
    w, g = numbers((60, 90), np.float32), numbers((60, 90), np.float32, 1)
    for device in (0, 1):
        cupy.state.update(device=device, stream=runtime.stream(device))
        weight, host = cupy.array(w), w.copy()
        there = SGD([weight], 0.1, momentum=0.9, rules="l1", max_norm=1.0)
        here = SGD([host], 0.1, momentum=0.9, rules="l1", max_norm=1.0)
        for _ in range(2):
            found = there.step([cupy.array(g)])
            for number, kind in ((found.penalty, "f8"), (found.norm, "f8"), (found.zeros, "i8")):
                assert (type(number), number.dtype) == (cupy.ndarray, np.dtype(kind))
            assert found.penalty.device.id == device
            expected = here.step([g])
            assert float(found.penalty) == expected.penalty
            assert float(found.norm) == expected.norm
            assert int(found.zeros) == expected.zeros
            assert weight.host().tobytes() == host.tobytes()


def test_streams_are_ordered(runtime: Runtime) -> None:
    for _ in range(10):
        first, second = runtime.stream(), runtime.stream()
        w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
        there = DeviceArray(runtime, w, stream=first), DeviceArray(runtime, g, stream=second)
        runtime.clear(there[1].address, 100, second)
        optimizer, here = SGD([there[0]], 0.1, momentum=0.9), SGD([w], 0.1, momentum=0.9)
        optimizer.step([there[1]])
        g[:25] = 0
        here.step([g])
        runtime.clear(there[1].address, 4, second)
        assert there[0].host().tobytes() == w.tobytes()


def test_refusals_write_nothing(runtime: Runtime, jax: Any) -> None:
    w, g = numbers(300, np.float32), numbers(300, np.float32, 1)
    memory = Memory(runtime, w)
    weight, gradient = DeviceArray(runtime, w, memory=memory), DeviceArray(runtime, g)

    def refused(error: type[Exception], match: str, other: Any, grad: Any = gradient) -> None:
        optimizer = SGD([weight, other], 0.1, momentum=0.9)
        with pytest.raises(error, match=match):
            optimizer.step([gradient, grad])
        assert bytes(memory.host()) == w.tobytes()
        assert optimizer.steps == 0

    part = DeviceArray(runtime, w[100:], memory=memory)
    part.address = memory.low + 400
    refused(ValueError, r"overlaps tensors\['0'\] in memory", part, DeviceArray(runtime, g[100:]))
    refused(BufferError, "read-only", DeviceArray(runtime, w, read_only=True))
    refused(TypeError, r"^tensors\['1'\] has dtype int64", DeviceArray(runtime, np.arange(300)))
    refused(TypeError, r"^tensors\['1'\] is in host memory, but tensors\['0'\]", w.copy())
    refused(ValueError, "is on CUDA device 1", DeviceArray(runtime, w, device=1))
    refused(BufferError, r"^tensors\['1'\] is a JAX array, which is immutable", jax.Array(w))
    refused(
        ValueError, r"^grads\['1'\] has shape", DeviceArray(runtime, w), DeviceArray(runtime, g[1:])
    )
    wrong = DeviceArray(runtime, g.astype(np.float64))
    refused(TypeError, r"^grads\['1'\] has dtype float64", DeviceArray(runtime, w), wrong)
    host = SGD([w.copy(), weight], 0.1)
    with pytest.raises(
        TypeError, match=r"^tensors\['1'\] is on CUDA, but the first of the tensors"
    ):
        host.step([g, gradient])


class Captured:
    """One optimizer with a captured step on the device, and the same one on the host."""

    def __init__(self, runtime: Runtime, option: str, **options: Any) -> None:
        kind, own = OPTIONS[option]
        self.runtime, self.stream = runtime, runtime.stream()
        self.host = arrays()
        self.tensors = on_device(runtime, self.host, stream=self.stream)
        self.numbers = {
            name: DeviceArray(runtime, np.array(number, dtype), stream=self.stream)
            for name, number, dtype in (("lr", 0.5, np.float32), ("strength", 9.0, np.float64))
        }
        self.flag = DeviceArray(runtime, np.array(0, np.float32), stream=self.stream)
        options = {"rules": RULES, **own, **options}
        self.there = kind(self.tensors, **{**options, **self.numbers})
        self.here = kind(self.host, **options)
        self.grads = on_device(runtime, gradients(0), stream=self.stream)
        self.write(0, 0.01, 1.0)
        same_numbers(self.there.step(self.grads), self.here.step(gradients(0)))
        self.same()

    def capture(self) -> None:
        """Capture a step, with other numbers than those of the replays."""
        self.write(1, 77.0, 99.0, found_inf=True)
        with self.runtime.capture(self.stream) as self.replays:
            self.record = self.there.step(self.grads, found_inf=self.flag)
            with pytest.raises(RuntimeError, match="a copy to the host is waited for"):
                float(self.record.penalty)
            with pytest.raises(RuntimeError, match="a copy to the host is waited for"):
                _ = self.there.steps
        self.same()

    def write(self, seed: int, lr: float, strength: float, found_inf: bool = False) -> None:
        """Put what the device reads where it does."""
        for name, g in gradients(seed).items():
            self.put(self.grads[name], g)
        self.put(self.numbers["lr"], np.array(lr, np.float32))
        self.put(self.numbers["strength"], np.array(strength, np.float64))
        self.put(self.flag, np.array(found_inf, np.float32))
        self.here.lr, self.here.strength = np.float32(lr), strength

    def put(self, array: DeviceArray, numbers_there: np.ndarray) -> None:
        self.runtime.drain()
        span = numbers_there
        while isinstance(span.base, np.ndarray):
            span = span.base
        ctypes.memmove(array.memory.low, span.__array_interface__["data"][0], span.nbytes)

    def replay(self, seed: int, lr: float, strength: float, found_inf: bool = False) -> None:
        self.write(seed, lr, strength, found_inf)
        waits = self.runtime.waits
        self.replays[0]()
        assert self.runtime.waits == waits
        self.runtime.drain()
        record = self.record
        if found_inf:  # the norm is there, but the host does not look
            record = record._replace(norm=None)
        same_numbers(record, self.here.step(gradients(seed), found_inf=found_inf))
        self.same()

    def same(self) -> None:
        same_arrays(self.tensors, self.host)
        self.runtime.drain()


@pytest.mark.parametrize("clip", [None, "total", "data"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_captured_step_is_replayed(runtime: Runtime, option: str, clip: str | None) -> None:
    """Each replay takes the next step, with the numbers that lie on the device then."""
    options: dict[str, Any] = {} if clip is None else {"max_norm": 0.5, "clip": clip}
    one = Captured(runtime, option, **options, on_nonfinite=None if clip is None else "skip")
    one.capture()
    for turn in range(1, 5):
        one.replay(turn, 0.02 / turn, turn - 1, found_inf=turn == 2)
    assert one.there.steps == one.here.steps == 4
    # A step beside the graph goes on from its counts, and the graph from that one's.
    one.write(7, 0.03, 0.5)
    same_numbers(one.there.step(one.grads), one.here.step(gradients(7)))
    one.replay(8, 0.02, 0.25)
    same_state(one.there.state_dict(), one.here.state_dict())


def test_a_step_that_the_host_skips_has_the_strength_that_lies_there(runtime: Runtime) -> None:
    one = Captured(runtime, "adamw")
    one.write(1, 0.1, 2.0)
    grads = gradients(1)
    same_numbers(one.there.step(one.grads, found_inf=True), one.here.step(grads, found_inf=True))
    same_numbers(one.there.step(one.grads), one.here.step(grads))
    one.same()


def test_update_sends_all_numbers_of_a_captured_step(runtime: Runtime) -> None:
    host, stream = arrays(), runtime.stream()
    tensors = on_device(runtime, host, stream=stream)
    rules = {"a": L1(0.3), "c": (L1L2(0.2, 0.1), "decoupled")}
    options: dict[str, Any] = {"rules": rules, "independent": True, "max_norm": 1.0}
    there, here = AdamW(tensors, 0.01, **options), AdamW(host, 0.01, **options)
    grads = on_device(runtime, gradients(1), stream=stream)
    there.step(grads), here.step(gradients(1))
    with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
        record = there.step(grads)
    assert len(recording) == 1
    for turn in range(3):
        rules["a"].l1 = 0.1 * turn
        there.lr = here.lr = 0.02 / (1 + turn)
        there.strength = here.strength = 1.0 + turn
        waits = runtime.waits
        recording.update()
        replays[0]()
        assert runtime.waits == waits
        runtime.drain()
        same_numbers(record, here.step(gradients(1)))
        same_arrays(tensors, host)
    with pytest.raises(RuntimeError, match="step was given, but no proximal step was captured"):
        recording.update(step=0.1)
    there.lr = DeviceArray(runtime, np.array(0.5, np.float32), stream=stream)
    with pytest.raises(RuntimeError, match=r"^lr is no longer the array that was captured"):
        recording.update()
    there.lr = lambda step: 0.1
    with pytest.raises(RuntimeError, match=r"^lr is a function"):
        recording.update()
    there.lr, there.strength = 1e39, 1.0
    with pytest.raises(ValueError, match=r"must be finite in float32.* tensors\['a'\]"):
        recording.update()
    there.lr = 0.5
    tensors["f"] = DeviceArray(runtime, np.ones(3, np.float32), stream=stream)
    with pytest.raises(RuntimeError, match="other tensors than when its step was captured"):
        recording.update()
    runtime.drain()
    recording.close()


def test_what_a_captured_step_cannot_do_is_refused(runtime: Runtime) -> None:
    w, g = numbers(300, np.float32), numbers(300, np.float32, 1)
    stream = runtime.stream()
    weight, gradient = (DeviceArray(runtime, x, stream=stream) for x in (w, g))

    def refused(match: str, optimizer: Any, steps: int = 0, **options: Any) -> None:
        with runtime.capture(stream), pytest.raises(RuntimeError, match=match):
            optimizer.step([gradient], **options)
        assert optimizer.steps == steps
        assert weight.host().tobytes() == w.tobytes()

    refused(r"^tensors\['0'\] has no state yet", SGD([weight], 0.1, momentum=0.9))
    refused(r"^tensors\['0'\] has no state yet", AdamW([weight], 0.1))
    refused('^on_nonfinite="raise" waits', SGD([weight], 0.1, on_nonfinite="raise"))
    refused("^found_inf was known on the host", SGD([weight], 0.1), found_inf=True)
    refused("^lr is a function", SGD([weight], lambda step: 0.1))
    optimizer = SGD([weight], 0.1, rules="l1", strength=lambda step: 1.0)
    refused("^strength is a function", optimizer)
    optimizer.strength = 0.5
    optimizer.step([gradient])
    assert optimizer.steps == 1


def test_numbers_on_the_device_are_not_waited_for(runtime: Runtime) -> None:
    one = Captured(runtime, "adamw", independent=True, initial_lr=0.3)
    for turn in range(3):
        one.write(turn, 0.3 / (1 + turn), turn)
        waits = runtime.waits
        found = one.there.step(one.grads)
        assert runtime.waits == waits
        same_numbers(found, one.here.step(gradients(turn)))
        one.same()
    # "raise" waits, and then for them as well; so does an optimizer of the host.
    raising = SGD(one.tensors, one.numbers["lr"], on_nonfinite="raise")
    raising.step(one.grads)
    on_host = SGD(one.host, one.numbers["lr"])
    on_host.step(gradients(2))
    one.same()
    with pytest.raises(TypeError, match="lr on a device must be one float32 or float64 number"):
        SGD(one.host, DeviceArray(runtime, np.array([1, 2])))
    with pytest.raises(TypeError, match="strength on a device must be one float32 or float64"):
        one.there.strength = DeviceArray(runtime, np.ones(2, np.float32))


def test_what_is_on_the_device_is_freed(runtime: Runtime) -> None:
    def train() -> None:
        tensors = on_device(runtime, arrays())
        optimizer = AdamW(tensors, 0.01, rules=RULES, max_norm=1.0)
        for turn in range(3):
            optimizer.step(on_device(runtime, gradients(turn)))

    train()
    runtime.drain()
    runtime.free_dropped()
    before = runtime.allocations
    for _ in range(3):
        train()
        runtime.drain()
        runtime.free_dropped()
    assert runtime.allocations == before
    assert fastreg.norms(on_device(runtime, arrays()))
