"""Tensors whose memory is not what their shape says: freed, cut, flags on other numbers, inference.

And what no call may do to a tensor: make its storage one that cannot be resized.
"""

import importlib.util
import subprocess
import sys
import textwrap

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastreg.torch  # noqa: E402
from fastreg import attach  # noqa: E402
from fastreg._arrays import torch_memory  # noqa: E402
from fastreg._engine import backend as _backend  # noqa: E402
from fastreg.regularizers import L1, L1L2, OrthogonalRegularizer  # noqa: E402

REG = L1L2(0.5, 0.25)
BACKENDS = ["numpy", "native"] if importlib.util.find_spec("fastreg._core") else ["numpy"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    before = _backend.name
    _backend.select(request.param)
    yield request.param
    _backend.select(before)


def mixed(w):
    """A rule that is no regularizer, so that the tensors are no single call of the core."""
    return w.abs().sum()


class Mixed:
    def __call__(self, w):
        return w.abs().sum()

    def gradient(self, w):
        return torch.sign(w)


# Every public call that takes tensors, of a weight and a gradient.
ENTRY_POINTS = {
    "call": lambda w, g: REG(w),
    "differentiable": lambda w, g: REG(w.requires_grad_()).backward(),
    "gradient": lambda w, g: REG.gradient(w),
    "gradient out": lambda w, g: REG.gradient(w, out=g),
    "value_and_grad": lambda w, g: REG.value_and_grad(w),
    "accumulate": lambda w, g: REG.accumulate(w, g),
    "accumulate numpy": lambda w, g: REG.accumulate(w, np.zeros(tuple(w.shape), str(w.dtype)[6:])),
    "orthogonal": lambda w, g: OrthogonalRegularizer(0.5)(w),
    "orthogonal, differentiable": lambda w, g: OrthogonalRegularizer(0.5)(w.requires_grad_()),
    "orthogonal accumulate": lambda w, g: OrthogonalRegularizer(0.5).accumulate(w, g),
    "attach": lambda w, g: attach({"w": w, "g": g}, REG).value(),
    "attach.report": lambda w, g: attach({"w": w, "g": g}, {"w": REG}).report(),
    "attach.gradient": lambda w, g: attach([w], REG).gradient(),
    "attach.accumulate": lambda w, g: attach([w], REG).accumulate([g]),
    "attach.accumulate, callable": lambda w, g: attach([w], Mixed()).accumulate([g]),
    "torch.attach": lambda w, g: fastreg.torch.attach(parameters(w, g), REG),
    "torch.attach.value": lambda w, g: fastreg.torch.attach(parameters(w, g), REG).value(),
    "torch.attach.accumulate": lambda w, g: fastreg.torch.attach(
        parameters(w, g), REG
    ).accumulate(),
    "torch.attach.accumulate, callable": lambda w, g: fastreg.torch.attach(
        parameters(w, g), {"*": mixed}
    ).accumulate(),
    "torch.attach.report": lambda w, g: fastreg.torch.attach(parameters(w, g), REG).report(),
    "repr": lambda w, g: repr(fastreg.torch.attach(parameters(w, g), REG)),
}


def parameters(w, g):
    module = torch.nn.Module()
    module.kernel = torch.nn.Parameter(w.detach())
    module.kernel.grad = g
    return module


LAYOUTS = {
    "dense": lambda dtype: torch.ones(4, 6, dtype=dtype),
    "transposed": lambda dtype: torch.ones(6, 4, dtype=dtype).T,
    "with gaps": lambda dtype: torch.ones(8, 6, dtype=dtype)[::2],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_storages_can_be_resized_after_a_call(backend, entry_point, layout, dtype):
    if entry_point == "accumulate numpy" and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    w, g = LAYOUTS[layout](dtype), LAYOUTS[layout](dtype)
    ENTRY_POINTS[entry_point](w, g)
    for x in (w, g):
        assert x.untyped_storage().resizable()
        x.untyped_storage().resize_(0)  # which torch refuses once numpy() has been called


# What reads or writes elements.
READING = [name for name in ENTRY_POINTS if name not in ("torch.attach", "repr")]
WRITING = [
    name
    for name in READING
    if ("accumulate" in name and "numpy" not in name) or name == "gradient out"
]


def cut(x, count):
    x.untyped_storage().resize_(count)
    return x


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("left", ["nothing", "all but a byte"])
@pytest.mark.parametrize("entry_point", READING)
def test_freed_weights_are_refused(backend, entry_point, left, layout):
    w, g = LAYOUTS[layout](torch.float32), LAYOUTS[layout](torch.float32)
    before = g.clone()
    left = 0 if left == "nothing" else torch_memory.needed_bytes(w) - 1
    with pytest.raises(ValueError, match=f"freed or cut: its storage has {left} bytes"):
        ENTRY_POINTS[entry_point](cut(w, left), g)
    if entry_point != "attach":
        assert torch.equal(g, before)


@pytest.mark.parametrize("entry_point", WRITING)
def test_freed_gradients_are_refused(backend, entry_point):
    w, g = torch.ones(4, 6), torch.ones(4, 6)
    with pytest.raises(ValueError, match="freed or cut: its storage has 95 bytes"):
        ENTRY_POINTS[entry_point](w, cut(g, 95))


def test_the_offset_in_a_storage_counts(backend):
    base = torch.ones(100)
    inside, at_the_end = base[:99], base[90:]
    cut(base, 99 * 4)
    assert float(REG(inside)) == 99 * 0.75
    with pytest.raises(
        ValueError, match=r"w is .*its storage has 396 bytes, its elements need 400"
    ):
        REG(at_the_end)
    assert float(REG(cut(base, 0)[:0])) == 0.0  # no elements need no bytes


def test_one_freed_tensor_of_many_changes_none(backend):
    weights = {str(i): torch.ones(8) for i in range(5)}
    grads = {name: torch.zeros(8) for name in weights}
    penalties = attach(weights, REG)
    cut(grads["3"], 8)
    with pytest.raises(ValueError, match=r"grads\['3'\] is .*freed or cut"):
        penalties.accumulate(grads)
    assert all(not grads[name].any() for name in "0124")


# ---------------------------------------------------------------- numbers that are flags on others


def negated(contiguous):
    values = torch.arange(1.0, 5.0)
    if contiguous:
        return torch._neg_view(values)
    return torch.complex(torch.zeros(4), values).conj().imag


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("entry_point", READING)
def test_negated_weights_are_refused(backend, entry_point, contiguous):
    g = torch.zeros(4, 1)
    with pytest.raises(TypeError, match=r"negative bit; pass .*resolve_neg\(\)"):
        ENTRY_POINTS[entry_point](negated(contiguous).reshape(4, 1), g)
    assert not g.any()


@pytest.mark.parametrize("make", [lambda: negated(True), lambda: negated(False)])
def test_negated_gradients_are_refused(backend, make):
    g = make()
    before = g.clone()
    for call in (lambda: REG.accumulate(torch.ones(4), g), lambda: REG.gradient(g, out=g)):
        with pytest.raises(TypeError, match="negative bit"):
            call()
    assert torch.equal(g, before)
    module = parameters(torch.ones(4), g)
    with pytest.raises(TypeError, match=r"grads\['kernel'\] is .*negative bit"):
        fastreg.torch.attach(module, REG).accumulate()


def test_what_is_resolved_is_right(backend):
    """The gradient of abs at negated numbers has their sign, whichever way it is asked for."""
    w = negated(True)
    assert REG.gradient(w.resolve_neg()).tolist() == (-0.5 + 0.5 * w).tolist()
    leaf = torch._neg_view(torch.arange(1.0, 5.0)).requires_grad_()
    REG(leaf.resolve_neg()).backward()
    assert leaf.grad.tolist() == (-0.5 + 0.5 * w).tolist()


def test_what_torch_hands_over_is_resolved():
    """Torch resolves the bit itself where it dispatches the operator."""
    leaf = torch._neg_view(torch.arange(1.0, 5.0)).requires_grad_()
    torch.compile(lambda w: REG(w), backend="aot_eager", fullgraph=True)(leaf).backward()
    assert leaf.grad.tolist() == (-0.5 + 0.5 * leaf).tolist()


# ------------------------------------------------------------------------------ inference tensors


@pytest.mark.parametrize("entry_point", WRITING)
def test_inference_tensors_are_written_in_inference_mode_alone(backend, entry_point):
    with torch.inference_mode():
        g = torch.zeros(2, 3)
    with pytest.raises(BufferError, match="an inference tensor outside of inference mode"):
        ENTRY_POINTS[entry_point](torch.ones(2, 3), g)
    assert not g.any()
    if "torch.attach" not in entry_point:
        with torch.inference_mode():
            ENTRY_POINTS[entry_point](torch.ones(2, 3), g)
        assert g.any() or "orthogonal" in entry_point


def test_inference_tensors_can_be_read(backend):
    with torch.inference_mode():
        w = torch.ones(3)
        assert REG.accumulate(w, torch.zeros(3)) == 2.25
    assert float(REG(w)) == 2.25
    assert REG.gradient(w).tolist() == [1.0] * 3
    assert REG.accumulate(w, torch.zeros(3)) == 2.25


def test_a_lazy_clone_is_written_alone(backend):
    """Torch copies at the first write what two tensors share until then."""
    w = torch.ones(3)
    clone = torch._lazy_clone(w)
    L1(0.5).accumulate(w, clone)
    assert (w.tolist(), clone.tolist()) == ([1.0] * 3, [1.5] * 3)


# --------------------------------------------------------------------------------- how it is seen


def test_what_the_core_is_told_of_a_tensor():
    with torch.inference_mode():
        inference = torch.ones(3)
    assert torch_memory.flags(torch.ones(3)) == (True, True)
    assert torch_memory.flags(inference) == (True, False)
    assert torch_memory.flags(cut(torch.ones(3), 11)) == (False, False)
    assert torch_memory.flags(negated(True)) == (False, False)


@pytest.mark.skipif("native" not in BACKENDS, reason="the core is not there")
@pytest.mark.parametrize("found", [True, False])
def test_the_core_asks_where_it_does_not_know_how_torch_keeps_tensors(found):
    """Both ways see the same, and the first asks nobody."""
    script = f"""
        import torch
        from fastreg import regularizers
        from fastreg._arrays import torch_memory
        from fastreg._engine import backend
        assert backend.name == "native"
        samples, flags, asked = torch_memory.samples, torch_memory.flags, []
        def without(): raise AttributeError("another release")
        def counted(x):
            asked.append(x)
            return flags(x)
        if not {found}:
            torch_memory.samples = without
        torch_memory.flags = counted
        reg = regularizers.L1L2(0.5, 0.25)
        w, g = torch.ones(64), torch.zeros(64)
        for _ in range(20):
            assert reg.accumulate(w, g) == 48.0
        for x, kind in ((torch._neg_view(torch.ones(64)), TypeError), (torch.ones(64), ValueError)):
            if kind is ValueError:
                x.untyped_storage().resize_(255)
            for call in (lambda: reg(x), lambda: reg.accumulate(w, x)):
                try:
                    call()
                except kind:
                    pass
                else:
                    raise AssertionError(kind)
        has_table = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
        assert bool(asked) == (has_table and not {found}), len(asked)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
