"""Arrays of others: torch, JAX, ml_dtypes, buffers and DLPack, read and written without copies."""

import array
import ctypes
import importlib
import re
import warnings

import canonical
import ml_dtypes
import numpy as np
import pytest

from fastreg import _info, attach
from fastreg._arrays import host, host_memory
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")

REGULARIZER = L1L2(0.3, 0.7)
TORCH = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}


def to_torch(values):
    """Make a torch tensor with the bits of a NumPy array."""
    if values.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())


def to_numpy(tensor):
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def problem(dtype, count=70):
    elements = canonical.numbers(count, dtype, 21)
    old = canonical.numbers(count, dtype, 22)
    return (
        canonical.array(elements, dtype),
        canonical.array(old, dtype),
        canonical.penalty(elements, 0.3, 0.7),
        canonical.array(canonical.gradient(elements, dtype, 0.3, 0.7), dtype),
        canonical.array(canonical.gradient(elements, dtype, 0.3, 0.7, old=old), dtype),
    )


def same(one, other):
    return (canonical.bits(one) == canonical.bits(other)).all()


# ---------------------------------------------------------------------------- torch


@pytest.mark.parametrize("shape", [(70,), (7, 10), (2, 5, 7)])
@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_torch(backend, dtype, shape):
    w, old, value, slope, added = (
        x if isinstance(x, float) else x.reshape(shape) for x in problem(dtype)
    )
    tensor, grad = to_torch(w), to_torch(old)
    result = REGULARIZER(tensor)
    expected = torch.float64 if dtype == "f64" else torch.float32
    assert isinstance(result, torch.Tensor)
    assert result.shape == ()
    assert result.dtype == expected
    assert result == torch.tensor(value, dtype=expected)
    new = REGULARIZER.gradient(tensor)
    assert new.dtype == tensor.dtype
    assert same(to_numpy(new), slope)
    assert same(to_numpy(REGULARIZER.value_and_grad(tensor)[1]), slope)
    address = grad.data_ptr()
    assert REGULARIZER.accumulate(tensor, grad) == value
    assert grad.data_ptr() == address
    assert same(to_numpy(grad), added)
    out = torch.empty_like(tensor)
    assert REGULARIZER.gradient(tensor, out) is out
    assert same(to_numpy(out), slope)


@pytest.mark.parametrize("dtype", canonical.DTYPES)
def test_torch_layouts(backend, dtype):
    w, old, *_ = (x.reshape(7, 10) for x in problem(dtype) if not isinstance(x, float))
    for cut in (lambda x: x.T, lambda x: x[:, ::3], lambda x: x[2], lambda x: x[:0]):
        tensor, grad = to_torch(w), to_torch(old)
        expected = np.array(old)
        assert REGULARIZER.accumulate(cut(tensor), cut(grad)) == REGULARIZER.accumulate(
            cut(w), cut(expected)
        )
        assert same(to_numpy(grad), expected)
    assert REGULARIZER.gradient(to_torch(w).T).stride() == (1, 10)
    wide = to_torch(w)[:1].expand(4, 10)
    assert REGULARIZER.gradient(wide).is_contiguous()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "bool"])
def test_torch_integers(backend, dtype):
    tensor = torch.tensor([1, 0, 3]).to(getattr(torch, dtype))
    assert float(L1(0.5)(tensor)) == 0.5 * float(tensor.to(torch.float64).sum())
    with pytest.raises(TypeError, match="no gradient for integer"):
        L1(0.5).gradient(tensor)


class Tagged(torch.Tensor):
    """A subclass that changes nothing but the type of results."""


def test_parameters_and_subclasses(backend):
    values = torch.arange(-3.0, 3.0)
    grad = torch.zeros(6)
    for w in (
        torch.nn.Parameter(values.clone()),
        values.clone().requires_grad_(),
        values.clone().as_subclass(Tagged),
        torch.nn.Buffer(values.clone()),
    ):
        assert L1(1.0).accumulate(w, grad.zero_()) == 9.0
        assert grad.tolist() == [-1, -1, -1, 0, 1, 1]
        assert L1(1.0).gradient(w).tolist() == grad.tolist()
        assert not L1(1.0).gradient(w).requires_grad
        with torch.no_grad():
            assert float(L1(1.0)(w)) == 9.0
    tagged = grad.clone().as_subclass(Tagged)
    assert L1(1.0).accumulate(values, tagged) == 9.0
    assert tagged.tolist() == [-2, -2, -2, 0, 2, 2]


def test_values_beside_autograd(backend):
    w = torch.ones(3, requires_grad=True)
    penalties = attach({"kernel": w}, "l1")
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not REGULARIZER(w).requires_grad
            assert penalties.value() == pytest.approx(0.03)
    assert isinstance(REGULARIZER(w.detach()), torch.Tensor)
    assert REGULARIZER.value_and_grad(w)[0].shape == ()
    assert REGULARIZER.accumulate(w, torch.zeros(3)) > 0.0


def test_a_training_step(backend):
    """accumulate after backward() gives what autograd gives for the penalty in the loss."""
    torch.manual_seed(0)
    one, other = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    other.load_state_dict(one.state_dict())
    x = torch.randn(8, 5)
    one(x).square().sum().backward()
    params = dict(one.named_parameters())
    value = attach(params, {"weight": L1L2(0.1, 0.2)}).accumulate(
        {name: p.grad for name, p in params.items()}
    )
    penalty = 0.1 * other.weight.abs().sum() + 0.2 * other.weight.square().sum()
    (other(x).square().sum() + penalty).backward()
    assert value == pytest.approx(float(penalty.detach()), rel=1e-6)
    torch.testing.assert_close(one.weight.grad, other.weight.grad)
    torch.testing.assert_close(one.bias.grad, other.bias.grad, rtol=0, atol=0)


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.ones(3)


def distributed():
    """Make one without a mesh: a whole one needs a process group."""
    from torch.distributed.tensor import DTensor

    return torch.ones(3).as_subclass(DTensor)


class Wrapper(torch.Tensor):
    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (3,))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError("no operator may run on it")


def sparse_csr():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that the format is a beta
        return torch.eye(3).to_sparse_csr()


def negative():
    return torch.ones(3, dtype=torch.complex64).conj().imag


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.ones(3, device="meta"), "'meta'"),
        (lambda: torch.eye(3).to_sparse(), "sparse.*values"),
        (sparse_csr, "sparse.*values"),
        (fake, "FakeTensor"),
        (distributed, "DTensor.*to_local"),
        (Wrapper, "Wrapper, a tensor class with its own dispatch"),
        (negative, "resolve_neg"),
        # In a single element there are no gaps that give it away.
        (lambda: negative()[:1], "resolve_neg"),
        (lambda: negative()[0], "resolve_neg"),
        (lambda: torch.ones(3, dtype=torch.complex64), "complex64"),
        (lambda: torch.ones(3).to(torch.float8_e4m3fn), "float8"),
        (lambda: torch.nn.UninitializedParameter(), "lazy parameter"),
        (lambda: torch._efficientzerotensor(3), "zero tensor"),
    ],
)
def test_torch_tensors_that_are_refused(backend, make, words):
    tensor = make()
    # Values of the first have no elements either; those of the last are sums over processes.
    if words not in ("'meta'", "FakeTensor", "DTensor.*to_local"):
        with torch.no_grad(), pytest.raises(TypeError, match=f"w .*{words}"):
            L1(0.5)(tensor)
    with pytest.raises(TypeError, match=f"w .*{words}"):
        L1(0.5).accumulate(tensor, np.zeros(3, np.float32))
    before = np.ones(3, np.float32)
    with pytest.raises(TypeError, match=f"grad .*{words}"):
        L1(0.5).accumulate(before, tensor)


def test_tensors_of_transforms_are_refused(backend):
    def function(w):
        with pytest.raises(TypeError, match=r"torch\.func"):
            L1(0.5).accumulate(w, torch.zeros(3))
        return w.sum()

    torch.func.grad(function)(torch.ones(3))


def test_torch_overlaps(backend):
    memory = torch.ones(10)
    with pytest.raises(ValueError, match="grad overlaps w"):
        L1(0.5).accumulate(memory[:-1], memory[1:])
    with pytest.raises(ValueError, match="grad overlaps itself"):
        L1(0.5).accumulate(torch.ones(4, 10), memory.expand(4, 10))
    with pytest.raises(ValueError, match="grad overlaps w"):
        L1(0.5).accumulate(memory[:-1].numpy(), memory[1:])
    assert (memory == 1).all()
    assert L1(0.5).accumulate(memory, memory) == 5.0
    assert (memory == 1.5).all()
    assert L1(0.5).accumulate(memory.numpy(), memory) == 7.5


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_flush_to_zero_changes_nothing_in_the_native_core(backend, dtype):
    if backend == "numpy":
        pytest.skip("the fallback cannot switch flush-to-zero off, which its contract says")
    smallest = {"f32": 2.0**-149, "f64": 2.0**-1074}[dtype]
    w = canonical.array([smallest * place for place in range(100)], dtype)
    expected = REGULARIZER(w), REGULARIZER.gradient(w)
    if not torch.set_flush_denormal(True):
        pytest.skip("this machine has no such mode")
    try:
        value, slope = REGULARIZER(w), REGULARIZER.gradient(w)
        still_on = torch.tensor(2.0**-149) * torch.tensor(1.0) == 0.0
    finally:
        torch.set_flush_denormal(False)
    assert value == expected[0]
    assert same(slope, expected[1])
    assert still_on


# ------------------------------------------------------------------------------ JAX


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_jax(backend, dtype):
    w, _, value, slope, _ = problem(dtype)
    x = jnp.asarray(w)
    result = REGULARIZER(x)
    assert isinstance(result, jax.Array)
    assert result.shape == ()
    assert result.dtype == np.float32
    assert float(result) == float(np.float32(value))
    new = REGULARIZER.gradient(x)
    assert isinstance(new, jax.Array)
    assert new.dtype == x.dtype
    assert same(np.asarray(new), slope)
    again, new = REGULARIZER.value_and_grad(x)
    assert again == result
    assert same(np.asarray(new), slope)
    grad = np.zeros_like(w)
    assert REGULARIZER.accumulate(x, grad) == value
    assert same(np.asarray(x), w)


def test_jax_double(backend):
    module = jax if hasattr(jax, "enable_x64") else importlib.import_module("jax.experimental")
    with module.enable_x64(True):
        x = jnp.asarray([1.0, -2.0], jnp.float64)
        result, new = L1(0.1).value_and_grad(x)
        assert result.dtype == np.float64
        assert float(result) == canonical.penalty([1.0, -2.0], 0.1, 0.0)
        assert new.dtype == np.float64


def test_jax_arrays_are_never_written(backend):
    x = jnp.ones(3)
    for call in (L1(0.5).accumulate, L1(0.5).gradient):
        with pytest.raises(BufferError, match="is a JAX array, which is immutable"):
            call(np.ones(3, np.float32), x)
    assert x.tolist() == [1, 1, 1]
    gradients = attach({"a": x}, L1(0.5)).gradient()
    assert isinstance(gradients["a"], jax.Array)


def test_jax_arrays_that_are_refused(backend):
    with pytest.raises(TypeError, match=r"w is a JAX tracer.*use reg\(w\)"):
        jax.jit(lambda w: L1(0.5).accumulate(w, np.zeros(3)))(jnp.ones(3))
    with pytest.raises(TypeError, match=r"l1 must be a finite number.*fastreg\.jax\.penalty"):
        jax.jit(lambda l1: L1(l1)(jnp.ones(3)))(0.5)
    deleted = jnp.ones(3) + 1
    deleted.delete()
    with pytest.raises(ValueError, match="deleted"):
        L1(0.5)(deleted)
    with pytest.raises(TypeError, match="dtype"):
        L1(0.5)(jax.random.key(0))
    with pytest.raises(TypeError, match="complex64"):
        L1(0.5)(jnp.ones(3, jnp.complex64))


# ---------------------------------------------------------------------------- buffers


def test_buffers(backend):
    numbers = array.array("d", [1.0, -2.0, 3.0])
    assert L1(0.5)(numbers) == 3.0
    assert type(L1(0.5)(numbers)) is float
    assert L1(0.5)(memoryview(numbers)[::2]) == 2.0
    assert L1(0.5)(array.array("i", [1, -2])) == 1.5
    grad = array.array("d", [0.0] * 3)
    assert L1(0.5).accumulate(numbers, grad) == 3.0
    assert grad.tolist() == [0.5, -0.5, 0.5]
    assert L1(0.5).gradient(numbers).tolist() == [0.5, -0.5, 0.5]
    assert L1(0.5)((ctypes.c_float * 2)(1.0, -2.0)) == 1.5
    with pytest.raises(BufferError, match="grad is a read-only array"):
        L1(0.5).accumulate(numbers, memoryview(grad).toreadonly())
    with pytest.raises(TypeError, match="w has dtype"):
        L1(0.5)(memoryview(b"abc").cast("c"))


def test_numpy_scalars(backend):
    assert L1(0.5)(np.float32(-3)) == 1.5
    assert L1(0.5)(np.float64(-3)) == 1.5
    assert L1(0.5)(ml_dtypes.bfloat16(-3)) == 1.5
    slope = L1(0.5).gradient(np.float32(-3))
    assert slope.shape == ()
    assert slope.dtype == np.float32
    with pytest.raises(BufferError, match="NumPy scalar"):
        L1(0.5).accumulate(np.float32(-3), np.float32(0))


def test_memmap(backend, tmp_path):
    path = tmp_path / "weights"
    np.arange(5.0).tofile(path)
    w = np.memmap(path, np.float64, "r")
    assert L1(0.5)(w) == 5.0
    grad = np.memmap(path, np.float64, "r+")
    assert L1(0.5).accumulate(np.ones(5), grad) == 2.5
    grad.flush()
    assert np.fromfile(path).tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    with pytest.raises(BufferError, match="read-only"):
        L1(0.5).accumulate(np.ones(5), w)


class Matrix(np.ndarray):
    """A subclass that changes nothing."""


def test_subclasses_of_numpy(backend):
    w = np.ones((2, 3)).view(Matrix)
    assert L1(0.5)(w) == 3.0
    assert type(L1(0.5).gradient(w)) is Matrix
    masked = np.ma.masked_array([1.0, 2.0], [True, False])
    with pytest.raises(TypeError, match="w is a masked array"):
        L1(0.5)(masked)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int4"])
def test_other_types_of_ml_dtypes_are_refused(backend, dtype):
    with pytest.raises(TypeError, match=f"w has dtype {dtype}"):
        L1(0.5)(np.ones(3, getattr(ml_dtypes, dtype)))


# ----------------------------------------------------------------------------- DLPack


class Producer:
    """An array library that offers DLPack alone."""

    def __init__(self, values, version=(1, 0), device=(1, 0)):
        self.values, self.version, self.device = values, version, device

    def __dlpack__(self, *, stream=None, max_version=None):
        return self.values.__dlpack__(max_version=self.version)

    def __dlpack_device__(self):
        return self.device


class OldProducer(Producer):
    def __dlpack__(self, stream=None):
        return self.values.__dlpack__()


# Before 2.1 NumPy has no versioned capsules, which these producers take from it.
versioned = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.1.0", reason="NumPy's capsules have no version"
)


@versioned
def test_dlpack(backend):
    values = np.array([1.0, -2.0, 3.0])
    for producer in (Producer(values), Producer(values, None), OldProducer(values)):
        assert L1(0.5)(producer) == 3.0
        assert L1(0.5).gradient(producer).tolist() == [0.5, -0.5, 0.5]
    grad = np.zeros(3)
    assert L1(0.5).accumulate(Producer(values), Producer(grad)) == 3.0
    assert grad.tolist() == [0.5, -0.5, 0.5]


@versioned
def test_dlpack_that_may_not_be_written(backend):
    grad = np.zeros(3)
    for producer in (Producer(grad, None), OldProducer(grad)):
        with pytest.raises(BufferError, match="whose DLPack capsule has no version"):
            L1(0.5).accumulate(np.ones(3), producer)
    grad.flags.writeable = False
    with pytest.raises(BufferError, match="grad is a read-only array"):
        L1(0.5).accumulate(np.ones(3), Producer(grad))
    assert grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("device", "words"), [(2, "CUDA"), (8, "metal"), (99, "99")])
def test_dlpack_elsewhere(backend, device, words):
    match = f"w is on .*{words}.*host memory"
    if device == 2 and backend != "numpy" and _info.native_core().cuda_state()[0]:
        match = "w is a .*Producer whose .* says CUDA, but .* gives memory of device type 1"
    with pytest.raises(TypeError, match=match):
        L1(0.5)(Producer(np.ones(3), device=(device, 0)))


def spoiled(place, kind, value):
    """Return a producer of a versioned capsule with another number at a place of it."""
    capsule = np.ones(6)[::2].__dlpack__(max_version=(1, 0))
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(capsule, b"dltensor_versioned")
    if place == "extent":
        address = ctypes.c_void_p.from_address(address + 56).value
    elif place == "stride":
        address = ctypes.c_void_p.from_address(address + 64).value
    else:
        address += place
    kind.from_address(address).value = value

    class Given(Producer):
        def __dlpack__(self, **_):
            return capsule

    return Given(None)


SPOILED = {
    "axes": ((48, ctypes.c_int32, -1), "it has -1 axes"),
    "many axes": ((48, ctypes.c_int32, 2**30), "it has 1073741824 axes"),
    "shape": ((56, ctypes.c_void_p, None), "it has no shape"),
    "extent": (("extent", ctypes.c_int64, -3), "an axis has -3 elements"),
    "large": (("extent", ctypes.c_int64, 2**61), "no memory has"),
    "stride": (("stride", ctypes.c_int64, -(2**60)), f"no memory has a stride of {-(2**60)}"),
    "address": ((32, ctypes.c_void_p, None), "it has elements, and no memory"),
    "version": ((0, ctypes.c_uint32, 2), "version 2"),
}


@versioned
@pytest.mark.parametrize("what", SPOILED)
def test_dlpack_that_describes_no_array(backend, what):
    changed, words = SPOILED[what]
    core = _info.native_core()
    if core is None:
        pytest.skip("NumPy reads the capsule")
    with pytest.raises(TypeError, match=f"^w is a .*{words}"):
        L1(0.5)(spoiled(*changed))
    with pytest.raises(TypeError, match=f"^grad is a .*{words}"):
        L1(0.5).accumulate(np.ones(3), spoiled(*changed))


@versioned
@pytest.mark.parametrize("what", ["extent", "large", "address", "version"])
def test_dlpack_that_describes_no_array_without_the_core(monkeypatch, what):
    monkeypatch.setattr(host_memory, "core_or_none", lambda: None)
    with pytest.raises(TypeError, match=r"^w (is|has) "):
        L1(0.5)(spoiled(*SPOILED[what][0]))


def of_dtype(code, bits, lanes=1):
    """Return a producer whose elements say that they have this dtype of DLPack's."""
    return spoiled(52, ctypes.c_uint32, code | bits << 8 | lanes << 16)


OTHER_DTYPES = {
    "int4": (0, 4),
    "uint1": (1, 1),
    "float63": (2, 63),
    "float0": (2, 0),
    "opaque64": (3, 64),
    "bfloat16": (4, 16),
    "bool1": (6, 1),
    "float8_e4m3fn": (10, 8),
    "float8_e5m2": (12, 8),
    "float6_e3m2fn": (16, 6),
    "float4_e2m1fn": (17, 4),
    "float4_e2m1fn in vectors of 2": (17, 4, 2),  # two to a byte, as PyTorch has them
    "float32 in vectors of 2": (2, 32, 2),
    "12 bits of DLPack's kind 99": (99, 12),
}


@versioned
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_dlpack_of_other_dtypes(backend, dtype):
    if _info.native_core() is None:
        pytest.skip("NumPy reads the capsule")
    words = (
        rf"has dtype {re.escape(dtype)}, which NumPy cannot import by DLPack \(.*\); "
        "its elements must be float16, .*; "
        r"convert it in the library that made it, for example to float32$"
    )
    with pytest.raises(TypeError, match=f"^w {words}"):
        L1(0.5)(of_dtype(*OTHER_DTYPES[dtype]))
    with pytest.raises(TypeError, match=f"^grad {words}"):
        L1(0.5).accumulate(np.ones(3), of_dtype(*OTHER_DTYPES[dtype]))


@versioned
@pytest.mark.parametrize("dtype", OTHER_DTYPES)
def test_dlpack_of_other_dtypes_without_the_core(monkeypatch, dtype):
    monkeypatch.setattr(host_memory, "core_or_none", lambda: None)
    with pytest.raises(TypeError, match=r"^w has dtype that NumPy cannot import by DLPack"):
        L1(0.5)(of_dtype(*OTHER_DTYPES[dtype]))


@versioned
def test_dlpack_of_nothing_needs_no_memory(backend):
    empty = spoiled("extent", ctypes.c_int64, 0)
    assert L1(0.5)(empty) == 0.0


class Failing:
    """A producer whose library says no in its own words, and with its own class of errors."""

    def __init__(self, error, device=True):
        self.error, self.device = error, device

    def __dlpack_device__(self):
        if not self.device:
            raise self.error
        return 1, 0

    def __dlpack__(self, **_):
        raise self.error


@pytest.mark.parametrize("error", [TypeError("no nulls"), RuntimeError("no"), KeyError("no")])
@pytest.mark.parametrize("device", [True, False])
def test_errors_of_dlpack_name_the_argument(backend, error, device):
    match = r"^{} is a .*Failing whose __dlpack__ fails \(.*no.*\); pass a copy"
    grad = np.zeros(3)
    with pytest.raises(TypeError, match=match.format("w")) as refusal:
        L1(0.5).accumulate(Failing(error, device), grad)
    assert refusal.value.__cause__ is error
    with pytest.raises(TypeError, match=match.format("grad")):
        L1(0.5).accumulate(np.ones(3), Failing(error, device))
    assert not grad.any()


def test_arrays_of_pyarrow(backend):
    pyarrow = pytest.importorskip("pyarrow")
    assert L1(0.5)(pyarrow.array([1.0, -2.0])) == 1.5
    for values, words in (([1, None], "no nulls"), (["a"], "DataType")):
        with pytest.raises(TypeError, match=rf"^w is a pyarrow.*{words}.*; pass w\.to_numpy"):
            L1(0.5)(pyarrow.array(values))


def test_a_cuda_array_interface_that_is_none(backend):
    """As some classes have it for their arrays in host memory."""

    class OnHost:
        __cuda_array_interface__ = None

    for call in (lambda: L1(0.5)(OnHost()), lambda: L1(0.5).gradient(OnHost())):
        with pytest.raises(TypeError, match=r"^w must be an array, not a .*OnHost"):
            call()
    with pytest.raises(TypeError, match=r"^grad must be an array, not a .*OnHost"):
        L1(0.5).accumulate(np.ones(3), OnHost())


def test_cuda_array_interface(backend):
    """The reason is exact for each build, and for the fallback, which has no CUDA."""
    memory = np.ones(3)

    class OnDevice:
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (3,),
            "typestr": "<f8",
            "data": (memory.ctypes.data, False),
            "version": 3,
        }

    core = _info.native_core()
    if backend == "numpy":
        reason = "the NumPy backend is in use, which has none"
    else:
        available, reason, _ = core.cuda_state()
        if available:
            with pytest.raises(ValueError, match=r"^w has a .*memory that no CUDA device can use"):
                L1(0.5)(OnDevice())
            return
        assert reason
    for call in (
        lambda: L1(0.5)(OnDevice()),
        lambda: L1(0.5).gradient(OnDevice(), np.zeros(3)),
        lambda: L1(0.5).accumulate(OnDevice(), OnDevice()),
    ):
        with pytest.raises(TypeError) as refusal:
            call()
        words = f"w is on CUDA (cuda); CUDA is off: {reason}; pass a copy in host memory"
        assert str(refusal.value) == words


def test_many_kinds_in_one_call(backend):
    tensors = {
        "numpy": np.ones(3),
        "torch": torch.ones(3),
        "bf16": torch.ones(3, dtype=torch.bfloat16),
        "jax": jnp.ones(3),
        "buffer": array.array("d", [1.0, 1.0, 1.0]),
    }
    penalties = attach(tensors, L2(0.5))
    total, gradients = penalties.value_and_grad()
    assert total == 7.5
    assert [type(g) for g in gradients.values()] == [
        np.ndarray,
        torch.Tensor,
        torch.Tensor,
        type(tensors["jax"]),
        np.ndarray,
    ]
    assert all(np.asarray(g.tolist()).tolist() == [1, 1, 1] for g in gradients.values())


def test_views_share_memory(backend):
    for x in (
        np.ones(3),
        torch.ones(3),
        torch.ones(3, dtype=torch.bfloat16),
        array.array("d", [1.0]),
        np.ones(3, ml_dtypes.bfloat16)[::-1],
    ):
        first, _ = host.host_view(x, "w", True)
        second, _ = host.host_view(x, "w", True)
        assert np.shares_memory(first, second)


def test_autograd_notices_what_was_written():
    saved = torch.ones(3, requires_grad=True).exp()
    with pytest.raises(TypeError, match=r"grad is a torch tensor that requires a gradient"):
        L1(10.0).accumulate(torch.ones(3), saved)
    with pytest.raises(TypeError, match=r"grads\['w'\] is a torch tensor"):
        attach({"w": torch.ones(3)}, L1(10.0)).accumulate({"w": saved})
    w = torch.ones(3, requires_grad=True)
    loss = (w * w).sum()
    L2(1.0).accumulate(w.detach(), w.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_orthogonal_penalty_of_a_parameter():
    w = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    grads = {"w": torch.zeros(2, 2)}
    rule = OrthogonalRegularizer(0.1)
    penalties = attach({"w": w}, rule)
    expected = torch.zeros(2, 2)
    value = rule.accumulate(w, expected)
    assert penalties.accumulate(grads) == pytest.approx(value, rel=1e-6)
    assert torch.equal(grads["w"], expected)
