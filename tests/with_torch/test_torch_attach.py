"""Penalties on the parameters of a module: what is added, to which, and what is refused."""

import copy
import importlib.util
import pickle

import pytest

torch = pytest.importorskip("torch")

import fastreg.torch  # noqa: E402
from fastreg import regularizers  # noqa: E402
from fastreg._engine import backend as _backend  # noqa: E402
from fastreg.regularizers import L1, L1L2, L2  # noqa: E402

L1_STRENGTH, L2_STRENGTH = 1e-2, 3e-2
REG = L1L2(L1_STRENGTH, L2_STRENGTH)
BACKENDS = ["numpy", "native"] if importlib.util.find_spec("fastreg._core") else ["numpy"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    """Both ways, but not each instruction set: here nothing depends on those."""
    before = _backend.name
    _backend.select(request.param)
    yield request.param
    _backend.select(before)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3), torch.nn.LayerNorm(3)
    )
    return model.to(dtype)


def batch(dtype=torch.float32, rows=6):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 5, generator=generator).to(dtype), torch.randn(
        rows, 3, generator=generator
    ).to(dtype)


def loss_of(model, data):
    x, y = data
    return (model(x) - y).square().mean()


def plain_penalty(parameters, l1=L1_STRENGTH, l2=L2_STRENGTH):
    return sum(l1 * p.abs().sum() + l2 * p.square().sum() for p in parameters)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_and_value_are_those_of_the_plain_expression(backend, dtype):
    expected, model = network(dtype), network(dtype)
    penalty = plain_penalty([expected[0].weight, expected[2].weight])
    (loss_of(expected, batch(dtype)) + penalty).backward()
    penalties = fastreg.torch.attach(model, {"3.*": None, "*.weight": REG})
    loss_of(model, batch(dtype)).backward()
    value = penalties.accumulate()
    assert isinstance(value, float)
    assert value == pytest.approx(penalty.item(), rel=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected.get_parameter(name).grad)


def test_accumulate_has_the_bits_of_the_core(backend):
    model = network()
    loss_of(model, batch()).backward()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    grads = gradients(model)
    expected = fastreg.attach(weights, REG).accumulate(grads, scale=0.5, grad_scale=8.0)
    found = fastreg.torch.attach(model, REG).accumulate(scale=0.5, grad_scale=8.0)
    assert found == expected
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, grads[name])


def test_without_value(backend):
    model, other = network(), network()
    for one in (model, other):
        loss_of(one, batch()).backward()
    assert fastreg.torch.attach(model, REG).accumulate(value=False) is None
    fastreg.torch.attach(other, REG).accumulate()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, other.get_parameter(name).grad)


def test_rules_by_predicate_and_for_all():
    model = network()
    l2 = L2(0.5)
    penalties = fastreg.torch.attach(
        model, lambda name, parameter: l2 if parameter.ndim > 1 else None
    )
    assert {name for name, row in penalties.report().items() if row.rule} == {
        "0.weight",
        "2.weight",
    }
    assert penalties.rules == {}
    # a function of one tensor is a regularizer, for all parameters
    by_function = fastreg.torch.attach(model, lambda w: w.square().sum())
    with torch.no_grad():
        assert by_function.value() == pytest.approx(plain_penalty(model.parameters(), 0, 1).item())


@pytest.mark.parametrize(
    ("rules", "error", "message"),
    [
        ({"*kernel": "l2"}, ValueError, "matches no tensor"),
        ({"*": "l2", "0.*": "l1"}, ValueError, "never wins"),
        (lambda name, parameter: None, ValueError, "gave None for all parameters"),
        (lambda name, parameter: 3.0, TypeError, r"rules\('0.weight', parameter\)"),
        (3.0, TypeError, "regularizer"),
    ],
)
def test_rules_that_are_refused(rules, error, message):
    with pytest.raises(error, match=message):
        fastreg.torch.attach(network(), rules)


def test_names_with_brackets():
    model = torch.nn.ModuleDict({"w[0]": torch.nn.Linear(2, 2), "w0": torch.nn.Linear(2, 2)})
    penalties = fastreg.torch.attach(model, {"w[0].weight": L1(1.0)})
    expected = model["w[0]"].weight.detach().abs().sum()
    assert penalties.value().item() == pytest.approx(expected.item(), rel=1e-6)
    rules = {"w[0]": L1(1.0)}
    penalties = fastreg.torch.attach(model, {"w0.bias": None}, activity_regularizer=rules)
    model["w0"](torch.ones(1, 2))
    assert penalties.activity().item() == 0.0
    out = model["w[0]"](torch.ones(1, 2))
    assert penalties.activity().item() == pytest.approx(out.abs().sum().item(), rel=1e-6)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"use fastreg\.attach"):
        fastreg.torch.attach(network().parameters(), "l2")


def test_missing_gradients_are_made_as_torch_makes_them(backend):
    model = torch.nn.Module()
    model.dense = torch.nn.Parameter(torch.randn(4, 3).t())
    model.gaps = torch.nn.Parameter(torch.randn(4, 6)[:, ::2])
    penalties = fastreg.torch.attach(model, REG)
    penalties.accumulate()
    mine = {name: (p.grad.clone(), p.grad.stride()) for name, p in model.named_parameters()}
    model.zero_grad()
    plain_penalty(model.parameters()).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(mine[name][0], p.grad)
        assert mine[name][1] == p.grad.stride()
        assert not mine[name][0].requires_grad


def test_frozen_parameters_have_no_term(backend):
    model = network()
    penalties = fastreg.torch.attach(model, REG)
    penalties.accumulate()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.grad.clone()
    value = penalties.accumulate()
    assert torch.equal(model[0].weight.grad, before)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert value == pytest.approx(plain_penalty(trained).item())
    assert penalties.report()["0.weight"].penalty == 0.0
    model[0].weight.requires_grad_(True)
    assert penalties.accumulate() == pytest.approx(plain_penalty(model.parameters()).item())


def test_a_predicate_is_asked_again_when_parameters_change():
    model = network()
    reg = L2(1.0)
    penalties = fastreg.torch.attach(model, lambda name, p: reg if p.numel() == 35 else None)
    model[2] = torch.nn.Linear(35, 1, bias=False)
    assert {name for name, row in penalties.report().items() if row.rule} == {
        "0.weight",
        "2.weight",
    }


def test_tied_parameters_count_once(backend):
    model = network()
    model[2] = torch.nn.Linear(7, 5, bias=False)
    model[2].weight = torch.nn.Parameter(model[0].weight.detach().t())  # the same memory
    model[3] = torch.nn.Linear(5, 7)
    model[3].weight = model[0].weight  # the same object
    penalties = fastreg.torch.attach(model, {"*.weight": REG})
    value = penalties.accumulate()
    assert value == pytest.approx(plain_penalty([model[0].weight]).item())
    assert model[2].weight.grad is None
    assert penalties.report()["2.weight"].tied_to == "0.weight"


def test_tied_after_attach(backend):
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    )
    penalties = fastreg.torch.attach(model, REG)
    for _ in range(2):
        penalties.accumulate()
    model[1].weight.data = model[0].weight.data
    value = penalties.accumulate()
    assert value == pytest.approx(plain_penalty([model[0].weight]).item())
    model[1].weight = model[0].weight
    assert penalties.accumulate() == value
    differing = fastreg.torch.attach(torch.nn.Sequential(model[0]), {"0.weight": REG})
    assert differing.accumulate() == value


def test_tied_to_one_without_a_penalty_is_refused(backend):
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    )
    penalties = fastreg.torch.attach(model, {"0.weight": REG, "1.weight": None})
    penalties.accumulate()
    model[1].weight.data = model[0].weight.data
    before = model[0].weight.grad.clone()
    with pytest.raises(ValueError, match="tied"):
        penalties.accumulate()
    assert torch.equal(model[0].weight.grad, before)


def test_replaced_moved_and_converted_parameters(backend):
    model = network()
    penalties = fastreg.torch.attach(model, {"*.weight": REG})
    penalties.accumulate()
    model[0].weight = torch.nn.Parameter(torch.ones(7, 5))  # replaced
    model[2] = torch.nn.Linear(7, 3)  # a whole module
    assert penalties.accumulate() == pytest.approx(
        plain_penalty([model[0].weight, model[2].weight, model[3].weight]).item(), rel=1e-6
    )
    assert model[0].weight.grad is not None
    model.double()
    loss_of(model, batch(torch.float64)).backward()
    assert model[0].weight.grad.dtype == torch.float64
    assert penalties.accumulate() == pytest.approx(
        plain_penalty([model[0].weight, model[2].weight, model[3].weight]).item(), rel=1e-12
    )
    model.to("meta")
    with pytest.raises(TypeError, match=r"0\.weight.*'meta'"):
        penalties.accumulate()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(backend, dtype):
    model = network(dtype)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    grads = gradients(model)
    expected = fastreg.attach(weights, REG).accumulate(grads)
    assert fastreg.torch.attach(model, REG).accumulate() == expected
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, grads[name])


@pytest.mark.parametrize("others", ["one is missing", "all are there"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda g: g.to_sparse(), "'3.bias' is sparse"),
        (lambda g: g.double(), r"'3\.bias'.*float64"),
    ],
)
def test_gradients_that_do_not_fit_change_nothing(backend, wrong, message, others):
    model = network()
    penalties = fastreg.torch.attach(model, REG)
    loss_of(model, batch()).backward()
    before = gradients(model)
    bias = model[3].bias
    gradient = wrong(bias.grad)
    bias.grad = None
    if gradient.dtype != bias.dtype:
        if not hasattr(bias, "grad_dtype"):
            return  # this torch lets no such gradient be set
        bias.grad_dtype = None
    bias.grad = gradient
    if others == "one is missing":
        model[0].bias.grad = None
    with pytest.raises(TypeError, match=message):
        penalties.accumulate()
    assert (model[0].bias.grad is None) == (others == "one is missing")
    assert torch.equal(before["2.weight"], model[2].weight.grad)


def test_gradients_that_are_part_of_a_graph_are_refused(backend):
    model = network()
    penalties = fastreg.torch.attach(model, REG)
    made = torch.autograd.grad(loss_of(model, batch()), list(model.parameters()), create_graph=True)
    for p, gradient in zip(model.parameters(), made, strict=True):
        p.grad = gradient
    before = gradients(model)
    with pytest.raises(TypeError, match=r"0\.weight"):
        penalties.accumulate()
    with torch.no_grad():
        penalties.accumulate()
    assert not torch.equal(before["0.weight"], model[0].weight.grad)


def test_autograd_notices_what_was_written(backend):
    model = network()
    loss_of(model, batch()).backward()
    factor = torch.ones((), requires_grad=True)
    later = (model[0].weight.grad * factor).sum()
    fastreg.torch.attach(model, REG).accumulate()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        later.backward()


def test_value_is_differentiable_and_a_number_without_autograd(backend):
    model, expected = network(), network()
    penalties = fastreg.torch.attach(model, {"*.weight": REG})
    value = penalties.value(scale=2.0)
    assert value.requires_grad
    value.backward()
    (2.0 * plain_penalty([p for n, p in expected.named_parameters() if "weight" in n])).backward()
    for name in ("0.weight", "2.weight", "3.weight"):
        torch.testing.assert_close(
            model.get_parameter(name).grad, expected.get_parameter(name).grad
        )
    with torch.no_grad():
        number = penalties.value(scale=2.0)
    assert isinstance(number, float)
    assert number == pytest.approx(value.item(), rel=1e-6)


def test_strengths_are_read_at_each_call(backend):
    model = network()
    reg = L1(0.5)
    penalties = fastreg.torch.attach(model, reg)
    first = penalties.accumulate()
    reg.l1 = 1.0
    assert penalties.accumulate() == 2 * first


class Quartic:
    """Offers no gradient."""

    def __call__(self, w):
        return w.pow(4).sum()


class Halves:
    """Offers a gradient, which is not that of its value."""

    def __call__(self, w):
        return float(w.detach().sum())

    def gradient(self, w):
        return torch.full_like(w, 0.5)


def test_callables_as_rules(backend):
    model, expected = network(), network()
    rules = {"0.weight": Quartic(), "2.weight": Halves(), "3.*": L2(0.5)}
    penalties = fastreg.torch.attach(model, rules)
    value = penalties.accumulate(grad_scale=2.0)
    quartic = expected[0].weight.pow(4).sum()
    squares = 0.5 * sum(p.square().sum() for p in expected[3].parameters())
    (2.0 * (quartic + squares)).backward()
    assert value == pytest.approx((quartic + squares + expected[2].weight.sum()).item(), rel=1e-5)
    torch.testing.assert_close(model[0].weight.grad, expected[0].weight.grad)
    assert torch.equal(model[2].weight.grad, torch.ones(3, 7))
    torch.testing.assert_close(model[3].weight.grad, expected[3].weight.grad)
    assert penalties.report()["0.weight"].rule is rules["0.weight"]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda w: w.detach().sum(), "does not follow"),
        (lambda w: w.abs(), "must be one number"),
        (lambda w: 1.0, "0-d tensor"),
    ],
)
def test_callables_that_cannot_be_differentiated(rule, message):
    model = network()
    with pytest.raises(TypeError, match=message):
        fastreg.torch.attach(model, {"0.weight": rule}).accumulate()
    assert model[0].weight.grad is None


def test_fake_tensors_are_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = torch.nn.Linear(3, 2)
        penalties = fastreg.torch.attach(model, REG)
        with pytest.raises(TypeError, match=r"weight.*FakeTensor"):
            penalties.accumulate()
    assert model.weight.grad is None
    model = torch.nn.Linear(3, 2)
    penalties = fastreg.torch.attach(model, REG)
    with FakeTensorMode():
        model.weight = torch.nn.Linear(3, 2).weight
    with pytest.raises(TypeError, match=r"weight.*FakeTensor"):
        penalties.accumulate()
    assert model.bias.grad is None


def test_lazy_parameters_are_refused_until_they_are_there():
    model = torch.nn.LazyLinear(2)
    with pytest.raises(TypeError, match=r"weight.*run the module once"):
        fastreg.torch.attach(model, REG)
    model(torch.ones(1, 3))
    assert fastreg.torch.attach(model, REG).accumulate() > 0.0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_of_a_module_that_holds_its_penalties(copied):
    model = network()
    model.penalties = fastreg.torch.attach(model, regularizers.L2(0.5))
    other = copied(model)
    assert repr(other.penalties) == repr(model.penalties)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        assert model.penalties.value() == 0.0
        assert other.penalties.value() > 0.0
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = other.penalties.nothing
    model.penalties = fastreg.torch.attach(model, {}, {"0": "l2"})
    with pytest.raises(TypeError, match="outside of the module"):
        copied(model)


def test_copies_and_pickles():
    model = network()
    penalties = fastreg.torch.attach(model, {"*.weight": REG}, {"1": L1(0.5)})
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(batch()[0])  # its hooks collect nothing
        loss_of(other, batch()).backward()
    penalties.accumulate()
    both, attached = copy.deepcopy((model, penalties))
    both.zero_grad()
    value = attached.accumulate()
    assert value == penalties.accumulate()
    assert both[0].weight.grad is not None
    again = pickle.loads(pickle.dumps(fastreg.torch.attach(network(), regularizers.L2(0.5))))
    assert again.accumulate() > 0.0


def test_a_module_without_parameters_to_train():
    model = network().requires_grad_(False)
    penalties = fastreg.torch.attach(model, REG)
    assert penalties.accumulate() == 0.0
    assert penalties.value() == 0.0
    assert repr(penalties) == "<Penalties on 0 of 6 parameters>"


@pytest.mark.skipif(BACKENDS == ["numpy"], reason="the fallback has no native call")
@pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"),
    reason="this torch has no exchange table, by which the core reads parameters",
)
def test_parameters_are_one_native_call(monkeypatch):
    model = network()
    penalties = fastreg.torch.attach(model, {"*.bias": None, "*": REG})
    loss_of(model, batch()).backward()
    calls = []
    found = _backend.accumulate_parameters

    def counted(*arguments):
        calls.append(arguments[2])
        return found(*arguments)

    def not_this_way(*_):
        raise AssertionError("went the long way")

    monkeypatch.setattr(_backend, "accumulate_parameters", counted)
    monkeypatch.setattr(penalties._penalties, "_add_to_any", not_this_way)
    assert penalties.accumulate() > 0.0
    assert [len(parameters) for parameters in calls] == [3]
    model[0].bias.requires_grad_(False)  # has no penalty anyway
    assert penalties.accumulate() > 0.0


@pytest.mark.skipif(BACKENDS == ["numpy"], reason="there is nothing to compare")
def test_members_of_dicts_are_compared_alike():
    from fastreg import _core
    from fastreg._engine import reference

    one, two, other = object(), object(), object()
    dicts = ({"a": one}, {}, {"b": two, "c": None})
    for members, same in (
        ((one, two, None), True),
        ((one, two), False),
        ((one, two, None, other), False),
        ((one, other, None), False),
        ((), False),
    ):
        assert _core.have_members(dicts, members) is same
        assert reference.have_members(dicts, members) is same


def test_rules_that_match_elsewhere():
    """A stage of a pipeline has some of the parameters: what matches none is listed."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    rules = {"0.weight": L2(0.5), "head.*": L1(0.5)}
    with pytest.raises(ValueError, match="matches no tensor"):
        fastreg.torch.attach(model, rules)
    penalties = fastreg.torch.attach(model, rules, allow_unmatched=True)
    assert penalties.unmatched == ["head.*"]
    assert copy.deepcopy(penalties).unmatched == ["head.*"]
    with torch.no_grad():
        assert penalties.value() == fastreg.torch.attach(model, {"0.weight": L2(0.5)}).value()
    # A rule that another one takes everything from is wrong in any stage.
    with pytest.raises(ValueError, match="never wins"):
        fastreg.torch.attach(model, {"*": None, "0.weight": "l2"}, allow_unmatched=True)
    # A stage may have nothing at all.
    kernels = fastreg.torch.kernels(L2(0.5))
    for nothing in ({"head.*": "l1"}, {"*": kernels}, lambda name, parameter: None):
        with pytest.raises(ValueError, match=r"match|gave None"):
            fastreg.torch.attach(model[1], nothing)
        penalties = fastreg.torch.attach(model[1], nothing, allow_unmatched=True)
        assert penalties.accumulate() == 0.0
        assert model[1].weight.grad is None


def test_activity_rules_that_match_elsewhere():
    model = torch.nn.Sequential(torch.nn.Identity())
    rules = {"0": L1(0.5), "head": L1(0.5)}
    with pytest.raises(ValueError, match="matches no module"):
        fastreg.torch.attach(model, {}, rules)
    penalties = fastreg.torch.attach(model, {}, rules, allow_unmatched=True)
    model(torch.ones(4, 3))
    assert penalties.activity().item() == 1.5
