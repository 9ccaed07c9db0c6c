"""fastreg.torch.SGD and AdamW: torch's own, where those are right, with penalties in the step."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fastreg
import fastreg.torch
from fastreg._engine import steps as steps_engine
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer

ALGORITHMS = {
    "SGD": {},
    "SGD with momentum": {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.01},
    "SGD, Nesterov": {"momentum": 0.9, "nesterov": True, "maximize": True},
    "AdamW": {},
    "AdamW, amsgrad": {"amsgrad": True, "betas": (0.5, 0.9), "weight_decay": 0.1, "maximize": True},
}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ours(algorithm):
    return getattr(fastreg.torch, algorithm.split(",")[0].split()[0])


def theirs(algorithm):
    return getattr(torch.optim, algorithm.split(",")[0].split()[0])


def network(dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def backward(model, number, scale=1.0):
    """Leave gradients of a made-up loss, those of step `number`."""
    generator = torch.Generator().manual_seed(1000 + number)
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    x = torch.randn(6, 5, generator=generator).to(dtype)
    loss = model(x).square().mean()
    (loss * scale).backward()
    return loss


def train(model, optimizer, numbers=range(5)):
    for number in numbers:
        backward(model, number)
        optimizer.step()


def largest_difference(one, other):
    return max(
        ((p - q).abs().max() / p.abs().max()).item()
        for p, q in zip(one.parameters(), other.parameters(), strict=True)
    )


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def one_parameter(numbers, gradient, dtype=torch.float32):
    parameter = nn.Parameter(torch.tensor(numbers, dtype=dtype))
    parameter.grad = torch.tensor(gradient, dtype=dtype)
    return parameter


def snapshot(optimizer):
    """Return copies of all parameters, and what is kept."""
    held = [one for group in optimizer.param_groups for one in group["params"]]
    return [one.detach().clone() for one in held], copy.deepcopy(optimizer.state_dict())


def require_untouched(optimizer, before):
    held, state = snapshot(optimizer)
    assert same(held, before[0])
    assert repr(state) == repr(before[1])


# ------------------------------------------------------------------------------- torch is right


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_as_the_fused_ones(backend, algorithm, dtype):
    options = {"lr": 0.05, **ALGORITHMS[algorithm]}
    model = network(dtype)
    other = copy.deepcopy(model)
    train(model, ours(algorithm)(model, **options), range(12))
    train(other, theirs(algorithm)(other.parameters(), fused=True, **options), range(12))
    assert largest_difference(model, other) < (1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("algorithm", ["SGD with momentum", "AdamW"])
def test_bits_are_those_of_arrays(backend, algorithm):
    """The same step as fastreg.optimizers takes, whichever front it comes from."""
    model = network()
    arrays = {name: one.detach().numpy().copy() for name, one in model.named_parameters()}
    options = {
        "lr": 0.05,
        "rules": {"0.*": (L1L2(1e-2, 1e-2), "gradient"), "2.weight": L1(1.0)},
        "max_norm": 0.5,
        **ALGORITHMS[algorithm],
    }
    optimizer = ours(algorithm)(model, **options)
    other = getattr(fastreg.optimizers, type(optimizer).__name__)(arrays, **options)
    for number in range(4):
        backward(model, number)
        grads = {name: one.grad.numpy().copy() for name, one in model.named_parameters()}
        optimizer.step()
        assert optimizer.last == other.step(grads)
    for name, one in model.named_parameters():
        assert one.detach().numpy().tobytes() == arrays[name].tobytes()
    assert optimizer.steps == other.steps == 4
    assert optimizer.last.zeros > 0


@pytest.mark.parametrize("algorithm", ["SGD with momentum", "AdamW"])
@pytest.mark.parametrize("schedule", ["LambdaLR", "OneCycleLR"])
def test_schedulers(algorithm, schedule):
    options = {"lr": 0.05, **ALGORITHMS[algorithm]}
    model = network()
    other = copy.deepcopy(model)
    pairs = [
        (model, ours(algorithm)(model, **options)),
        (other, theirs(algorithm)(other.parameters(), fused=True, **options)),
    ]
    for one, optimizer in pairs:
        if schedule == "LambdaLR":
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.9**n)
        else:
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12)
        for number in range(10):
            backward(one, number)
            optimizer.step()
            scheduler.step()
    first, second = [optimizer.param_groups[0] for _, optimizer in pairs]
    assert first["lr"] == second["lr"] != 0.05
    assert first.get("momentum") == second.get("momentum")
    assert first.get("betas") == second.get("betas")
    assert largest_difference(model, other) < 2e-6


def test_the_learning_rate_may_be_set_and_be_a_tensor():
    rate = torch.tensor(0.5)
    parameter = one_parameter([1.0, 2.0], [1.0, 1.0])
    optimizer = fastreg.torch.SGD([parameter], lr=rate)
    optimizer.step()
    assert parameter.tolist() == [0.5, 1.5]
    rate.fill_(0.25)
    optimizer.step()
    assert parameter.tolist() == [0.25, 1.25]
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert parameter.tolist() == [-0.75, 0.25]
    optimizer.param_groups[0]["lr"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"'lr'] must be a number or a tensor of one element"):
        optimizer.step()
    assert parameter.tolist() == [-0.75, 0.25]


def test_groups_have_their_own_options():
    model = network()
    other = copy.deepcopy(model)

    def groups(of):
        return [
            {"params": of[0].named_parameters("0"), "lr": 0.01},
            {"params": of[2].named_parameters("2"), "momentum": 0.5},
        ]

    options = {"lr": 0.1, "momentum": 0.9}
    rules = {"*.weight": L1(0.0)}
    train(model, fastreg.torch.SGD(groups(model), rules=rules, **options))
    train(other, torch.optim.SGD(groups(other), fused=True, **options))
    assert largest_difference(model, other) < 2e-6


def test_a_group_that_is_added():
    model = network()
    rules = {"*.weight": L1(0.5), "*.bias": None}
    optimizer = fastreg.torch.SGD(model[0].named_parameters("0"), lr=0.1, rules=rules)
    backward(model, 0)
    optimizer.step()
    assert optimizer.last.size == 35
    optimizer.add_param_group({"params": model[2].named_parameters("2"), "lr": 0.2})
    backward(model, 1)
    optimizer.step()
    assert optimizer.last.size == 35 + 21
    before = snapshot(optimizer)
    extra = ("0.weight", nn.Parameter(torch.ones(2)))
    with pytest.raises(ValueError, match=r"^two parameters have the name '0\.weight'"):
        optimizer.add_param_group({"params": [extra]})
    with pytest.raises(
        ValueError, match=r"^param_groups\[2\]\['lr'\] must be a finite number >= 0"
    ):
        optimizer.add_param_group({"params": [("new", extra[1])], "lr": -1.0})
    assert len(optimizer.param_groups) == 2
    require_untouched(optimizer, before)
    optimizer.step()


def test_closures():
    model = network()
    other = copy.deepcopy(model)
    optimizer = fastreg.torch.SGD(model, lr=0.1)
    for number in range(3):
        loss = optimizer.step(lambda number=number: backward(model, number))
        assert loss.item() > 0.0
    train(other, torch.optim.SGD(other.parameters(), lr=0.1, fused=True), range(3))
    assert largest_difference(model, other) < 2e-6


def test_hooks_copies_and_pickles():
    model = network()
    optimizer = fastreg.torch.AdamW(model, rules={"*.weight": L1(1e-3)}, max_norm=1.0)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    train(model, optimizer, range(3))
    assert calls == ["before", "after"] * 3
    for made in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert (made.steps, made.last, made.max_norm) == (3, optimizer.last, 1.0)
        held, ours_now = [[*one.param_groups[0]["params"]] for one in (made, optimizer)]
        for parameter, mine in zip(held, ours_now, strict=True):
            parameter.grad = mine.grad.clone()
        calls.clear()
        made.step()
        assert calls == []  # as torch's optimizers, hooks are not copied
        other = copy.deepcopy(optimizer)
        for parameter, mine in zip(other.param_groups[0]["params"], ours_now, strict=True):
            parameter.grad = mine.grad.clone()
        other.step()
        assert same(held, other.param_groups[0]["params"])
        assert made.last == other.last != optimizer.last


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("algorithm", ["SGD with momentum", "AdamW"])
def test_in_what_torch_compiles(algorithm):
    torch.compiler.reset()
    options = {"lr": 0.05, **ALGORITHMS[algorithm], "rules": L1(1e-3)}
    model = network()
    other = copy.deepcopy(model)
    optimizer = ours(algorithm)(model, **options)
    compiled = torch.compile(optimizer.step, backend="eager")
    for number in range(3):
        backward(model, number)
        compiled()
    eager = ours(algorithm)(other, **options)
    train(other, eager, range(3))
    assert same(model.parameters(), other.parameters())
    assert optimizer.last == eager.last


# ------------------------------------------------------------------------------- GradScaler


@pytest.mark.parametrize("algorithm", ["SGD with momentum", "AdamW"])
def test_grad_scaler(algorithm):
    options = {"lr": 0.05, **ALGORITHMS[algorithm]}
    model = network()
    other = copy.deepcopy(model)
    optimizer = ours(algorithm)(model, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for number in range(5):
        scaled_backward(model, number, scaler)
        scaler.step(optimizer)
        scaler.update()
    train(other, theirs(algorithm)(other.parameters(), fused=True, **options))
    assert largest_difference(model, other) < 2e-6
    assert optimizer.steps == 5
    assert not hasattr(optimizer, "grad_scale")


def scaled_backward(model, number, scaler):
    backward(model, number, scaler.scale(torch.tensor(1.0)))


@pytest.mark.parametrize("unscales", [False, True])
def test_grad_scaler_skips(unscales):
    model = network()
    optimizer = fastreg.torch.AdamW(model, rules=L1(1e-2), max_norm=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    train(model, optimizer)
    before = snapshot(optimizer)
    scaled_backward(model, 9, scaler)
    model[2].bias.grad[1] = math.inf
    if unscales:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.last.skipped
    assert optimizer.last.penalty > 0.0
    assert scaler.get_scale() == 2.0**11
    require_untouched(optimizer, before)
    scaled_backward(model, 10, scaler)
    scaler.step(optimizer)
    assert not optimizer.last.skipped


# ------------------------------------------------------------------------------- torch is wrong


def test_clip_of_half_precision():
    """A norm whose square float16 cannot hold: torch finds infinity, and zeroes all gradients."""
    gradient = torch.full((1_000_000,), 300.0, dtype=torch.float16)
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient.clone()
    assert torch.nn.utils.clip_grad_norm_([parameter], 1000.0).item() == math.inf
    assert not parameter.grad.any()
    parameter.grad = gradient
    optimizer = fastreg.torch.SGD([parameter], lr=1.0, max_norm=1000.0)
    optimizer.step()
    assert optimizer.last.norm == 300_000.0
    assert parameter[0].item() == -float(np.float16(np.float32(300.0) * np.float32(1 / 300)))


def test_clip_of_large_gradients():
    gradient = torch.full((4,), 3e19)
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = gradient.clone()
    assert torch.nn.utils.clip_grad_norm_([parameter], 1.0).item() == math.inf
    assert not parameter.grad.any()
    parameter.grad = gradient
    optimizer = fastreg.torch.SGD([parameter], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.last.norm == pytest.approx(6e19)
    assert parameter.tolist() == pytest.approx([-0.5] * 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sgd_of_half_precision(backend, dtype):
    """torch's fused one leaves whole blocks as they are; its loop shows what is right."""
    parameter, other = [nn.Parameter(torch.ones(64, dtype=dtype)) for _ in range(2)]
    for one in (parameter, other):
        one.grad = torch.full((64,), 0.5, dtype=dtype)
    torch.optim.SGD([other], lr=0.5, fused=True).step()
    assert (other == 1.0).any()
    fastreg.torch.SGD([parameter], lr=0.5).step()
    assert (parameter == 0.75).all()


def test_momentum_after_a_skipped_first_step():
    """torch's fused one reads a buffer that nobody has written; what was there becomes weights."""
    parameter, other = [one_parameter([1.0] * 8, [0.5] * 8) for _ in range(2)]
    for one, kind in ((parameter, fastreg.torch.SGD), (other, torch.optim.SGD)):
        optimizer = kind([one], lr=0.5, momentum=0.9, fused=True)
        for found in (1.0, 0.0):
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(found)
            optimizer.step()
        if one is other:  # the buffer is there although no step was taken: not a first step
            assert "momentum_buffer" in optimizer.state[one]
    assert parameter.tolist() == [0.75] * 8


def test_the_second_moment_decays():
    """In bfloat16 0.999 * v is v again."""
    parameter, other = [one_parameter([1.0], [1.0], torch.bfloat16) for _ in range(2)]
    moments = []
    for one, kind in ((parameter, fastreg.torch.AdamW), (other, torch.optim.AdamW)):
        optimizer = kind([one], lr=1e-3, fused=True)
        optimizer.step()
        before = optimizer.state[one]["exp_avg_sq"].item()
        one.grad = torch.zeros_like(one)
        for _ in range(1000):
            optimizer.step()
        moments.append(optimizer.state[one]["exp_avg_sq"].item() / before)
    assert moments[1] == 1.0
    assert moments[0] == pytest.approx(0.999**1000, rel=1e-4)
    assert optimizer.state[other]["exp_avg_sq"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_in_the_type_of_the_arithmetic(dtype):
    model = network(dtype)
    optimizer = fastreg.torch.AdamW(model, amsgrad=True)
    train(model, optimizer, range(2))
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    for one in optimizer.state.values():
        assert [*one] == ["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"]
        assert {x.dtype for x in one.values() if isinstance(x, torch.Tensor)} == {wanted}


def test_sixteen_million_steps():
    """A step that float32 cannot count on from."""
    parameter = one_parameter([1.0], [0.5])
    optimizer = fastreg.torch.AdamW([parameter])
    optimizer.step()
    optimizer.state[parameter]["step"] = 2**24
    optimizer.step()
    optimizer.step()
    assert optimizer.state[parameter]["step"] == 2**24 + 2


# ------------------------------------------------------------------------------- penalties


def test_rules_take_kernels_globs_pairs_and_functions():
    model = network()
    weights = 35 + 21
    cases = [
        (fastreg.torch.kernels(L1(0.1)), weights),
        ((fastreg.torch.kernels(L1(0.1)), "gradient"), weights),
        (
            {"0.bias": None, "*": fastreg.torch.kernels(L1(0.1)), "*.bias": (L2(1.0), "decoupled")},
            59,
        ),
        (L1(0.1), weights + 10),
        ("l1", weights + 10),
        (lambda name, one: (L1(0.1), "gradient") if one.ndim == 2 else None, weights),
        ({"2.*": L1L2(0.1, 0.1)}, 24),
    ]
    for rules, size in cases:
        optimizer = fastreg.torch.SGD(model, lr=0.1, rules=rules)
        backward(model, 0)
        optimizer.step()
        assert optimizer.last.size == size
    assert repr(optimizer).endswith("with rules for 2 of 4 parameters: '2.weight', '2.bias'")


def test_one_rule_needs_no_names():
    parameter = one_parameter([1.0, -0.125], [0.0, 0.0])
    optimizer = fastreg.torch.SGD([{"params": [parameter]}], lr=0.5, rules=L1(0.5))
    optimizer.step()
    assert parameter.tolist() == [0.75, 0.0]
    assert optimizer.last == (0.375, None, 1, False, 2)


def test_strengths_follow_their_regularizer_and_the_step():
    parameter = one_parameter([4.0], [0.0])
    rule = L1(1.0)
    optimizer = fastreg.torch.SGD([parameter], lr=1.0, rules=rule, strength=lambda step: step / 2)
    for strength, wanted in ((1.0, 4.0), (1.0, 3.5), (0.5, 3.0)):
        rule.l1 = strength
        optimizer.step()
        assert parameter.item() == wanted
    optimizer.strength = 0.0
    optimizer.step()
    assert parameter.item() == 3.0


def test_independent_rates_follow_the_schedule():
    for initial, factor in ((None, 1.5), (4.0, 0.375)):
        parameter = one_parameter([4.0], [0.0])
        optimizer = fastreg.torch.SGD(
            [parameter],
            lr=1.0,
            rules=L1(1.0),
            mode="decoupled",
            independent=True,
            initial_lr=initial,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5**n)
        for _ in range(2):
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["initial_lr"] == 1.0
        assert parameter.item() == 4.0 - factor
    # Without a scheduler it is the rate that the group began with.
    parameter = one_parameter([4.0], [0.0])
    optimizer = fastreg.torch.SGD(
        [parameter], lr=2.0, rules=L1(1.0), mode="decoupled", independent=True
    )
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert parameter.item() == 3.75


def test_parameters_without_a_gradient_stay():
    model = network()
    optimizer = fastreg.torch.AdamW(model, rules=L1(1.0), weight_decay=0.5)
    train(model, optimizer, range(2))
    model[0].requires_grad_(False)
    before = [one.clone() for one in model[0].parameters()]
    model.zero_grad()
    train(model, optimizer, range(2))
    assert same(before, model[0].parameters())
    assert optimizer.last.size == 24
    assert [one["step"] for one in optimizer.state.values()] == [2, 2, 4, 4]
    model[0].requires_grad_(True)
    train(model, optimizer, range(2))
    assert [one["step"] for one in optimizer.state.values()] == [4, 4, 6, 6]
    model.zero_grad()
    optimizer.step()
    assert optimizer.last == (0.0, None, 0, False, 0)


def test_tied_parameters_step_once():
    model = network()
    model.add_module("again", nn.Linear(7, 3))
    model.again.weight = model[2].weight
    other = copy.deepcopy(model)
    for params in (model, model.named_parameters(remove_duplicate=False)):
        optimizer = fastreg.torch.SGD(params, lr=0.1, rules={"2.*": "l1", "*": None})
        assert len(optimizer.param_groups[0]["params"]) == 5
    with pytest.raises(
        ValueError, match=r"further names of tied tensors \('again\.weight' to '2\.w"
    ):
        fastreg.torch.SGD(model, lr=0.1, rules={"again.weight": "l1"})
    optimizer = fastreg.torch.SGD(model, lr=0.1)
    model.again.bias.requires_grad_(False)
    model[2].weight.grad = torch.ones(3, 7)
    optimizer.step()
    assert torch.allclose(model[2].weight, other[2].weight - 0.1)
    shared = [nn.Parameter(model[0].weight.detach()), nn.Parameter(model[0].weight.detach())]
    for one in shared:
        one.grad = torch.ones_like(one)
    optimizer = fastreg.torch.SGD([("a", shared[0]), ("b", shared[1])], lr=0.1)
    with pytest.raises(ValueError, match=r"^the parameter 'b' overlaps the parameter 'a' in mem"):
        optimizer.step()


# ------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, r"^param_groups\[0\]\['lr'\] must be a finite number >= 0"),
        (
            {"lr": torch.ones(2)},
            ValueError,
            r"^param_groups\[0\]\['lr'\] must be a number or a ten",
        ),
        (
            {"lr": lambda step: 0.1},
            TypeError,
            r"\['lr'\] must be a number, not a function; use a s",
        ),
        ({"nesterov": True}, ValueError, r"\['nesterov'\] needs a momentum > 0 and a dampening of"),
        ({"fused": "no"}, TypeError, r"\['fused'\] must be True or False, not str 'no'"),
        ({"foreach": 1}, TypeError, r"\['foreach'\] must be True or False, not int 1"),
        ({"differentiable": True}, ValueError, r"\['differentiable'\] must be False: this step is"),
        ({"mode": "prox"}, ValueError, "^mode must be one of"),
        ({"clip": "all"}, ValueError, "^clip must be one of"),
        ({"on_nonfinite": "stop"}, ValueError, "^on_nonfinite must be one of"),
        ({"max_norm": -1.0}, ValueError, "^max_norm must be a number >= 0"),
        ({"rules": {"*.kernel": "l1"}}, ValueError, r"^rules\['\*\.kernel'\] matches no tensor"),
        (
            {"rules": {"*": (L1(0.1), "prox")}},
            ValueError,
            r"^the mode of rules\['\*'\] must be one",
        ),
        (
            {"rules": OrthogonalRegularizer()},
            TypeError,
            r"^the rule of the parameter '0\.weight', O",
        ),
        (
            {"rules": lambda name, one: torch.sum},
            TypeError,
            "in an optimizer, which takes L1, L2 an",
        ),
        (
            {"independent": True, "lr": 0.0},
            ValueError,
            "^lr must be a number > 0 where independent",
        ),
        ({"initial_lr": 0.0}, ValueError, "^initial_lr must be a number > 0"),
    ],
)
def test_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fastreg.torch.SGD(network(), **{"lr": 0.1, **arguments})


def test_arguments_of_adamw():
    model = network()
    with pytest.raises(ValueError, match="capturable=True is for parameters on CUDA"):
        fastreg.torch.AdamW(model, capturable=True).step()
    with pytest.raises(
        ValueError, match=r"^param_groups\[0\]\['betas'\]\[1\] must be a number from"
    ):
        fastreg.torch.AdamW(model, betas=(0.9, 1.0))
    with pytest.raises(TypeError, match=r"\['capturable'\] must be True or False, not str 'yes'"):
        fastreg.torch.AdamW(model, capturable="yes")
    with pytest.raises(TypeError, match=r"^param_groups\[0\]\['betas'\] must be a pair of numbers"):
        fastreg.torch.AdamW(model, betas=0.9)
    with pytest.raises(ValueError, match=r"\['decoupled_weight_decay'\] must be True"):
        fastreg.torch.AdamW([{"params": model.parameters(), "decoupled_weight_decay": False}])


def test_rules_by_name_need_names():
    model = network()
    with pytest.raises(TypeError, match=r"^rules go by name, but params are tensors without names"):
        fastreg.torch.SGD(model.parameters(), rules={"*": "l1"})
    with pytest.raises(TypeError, match=r"which tells weights by the modules that hold them; pass"):
        fastreg.torch.SGD(model.named_parameters(), rules=fastreg.torch.kernels("l1"))
    with pytest.raises(TypeError, match=r"^the parameters '0.weight', '0.bias' are lazy"):
        fastreg.torch.SGD(nn.Sequential(nn.LazyLinear(3)), rules={"*.weight": "l1"})


def test_sparse_gradients():
    model = nn.Embedding(4, 2, sparse=True)
    optimizer = fastreg.torch.SGD(model, lr=0.1)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(
        TypeError, match=r"^the gradient of the parameter 'weight' is sparse \(torch"
    ):
        optimizer.step()
    unnamed = fastreg.torch.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        TypeError, match=r"^the gradient of param_groups\[0\]\['params'\]\[0\] is spa"
    ):
        unnamed.step()


@pytest.mark.parametrize("algorithm", ["SGD with momentum", "AdamW"])
def test_all_or_nothing(backend, algorithm):
    """Infinities in one of many, before and after the first step."""
    model = network()
    optimizer = ours(algorithm)(model, lr=0.1, rules=L1(1e-2), max_norm=1.0)
    for number in range(2):
        backward(model, number)
        model[2].weight.grad[1, 1] = math.nan
        model[2].bias.grad[0] = math.inf
        before = snapshot(optimizer)
        with pytest.raises(
            ValueError, match=r"^the gradient of the parameter '2\.weight' has 1 element that is"
        ):
            optimizer.step()
        require_untouched(optimizer, before)
        optimizer.param_groups[0]["lr"] = -1.0
        with pytest.raises(ValueError, match=r"^param_groups\[0\]\['lr'\] must be a finite"):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
        require_untouched(optimizer, before)
        train(model, optimizer, [number])
    skipping = ours(algorithm)(model, lr=0.1, rules=L1(1e-2), on_nonfinite="skip")
    backward(model, 3)
    model[0].bias.grad[0] = math.inf
    before = snapshot(skipping)
    skipping.step()
    assert skipping.last.skipped
    assert skipping.last.norm == math.inf
    assert skipping.steps == 0
    require_untouched(skipping, before)


def test_parameters_that_were_replaced():
    """By others at the same places, as engines that shard do; not by more or fewer."""
    model = network()
    optimizer = fastreg.torch.SGD(model, lr=0.5, rules={"*.weight": L1(0.5), "*.bias": None})
    train(model, optimizer, range(1))
    held = optimizer.param_groups[0]["params"]
    new = one_parameter([1.0], [0.0])
    held[0] = new
    optimizer.step()
    assert new.item() == 0.75
    del held[0]
    with pytest.raises(
        ValueError, match=r"^param_groups have \[3\] parameters, but \[4\] when they"
    ):
        optimizer.step()


def test_versions_tell_autograd():
    parameter = one_parameter([1.0], [0.5])
    saved = (parameter * parameter).sum()
    fastreg.torch.SGD([parameter], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_options_that_would_do_nothing_are_refused():
    for options in ({"cautious": True}, {"independent": True}):
        with pytest.raises(ValueError, match="is for rules of the mode"):
            fastreg.torch.SGD([one_parameter([1.0], [0.0])], lr=1.0, rules=L1(1.0), **options)


@pytest.mark.parametrize("algorithm", ["SGD", "AdamW"])
def test_options_that_are_set_work_or_speak_up(algorithm):
    options = {"SGD": {"momentum": 0.5}, "AdamW": {"betas": (0.5, 0.5)}}[algorithm]
    parameter = one_parameter([0.0], [8.0])
    optimizer = getattr(fastreg.torch, algorithm)([parameter], lr=1.0, **options)
    for name in ("on_nonfinite", "clip", "rules", "mode", "independent", "initial_lr", "cautious"):
        with pytest.raises(AttributeError, match=f"^'{name}' .*do nothing; .*a new optimizer"):
            setattr(optimizer, name, "skip")
    for name in ("lr", "weight_decay", *options):
        with pytest.raises(AttributeError, match=f"^'{name}' .* group.'{name}'. = "):
            setattr(optimizer, name, 0.5)
    if algorithm == "AdamW":
        with pytest.raises(AttributeError, match=r"^'scaled' "):
            optimizer.scaled = True
    optimizer.of_the_user = 1  # as torch's
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 1.0


def test_a_clip_that_is_set_between_steps():
    parameter = one_parameter([0.0], [8.0])
    optimizer = fastreg.torch.SGD([parameter], lr=1.0)
    optimizer.max_norm = 2.0
    optimizer.step()
    assert parameter.item() == pytest.approx(-2.0, rel=1e-6)
    assert optimizer.last.norm == 8.0
    with pytest.raises(ValueError, match="max_norm"):
        optimizer.max_norm = -1.0


@pytest.mark.parametrize("make", [fastreg.torch.SGD, fastreg.torch.AdamW])
def test_an_interrupted_step_is_counted_if_it_was_written(monkeypatch, make):
    whole = steps_engine.backend.take_step

    def interrupted(*arguments):
        whole(*arguments)
        raise KeyboardInterrupt

    options = {"momentum": 0.9} if make is fastreg.torch.SGD else {}
    pair = [one_parameter([1.0, 2.0], [0.5, 0.25]) for _ in range(2)]
    optimizer, other = (make([one], lr=0.1, **options) for one in pair)
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(steps_engine.backend, "take_step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                optimizer.step()
        other.step()
    optimizer.step()
    other.step()
    assert torch.equal(*pair)
    assert optimizer.steps == other.steps == 3
    mine, expected = (one.state_dict()["state"][0] for one in (optimizer, other))
    assert mine.keys() == expected.keys()
    assert all(torch.equal(mine[key], expected[key]) for key in mine)


def test_a_step_that_was_not_written_is_not_counted(monkeypatch):
    def refused(*_):
        raise MemoryError

    parameter = one_parameter([1.0, 2.0], [0.5, 0.25])
    optimizer = fastreg.torch.AdamW([parameter], lr=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(steps_engine.backend, "take_step", refused)
        with pytest.raises(MemoryError):
            optimizer.step()
    assert optimizer.steps == 0
    assert not optimizer.state_dict()["state"]
    twin = one_parameter([1.0, 2.0], [0.5, 0.25])
    other = fastreg.torch.AdamW([twin], lr=0.1)
    optimizer.step()
    other.step()
    assert torch.equal(parameter, twin)


@pytest.mark.parametrize("option", [{"rules": L1(0.5)}, {"max_norm": 0.1}, {"mode": "gradient"}])
def test_options_of_one_group_are_refused(option):
    with pytest.raises(ValueError, match="is no option of a group"):
        fastreg.torch.SGD([{"params": [one_parameter([1.0], [0.0])], **option}], lr=0.1)


def test_a_rate_that_is_changed_in_place_is_seen():
    for lr in (torch.nn.Parameter(torch.tensor(0.5)), torch.tensor(0.5)):
        parameter = one_parameter([1.0], [1.0])
        optimizer = fastreg.torch.SGD([parameter], lr=lr)
        optimizer.step()
        with torch.no_grad():
            lr.fill_(0.0)
        optimizer.step()
        assert parameter.item() == 0.5


def of_weights(name, parameter):
    return L1(0.5) if name == "weight" else None


def test_rules_by_a_function_are_pickled_and_copied():
    model = torch.nn.Linear(2, 1)
    optimizer = fastreg.torch.SGD(model, lr=0.1, rules=of_weights)
    assert pickle.loads(pickle.dumps(optimizer)).state_dict() == optimizer.state_dict()
    _, copied = copy.deepcopy((model, optimizer))
    copied.add_param_group({"params": [("weight2", one_parameter([1.0], [0.0]))]})
    assert len(copied.param_groups) == 2


def test_states_that_no_step_could_follow_are_refused():
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    sgd, adamw = fastreg.torch.SGD(model, lr=0.1, momentum=0.9), fastreg.torch.AdamW(model)
    sgd.step()
    adamw.step()
    without = copy.deepcopy(adamw.state_dict())
    for one in without["state"].values():
        del one["step"]
    nan = copy.deepcopy(adamw.state_dict())
    nan["state"][0]["step"] = torch.tensor(math.nan)
    for optimizer, given, said in (
        (adamw, sgd.state_dict(), "another algorithm"),
        (sgd, adamw.state_dict(), "another algorithm"),
        (adamw, without, "lacks 'step'"),
        (adamw, nan, "must be a number of steps"),
    ):
        groups = [{**given["param_groups"][0], **optimizer.param_groups[0], "params": [0, 1]}]
        with pytest.raises(ValueError, match=said):
            optimizer.load_state_dict({**given, "param_groups": groups})
        optimizer.step()


def test_the_size_of_a_record_is_that_of_the_parameters_now():
    parameter = one_parameter([1.0, 1.0], [1.0, 1.0])
    optimizer = fastreg.torch.SGD([parameter], lr=0.1, rules=L1(0.5))
    optimizer.step()
    parameter.data, parameter.grad = torch.zeros(100), torch.zeros(100)
    optimizer.step()
    assert (optimizer.last.size, optimizer.last.sparsity) == (100, 1.0)


def test_a_loaded_state_has_its_own_number_of_steps():
    pair = [one_parameter([1.0], [0.5]) for _ in range(2)]
    optimizer, other = fastreg.torch.AdamW(pair[:1]), torch.optim.AdamW(pair[1:])
    for _ in range(3):
        optimizer.step()
    other.step()
    optimizer.load_state_dict(other.state_dict())
    assert optimizer.steps == 1
