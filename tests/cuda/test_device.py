"""Device tensors from Python to the kernels and back, on the stand-in for a GPU."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
import types
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_fakes import (
    DeviceArray,
    Memory,
    Producer,
    Runtime,
    Taken,
    numbers,
)
from stand_in_arrays import LIBRARY

import fastreg
from fastreg._arrays import cuda, cuda_results, device_array
from fastreg._base import core
from fastreg._engine import backend, calls
from fastreg._engine import recording as recording_module
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

pytestmark = pytest.mark.skipif(not LIBRARY, reason="FASTREG_CUDA_LIBRARY names no stand-in")

RULE = L1L2(0.01, 0.3)


def test_info_finds_the_device() -> None:
    assert core.core().cuda_state() == (True, "", 2)


# ------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rule", [L1(0.01), L2(0.3), RULE], ids=repr)
@pytest.mark.parametrize("size", [0, 1, 33, 4097, 20003])
def test_bits_are_those_of_the_host(runtime: Runtime, dtype: Any, rule: Any, size: int) -> None:
    w, g = numbers(size, dtype), numbers(size, dtype, 1)
    stream = runtime.stream()
    weight = DeviceArray(runtime, w, stream=stream)
    grad = DeviceArray(runtime, g, stream=stream)
    value = rule.accumulate(weight, grad, scale=0.5, grad_scale=3.0)
    assert isinstance(value, device_array.DeviceValue)
    expected = rule.accumulate(w, g, scale=0.5, grad_scale=3.0)
    assert float(value) == expected
    assert grad.host().tobytes() == g.tobytes()
    assert float(rule(weight)) == rule(w)
    out = DeviceArray(runtime, np.empty_like(w), stream=stream)
    rule.gradient(weight, out)
    assert out.host().tobytes() == rule.gradient(w).tobytes()


def test_fortran_order_and_unaligned(runtime: Runtime) -> None:
    w = np.asfortranarray(numbers((7, 300), np.float32))
    g = np.asfortranarray(numbers((7, 300), np.float32, 1))
    weight, grad = DeviceArray(runtime, w, offset=4), DeviceArray(runtime, g, offset=12)
    assert float(L2(0.5).accumulate(weight, grad)) == L2(0.5).accumulate(w, g)
    assert grad.host().tobytes() == g.tobytes()


def test_a_whole_model(runtime: Runtime) -> None:
    host = {f"layer{i}/kernel": numbers(37 * i, np.float32, i) for i in range(1, 40)}
    grads = {name: numbers(w.shape, np.float32, 99) for name, w in host.items()}
    on_device = {name: DeviceArray(runtime, w) for name, w in host.items()}
    device_grads = {name: DeviceArray(runtime, g) for name, g in grads.items()}
    waits = runtime.waits
    penalty = fastreg.attach(on_device, {"*": L1L2(0.1, 0.2)}).accumulate(device_grads)
    assert runtime.waits == waits
    assert float(penalty) == fastreg.attach(host, {"*": L1L2(0.1, 0.2)}).accumulate(grads)
    for name, g in grads.items():
        assert device_grads[name].host().tobytes() == g.tobytes()


def test_rules_of_their_own_strengths(runtime: Runtime) -> None:
    host = {name: numbers(5000, dtype, seed) for seed, (name, dtype) in enumerate(
        [("a", np.float32), ("b", np.float16), ("c", np.float64), ("d", np.float32)]
    )}  # fmt: skip
    rules = {"a": L1(0.1), "[bc]": L2(0.2), "d": L1L2(0.3, 0.4)}
    on_device = {name: DeviceArray(runtime, w) for name, w in host.items()}
    assert float(fastreg.attach(on_device, rules).value()) == fastreg.attach(host, rules).value()


@pytest.mark.parametrize("outputs", ["value", "gradient", "accumulate"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layouts", ["cf", "fc", "gc", "cg", "nn", "gf", "tt"])
def test_any_layout(runtime: Runtime, outputs: str, dtype: Any, layouts: str) -> None:
    def laid_out(kind: str, seed: int) -> np.ndarray:
        plain = numbers((37, 150), dtype, seed)
        if kind == "c":
            return plain
        if kind == "f":
            return np.asfortranarray(plain)
        if kind == "t":
            return numbers((150, 37), dtype, seed).T
        big = numbers((74, 200), dtype, seed)
        return big[::2, 3:153] if kind == "g" else big[36::-1, 199:49:-1]

    w, g = laid_out(layouts[0], 0), laid_out(layouts[1], 1)
    weight, grad = DeviceArray(runtime, w), DeviceArray(runtime, g)
    if outputs == "value":
        assert float(RULE(weight)) == RULE(w)
        return
    if outputs == "gradient":
        value = RULE.value_and_grad(weight, grad)[0]
        expected = RULE.value_and_grad(w, g)[0]
    else:
        value, expected = RULE.accumulate(weight, grad), RULE.accumulate(w, g)
    assert float(value) == expected
    # The gaps too: nothing has been written beside the gradient.
    base = g if g.base is None else g.base
    assert bytes(grad.memory.host()) == base.tobytes(order="A")


def test_a_broadcast_weight(runtime: Runtime) -> None:
    row = numbers(150, np.float32)
    w, g = np.broadcast_to(row, (40, 150)), numbers((40, 150), np.float32, 1)
    weight = DeviceArray(runtime, w, memory=Memory(runtime, row))
    grad = DeviceArray(runtime, g)
    assert float(RULE.accumulate(weight, grad)) == RULE.accumulate(w, g)
    assert grad.host().tobytes() == g.tobytes()


@pytest.mark.parametrize(
    "dtype",
    [np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64],
)
def test_integers_have_a_value_and_no_gradient(runtime: Runtime, dtype: Any) -> None:
    kind = np.dtype(dtype)
    bits = np.random.default_rng(0).integers(0, 256, 5003 * kind.itemsize, np.uint8)
    w = (bits % 2).view(dtype) if dtype is np.bool_ else bits.view(dtype)
    weight = DeviceArray(runtime, w)
    assert float(RULE(weight)) == RULE(w)
    strided = np.repeat(w, 2)[::2]
    assert float(RULE(DeviceArray(runtime, strided))) == RULE(w)
    assert float(RULE(Producer(runtime, w))) == RULE(w)
    for given, other in ((weight, DeviceArray(runtime, w)), (w, w.copy())):
        with pytest.raises(TypeError) as refusal:
            RULE.accumulate(given, other)
        assert str(refusal.value) == (
            f"w has dtype {kind}: there is no gradient for integer or bool elements; pass for "
            "example w.astype(numpy.float32)"
        )


# --------------------------------------------------------------------------------- order


def test_streams_of_several_tensors_are_ordered(runtime: Runtime) -> None:
    for _ in range(10):
        first, second = runtime.stream(), runtime.stream()
        w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
        weight = DeviceArray(runtime, w, stream=first)
        grad = DeviceArray(runtime, g, stream=second)
        runtime.clear(grad.address, g.nbytes, second)
        L2(0.5).accumulate(weight, grad)
        g[:] = 0
        L2(0.5).accumulate(w, g)
        # What comes later on the gradient's stream comes after the call.
        runtime.clear(grad.address, 4, second)
        g[0] = 0
        assert grad.host().tobytes() == g.tobytes()


def test_a_second_device(runtime: Runtime) -> None:
    w = numbers(5000, np.float32)
    weight = DeviceArray(runtime, w, device=1)
    value = L1(0.5)(weight)
    assert value.__dlpack_device__() == (2, 1)
    assert float(value) == L1(0.5)(w)


def test_the_device_is_found_by_the_address(runtime: Runtime) -> None:
    weight = DeviceArray(runtime, numbers(10, np.float32), device=1)
    assert not hasattr(weight, "__dlpack_device__")
    assert not hasattr(weight, "device")
    assert cuda.describe(weight, "w", False, None).device == 1
    empty = DeviceArray(runtime, numbers((3, 0), np.float32))
    assert float(RULE(empty)) == 0.0


def test_host_memory_behind_the_interface_is_refused(runtime: Runtime) -> None:
    w = numbers(10, np.float32)
    weight = DeviceArray(runtime, w)
    weight.address = w.ctypes.data
    words = f"address {w.ctypes.data:#x}, but it is memory that no CUDA device can use"
    with pytest.raises(ValueError, match=rf"^w has a __cuda_array_interface__ with the {words}"):
        RULE(weight)


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("key", ["data", "shape", "typestr"])
def test_an_interface_that_is_not_whole(runtime: Runtime, key: str) -> None:
    class Half:
        __cuda_array_interface__ = {"data": (16, False), "shape": (3,), "typestr": "<f4"}  # noqa: RUF012

    del Half.__cuda_array_interface__[key]
    with pytest.raises(TypeError, match=rf"^w is a .*Half whose __cuda_array.* lacks '{key}'"):
        RULE(Half())


def refused(error: type[Exception], match: str, weight: Any, grad: Any, rule: Any = RULE) -> None:
    before = grad.host().tobytes() if hasattr(grad, "host") else grad.tobytes()
    with pytest.raises(error, match=match):
        rule.accumulate(weight, grad)
    after = grad.host().tobytes() if hasattr(grad, "host") else grad.tobytes()
    assert after == before


def test_bad_input_is_refused_and_nothing_is_written(runtime: Runtime) -> None:
    w = numbers((50, 4), np.float32)
    weight, grad = DeviceArray(runtime, w), DeviceArray(runtime, w)
    other = DeviceArray(runtime, w, device=1)
    refused(ValueError, "^grad is on CUDA device 1, but w on device 0; make one", weight, other)
    refused(TypeError, "^grad is in host memory, but w is on CUDA", weight, w.copy())
    refused(TypeError, "^w is in host memory, but grad is on CUDA", w, grad)
    locked = DeviceArray(runtime, w, read_only=True)
    refused(BufferError, "^grad is a read-only array; pass a writable", weight, locked)
    double = DeviceArray(runtime, w.astype(np.float64))
    refused(TypeError, "^grad has dtype float64, but w has float32", weight, double)
    flat = DeviceArray(runtime, w.reshape(-1))
    refused(ValueError, r"^grad has shape \(200,\), but w has \(50, 4\)", weight, flat)
    foreign = DeviceArray(runtime, w, stream=runtime.stream(1))
    refused(ValueError, "^w: the stream is of device 1, the tensors are on", foreign, grad)
    refused(ValueError, "^grad: the stream is of device 1, the tensors", weight, foreign)
    odd = DeviceArray(runtime, w, offset=2)
    refused(TypeError, "^w is an array whose elements are not aligned; pass a copy", odd, grad)
    refused(TypeError, "^grad is an array whose elements are not aligned", weight, odd)
    with pytest.raises(TypeError, match=r"^grad must be an array, not a list"):
        RULE.accumulate(weight, [1.0])
    with pytest.raises(TypeError, match=r"^w must be an array, not a list"):
        RULE.accumulate([1.0], grad)
    huge = L2(1e300)
    refused(ValueError, r"^2 \* l2 \* scale \* grad_scale must be finite", weight, grad, huge)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        RULE.accumulate(weight, grad, scale=float("nan"))
    assert grad.host().tobytes() == w.tobytes()


def test_dtypes_that_have_no_penalty(runtime: Runtime) -> None:
    for dtype, words in (("c8", "complex64.*numpy.abs"), (">f4", "byte order"), ("V2", "V2")):
        with pytest.raises(TypeError, match=f"^w has dtype .*{words}"):
            RULE(DeviceArray(runtime, np.zeros(3, dtype)))
    for kind, words in (((10, 8), "float8_e4m3fn"), ((0, 4), "int4"), ((17, 4), "float4_e2m1fn")):
        with pytest.raises(TypeError, match=f"^w has dtype {words}; .*convert it in the library"):
            RULE(Producer(runtime, np.zeros(3, np.uint8), dtype=kind))
    masked = DeviceArray(runtime, np.zeros(3))
    kind = type("Masked", (DeviceArray,), {})
    kind.__cuda_array_interface__ = property(
        lambda self: {**DeviceArray.__cuda_array_interface__.fget(self), "mask": masked}
    )
    with pytest.raises(TypeError, match=r"^w is a masked array"):
        RULE(kind(runtime, np.zeros(3)))


def test_overlaps_are_refused_as_on_the_host(runtime: Runtime) -> None:
    whole = numbers(300, np.float32)
    memory = Memory(runtime, whole)

    def part(view: np.ndarray) -> DeviceArray:
        array = DeviceArray(runtime, view, memory=memory)
        array.address = memory.low + view.ctypes.data - whole.ctypes.data
        return array

    pairs = [
        (whole[:200], whole[100:]),
        (whole[:200].reshape(10, 20), np.lib.stride_tricks.as_strided(whole, (10, 20), (4, 4))),
        (whole[:100], whole[99::-1]),
    ]
    for w, g in pairs:
        with pytest.raises(ValueError, match="overlaps") as on_host:
            RULE.accumulate(w.copy() if g.strides == (4, 4) else w, g)
        weight = DeviceArray(runtime, w.copy()) if g.strides == (4, 4) else part(w)
        with pytest.raises(ValueError, match="overlaps") as on_device:
            RULE.accumulate(weight, part(g))
        assert str(on_device.value) == str(on_host.value)
    assert bytes(memory.host()) == whole.tobytes()
    # Interleaved, but without an element in common.
    halves = whole[::2], whole[1::2]
    assert float(RULE.accumulate(*map(part, halves))) == RULE.accumulate(*halves)
    # The gradient is the weight.
    assert float(RULE.accumulate(part(whole), part(whole))) == RULE.accumulate(whole, whole)
    assert bytes(memory.host()) == whole.tobytes()
    with pytest.raises(ValueError, match=r"^grads\['b'\] overlaps tensors\['a'\] in memory"):
        fastreg.attach({"a": part(whole[:9]), "b": part(whole[20:30])}, "l2").accumulate(
            {"a": part(whole[40:49]), "b": part(whole[8:18])}
        )


def test_many_tensors_are_named(runtime: Runtime) -> None:
    w = numbers(5, np.float32)
    a, b = DeviceArray(runtime, w), DeviceArray(runtime, w, device=1)
    with pytest.raises(
        ValueError, match=r"^tensors\['b'\] is on CUDA device 1, but tensors\['a'\]"
    ):
        fastreg.attach({"a": a, "b": b}, {"*": L2(0.1)}).value()
    mixed = fastreg.attach({"a": w, "b": a}, {"*": L2(0.1)})
    with pytest.raises(
        TypeError, match=r"^tensors\['a'\] is in host memory, but tensors\['b'\] is"
    ):
        mixed.value()
    with pytest.raises(TypeError, match=r"^tensors\['a'\] is in host memory"):
        mixed.accumulate({"a": w.copy(), "b": DeviceArray(runtime, w)})
    # What has no penalty may lie anywhere.
    assert float(fastreg.attach({"a": w, "b": a}, {"b": L2(0.1)}).value()) == L2(0.1)(w)
    grads = {"a": DeviceArray(runtime, w), "b": w.copy()}
    with pytest.raises(TypeError, match=r"^grads\['b'\] is in host memory, but tensors\['a'\] is"):
        fastreg.attach({"a": a, "b": DeviceArray(runtime, w)}, "l2").accumulate(grads)
    assert grads["a"].host().tobytes() == w.tobytes()


def test_out_of_memory_is_told(runtime: Runtime) -> None:
    w = numbers(100_000, np.float32)
    weight, grad = DeviceArray(runtime, w, stream=runtime.stream()), DeviceArray(runtime, w)
    with runtime.memory_limit(0):
        refused(MemoryError, "out of memory", weight, grad)
    L2(0.5).accumulate(weight, grad)


def test_what_only_the_host_can_do_is_refused(runtime: Runtime) -> None:
    weight = DeviceArray(runtime, numbers((3, 3), np.float32))
    for call in (OrthogonalRegularizer(), OrthogonalRegularizer().value_and_grad):
        with pytest.raises(TypeError, match=r"^w is (on CUDA|a DeviceArray on CUDA)"):
            call(weight)
    before = backend.name
    backend.select("numpy")
    try:
        with pytest.raises(TypeError, match=r"^w is on CUDA .*the NumPy backend is in use"):
            RULE(weight)
        with pytest.raises(TypeError, match=r"^tensors\['a'\] is on CUDA .*the NumPy backend"):
            fastreg.attach({"a": weight}, "l2")
    finally:
        backend.select(before)


def test_callables_give_values_and_no_gradients(runtime: Runtime) -> None:
    w = numbers(50, np.float32)
    weight, grad = DeviceArray(runtime, w), DeviceArray(runtime, w)

    class Double(fastreg.regularizers.Regularizer):
        def __call__(self, x: Any) -> Any:
            return RULE(x, scale=2)

        def gradient(self, x: Any) -> Any:
            return RULE.gradient(x)

    rules = {"a": Double(), "b": RULE}
    value = fastreg.attach({"a": weight, "b": DeviceArray(runtime, w)}, rules).value()
    assert value == fastreg.attach({"a": w, "b": w.copy()}, rules).value()
    with pytest.raises(TypeError, match=r"^tensors\['a'\] is on CUDA, where the gradients that"):
        fastreg.attach({"a": weight}, Double()).accumulate({"a": grad})
    assert grad.host().tobytes() == w.tobytes()


# --------------------------------------------------------------------- ties and reports


def test_ties(runtime: Runtime) -> None:
    w = numbers((4, 6), np.float32)
    memory = Memory(runtime, w)
    tensors = {
        "w": DeviceArray(runtime, w, memory=memory),
        "transposed": DeviceArray(runtime, w.T, memory=memory),
        "other": DeviceArray(runtime, w),
    }
    penalties = fastreg.attach(tensors, {"*": RULE})
    host = fastreg.attach({"w": w, "transposed": w.T, "other": w.copy()}, {"*": RULE})
    assert float(penalties.value()) == host.value()
    assert penalties.report()["transposed"].tied_to == "w"
    with pytest.raises(ValueError, match=r"tied .the same memory. but have different rules"):
        fastreg.attach(tensors, {"w": RULE, "*": None})
    # A tie that comes later.
    later = fastreg.attach(dict(tensors, transposed=DeviceArray(runtime, w.T.copy())), {"*": RULE})
    assert float(later.value()) != host.value()
    assert float(later.value(tensors=tensors)) == host.value()


def test_shares_address(runtime: Runtime) -> None:
    w = numbers(10, np.float32)
    a, b = DeviceArray(runtime, w), DeviceArray(runtime, w, device=1)
    assert not calls.shares_address((w, a, b, Producer(runtime, w)))
    assert calls.shares_address((w, a, b, a))
    assert calls.shares_address((a, w, w[:3]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_report(runtime: Runtime, dtype: Any) -> None:
    w = numbers((30, 40), dtype)
    w[::3] = 0
    views = {"whole": w, "part": w.copy()[1::2, ::-1], "none": w.copy()[:, :0], "free": w.copy()}
    tensors = {name: DeviceArray(runtime, view) for name, view in views.items()}
    rules = {"free": None, "*": RULE}
    report = fastreg.attach(tensors, rules).report()
    expected = fastreg.attach(views, rules).report()
    assert report == expected
    assert report.total == expected.total
    assert str(report) == str(expected)


def test_report_of_bfloat16(runtime: Runtime) -> None:
    w = numbers(100, ml_dtypes.bfloat16)
    w[::5] = -0.0
    report = fastreg.attach({"w": Producer(runtime, w)}, "l2").report()
    assert report == fastreg.attach({"w": w}, "l2").report()


# ------------------------------------------------------------------------------- DLPack, in


def test_dlpack(runtime: Runtime) -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        w, g = numbers((70, 80), dtype), numbers((70, 80), dtype, 1)
        ready = runtime.stream()
        weight, grad = Producer(runtime, w), Producer(runtime, g, ready_on=ready)
        runtime.clear(grad.address, g.nbytes, ready)
        value = RULE.accumulate(weight, grad)
        g[:] = 0
        assert float(value) == RULE.accumulate(w, g)
        assert grad.host().tobytes() == g.tobytes()
        assert set(weight.streams + grad.streams) == {1}


def test_dlpack_is_asked_for_the_stream_of_the_call(runtime: Runtime) -> None:
    w, stream = numbers(500, np.float32), runtime.stream()
    weight, grad = Producer(runtime, w), DeviceArray(runtime, w, stream=stream)
    RULE.accumulate(weight, grad)
    assert weight.streams == [stream]
    weight.streams.clear()
    fastreg.attach({"w": weight}, "l2")  # looks at it only
    assert set(weight.streams) == {-1}


def test_dlpack_that_may_not_be_written(runtime: Runtime) -> None:
    w = numbers(50, np.float32)
    weight = Producer(runtime, w)
    refused(BufferError, "^grad is a read-only array", weight, Producer(runtime, w, read_only=True))

    class OldProducer(Producer):
        def __dlpack__(self, *, stream: Any = None) -> Any:
            return super().__dlpack__(stream=stream)

    for grad in (Producer(runtime, w, version=None), OldProducer(runtime, w)):
        refused(
            BufferError, "^grad is a .*Producer whose DLPack capsule has no version", weight, grad
        )
        assert float(RULE(grad)) == RULE(w)


def test_dlpack_that_fails(runtime: Runtime) -> None:
    w = numbers(50, np.float32)
    grad = Producer(runtime, w)

    class Failing(Producer):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("not today")

    refused(
        TypeError,
        r"^w is a .*Failing whose __dlpack__ fails \(not today\)",
        Failing(runtime, w),
        grad,
    )
    newer = Producer(runtime, w, version=2)
    refused(TypeError, r"^w is a .* \(a DLPack capsule of version 2\)", newer, grad)
    lying = Producer(runtime, w, device_type=1)
    refused(TypeError, "^w is a .*gives memory of device type 1", lying, grad)

    class Odd(Producer):
        def __dlpack__(self, **_: Any) -> Any:
            return "capsule"

    refused(TypeError, r"^w is a .* \(no DLPack capsule\)", Odd(runtime, w), grad)


def test_memory_is_kept_until_the_kernels_have_read_it(runtime: Runtime) -> None:
    w = numbers(5000, np.float32)
    was_kept = 0
    for _ in range(20):
        weight = Producer(runtime, w)
        value = RULE(weight)
        was_kept += weight.living
        if not weight.living:
            assert ctypes.c_double.from_address(value.memory.address).value == RULE(w)
        runtime.drain()
        RULE(Producer(runtime, w))  # the next looks after the last
        assert weight.living == 0
    assert was_kept > 0


# ---------------------------------------------------------------------------- DLPack, out


class CpuView:
    """Hands the stand-in's memory, the host's in truth, to libraries of the host."""

    def __init__(self, array: Any, versioned: bool) -> None:
        self.array, self.versioned = array, versioned

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self, **_: Any) -> Any:
        memory, code, bits = (
            self.array.memory,
            *{"f64": (2, 64), "bf16": (4, 16)}[self.array.dtype_name],
        )
        return memory.export(self.array.shape, code, bits, self.versioned, 1)


@pytest.mark.parametrize(
    ("consumer", "versioned"),
    [("numpy", False), ("numpy", True), ("torch", False), ("torch", True), ("jax", False)],
)
def test_capsules_are_taken_by_real_libraries(
    runtime: Runtime, consumer: str, versioned: bool
) -> None:
    module = importlib.import_module("jax.dlpack" if consumer == "jax" else consumer)
    runtime.drain()
    before = runtime.allocations
    array = device_array.DeviceArray(core.core().DeviceMemory(0, 1, 120), (3, 5), "f64")
    ctypes.memmove(array.memory.address, np.arange(15.0).ctypes.data, 120)
    assert runtime.allocations == before + 1
    taken = module.from_dlpack(CpuView(array, versioned))
    del array
    gc.collect()
    runtime.drain()
    assert np.asarray(taken).tolist() == np.arange(15.0).reshape(3, 5).tolist()
    del taken
    gc.collect()
    runtime.drain()
    assert runtime.allocations == before


def test_memory_of_the_real_jax() -> None:
    """What is done for JAX on a device, with JAX's memory of the host."""
    jax, dlpack = importlib.import_module("jax"), importlib.import_module("jax.dlpack")
    w = jax.numpy.ones(3)
    with jax.ensure_compile_time_eval():
        owner = jax.numpy.zeros(15 * 8, "uint8", device=w.sharding)
    capsule = owner.__dlpack__()
    description, has_version, _ = core.core().describe_capsule(capsule)
    assert description[1:] == ((120,), description[2], 1, 8, 1, 1, 0)
    assert not has_version
    memory = core.core().DeviceMemory(0, 1, description[0], (owner, capsule))
    array = device_array.DeviceArray(memory, (3, 5), "f64")
    ctypes.memmove(array.memory.address, np.arange(15.0).ctypes.data, 120)
    with jax.enable_x64(True):
        taken = dlpack.from_dlpack(CpuView(array, False))
        assert taken.unsafe_buffer_pointer() == description[0]
    alive = weakref.ref(owner)
    del owner, capsule, memory, array
    gc.collect()
    assert np.asarray(taken).tolist() == np.arange(15.0).reshape(3, 5).tolist()
    assert alive() is not None
    del taken
    gc.collect()
    assert alive() is None


def test_a_value_is_exported(runtime: Runtime) -> None:
    w = numbers(5000, np.float32)
    for _ in range(10):
        stream, consumer = runtime.stream(), runtime.stream()
        weight = DeviceArray(runtime, w, stream=stream)
        value = RULE(weight)
        waits = runtime.waits
        taken = Taken(value.__dlpack__(stream=consumer, max_version=(1, 1), dl_device=(2, 0)))
        assert (taken.is_versioned, taken.managed.major, taken.managed.flags) == (True, 1, 0)
        assert (taken.place, taken.shape, taken.type) == ((2, 0), (), (2, 64, 1))
        assert taken.address == value.__cuda_array_interface__["data"][0]
        assert value.__cuda_array_interface__["stream"] == stream
        assert runtime.waits == waits
        # What the consumer queues comes after the penalty.
        copy = np.zeros(())
        runtime.call(
            "cudaMemcpyAsync", ctypes.c_void_p(copy.ctypes.data), ctypes.c_void_p(taken.address),
            ctypes.c_size_t(8), 2, ctypes.c_void_p(consumer),
        )  # fmt: skip
        runtime.call("cudaStreamSynchronize", ctypes.c_void_p(consumer))
        assert float(copy) == RULE(w)
    assert not Taken(value.__dlpack__(stream=-1)).is_versioned
    assert not Taken(value.__dlpack__()).is_versioned
    for error, match, arguments in (
        (ValueError, "not 0", {"stream": 0}),
        (BufferError, "dl_device must be", {"dl_device": (1, 0)}),
        (BufferError, "copy must be", {"copy": True}),
    ):
        with pytest.raises(error, match=match):
            value.__dlpack__(**arguments)
    assert (value.shape, value.ndim, value.dtype, value.item()) == ((), 0, "float64", RULE(w))
    assert repr(value) == "<a penalty on CUDA device 0; float(...) copies it>"
    # A penalty is an array on a device like any other.
    assert float(L1(2.0)(value)) == 2.0 * RULE(w)


def test_values_give_their_memory_back_without_waiting(runtime: Runtime) -> None:
    weight = DeviceArray(runtime, numbers(5000, np.float32), stream=runtime.stream())
    RULE(weight)
    runtime.drain()
    before, waits = runtime.allocations, runtime.waits
    kept = [RULE(weight) for _ in range(10)]
    assert runtime.allocations == before + 10
    kept.clear()
    assert runtime.waits == waits
    runtime.drain()
    assert runtime.allocations == before


def test_a_value_outlives_its_stream(runtime: Runtime) -> None:
    w = numbers(5000, np.float32)
    stream = runtime.stream()
    value = RULE(DeviceArray(runtime, w, stream=stream))
    runtime.call("cudaStreamDestroy", ctypes.c_void_p(stream))
    assert float(value) == RULE(w)


def test_other_kinds_need_out(runtime: Runtime) -> None:
    weight = DeviceArray(runtime, numbers(5, np.float32))
    for call in (RULE.gradient, RULE.value_and_grad):
        with pytest.raises(TypeError, match=r"^w is a DeviceArray on CUDA.*pass out="):
            call(weight)


# ------------------------------------------------------------------------------------ CuPy


def test_cupy(runtime: Runtime, cupy: Any) -> None:
    w, g = numbers((60, 90), np.float32), numbers((60, 90), np.float32, 1)
    for device in (0, 1):
        cupy.state.update(device=device, stream=runtime.stream(device))
        weight, grad = cupy.array(w), cupy.array(g)
        cupy.state["device"] = 1 - device  # results lie where the weight is, wherever CuPy is
        waits = runtime.waits
        values = [RULE(weight), RULE.accumulate(weight, grad)]
        value, made = RULE.value_and_grad(weight)
        assert runtime.waits == waits
        for one in (*values, value, made):
            assert type(one) is cupy.ndarray
            assert one.device.id == device
        assert [float(one) for one in (*values, value)] == [RULE(w)] * 3
        assert (value.shape, value.dtype) == ((), np.float64)
        assert made.host().tobytes() == RULE.gradient(w).tobytes()
        expected = g.copy()
        RULE.accumulate(w, expected)
        assert grad.host().tobytes() == expected.tobytes()


def test_cupy_models(runtime: Runtime, cupy: Any) -> None:
    host = {"a": numbers((7, 9), np.float16), "b": numbers(5000, np.float64)}
    cupy.state["stream"] = runtime.stream()
    penalties = fastreg.attach({name: cupy.array(w) for name, w in host.items()}, RULE)
    expected = fastreg.attach(host, RULE)
    value, gradients = penalties.value_and_grad()
    assert float(value) == expected.value() == float(penalties.value())
    for name, gradient in expected.gradient().items():
        assert gradients[name].host().tobytes() == gradient.tobytes()


# ------------------------------------------------------------------------------------- JAX


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_jax(runtime: Runtime, jax: Any, dtype: Any) -> None:
    w = numbers((60, 90), dtype)
    for _ in range(5):
        weight = jax.Array(w)
        # JAX is still making the weight.
        runtime.clear(weight.address, w.nbytes, jax.stream)
        waits = runtime.waits
        value, gradient = RULE.value_and_grad(weight)
        assert runtime.waits == waits or dtype != np.float64  # the fake's astype waits itself
        assert type(value) is type(gradient) is jax.Array
        assert value.dtype == (np.float64 if dtype == np.float64 else np.float32)
        assert float(value) == 0.0
        assert (gradient.dtype, gradient.shape) == (dtype, w.shape)
        assert gradient.host().tobytes() == RULE.gradient(np.zeros_like(w)).tobytes()
        weight = jax.Array(w)
        assert float(RULE(weight)) == np.asarray(RULE(w), value.dtype)
        assert RULE.gradient(weight).host().tobytes() == RULE.gradient(w).tobytes()
        assert set(weight.producer.streams) == {1}


def test_jax_models(runtime: Runtime, jax: Any) -> None:
    host = {"a": numbers((7, 9), np.float16), "b": numbers(5000, np.float32)}
    tensors = {name: jax.Array(w) for name, w in host.items()}
    penalties, expected = fastreg.attach(tensors, RULE), fastreg.attach(host, RULE)
    value, gradients = penalties.value_and_grad()
    assert type(value) is jax.Array
    assert float(value) == np.asarray(expected.value(), value.dtype)
    for name, gradient in expected.gradient().items():
        assert gradients[name].host().tobytes() == gradient.tobytes()


def test_jax_arrays_are_never_written(runtime: Runtime, jax: Any) -> None:
    w = numbers(50, np.float32)
    weight, grad = jax.Array(w), jax.Array(w)
    refused(BufferError, "^grad is a JAX array, which is immutable; use gradient", weight, grad)
    with pytest.raises(BufferError, match=r"^out is a JAX array, which is immutable"):
        RULE.gradient(weight, grad)
    target = DeviceArray(runtime, w, stream=runtime.stream())
    expected = w.copy()
    value = RULE.accumulate(weight, target)
    assert type(value) is jax.Array
    assert float(value) == RULE.accumulate(w, expected)
    assert target.host().tobytes() == expected.tobytes()
    weight.deleted = True
    with pytest.raises(ValueError, match=r"^w is a JAX array that was deleted"):
        RULE(weight)
    with pytest.raises(TypeError, match=r"^w has dtype int32: there is no gradient"):
        RULE.gradient(jax.Array(np.arange(3, dtype=np.int32)))


def test_what_jax_gets_is_memory_of_its_own(runtime: Runtime, jax: Any) -> None:
    """It is JAX's again when JAX has dropped it and the kernels have written it, and not before."""
    w = numbers(5000, np.float32)
    expected = RULE.gradient(w).tobytes()
    was_kept = 0
    for _ in range(20):
        weight = jax.Array(w)
        gradient = RULE.gradient(weight)
        (buffer,) = jax.buffers
        assert gradient.address == buffer.address
        address = gradient.address
        del gradient, buffer
        was_kept += len(jax.buffers)
        if not jax.buffers:
            assert ctypes.string_at(address, w.nbytes) == expected
        runtime.drain()
        value = RULE(weight)  # the next call looks after the last
        assert [buffer.address for buffer in jax.buffers] == [value.cast_from.address]
        assert float(value) == np.float32(RULE(w))
        del value
        runtime.drain()
        cuda_results.hold(core.core().StreamMark(0, 1), None)
        assert not jax.buffers
    assert was_kept > 0


def test_jax_on_the_stream_of_another(runtime: Runtime, jax: Any) -> None:
    w = numbers(5000, np.float32)
    for _ in range(20):
        stream = runtime.stream()
        out = DeviceArray(runtime, w, stream=stream)
        value, _ = RULE.value_and_grad(jax.Array(w), out)
        assert float(value) == np.float32(RULE(w))
        assert out.host().tobytes() == RULE.gradient(w).tobytes()


# ------------------------------------------------------------------------------------ Keras


def test_variables_of_keras(runtime: Runtime, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Variable:
        def __init__(self, value: Any) -> None:
            self.value = value

    keras = types.SimpleNamespace(Variable=Variable, KerasTensor=())
    monkeypatch.setitem(sys.modules, "keras", keras)
    w, g = numbers(500, np.float32), numbers(500, np.float32, 1)
    weight, grad = Variable(cupy.array(w)), Variable(cupy.array(g))
    value = RULE.accumulate(weight, grad)
    assert type(value) is cupy.ndarray
    assert float(value) == RULE.accumulate(w, g)
    assert grad.value.host().tobytes() == g.tobytes()
    assert RULE.gradient(weight).host().tobytes() == RULE.gradient(w).tobytes()
    assert float(fastreg.attach([weight], RULE).value()) == RULE(w)
    with pytest.raises(TypeError, match=r"^grad is in host memory, but w is on CUDA"):
        RULE.accumulate(weight, Variable(w.copy()))


# ----------------------------------------------------------------------------- CUDA graphs


def test_a_schedule_in_a_graph(runtime: Runtime) -> None:
    w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
    stream = runtime.stream()
    weight = DeviceArray(runtime, w, stream=stream)
    grad = DeviceArray(runtime, g, stream=stream)
    rule = L1L2(0.5, 0.25)
    with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
        value = rule.accumulate(weight, grad, scale=0.5, grad_scale=2.0)
    assert repr(recording) == "<a recording of 1 calls, ready>"
    assert grad.host().tobytes() == g.tobytes()  # captured, not run
    for strengths in ((0.5, 0.25), (0.0, 1.0), (0.0, 0.0), (0.125, 0.0), (0.3, 0.7)):
        rule.l1, rule.l2 = strengths
        waits = runtime.waits
        recording.update()
        replays[0]()
        assert runtime.waits == waits
        runtime.drain()
        assert float(value) == rule.accumulate(w, g, scale=0.5, grad_scale=2.0)
        assert grad.host().tobytes() == g.tobytes()
    rule.l1 = 0.9  # not read before the next update
    replays[0]()
    runtime.drain()
    expected = L1L2(0.3, 0.7)
    assert float(value) == expected.accumulate(w, g, scale=0.5, grad_scale=2.0)
    recording.update(scale=3.0, grad_scale=0.5, stream=stream)
    replays[0]()
    runtime.drain()
    assert float(value) == rule.accumulate(w, g, scale=3.0, grad_scale=0.5)
    assert grad.host().tobytes() == g.tobytes()
    before = runtime.allocations
    recording.close()
    recording.close()
    assert runtime.allocations < before
    with pytest.raises(RuntimeError, match="the recording is closed"):
        recording.update()


def test_all_kinds_of_calls_in_a_graph(runtime: Runtime) -> None:
    host = {"a": numbers(5000, np.float32), "b": numbers((3, 50), np.float16)}
    stream = runtime.stream()
    tensors = {name: DeviceArray(runtime, w, stream=stream) for name, w in host.items()}
    grads = {name: DeviceArray(runtime, w, stream=stream) for name, w in host.items()}
    outs = [DeviceArray(runtime, host["a"], stream=stream) for _ in range(2)]
    rules = {"a": L1(0.1), "b": L2(0.2)}
    first, second, third = L2(0.5), L1(0.5), L1L2(0.5, 0.5)
    penalties, on_host = fastreg.attach(tensors, rules), fastreg.attach(host, rules)
    with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
        values = [first(tensors["a"]), penalties.value(), penalties.accumulate(grads)]
        second.gradient(tensors["a"], outs[0])
        values.append(third.value_and_grad(tensors["a"], outs[1])[0])
    assert len(recording) == 5
    # Calls beside the graph take nothing of it.
    assert float(first(tensors["a"])) == first(host["a"])
    host_grads = {name: w.copy() for name, w in host.items()}
    for step in range(4):
        first.l2 = second.l1 = third.l1 = 0.1 * step
        rules["a"].l1, rules["b"].l2 = 0.2 * step, 0.3 * step
        recording.update()
        replays[0]()
        runtime.drain()
        expected = [
            first(host["a"]),
            on_host.value(),
            on_host.accumulate(host_grads),
            third(host["a"]),
        ]
        assert [float(value) for value in values] == expected
        for name, grad in grads.items():
            assert grad.host().tobytes() == host_grads[name].tobytes()
        assert outs[0].host().tobytes() == second.gradient(host["a"]).tobytes()
        assert outs[1].host().tobytes() == third.gradient(host["a"]).tobytes()
    recording.close()


def test_recordings_that_are_used_wrongly(runtime: Runtime) -> None:
    stream = runtime.stream()
    w = numbers(50, np.float32)
    weight = DeviceArray(runtime, w, stream=stream)
    out = DeviceArray(runtime, w, stream=stream)
    rule = L2(0.5)
    with fastreg.cuda.recording() as empty:
        rule(weight)  # run, not captured
        with pytest.raises(RuntimeError, match="after the with block"):
            empty.update()
        with pytest.raises(RuntimeError, match="not inside the with block"):
            empty.close()
        with pytest.raises(RuntimeError, match="another recording is open on this thread"):
            fastreg.cuda.recording().__enter__()
    with pytest.raises(RuntimeError, match="nothing was captured"):
        empty.update()
    with pytest.raises(RuntimeError, match="make a new one for each capture"):
        empty.__enter__()
    with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
        rule.gradient(weight, out)
    with pytest.raises(TypeError, match=r"^stream must be a CUDA stream, not str 'a'"):
        recording.update(stream="a")
    with pytest.raises(ValueError, match=r"^scale must be a finite number"):
        recording.update(scale=float("inf"))
    rule.l2 = 1e300
    with pytest.raises(ValueError, match=r"^2 \* l2 \* scale \* grad_scale must be finite"):
        recording.update()
    rule.l2 = 2.0
    with pytest.raises(ValueError, match="the stream is of device 1"):
        recording.update(stream=runtime.stream(1))
    other = runtime.stream()
    with runtime.capture(other), pytest.raises(ValueError, match="outside of capture"):
        recording.update(stream=other)
    replays[0]()
    assert out.host().tobytes() == L2(0.5).gradient(w).tobytes()
    for given in (
        stream,
        types.SimpleNamespace(cuda_stream=stream),
        types.SimpleNamespace(ptr=stream),
        types.SimpleNamespace(__cuda_stream__=lambda: (0, stream)),
    ):
        recording.update(stream=given)
    replays[0]()
    assert out.host().tobytes() == rule.gradient(w).tobytes()
    assert not recording_module.unclaimed
    recording.close()


def test_what_is_captured_is_kept(runtime: Runtime) -> None:
    """With a recording until it is closed, without one for good."""
    w, stream = numbers(5000, np.float32), runtime.stream()
    rule = L2(0.5)
    arrays = [DeviceArray(runtime, w, stream=stream) for _ in range(2)]
    with runtime.capture(stream) as replays:
        rule(arrays[0])
    kept_for_good = len(recording_module._kept_for_good)
    assert kept_for_good
    recording = fastreg.cuda.recording()
    with recording, runtime.capture(stream) as more:
        rule(arrays[1])
    before = runtime.allocations
    del recording, arrays[1]
    gc.collect()
    runtime.drain()
    assert runtime.allocations == before
    more[0]()
    runtime.drain()
    assert len(recording_module._kept_for_good) == kept_for_good
    assert replays


def test_streams_are_refused_by_a_capture(runtime: Runtime) -> None:
    """What must wait for the device cannot be captured, and says so."""
    stream = runtime.stream()
    weight = DeviceArray(runtime, numbers(50, np.float32), stream=stream)
    penalties = fastreg.attach([weight], "l2")
    refusal = "a copy to the host is waited for, which a stream that is being captured cannot be"
    with runtime.capture(stream), pytest.raises(RuntimeError, match=refusal):
        penalties.report()
