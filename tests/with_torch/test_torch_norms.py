"""fastreg.norms and fastreg.clip_by_global_norm of torch's tensors and modules."""

import math

import numpy as np
import pytest
import torch

import fastreg

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def model():
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Linear(30, 70), torch.nn.Tanh(), torch.nn.Linear(70, 3))
    made[2].bias.requires_grad_(False)
    made(torch.randn(5, 30)).square().sum().backward()
    return made


def gradients(module):
    return [p.grad for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("most", [1e-3, 1.0, 1e9, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_torch_gives(backend, dtype, most):
    ours, theirs = model().to(dtype), model().to(dtype)
    norm = fastreg.clip_by_global_norm(ours, most)
    wanted = torch.nn.utils.clip_grad_norm_(theirs.parameters(), most)
    near = 1e-6 if dtype is torch.float32 else 1e-13
    assert norm == pytest.approx(float(wanted), rel=near)
    for one, other in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=0)


def test_right_where_torch_is_not(backend):
    ours = torch.nn.Parameter(torch.zeros(1_000_000, dtype=torch.float16))
    ours.grad = torch.full_like(ours, 300.0)
    theirs = torch.nn.Parameter(torch.zeros(1_000_000, dtype=torch.float16))
    theirs.grad = torch.full_like(theirs, 300.0)
    assert torch.nn.utils.clip_grad_norm_([theirs], 1e5) == math.inf
    assert not theirs.grad.any()  # if this fails, torch has mended it, and docs are to be changed
    assert fastreg.clip_by_global_norm([ours.grad], 1e5) == 300_000.0
    assert (ours.grad == 100.0).all()
    single = torch.full((4,), 3e19)
    assert fastreg.clip_by_global_norm([single], 1.0) == pytest.approx(6e19, rel=1e-7)
    assert (single == 0.5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_numpy(backend, dtype):
    tensor = torch.randn(130, 50).to(dtype)
    wide = tensor.to(torch.float64).numpy()
    found = fastreg.norms({"w": tensor, "turned": tensor.t().clone().t()})
    if dtype is torch.float64:
        assert found["w"] == fastreg.norms([wide])["0"]
    assert found["w"].l1 == fastreg.norms([wide])["0"].l1
    assert found["turned"].zeros == found["w"].zeros


def test_a_module(backend):
    module = model()
    found = fastreg.norms(module)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert found["0.bias"] == fastreg.norms([module[0].bias.detach().numpy()])["0"]
    by_name = {name: p.grad for name, p in module.named_parameters()}
    found = fastreg.norms(by_name)
    assert list(found) == ["0.weight", "0.bias", "2.weight"]  # the fourth has no gradient
    assert fastreg.clip_by_global_norm(module, math.inf) == found.total.l2
    module[0].weight.grad[3, 4] = math.nan
    with pytest.raises(ValueError, match=r"tensors\['0.weight'\] has 1 element that is"):
        fastreg.clip_by_global_norm(module, 1.0)


def test_versions(backend):
    tensor, other = torch.ones(3, requires_grad=True), torch.ones(3)
    product = (tensor * other).sum()
    before = other._version
    fastreg.clip_by_global_norm([other], 10.0)  # writes nothing
    fastreg.norms([other])
    assert other._version == before
    fastreg.clip_by_global_norm([other], 1.0)
    assert other._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_refused_with_nothing_written(backend):
    good = torch.full((3,), 9.0)
    leaf = torch.ones(3, requires_grad=True)
    with pytest.raises(TypeError, match=r"tensors\['bad'\] is a torch tensor that requires a grad"):
        fastreg.clip_by_global_norm({"good": good, "bad": leaf}, 1.0)
    with torch.no_grad():
        fastreg.clip_by_global_norm([leaf], 1.0)
    assert float(leaf.detach().norm()) == pytest.approx(1.0, rel=1e-5)
    sparse = torch.eye(3).to_sparse()
    for bad, words in ((sparse, "layout"), (torch.ones(3, device="meta"), "'meta'")):
        with pytest.raises(TypeError, match=rf"tensors\['bad'\].*{words}"):
            fastreg.clip_by_global_norm({"good": good, "bad": bad}, 1.0)
        with pytest.raises(TypeError, match=rf"tensors\['bad'\].*{words}"):
            fastreg.norms({"good": good, "bad": bad})
    with pytest.raises(TypeError, match="can be read only once"):
        fastreg.clip_by_global_norm(model().parameters(), 1.0)
    assert (good == 9.0).all()


def test_tied_parameters(backend):
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    module(torch.ones(2, 4)).sum().backward()
    given = {f"{i}.weight": module[i].weight.grad for i in range(2)}
    norm = float(module[0].weight.grad.norm())
    assert fastreg.norms(given).total.l2 == pytest.approx(norm, rel=1e-6)
    assert fastreg.clip_by_global_norm(given, norm / 4) == pytest.approx(norm, rel=1e-6)
    assert float(module[0].weight.grad.norm()) == pytest.approx(norm / 4, rel=1e-5)


def test_mixed_with_numpy(backend):
    tensor, array = torch.full((2,), 3.0), np.full(2, 4.0, np.float32)
    norm = fastreg.clip_by_global_norm({"tensor": tensor, "array": array}, 1.0)
    assert norm == math.sqrt(50.0)
    assert float(tensor[0]) == pytest.approx(3 / norm, rel=1e-6)
    assert array[0] == pytest.approx(4 / norm, rel=1e-6)


def test_parameters_are_not_clipped(backend):
    """Their weights would be scaled, where torch's function clips their gradients."""
    module = model()
    before = [p.detach().clone() for p in module.parameters()]
    words = r"pass its gradient, and for the parameters of a module the module itself"
    for given in (list(module.parameters()), dict(module.named_parameters())):
        for grad_mode in (torch.enable_grad, torch.no_grad):
            with grad_mode(), pytest.raises(TypeError, match=rf"is a parameter of torch.*{words}"):
                fastreg.clip_by_global_norm(given, 1e-3)
    frozen = {"good": torch.ones(2), "bad": module[2].bias}
    with pytest.raises(TypeError, match=r"tensors\['bad'\] is a parameter of torch"):
        fastreg.clip_by_global_norm(frozen, 1e-3)
    with pytest.raises(TypeError, match=r"can be read only once.*the module itself, or \[p.grad"):
        fastreg.clip_by_global_norm(module.parameters(), 1e-3)
    for one, other in zip(before, module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert fastreg.norms(list(module.parameters())).total == fastreg.norms(module).total
    assert fastreg.clip_by_global_norm([p.grad for p in module.parameters()], 1e-3) > 1e-3
