"""Penalties where torch has no elements: torch.compile, torch.func, fake and meta tensors."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

import fastreg  # noqa: E402
from fastreg._autodiff.torch import functions  # noqa: E402
from fastreg.regularizers import L1, L1L2, OrthogonalRegularizer  # noqa: E402

# torch.compile warns of torch's own code
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

RULE = L1L2(0.03, 0.2)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


def compiled(function, backend="aot_eager"):
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


# --------------------------------------------------------------------------------- torch.compile


def test_compiled_with_strengths_that_change():
    rule, w = L1L2(0.5, 0.25), torch.randn(5, 7, requires_grad=True)
    function, counter = compiled(lambda w, scale: 3.0 * rule(w, scale=scale))
    for step in range(10):
        rule.l1, rule.l2 = 0.1 * step, 0.05 * (step % 3)
        scale = 1.0 / (1 + step)
        w.grad = None
        value = function(w, scale)
        value.backward()
        assert torch.equal(value.detach(), 3.0 * rule(w.detach(), scale=scale))
        assert torch.equal(w.grad, rule.gradient(w, scale=scale, grad_scale=3.0))
    assert counter.frame_count <= 3


def test_compiled_gradients_with_strengths_that_change():
    rule, w = L1L2(0.5, 0.25), torch.randn(5, 7)
    function, counter = compiled(lambda w, scale: rule.value_and_grad(w, scale=scale))
    for step in range(6):
        rule.l1, rule.l2 = 0.1 * step, 0.05 * (step % 3)
        scale = 1.0 / (1 + step)
        value, gradient = function(w, scale)
        assert torch.equal(value, rule(w, scale=scale))
        assert torch.equal(gradient, rule.gradient(w, scale=scale))
    assert counter.frame_count <= 3


def test_compiled_orthogonal_with_scales_that_change():
    rule, w = OrthogonalRegularizer(0.5), torch.randn(5, 7)
    function, counter = compiled(lambda w, scale: rule(w, scale=scale))
    for step in range(6):
        scale = 1.0 / (1 + step)
        torch.testing.assert_close(function(w, scale).item(), rule(w, scale=scale).item())
    assert counter.frame_count <= 3


def test_compiled_by_inductor():
    w = torch.randn(5, 7, requires_grad=True)
    function, _ = compiled(RULE, "inductor")
    value = function(w)
    value.backward()
    assert torch.equal(value.detach(), RULE(w.detach()))
    assert torch.equal(w.grad, RULE.gradient(w))


def test_compiled_without_gradients():
    w = torch.randn(5, 7)
    function, _ = compiled(lambda w: (RULE(w), *RULE.value_and_grad(w, grad_scale=2.0)))
    with torch.no_grad():
        value, again, gradient = function(w)
    assert torch.equal(value, RULE(w))
    assert torch.equal(again, value)
    assert torch.equal(gradient, RULE.gradient(w, grad_scale=2.0))


def test_compiled_orthogonal_and_lists():
    rule, w, v = OrthogonalRegularizer(0.5), torch.randn(4, 6), torch.randn(3)
    w.requires_grad_()

    def function(w, v):
        values = functions.values((w, v), ((0.5, 0.25),), (0, 0), 2.0)
        return rule(w) + values[0] * values[1]

    made, counter = compiled(function)
    for factor in (0.5, 0.0, 2.0):
        rule.factor = factor
        (gradient,) = torch.autograd.grad(made(w, v), w)
        (expected,) = torch.autograd.grad(function(w, v), w)
        assert torch.allclose(gradient, expected)
    assert counter.frame_count <= 2


def test_compiled_training_step():
    model = torch.nn.Linear(6, 3)

    def loss(x):
        return model(x).square().sum() + RULE(model.weight) + L1(0.5)(model.bias, scale=0.5)

    x = torch.randn(4, 6)
    compiled(loss)[0](x).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss(x).backward()
    for one, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(one, p.grad)


def test_compiled_transforms():
    w = torch.randn(4, 6)
    function, _ = compiled(lambda w: (torch.func.grad(RULE)(w), torch.vmap(RULE)(w)))
    gradient, values = function(w)
    assert torch.equal(gradient, RULE.gradient(w))
    assert torch.equal(values, torch.stack([RULE(row) for row in w]))


# --------------------------------------------------------------------------------------- torch.func


def test_transforms():
    w = torch.randn(4, 6)
    assert torch.equal(torch.func.grad(RULE)(w), RULE.gradient(w))
    rows = torch.stack([RULE(row) for row in w])
    assert torch.equal(torch.vmap(RULE)(w), rows)
    assert torch.equal(torch.vmap(RULE, in_dims=1)(w.T.contiguous()), rows)
    assert torch.equal(torch.vmap(torch.func.grad(RULE))(w), RULE.gradient(w))
    assert torch.equal(torch.vmap(RULE.gradient)(w), RULE.gradient(w))
    value, gradient = torch.vmap(RULE.value_and_grad)(w)
    assert torch.equal(value, rows)
    assert torch.equal(gradient, RULE.gradient(w))
    assert torch.equal(torch.func.jacrev(torch.vmap(RULE))(w).sum(0), RULE.gradient(w))
    hessian = torch.func.jacrev(torch.func.jacrev(RULE))(w[0])
    assert torch.allclose(hessian, 0.4 * torch.eye(6))
    with torch.no_grad():
        _, pullback = torch.func.vjp(torch.vmap(RULE), w)
        (each,) = torch.vmap(pullback)(torch.eye(4))
    assert torch.equal(each.sum(0), RULE.gradient(w))
    orthogonal = OrthogonalRegularizer(0.5)
    assert torch.allclose(torch.func.grad(orthogonal)(w), orthogonal.gradient(w))


def test_transforms_of_lists():
    a, b = torch.randn(3, 5), torch.randn(7)

    def total(a, b):
        return functions.total((a, b), ((0.5, 0.25), (0.0, 1.0)), (0, 1), 2.0)

    def weighted(a, b):
        one, other = functions.values((a, b), ((0.5, 0.25), (0.0, 1.0)), (0, 1), 2.0)
        return one + 3.0 * other

    for function in (total, weighted):
        each = [function(row, b) for row in a]
        assert torch.equal(torch.vmap(function, in_dims=(0, None))(a, b), torch.stack(each))
        gradients = torch.vmap(torch.func.grad(function, argnums=(0, 1)), in_dims=(0, None))(a, b)
        expected = [torch.func.grad(function, argnums=(0, 1))(row, b) for row in a]
        for found, ones in zip(gradients, zip(*expected, strict=True), strict=True):
            assert torch.equal(found, torch.stack(ones))


def test_functional_call():
    model = torch.nn.Linear(6, 3)
    params = {name: p.detach() for name, p in model.named_parameters()}
    penalties = fastreg.attach(params, {"weight": RULE, "bias": L1(0.5)})
    x = torch.randn(4, 6)

    def loss(params):
        output = torch.func.functional_call(model, params, (x,))
        return output.square().sum() + penalties.value(tensors=params)

    gradients = torch.func.grad(loss)(params)
    model(x).square().sum().backward()
    for name, slope in penalties.gradient().items():
        assert torch.allclose(gradients[name], model.get_parameter(name).grad + slope)


def test_gradients_of_a_model_in_a_transform():
    class Cube:
        def __call__(self, w):
            return (w**3).sum()

        def gradient(self, w):
            return 3.0 * w * w

    a, b = torch.randn(4, 5), torch.randn(4, 3)
    penalties = fastreg.attach({"a": a, "b": b}, {"a": RULE, "b": Cube()})

    def both(a, b):
        return penalties.value_and_grad(tensors={"a": a, "b": b}, scale=0.5, grad_scale=4.0)

    values, gradients = torch.vmap(both)(a, b)
    assert torch.allclose(
        values, torch.stack([0.5 * (RULE(x) + (y**3).sum()) for x, y in zip(a, b, strict=True)])
    )
    assert torch.equal(gradients["a"], RULE.gradient(a, scale=0.5, grad_scale=4.0))
    assert torch.allclose(gradients["b"], 6.0 * b * b)


def test_writing_into_what_is_transformed_is_refused():
    def function(w):
        with pytest.raises(TypeError, match=r"w is a tensor of a torch\.func transform"):
            RULE.gradient(w, torch.zeros(3))
        return w.sum()

    torch.func.grad(function)(torch.ones(3))


# -------------------------------------------------------------------------------- without elements


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_fake_and_meta_tensors(dtype):
    for context, device in ((FakeTensorMode(), "cpu"), (torch.no_grad(), "meta")):
        with context:
            w = torch.ones(3, 4, dtype=dtype, device=device)
            for rule in (RULE, OrthogonalRegularizer()):
                value = rule(w)
                assert (type(value), value.device, value.shape) == (type(w), w.device, ())
                assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            gradient = RULE.gradient(w)
            assert (gradient.shape, gradient.dtype) == (w.shape, dtype)
            with pytest.raises(TypeError, match="has no elements"):
                RULE.accumulate(w, torch.ones_like(w))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_operators_keep_torchs_rules():
    operators = torch.ops.fastreg
    weights = [torch.randn(3, 4).T, torch.randn(0, dtype=torch.float64), torch.randn(2).half()]
    which = [0, 1, 0]
    tensor = torch.tensor([0.5, 0.25, 0.0, 1.0], dtype=torch.float64)
    for strengths in ((tensor.tolist(), None), ([], tensor)):
        for per_tensor in (True, False):
            torch.library.opcheck(
                operators.penalty.default, (weights, *strengths, which, per_tensor)
            )
        for upstream in (torch.tensor(2.0), torch.tensor([1.0, 2.0, 3.0])):
            torch.library.opcheck(
                operators.penalty_gradient.default, (weights, upstream, *strengths, which)
            )


def test_export():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x).sum() + RULE(self.layer.weight)

    model, x = Model(), torch.randn(2, 6)
    exported = torch.export.export(model, (x,))
    assert torch.allclose(exported.module()(x), model(x))
