"""Proximal steps of torch's tensors and modules."""

import copy

import numpy as np
import pytest
import torch

import fastreg.torch
from fastreg.penalties import ProxRecord
from fastreg.regularizers import L1, L1L2, L2

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REGULARIZERS = (L1(0.3), L2(0.7), L1L2(0.3, 0.7), L1L2(0.0, 0.0))


def numbers(size, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(size, generator=generator, dtype=torch.float64)
    found[::7] = 0.0
    found[1::7] = -0.0
    found[2::49] = torch.inf
    return found.to(dtype)


def bits(tensor):
    wide = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().view(wide)


def by_numpy(reg, tensor, step, **kwargs):
    """The step by NumPy; bfloat16 in float32, where it is exact but for the last rounding."""
    wide = tensor.detach().to(torch.float32) if tensor.dtype == torch.bfloat16 else tensor.detach()
    return torch.from_numpy(reg.prox(wide.numpy(), step, **kwargs)).to(tensor.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reg", REGULARIZERS, ids=str)
def test_tensors(backend, reg, dtype):
    w = numbers(1001, dtype)
    wanted = by_numpy(reg, w, 0.37, scale=0.5)
    found = reg.prox(w, 0.37, scale=0.5)
    assert type(found) is torch.Tensor
    assert torch.equal(bits(found), bits(wanted))
    out = torch.empty_like(w)
    assert reg.prox(w, 0.37, out, scale=0.5) is out
    assert torch.equal(bits(out), bits(wanted))
    version = w._version
    assert reg.prox(w, 0.37, out=w, scale=0.5) is w
    assert torch.equal(bits(w), bits(wanted))
    assert w._version > version


def test_layouts_are_kept(backend):
    w = numbers(12).reshape(3, 4).T
    assert L1(0.3).prox(w, 1.0).stride() == w.stride()


def test_leaves_are_written_under_no_grad_alone(backend):
    w = torch.nn.Parameter(numbers(5))
    assert not L1(0.3).prox(w, 0.1).requires_grad
    before = w.detach().clone()
    with pytest.raises(TypeError, match=r"^out is a torch tensor that requires a gradient"):
        L1(0.3).prox(w, 0.1, out=w)
    with pytest.raises(TypeError, match=r"^tensors\['w'\] is a torch tensor that requires a grad"):
        fastreg.attach({"w": w}, "l1").prox(0.1)
    assert torch.equal(w, before)
    saved = (w * w).sum()
    with torch.no_grad():
        assert L1(0.3).prox(w, 0.1, out=w) is w
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compiled(dtype):
    """In one graph, and by torch's operators: the same bits."""
    torch.compiler.reset()
    w = numbers(1001, dtype)
    for reg in REGULARIZERS[:3]:
        step = torch.compile(lambda w, reg=reg: reg.prox(w, 0.37), backend="eager", fullgraph=True)
        assert torch.equal(bits(step(w)), bits(reg.prox(w, 0.37)))
    torch.compiler.reset()


def test_transformed():
    w = numbers(12).reshape(3, 4)
    reg = L1L2(0.3, 0.7)
    found = torch.func.vmap(lambda row: reg.prox(row, 0.37))(w)
    assert torch.equal(bits(found), bits(reg.prox(w, 0.37)))
    assert reg.prox(torch.empty(3, device="meta"), 0.1).is_meta
    with pytest.raises(ValueError, match=r"^step must be a finite number >= 0"):
        reg.prox(torch.empty(3, device="meta"), -0.1)
    with pytest.raises(TypeError, match=r"int64"):
        reg.prox(torch.empty(3, device="meta", dtype=torch.int64), 0.1)


# -------------------------------------------------------------------------------- modules


def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modules(backend, dtype):
    model = module().to(dtype)
    before = copy.deepcopy(model)
    penalties = fastreg.torch.attach(model, {"*weight": L1(0.2), "0.bias": L2(0.1)})
    versions = [one._version for one in model.parameters()]
    record = penalties.prox(0.5, scale=0.5)
    for (name, one), old in zip(model.named_parameters(), before.parameters(), strict=True):
        reg = L1(0.2) if name.endswith("weight") else L2(0.1) if name == "0.bias" else L1L2()
        assert torch.equal(bits(one), bits(by_numpy(reg, old, 0.5, scale=0.5)))
        assert one.requires_grad
        assert one.grad is None
    stepped = [one._version > old for one, old in zip(model.parameters(), versions, strict=True)]
    assert stepped == [True, True, True, False]
    with torch.no_grad():
        assert record.penalty == penalties.value(scale=0.5)
    penalised = [model[0].weight, model[0].bias, model[2].weight]
    assert record.zeros == sum(int((one == 0).sum()) for one in penalised) > 0
    assert record.size == sum(one.numel() for one in penalised)


def test_what_is_frozen_has_no_penalty(backend):
    model = module()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    record = fastreg.torch.attach(model, {"*weight": L1(0.2)}).prox(0.5)
    assert record.size == model[2].weight.numel()
    assert torch.equal(model[0].weight, before)


def test_the_optimizer_is_not_asked(backend):
    model = module()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    penalties = fastreg.torch.attach(model, {"*weight": L1(0.05)})
    shares = []
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.ones(4, 30)).square().mean().backward()
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict()["state"])
        shares.append(penalties.prox(0.1).sparsity)
        for key, kept in optimizer.state_dict()["state"].items():
            assert torch.equal(kept["momentum_buffer"], state[key]["momentum_buffer"])
    assert shares[-1] > shares[0]


def test_inside_of_what_is_compiled(backend):
    model = module()
    penalties = fastreg.torch.attach(model, {"*weight": L1(0.2)})
    wanted = fastreg.torch.attach(copy.deepcopy(model), {"*weight": L1(0.2)}).prox(0.5)
    assert torch.compile(lambda: penalties.prox(0.5), backend="eager")() == wanted
    torch.compiler.reset()


class Softshrink:
    def __call__(self, w):
        return w.abs().sum()

    def prox(self, w, step):
        return (
            torch.view_as_complex(torch.nn.functional.softshrink(torch.view_as_real(w), step))
            if w.is_complex()
            else torch.nn.functional.softshrink(w, step)
        )


def test_functions_with_and_without_a_prox(backend):
    model = module()
    before = model[0].weight.detach().clone()
    record = fastreg.torch.attach(model, {"0.weight": Softshrink(), "*.bias": L1(0.1)}).prox(0.1)
    shrunk = torch.nn.functional.softshrink(before, 0.1)
    assert torch.equal(model[0].weight, shrunk)
    assert record.zeros >= int((shrunk == 0).sum()) > 0
    before = model[2].bias.detach().clone()
    with pytest.raises(TypeError, match=r"^the rule of tensors\['0.weight'\], .*offers no prox"):
        fastreg.torch.attach(model, {"0.weight": lambda w: w.sum(), "2.bias": L1(0.1)}).prox(0.1)
    assert torch.equal(model[2].bias, before)


def test_complex_parameters(backend):
    model = torch.nn.ParameterList([torch.tensor([3.0 + 0.05j, -1.0j])])
    record = fastreg.torch.attach(model, {"*": Softshrink()}).prox(0.1)
    assert record.zeros == 2
    assert model[0].tolist() == [pytest.approx(2.9), pytest.approx(-0.9j)]


@pytest.mark.parametrize("mark", ["ds_id", "_hp_mapping", "main_grad"])
def test_engines_that_keep_copies_are_refused(backend, mark):
    model = module()
    for one in model.parameters():
        setattr(one, mark, 0)
        one.ds_numel = one.numel()
    before = model[0].weight.detach().clone()
    with pytest.raises(
        RuntimeError, match=r"updates the parameter '0.weight' from a copy of its own"
    ):
        fastreg.torch.attach(model, {"*weight": L1(0.2)}).prox(0.1)
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize("step", [-0.1, float("nan"), float("inf")])
def test_steps_that_are_refused(backend, step):
    model = module()
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"^step must be a finite number >= 0"):
        fastreg.torch.attach(model, {"*weight": L1(0.2)}).prox(step)
    assert torch.equal(model[0].weight, before)


def test_no_parameter():
    assert fastreg.torch.attach(module(), {}).prox(0.1) == ProxRecord(0.0, 0, 0)


def test_a_number_of_numpy_is_a_step(backend):
    w = numbers(9)
    assert torch.equal(L1(0.5).prox(w, np.float32(0.5)), L1(0.5).prox(w, 0.5))


def test_derivatives_by_torch_func_are_refused():
    """They would be 0: a proximal step is in no graph."""

    def total(w):
        return L1(0.5).prox(w, 1.0).sum()

    for transform in (torch.func.grad(total), torch.func.vmap(torch.func.grad(total))):
        with pytest.raises(TypeError, match=r"torch.func differentiates.*outside of torch.func"):
            transform(torch.ones(2, 3))
    rows = torch.func.vmap(lambda w: L1(0.5).prox(w, 1.0))(torch.ones(2, 3))
    assert torch.equal(rows, torch.full((2, 3), 0.5))
