"""fastreg.optimizers beside torch's: what its unfused ones compute, and where torch is wrong."""

import itertools
import math

import numpy as np
import pytest
import torch

from fastreg import optimizers
from fastreg.regularizers import L1, L2

STEPS = 100
SGD = [
    dict(zip(("momentum", "dampening", "nesterov", "weight_decay", "maximize"), one, strict=True))
    for one in itertools.product((0.0, 0.9), (0.0, 0.25), (False, True), (0.0, 0.1), (False, True))
    if not one[2] or (one[0] and not one[1])
]
ADAMW = [
    dict(zip(("betas", "eps", "weight_decay", "amsgrad", "maximize"), one, strict=True))
    for one in itertools.product(
        ((0.9, 0.999), (0.5, 0.75)), (1e-8, 1e-3), (0.0, 0.1), (False, True), (False, True)
    )
]


def run(name, options, dtype, rules=None, coupled=None, **more):
    """Return the weights of torch's optimizer and of ours after the same gradients."""
    rng = np.random.default_rng(3)
    shapes = (7, 5), (8,), (40,)
    starts = [torch.tensor(rng.normal(size=shape), dtype=dtype) for shape in shapes]
    theirs = [torch.nn.Parameter(one.clone()) for one in starts]
    ours = [one.numpy().copy() for one in starts]
    reference = getattr(torch.optim, name)(theirs, 0.01, foreach=False, fused=False, **options)
    optimizer = getattr(optimizers, name)(ours, 0.01, rules=rules, **options, **more)
    for _ in range(STEPS):
        gradients = [torch.tensor(rng.normal(size=shape), dtype=dtype) for shape in shapes]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
            if coupled is not None:
                parameter.grad += coupled(parameter.detach())
        reference.step()
        optimizer.step([one.numpy() for one in gradients])
    return [one.detach().numpy() for one in theirs], ours


def require_close(theirs, ours, dtype):
    for one, other in zip(theirs, ours, strict=True):
        most = np.abs(one).max()
        assert np.abs(one - other).max() <= (1e-6 if dtype == torch.float32 else 1e-13) * most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_is_that_of_torch(options, dtype):
    require_close(*run("SGD", options, dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", ADAMW, ids=str)
def test_adamw_is_that_of_torch(options, dtype):
    require_close(*run("AdamW", options, dtype), dtype)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_penalty_in_the_gradient_is_that_of_torch(name):
    options = {"weight_decay": 0.0}
    found = run(
        name, options, torch.float64, L2(0.05), lambda w: 2 * 0.05 * w, mode="gradient"
    )  # fmt: skip
    require_close(*found, torch.float64)


def test_decoupled_l2_is_weight_decay():
    theirs, _ = run("AdamW", {"weight_decay": 0.1}, torch.float64)
    _, ours = run("AdamW", {"weight_decay": 0.0}, torch.float64, L2(0.05), mode="decoupled")
    require_close(theirs, ours, torch.float64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_of_torch_have_the_bits_of_arrays(backend, dtype):
    w = torch.linspace(-1, 1, 51, dtype=dtype)
    g = torch.linspace(3, -2, 51, dtype=dtype)
    parameter = torch.nn.Parameter(w.clone())
    version = parameter._version
    of_torch = optimizers.AdamW({"w": parameter}, 0.1, rules=L1(0.1), max_norm=1.0)
    record = of_torch.step({"w": g})
    assert parameter._version > version
    assert parameter.requires_grad
    if dtype == torch.bfloat16:
        ml_dtypes = pytest.importorskip("ml_dtypes")
        array = w.float().numpy().astype(ml_dtypes.bfloat16)
        gradient = g.float().numpy().astype(ml_dtypes.bfloat16)
        found = parameter.detach().float().numpy().astype(ml_dtypes.bfloat16)
    else:
        array, gradient, found = w.numpy().copy(), g.numpy(), parameter.detach().numpy()
    assert record == optimizers.AdamW([array], 0.1, rules=L1(0.1), max_norm=1.0).step([gradient])
    np.testing.assert_array_equal(found, array)
    state = of_torch.state_dict()
    assert state["exp_avg/w"].dtype == (np.float64 if dtype == torch.float64 else np.float32)


def test_backward_sees_that_a_parameter_was_written():
    w = torch.nn.Parameter(torch.ones(3))
    loss = w.square().sum()
    optimizers.SGD([w], 0.1).step([torch.ones(3)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ----------------------------------------------------------------------- where torch is wrong


def test_clipping_of_gradients_in_half_precision(backend):
    """A million finite gradients of 300: torch has an infinite norm, and its clip gives zeros."""
    count = 1_000_000
    theirs = torch.nn.Parameter(torch.zeros(count, dtype=torch.float16))
    theirs.grad = torch.full((count,), 300.0, dtype=torch.float16)
    if math.isinf(torch.nn.utils.clip_grad_norm_([theirs], 1000.0)):
        assert not theirs.grad.any()
    w = np.zeros(count, np.float16)
    record = optimizers.SGD([w], 1.0, max_norm=1000.0).step([np.full(count, 300.0, np.float16)])
    assert record.norm == 300_000.0
    np.testing.assert_array_equal(w, np.float16(np.float32(-300.0) * np.float32(1000 / 300_000)))
    large = np.zeros(4, np.float32)
    record = optimizers.SGD([large], 1.0, max_norm=1.0).step([np.full(4, 3e19, np.float32)])
    np.testing.assert_array_equal(large, -0.5)
    assert record.norm == pytest.approx(6e19)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [8, 64, 1000])
def test_half_precision_is_updated_everywhere(backend, dtype, size):
    """torch's fused SGD has left whole SIMD blocks as they were."""
    w = torch.ones(size, dtype=dtype)
    optimizers.SGD([w], 0.25, momentum=0.9).step([torch.ones(size, dtype=dtype)])
    assert bool((w == 0.75).all())


def test_a_first_step_with_an_overflow_leaves_no_momentum(backend):
    """torch's fused SGD leaves the momentum of a skipped first step uninitialised."""
    w = torch.ones(100)
    optimizer = optimizers.SGD([w], 0.5, momentum=0.9)
    assert optimizer.step([torch.full((100,), math.inf)], found_inf=torch.tensor(1.0)).skipped
    optimizer.step([torch.full((100,), 64.0)], loss_scale=64.0, found_inf=torch.tensor(0.0))
    assert bool((w == 0.5).all())
    np.testing.assert_array_equal(optimizer.state_dict()["momentum_buffer/0"], 1.0)


def test_a_second_moment_of_bfloat16_weights_decays(backend):
    """In bfloat16 it would stay: 0.999 of it rounds to itself."""
    w = torch.ones(3, dtype=torch.bfloat16)
    optimizer = optimizers.AdamW([w], 1e-3)
    optimizer.step([torch.ones(3, dtype=torch.bfloat16)])
    before = optimizer.state_dict()["exp_avg_sq/0"]
    for _ in range(100):
        optimizer.step([torch.zeros(3, dtype=torch.bfloat16)])
    np.testing.assert_allclose(optimizer.state_dict()["exp_avg_sq/0"], before * 0.999**100, 1e-5)
