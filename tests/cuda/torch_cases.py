"""torch's CUDA tensors, by a module that takes the place of torch; test_torch.py runs this file.

FAKE_TORCH_TABLE=0 leaves DLPack's exchange table out, as an older torch does.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from device_fakes import DeviceArray, Runtime, numbers
from fake_torch import install

HAS_TABLE = os.environ["FAKE_TORCH_TABLE"] == "1"
torch: Any = install(has_table=HAS_TABLE)

import fastreg  # noqa: E402
from fastreg._base.penalty import VALUE, Call  # noqa: E402
from fastreg._engine import calls, cuda, cuda_norms  # noqa: E402
from fastreg.regularizers import L1L2, L2  # noqa: E402

RULE = L1L2(0.01, 0.3)
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.fixture(autouse=True)
def runtime() -> Iterator[Runtime]:
    torch.set_stream(torch.runtime.stream(0), 0)
    torch.set_stream(torch.runtime.stream(1), 1)
    yield torch.runtime
    torch.runtime.drain()
    gc.collect()
    torch.runtime.free_dropped()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of the calls that were judged in Python, tensor by tensor."""
    sizes: list[int] = []
    inner = cuda.Operands

    def counted(labelled: Any) -> Any:
        sizes.append(len(labelled))
        return inner(labelled)

    for module in (cuda, cuda_norms):
        monkeypatch.setattr(module, "Operands", counted)
    return sizes


def assert_calls(judged: list[int], *, plain: int, other: int = 0) -> None:
    """Check how many calls were judged in Python: plain ones only without the table."""
    assert len(judged) == other + (0 if HAS_TABLE else plain)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 2, 33, 4097, 20003])
@pytest.mark.parametrize("device", [0, 1])
def test_bits(runtime: Runtime, judged: list[int], dtype: Any, size: int, device: int) -> None:
    w, g = numbers(size, dtype), numbers(size, dtype, 1)
    weight, grad = torch.nn.Parameter(w, device), torch.Tensor(g, device)
    waits = runtime.waits
    value = RULE.accumulate(weight, grad, scale=0.5, grad_scale=3)
    assert runtime.waits == waits
    assert (type(value), value.dtype, value.shape) == (torch.Tensor, torch.float64, ())
    assert value.device.index == device
    assert float(value) == RULE.accumulate(w, g, scale=0.5, grad_scale=3)
    assert grad.host().tobytes() == g.tobytes()
    assert_calls(judged, plain=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kinds_of_results(runtime: Runtime, dtype: Any) -> None:
    w = numbers((40, 50), dtype)
    w[0, 0] = np.float64(np.finfo(np.float16).max)  # its square is beyond half precision
    weight = torch.Tensor(w)
    double = torch.float64 if dtype == np.float64 else torch.float32
    value = RULE(weight)
    assert (type(value), value.dtype) == (torch.Tensor, double)
    assert float(value) == np.asarray(RULE(w), double.name)
    gradient = RULE.gradient(weight)
    assert (type(gradient), gradient.dtype) == (torch.Tensor, weight.dtype)
    assert gradient.host().tobytes() == RULE.gradient(w).tobytes()
    value, gradient = RULE.value_and_grad(torch.nn.Parameter(w))
    assert (value.dtype, gradient.requires_grad) == (double, False)
    assert gradient.host().tobytes() == RULE.gradient(w).tobytes()
    out = torch.Tensor(np.zeros_like(w))
    assert RULE.gradient(weight, out) is out
    assert out.host().tobytes() == RULE.gradient(w).tobytes()


def test_work_is_on_the_current_stream(runtime: Runtime) -> None:
    w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
    for stream in [0] + [runtime.stream() for _ in range(10)]:
        torch.set_stream(stream)
        weight, grad = torch.Tensor(w), torch.Tensor(g)
        runtime.clear(grad.place, g.nbytes, stream)
        RULE.accumulate(weight, grad)
        runtime.clear(grad.place, 4, stream)
        expected = np.zeros_like(g)
        RULE.accumulate(w, expected)
        expected[0] = 0
        assert grad.host().tobytes() == expected.tobytes()


def test_a_model_in_one_call(runtime: Runtime, judged: list[int]) -> None:
    host = {f"{i}": numbers(7 * i + 2, DTYPES[i % 4], i) for i in range(400)}
    host_grads = {name: numbers(w.shape, w.dtype, 99) for name, w in host.items()}
    tensors = {name: torch.nn.Parameter(w) for name, w in host.items()}
    grads = {name: torch.Tensor(g) for name, g in host_grads.items()}
    rules = {"*1": L2(0.5), "*2": None, "*": RULE}
    penalties, expected = fastreg.attach(tensors, rules), fastreg.attach(host, rules)
    before = torch.fake.exchanges()
    penalty = penalties.accumulate(grads)
    if HAS_TABLE:
        assert (
            torch.fake.exchanges() - before == 2 * 360 + 400 + 1
        )  # the first is seen to be on a device, and left to Python
    assert float(penalty) == expected.accumulate(host_grads)
    for name, grad in grads.items():
        assert grad.host().tobytes() == host_grads[name].tobytes()
    with torch.no_grad():
        assert float(penalties.value()) == expected.value()
    value, gradients = penalties.value_and_grad()
    assert float(value) == expected.value()
    for name, gradient in expected.gradient().items():
        assert gradients[name].host().tobytes() == gradient.tobytes()
    assert_calls(judged, plain=3)


def test_dense_layouts_are_plain(runtime: Runtime, judged: list[int]) -> None:
    for axes in [(0, 1, 2, 3), (3, 2, 1, 0), (0, 3, 1, 2)]:  # C, Fortran, channels last
        w = numbers((4, 5, 6, 7), np.float32).transpose(axes)
        g = numbers((4, 5, 6, 7), np.float32, 1).transpose(axes)
        weight, grad = torch.Tensor(w), torch.Tensor(g)
        assert float(RULE.accumulate(weight, grad)) == RULE.accumulate(w, g)
        assert grad.host().tobytes() == g.tobytes()
    assert_calls(judged, plain=3)


def test_other_layouts_and_integers(runtime: Runtime, judged: list[int]) -> None:
    whole = numbers((40, 50), np.float32)
    for w, g in (
        (whole[:, ::2], numbers((40, 25), np.float32, 1)),
        (whole, np.asfortranarray(numbers((40, 50), np.float32, 1))),
        (whole[1:, 3:], numbers((80, 47), np.float32, 1)[:39]),
        (whole.T, numbers((50, 40), np.float32, 1)),
    ):
        weight, grad = torch.Tensor(w), torch.Tensor(g)
        assert float(RULE.accumulate(weight, grad)) == RULE.accumulate(w, g)
        assert grad.host().tobytes() == g.tobytes()
    counts = np.arange(-3000, 3000, dtype=np.int32)
    assert float(RULE(torch.Tensor(counts))) == np.float32(RULE(counts))
    with pytest.raises(TypeError, match=r"^w has dtype int32: there is no gradient"):
        RULE.gradient(torch.Tensor(counts))


def test_autograd_is_heeded_as_on_the_host(runtime: Runtime) -> None:
    w = numbers(50, np.float32)
    weight, grad = torch.nn.Parameter(w), torch.Tensor(w)
    penalties = fastreg.attach({"a": weight}, "l2")
    words = "torch tensor that requires a gradient while torch records gradients"
    with pytest.raises(TypeError, match=f"^grad is a {words}"):
        RULE.accumulate(weight, weight)
    with pytest.raises(TypeError, match=rf"^grads\['a'\] is a {words}"):
        penalties.accumulate({"a": weight})
    with pytest.raises(TypeError, match=f"^out is a {words}"):
        RULE.gradient(grad, weight)
    assert weight.host().tobytes() == w.tobytes()
    assert (weight._version, grad._version) == (0, 0)
    RULE.accumulate(weight, grad)
    assert (weight._version, grad._version) == (0, 1)
    penalties.accumulate({"a": grad})
    assert grad._version == 2
    RULE.gradient(weight, grad)
    RULE.value_and_grad(weight, grad)
    assert (weight._version, grad._version) == (0, 4)
    with torch.no_grad():
        assert float(RULE(weight)) == np.float32(RULE(w))
        RULE.accumulate(weight, weight)
    assert weight._version == 1


def test_values_that_stay_on_the_device(runtime: Runtime) -> None:
    arrays = [numbers(count, np.float32) for count in (5000, 1, 70)]
    weights = tuple(torch.Tensor(w) for w in arrays)
    into = torch.empty(3, dtype=torch.float64, device=weights[0].device)
    strengths, which = ((0.25, 0.5), (0.0, 1.0)), (0, 1, 0)
    call = Call(VALUE, ("a", "b", "c"), weights, None, strengths, which, 2.0, 1.0, True)
    values = cuda.evaluate_many(call, into=into)
    assert values is into
    expected = [L1L2(*strengths[i])(w, scale=2.0) for i, w in zip(which, arrays, strict=True)]
    assert into.host().tolist() == expected


def refused(error: type[Exception], match: str, weight: Any, grad: Any) -> None:
    before = grad.host().tobytes()
    with pytest.raises(error, match=match):
        RULE.accumulate(weight, grad)
    assert grad.host().tobytes() == before


def test_bad_input(runtime: Runtime) -> None:
    w = numbers((50, 4), np.float32)
    weight, grad = torch.Tensor(w), torch.Tensor(w)
    refused(ValueError, r"^grad is on CUDA device 1, but w on device 0", weight, torch.Tensor(w, 1))
    refused(ValueError, r"^grad is on CUDA device 0, but w on device 1", torch.Tensor(w, 1), grad)
    half = torch.Tensor(w.astype(np.float16))
    refused(TypeError, r"^grad has dtype float16, but w has float32", weight, half)
    flat = torch.Tensor(w.reshape(-1))
    refused(ValueError, r"^grad has shape \(200,\), but w has \(50, 4\)", weight, flat)
    shifted = torch.Tensor(w[:40], memory=weight.memory, address=weight.place + 16)
    first = torch.Tensor(w[:40], memory=weight.memory)
    refused(ValueError, r"^grad overlaps w in memory", first, shifted)
    negative = torch.Tensor(w, negative=True)
    refused(TypeError, r"^w is a torch tensor with the negative bit", negative, grad)
    refused(TypeError, r"^grad is a torch tensor with the negative bit", weight, negative)
    for left in (0, w.nbytes - 1):
        cut = torch.Tensor(w, left=left)
        words = f"is a torch tensor whose memory was freed or cut: its storage has {left} bytes"
        refused(ValueError, "^w " + words, cut, grad)
        refused(ValueError, "^grad " + words, weight, cut)
        with pytest.raises(ValueError, match="^w " + words):
            RULE(cut)
    inference = torch.Tensor(w, inference=True)
    refused(BufferError, r"^grad is an inference tensor outside of inference", weight, inference)
    assert float(RULE(inference)) == np.float32(RULE(w))
    gaps = torch.Tensor(w[:, ::2], negative=True)
    refused(TypeError, r"^w is a .*negative bit; pass w.resolve_neg", gaps, torch.Tensor(w[:, :2]))
    single = torch.Tensor(w[:1, :1], negative=True)
    refused(TypeError, r"^w is a .*negative bit", single, torch.Tensor(w[:1, :1].copy()))
    with pytest.raises(TypeError, match=r"^w has dtype torch.complex64; .*pass w.abs"):
        RULE(torch.Tensor(np.zeros(3, np.complex64)))
    for other in (w.copy(), [1.0], None):
        with pytest.raises(TypeError, match=r"^grad (is in host memory, but w is|must be|is miss)"):
            RULE.accumulate(weight, other) if other is not None else RULE.accumulate(weight, 1.0)
    with pytest.raises(ValueError, match=r"^grad is missing \(None\), but w has a penalty"):
        RULE.accumulate(weight, None)
    with pytest.raises(TypeError, match=r"^w is in host memory, but grad is on CUDA"):
        RULE.accumulate(w, grad)
    with pytest.raises(ValueError, match=r"^2 \* l2 \* scale \* grad_scale must be finite"):
        L2(1e300).accumulate(weight, grad)
    with pytest.raises(ValueError, match=r"^scale must be a finite number"):
        RULE.accumulate(weight, grad, scale=float("nan"))
    two = fastreg.attach({"a": weight, "b": torch.Tensor(w, 1)}, "l2")
    with pytest.raises(
        ValueError, match=r"^tensors\['b'\] is on CUDA device 1, but tensors\['a'\]"
    ):
        two.value()
    with pytest.raises(TypeError, match=r"^tensors\['b'\] is in host memory, but tensors\['a'\]"):
        fastreg.attach({"a": weight, "b": w}, "l2").value()
    assert grad.host().tobytes() == weight.host().tobytes() == w.tobytes()


def test_out_of_memory(runtime: Runtime) -> None:
    whole = numbers(9000, np.float32)  # more tensors than any call before had
    memory = torch.Tensor(whole).memory

    def parts(first: int) -> dict[str, Any]:
        return {
            str(i): torch.Tensor(whole[:2], memory=memory, address=memory.low + 4 * i)
            for i in range(first, 9000, 4)
        }

    weights = parts(0)
    grads = dict(zip(weights, parts(2).values(), strict=True))
    penalties = fastreg.attach(weights, RULE)
    with runtime.memory_limit(0), pytest.raises(MemoryError, match="out of memory"):
        calls.evaluate_many(
            6, tuple(weights), tuple(weights.values()), tuple(grads.values()),
            ((0.1, 0.2),), (0,) * len(weights), 1.0, 1.0, False,
        )  # fmt: skip
    assert bytes(memory.host()) == whole.tobytes()
    penalties.accumulate(grads)
    assert bytes(memory.host()) != whole.tobytes()


def test_subclasses_and_other_kinds(runtime: Runtime) -> None:
    w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)

    class Named(torch.Tensor):
        pass

    weight, grad = Named(w), Named(g)
    assert float(RULE.accumulate(weight, grad)) == RULE.accumulate(w, g)
    assert grad.host().tobytes() == g.tobytes()

    class Dispatching(torch.Tensor):
        __torch_dispatch__ = print

    with pytest.raises(TypeError, match=r"^w is a .*Dispatching, a tensor class with its own"):
        RULE(Dispatching(w))
    # Another library's gradient, on a stream of its own.
    for _ in range(10):
        stream = runtime.stream()
        other = DeviceArray(runtime, g, stream=stream)
        runtime.clear(other.address, g.nbytes, stream)
        value = RULE.accumulate(torch.Tensor(w), other)
        expected = np.zeros_like(g)
        assert type(value) is torch.Tensor
        assert float(value) == RULE.accumulate(w, expected)
        assert other.host().tobytes() == expected.tobytes()


def test_ties(runtime: Runtime) -> None:
    w = numbers((40, 60), np.float32)
    weight = torch.Tensor(w)
    tensors = {"w": weight, "transposed": weight.T, "other": torch.Tensor(w)}
    penalties = fastreg.attach(tensors, RULE)
    expected = fastreg.attach({"w": w, "transposed": w.T, "other": w.copy()}, RULE)
    assert float(penalties.value()) == expected.value()
    report, on_host = penalties.report(), expected.report()
    assert report["transposed"].tied_to == "w"
    assert report == on_host
    later = fastreg.attach(dict(tensors, transposed=torch.Tensor(w.T.copy())), RULE)
    assert float(later.value()) != expected.value()
    assert float(later.value(tensors=tensors)) == expected.value()


def test_a_graph(runtime: Runtime) -> None:
    w, g = numbers(5000, np.float32), numbers(5000, np.float32, 1)
    weight, grad = torch.nn.Parameter(w), torch.Tensor(g)
    rule, stream = L2(0.5), runtime.stream()
    penalties = fastreg.attach({"w": weight}, {"w": rule})
    value = None
    torch.set_stream(stream)
    made = torch.Tensor(np.zeros(()))

    def empty(*_: Any, **__: Any) -> Any:  # torch has memory for captures
        return made

    before, torch.empty = torch.empty, empty
    try:
        with fastreg.cuda.recording() as recording, runtime.capture(stream) as replays:
            value = penalties.accumulate({"w": grad})
    finally:
        torch.empty = before
    assert len(recording) == 1
    torch.set_stream(runtime.stream())
    for strength in (0.25, 0.0, 0.75):
        rule.l2 = strength
        torch.set_stream(stream)
        recording.update()
        replays[0]()
        assert float(value) == rule.accumulate(w, g)
        assert grad.host().tobytes() == g.tobytes()
    recording.close()


def test_proximal_steps(runtime: Runtime, judged: list[int]) -> None:
    host = {f"{i}": numbers(7 * i + 2, DTYPES[i % 4], i) for i in range(40)}
    tensors = {name: torch.nn.Parameter(w) for name, w in host.items()}
    rules = {"*1": L2(0.5), "*2": None, "*": RULE}
    penalties, expected = fastreg.attach(tensors, rules), fastreg.attach(host, rules)
    with pytest.raises(TypeError, match=r"^tensors\['0'\] is a torch tensor that requires a grad"):
        penalties.prox(0.5)
    with torch.no_grad():
        penalties.prox(0.0)  # makes room
        waits = runtime.waits
        record = penalties.prox(0.5)
        assert runtime.waits == waits
    expected.prox(0.0)
    found = expected.prox(0.5)
    assert (record.penalty.dtype, record.zeros.dtype) == (torch.float64, torch.int64)
    assert (record.penalty.shape, record.zeros.shape) == ((), ())
    assert (float(record.penalty), int(record.zeros), record.size) == found
    for name, weight in tensors.items():
        assert weight.host().tobytes() == host[name].tobytes()
        assert weight._version == (0 if name.endswith("2") else 2)
    made = RULE.prox(tensors["3"], 0.5)
    assert (type(made), made.requires_grad) == (torch.Tensor, False)
    assert made.host().tobytes() == RULE.prox(host["3"], 0.5).tobytes()
    assert_calls(judged, plain=3)


@pytest.mark.parametrize("on_nonfinite", ["raise", "ignore"])
def test_norms_and_clips(runtime: Runtime, judged: list[int], on_nonfinite: str) -> None:
    host = {f"{i}": numbers(7 * i + 2, DTYPES[i % 4], i) for i in range(40)}
    grads = {name: torch.Tensor(g) for name, g in host.items()}
    waits = runtime.waits
    found, expected = fastreg.norms(grads), fastreg.norms(host)
    assert runtime.waits == waits + 1
    assert (str(found), found.total) == (str(expected), expected.total)
    waits = runtime.waits
    norm = fastreg.clip_by_global_norm(grads, 0.5, on_nonfinite=on_nonfinite)
    assert runtime.waits == waits + (on_nonfinite == "raise")
    assert float(norm) == fastreg.clip_by_global_norm(host, 0.5)
    assert on_nonfinite == "raise" or (type(norm), norm.dtype) == (torch.Tensor, torch.float64)
    for name, grad in grads.items():
        assert grad.host().tobytes() == host[name].tobytes()
        assert grad._version == 1
    assert_calls(judged, plain=2)
