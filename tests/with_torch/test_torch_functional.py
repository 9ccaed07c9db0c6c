"""Penalties of tensors that are given instead of a module's parameters, as torch.func needs it."""

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.func import functional_call, grad, stack_module_state, vmap  # noqa: E402

import fastreg  # noqa: E402
from fastreg.regularizers import L1, L1L2  # noqa: E402
from fastreg.torch import attach, kernels  # noqa: E402

REG = L1L2(0.1, 0.2)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.BatchNorm1d(3), nn.Linear(3, 2))


def test_the_value_of_given_tensors():
    model, other = network(), network(1)
    penalties = attach(model, kernels(REG))
    params = dict(other.named_parameters())
    value = penalties.value(tensors=params, scale=2.0)
    assert value.item() == attach(other, kernels(REG)).value(scale=2.0).item()
    value.backward()
    torch.testing.assert_close(other[0].weight.grad, 2.0 * REG.gradient(other[0].weight.detach()))
    assert model[0].weight.grad is None
    assert other[0].bias.grad is None
    with torch.no_grad():
        found = penalties.value(tensors={**params, **dict(other.named_buffers())})
        assert found == attach(other, kernels(REG)).value()
        needed = {name: params[name].numpy() for name in ("3.weight", "0.weight")}
        assert penalties.value(tensors=needed) == found


def test_the_gradient_of_a_functional_loss():
    model = network().eval()
    penalties = attach(model, {"0.*": REG, "3.bias": L1(0.5)})
    x = torch.randn(5, 4)

    def loss(params):
        return functional_call(model, params, (x,)).square().mean() + penalties.value(
            tensors=params
        )

    found = grad(loss)({name: p.detach() for name, p in model.named_parameters()})
    (model(x).square().mean() + penalties.value()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_an_ensemble():
    models = [network(seed).eval() for seed in range(3)]
    params, buffers = stack_module_state(models)
    base = copy.deepcopy(models[0])
    penalties = attach(models[0], kernels(REG))
    x = torch.randn(5, 4)

    def loss(params, buffers):
        return functional_call(base, (params, buffers), (x,)).square().mean() + penalties.value(
            tensors=params
        )

    vmap(loss)(params, buffers).sum().backward()
    for place, model in enumerate(models):
        (model(x).square().mean() + attach(model, kernels(REG)).value()).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(params[name].grad[place], parameter.grad)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ([torch.ones(2)], TypeError, r"tensors must be a mapping .*named_parameters"),
        ({"0.weight": torch.ones(2)}, ValueError, r"tensors has no '3\.weight', which have a pen"),
    ],
)
def test_tensors_that_are_refused(tensors, error, message):
    with pytest.raises(error, match=message):
        attach(network(), kernels(REG)).value(tensors=tensors)


# ------------------------------------------------------------------------------ complex parameters


class Waves(nn.Module):
    """A complex parameter beside a real one."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        torch.manual_seed(0)
        self.waves = nn.Parameter(torch.randn(3, 2, dtype=dtype))
        self.weight = nn.Parameter(torch.randn(3))


class Halved:
    """Offers the gradient itself."""

    def __call__(self, w):
        return 0.5 * w.abs().square().sum()

    def gradient(self, w):
        return w


@pytest.mark.parametrize("has_gradient", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "rule",
    [lambda w: w.abs().sum(), lambda w: REG(torch.view_as_real(w)), Halved()],
    ids=["abs", "pairs", "own"],
)
def test_complex_parameters(rule, dtype, has_gradient):
    model, expected = Waves(dtype), Waves(dtype)
    penalties = attach(model, {"waves": rule, "weight": REG})
    if has_gradient:
        for one in (model, expected):
            for parameter in one.parameters():
                parameter.grad = torch.ones_like(parameter)
    value = penalties.accumulate(scale=0.5, grad_scale=2.0)
    total = 0.5 * (rule(expected.waves) + REG(expected.weight))
    (2.0 * total).backward()
    assert value == pytest.approx(total.item(), rel=1e-6)
    assert model.waves.grad.dtype == dtype
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected.get_parameter(name).grad)
    with torch.no_grad():
        assert penalties.value(scale=0.5) == value
        model.waves[0] = 0.0
    report = penalties.report()
    assert report["waves"].zeros == pytest.approx(1 / 3)
    assert report["waves"].rule is rule


def test_complex_parameters_without_a_rule_are_reported():
    model = Waves()
    assert attach(model, {"weight": REG}).report()["waves"].zeros == 0.0
    with torch.no_grad():
        assert fastreg.attach(dict(model.named_parameters()), {"weight": REG}).report()
    array = model.waves.detach().numpy()
    assert fastreg.attach([array, array.real.copy()], {"1": REG}).report()["0"].zeros == 0.0


def test_complex_parameters_that_are_refused():
    model = Waves()
    for rules in (REG, {"waves": "l2"}):
        with pytest.raises(TypeError, match=r"'waves' is complex, .*torch\.view_as_real"):
            attach(model, rules)
    own = Halved()
    own.gradient = lambda w: w.abs()
    with pytest.raises(TypeError, match="must be a complex tensor"):
        attach(model, {"waves": own}).accumulate()
    assert model.waves.grad is None
    model.waves.requires_grad_(False)
    assert attach(model, REG).accumulate() == pytest.approx(REG(model.weight).item())
