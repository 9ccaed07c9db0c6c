"""Penalties before optimizer steps: training equals that with the penalty in the loss."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")

import fastreg.torch  # noqa: E402
from fastreg.regularizers import L1, L1L2, L2  # noqa: E402

L1_STRENGTH, L2_STRENGTH = 1e-3, 3e-3
STEPS = 20


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    return model.to(dtype)


def data(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 5, generator=generator)
    return x.to(dtype), torch.randn(8, 3, generator=generator).to(dtype)


def error_of(model, pair):
    x, y = pair
    return (model(x) - y).square().mean()


def plain_penalty(model, dtype=torch.float32):
    return sum(
        L1_STRENGTH * p.to(dtype).abs().sum() + L2_STRENGTH * p.to(dtype).square().sum()
        for name, p in model.named_parameters()
        if name.endswith("weight")
    )


def attached(model, **activity):
    return fastreg.torch.attach(model, {"*.weight": L1L2(L1_STRENGTH, L2_STRENGTH)}, **activity)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "sgd momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "sgd fused": lambda parameters: torch.optim.SGD(parameters, lr=0.05, fused=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, eps=1e-6),
    "adam fused": lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
}


def assert_same_weights(model, expected, tolerance=1e-6):
    for name, parameter in model.named_parameters():
        difference = (parameter - expected.get_parameter(name)).abs().max().item()
        assert difference <= tolerance, name


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_weights_after_20_steps(kind, by_hand):
    model, expected = network(), network()
    optimizer, plain = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](expected.parameters())
    penalties = attached(model)
    if not by_hand:
        penalties.before_step(optimizer, max_norm=None)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        error_of(model, data(step)).backward()
        penalty = plain_penalty(expected)
        (error_of(expected, data(step)) + penalty).backward()
        found = penalties.accumulate() if by_hand else None
        optimizer.step()
        plain.step()
        assert (found or penalties.last) == pytest.approx(penalty.item(), rel=1e-4)
    assert_same_weights(model, expected)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_micro_batches_have_one_penalty_per_step(kind):
    model, expected = network(), network()
    optimizer, plain = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](expected.parameters())
    attached(model).before_step(optimizer, max_norm=None)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        for micro in range(4):
            (error_of(model, data(4 * step + micro)) / 4).backward()
            (error_of(expected, data(4 * step + micro)) / 4).backward()
        plain_penalty(expected).backward()
        optimizer.step()
        plain.step()
    assert_same_weights(model, expected)


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "sgd fused", "adam", "adam fused"])
def test_grad_scaler(kind, unscales):
    model, expected = network(), network()
    optimizer, plain = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](expected.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    attached(model).before_step(optimizer, max_norm=None)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        scaler.scale(error_of(model, data(step))).backward()
        (error_of(expected, data(step)) + plain_penalty(expected)).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        plain.step()
    assert scaler.get_scale() > 2.0**12
    assert_same_weights(model, expected)


@pytest.mark.parametrize("kind", ["sgd", "sgd fused"])
def test_a_step_that_the_scaler_skips(kind):
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    attached(model).before_step(optimizer, max_norm=None)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(error_of(model, data(0)) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.zero_grad()
    scaler.scale(error_of(model, data(0))).backward()
    scaler.step(optimizer)
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert not any(p.isnan().any() for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("sgd", torch.bfloat16),
        ("sgd", torch.float16),
        ("sgd fused", torch.float16),
        ("adam", torch.bfloat16),
    ],
)
def test_half_precision_parameters(kind, dtype):
    """One rounding of the sum, where autograd rounds each part: equal within the dtype's steps."""
    model, expected = network(dtype), network(dtype)
    optimizer, plain = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](expected.parameters())
    attached(model).before_step(optimizer, max_norm=None)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        error_of(model, data(step, dtype)).backward()
        (error_of(expected, data(step, dtype)) + plain_penalty(expected, torch.float32)).backward()
        optimizer.step()
        plain.step()
    assert_same_weights(model, expected, 32 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_with_a_scaler(dtype):
    model, expected = network(dtype), network(dtype)
    optimizer = OPTIMIZERS["sgd fused"](model.parameters())
    plain = OPTIMIZERS["sgd fused"](expected.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
    attached(model).before_step(optimizer, max_norm=None)
    hand = attached(expected)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        scaler.scale(error_of(model, data(step, dtype))).backward()
        error_of(expected, data(step, dtype)).backward()
        scaler.step(optimizer)
        scaler.update()
        hand.accumulate()
        plain.step()
    assert_same_weights(model, expected, 32 * torch.finfo(dtype).eps)


def test_a_closure():
    model, expected = network(), network()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    plain = torch.optim.LBFGS(expected.parameters(), lr=0.5, max_iter=4)
    attached(model).before_step(optimizer, max_norm=None)

    def closure():
        optimizer.zero_grad()
        loss = error_of(model, data(0))
        loss.backward()
        return loss

    def plain_closure():
        plain.zero_grad()
        loss = error_of(expected, data(0)) + plain_penalty(expected)
        loss.backward()
        return loss

    for _ in range(5):
        found, wanted = optimizer.step(closure), plain.step(closure=plain_closure)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert_same_weights(model, expected, 1e-4)
    optimizer.step(closure=closure)


def test_removed_and_closed():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model)
    assert penalties.last is None
    handle = penalties.before_step(optimizer, max_norm=None)
    optimizer.step()
    first = penalties.last
    assert first > 0.0
    handle.remove()
    assert not handle.is_active
    handle.remove()
    optimizer.step()
    assert penalties.last == first
    assert penalties.accumulate() > 0.0
    with penalties:
        penalties.before_step(optimizer, max_norm=None)
    assert not optimizer._optimizer_step_pre_hooks


def test_what_would_count_twice_is_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model)
    handle = penalties.before_step(optimizer, max_norm=None)
    with pytest.raises(RuntimeError, match="count twice"):
        penalties.accumulate()
    with pytest.raises(RuntimeError, match="count twice"):
        penalties.before_step(optimizer, max_norm=None)
    with pytest.raises(RuntimeError, match=r"count twice.*torch\.no_grad\(\)"):
        penalties.value()
    with torch.no_grad():
        assert penalties.value() > 0.0
    handle.remove()
    assert penalties.value().requires_grad


def test_an_optimizer_without_the_parameters_is_refused():
    model = network()
    penalties = attached(model)
    partial = torch.optim.SGD(model[0].parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'2\.weight'.*does not hold"):
        penalties.before_step(partial, max_norm=None)
    assert not partial._optimizer_step_pre_hooks
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        penalties.before_step(model, max_norm=None)


def test_a_parameter_replaced_under_an_optimizer_is_noticed():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model)
    penalties.before_step(optimizer, max_norm=None)
    optimizer.step()
    model[2].weight = torch.nn.Parameter(torch.ones(3, 7))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'2\.weight'.*does not hold"):
            optimizer.step()
    optimizer.add_param_group({"params": [model[2].weight]})
    optimizer.step()


def test_weight_decay_beside_l2_is_warned_of():
    model = network()
    groups = [
        {"params": [model[0].weight], "weight_decay": 0.1},
        {"params": [model[0].bias, *model[2].parameters()]},
    ]
    with pytest.warns(UserWarning, match=r"'0\.weight' have an L2 penalty and the weight_decay"):
        attached(model).before_step(torch.optim.SGD(groups, lr=0.1), max_norm=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # what is refused leaves no hook
        optimizer = torch.optim.AdamW(model.parameters())
        with pytest.raises(UserWarning, match="weight_decay"):
            attached(model).before_step(optimizer, max_norm=None)
        assert not optimizer._optimizer_step_pre_hooks
        fastreg.torch.attach(model, {"*.weight": L1(0.1)}).before_step(optimizer, max_norm=None)
        fastreg.torch.attach(model, {"2.weight": L2(0.1)}).before_step(
            torch.optim.SGD(groups, lr=0.1), max_norm=None
        )


# --------------------------------------------------------------------------------- clipping


@pytest.mark.parametrize("max_norm", [0.05, 10.0])
@pytest.mark.parametrize("kind", ["sgd momentum", "sgd fused"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_sum_is_clipped(kind, max_norm, scaled):
    model, expected = network(), network()
    optimizer, plain = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](expected.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
    attached(model).before_step(optimizer, max_norm=max_norm)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        for micro in range(2):
            scaler.scale(error_of(model, data(2 * step + micro)) / 2).backward()
            (error_of(expected, data(2 * step + micro)) / 2).backward()
        plain_penalty(expected).backward()
        norm = torch.nn.utils.clip_grad_norm_(expected.parameters(), max_norm)
        assert (norm > max_norm) == (max_norm < 1.0)
        scaler.step(optimizer)
        scaler.update()
        plain.step()
    assert_same_weights(model, expected)


def test_each_evaluation_of_a_closure_is_clipped():
    model, expected = network(), network()
    optimizer, plain = (
        torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=4) for net in (model, expected)
    )
    attached(model).before_step(optimizer, max_norm=0.05)

    def closure():
        optimizer.zero_grad()
        loss = error_of(model, data(0))
        loss.backward()
        return loss

    def plain_closure():
        plain.zero_grad()
        loss = error_of(expected, data(0)) + plain_penalty(expected)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), 0.05)
        return loss

    for _ in range(3):
        optimizer.step(closure)
        plain.step(plain_closure)
    assert_same_weights(model, expected, 1e-5)


def test_parameters_without_a_penalty_are_clipped_too():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    fastreg.torch.attach(model, {"0.weight": L2(0.1)}).before_step(optimizer, max_norm=1e-3)
    error_of(model, data(0)).backward()
    optimizer.step()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert norm.item() == pytest.approx(1e-3, rel=1e-2)


def test_whoever_says_nothing_of_clipping_is_asked():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model)
    with pytest.raises(TypeError, match=r"needs max_norm.*loss \+ penalties\.value\(\)"):
        penalties.before_step(optimizer)
    for bad in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_norm must be"):
            penalties.before_step(optimizer, max_norm=bad)
    with pytest.raises(TypeError, match="max_norm must be"):
        penalties.before_step(optimizer, max_norm="1")
    assert not optimizer._optimizer_step_pre_hooks


# ------------------------------------------------------ optimizers of which nobody calls step


class Wrapper:
    """What Lightning and Accelerate give for an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        self.optimizer.step()


def test_wrapped_optimizers_are_unwrapped():
    model = network()
    inner = OPTIMIZERS["sgd"](model.parameters())
    wrapped = Wrapper(Wrapper(inner))
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, not"):
        attached(model).before_step(Wrapper(None), max_norm=None)
    penalties = attached(model)
    penalties.before_step(wrapped, max_norm=None)
    wrapped.step()
    assert penalties.last > 0.0


class SAM(torch.optim.Optimizer):
    """As it is published: a step of its own for each half, and ``step`` for neither."""

    def __init__(self, parameters, base, rho=0.05, **arguments):
        super().__init__(parameters, {"rho": rho, **arguments})
        self.base_optimizer = base(self.param_groups, **arguments)
        self.moved = {}

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.moved[p] = p.clone()
            p.add_(p.grad, alpha=self.param_groups[0]["rho"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p, before in self.moved.items():
            p.data = before
        self.base_optimizer.step()
        self.zero_grad()


def test_a_step_that_is_never_called_is_noticed():
    model = network()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.01)
    handle = attached(model).before_step(optimizer, max_norm=None)

    def steps(count):
        for step in range(count):
            error_of(model, data(step)).backward()
            optimizer.first_step()
            error_of(model, data(step)).backward()
            optimizer.second_step()

    with pytest.warns(UserWarning, match=r"'0\.weight' has changed 3 times.*SAM\.step\(\)"):
        steps(2)
    steps(5)  # said once
    handle.remove()
    assert not model[0].weight._post_accumulate_grad_hooks
    attached(model).before_step(optimizer.base_optimizer, max_norm=None)
    steps(1)


def test_copies_have_no_watch(tmp_path):
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model)
    penalties.before_step(optimizer, max_norm=None)
    assert model[0].weight._post_accumulate_grad_hooks
    torch.save(model, tmp_path / "model")
    for copied in (copy.deepcopy(model), torch.load(tmp_path / "model", weights_only=False)):
        assert not copied[0].weight._post_accumulate_grad_hooks
    penalties.close()
    assert not model[0].weight._post_accumulate_grad_hooks


def test_what_is_no_reason_for_an_alarm():
    """Micro-batches, skipped steps, closures, and changes that a step follows."""
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    penalties.before_step(optimizer, max_norm=None)
    for step in range(6):
        for _ in range(5):
            scaler.scale(error_of(model, data(step))).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scaler.scale(error_of(model, data(step)) * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    penalties.close()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=8)
    attached(model).before_step(optimizer, max_norm=None)

    def closure():
        optimizer.zero_grad()
        loss = error_of(model, data(0))
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


# ------------------------------------------------------------------------ activity penalties


def test_activity_penalties_join_the_loss():
    model, expected = network(), network()
    optimizer, plain = (
        OPTIMIZERS["adam"](model.parameters()),
        OPTIMIZERS["adam"](expected.parameters()),
    )
    penalties = attached(model, activity_regularizer={"1": L1L2(0.02, 0.03)})
    penalties.before_step(optimizer, max_norm=None)
    for step in range(STEPS):
        optimizer.zero_grad()
        plain.zero_grad()
        loss = error_of(model, data(step)) + penalties.activity()
        loss.backward()
        x, y = data(step)
        h = expected[1](expected[0](x))
        activity = (0.02 * h.abs().sum() + 0.03 * h.square().sum()) / len(x)
        ((expected[2](h) - y).square().mean() + activity + plain_penalty(expected)).backward()
        optimizer.step()
        plain.step()
    assert_same_weights(model, expected)


def test_activity_terms_of_nested_outputs():
    class Several(torch.nn.Module):
        def forward(self, x):
            return {"a": x, "b": [x.sum(), (2 * x[:0],)], "c": "text"}

    model = Several()
    x = torch.ones(4, 3, requires_grad=True)
    for reduction, wanted in (("mean", 12 / 4 + 12), ("sum", 12 + 12)):
        with fastreg.torch.attach(
            model,
            {},
            {"": L1(1.0)},
            activity_reduction=reduction,
            activity_batch_axis={"": {"a": 0, "b": (0, (0,))}},
        ) as penalties:
            model(x)
            model(x)
            assert penalties.activity().item() == pytest.approx(2 * wanted)
            assert penalties.activity().item() == 0.0
            with torch.no_grad():
                model(x)
            assert penalties.activity().item() == 0.0
    assert not model._forward_hooks


def test_lost_activity_penalties_are_an_error():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    penalties = attached(model, activity_regularizer={"1": "l1"})
    error_of(model, data(0)).backward()
    before = model[0].weight.grad.clone()
    with pytest.raises(RuntimeError, match=r"penalties\.activity\(\)"):
        penalties.accumulate()
    assert torch.equal(model[0].weight.grad, before)
    penalties.before_step(optimizer, max_norm=None)
    error_of(model, data(0)).backward()
    with pytest.raises(RuntimeError, match=r"penalties\.activity\(\)"):
        optimizer.step()


def test_activity_penalties_under_checkpointing():
    from torch.utils.checkpoint import checkpoint

    model, expected = network(), network()
    x, _ = data(0)
    penalties = attached(model, activity_regularizer={"1": L2(0.5)})
    out = checkpoint(model, x, use_reentrant=False)
    (out.sum() + penalties.activity()).backward()
    h = expected[1](expected[0](x))
    (expected[2](h).sum() + 0.5 * h.square().sum() / len(x)).backward()
    torch.testing.assert_close(model[0].weight.grad, expected[0].weight.grad)
    penalties.accumulate()  # nothing is left over
    again = attached(network(), activity_regularizer={"1": L2(0.5)})
    x.requires_grad_()
    out = checkpoint(again._arguments[0], x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        out.sum().backward()


@pytest.mark.parametrize(
    ("rules", "reduction", "error", "message"),
    [
        ("l1", "mean", TypeError, "mapping of globs"),
        ({"9": "l1"}, "mean", ValueError, "matches no"),
        ({"1": "l1"}, "batch", ValueError, "activity_reduction"),
    ],
)
def test_activity_arguments_that_are_refused(rules, reduction, error, message):
    with pytest.raises(error, match=message):
        fastreg.torch.attach(network(), {}, rules, activity_reduction=reduction)


def test_hooks_that_outlive_their_penalties_do_nothing():
    model = network()
    penalties = attached(model, activity_regularizer={"1": "l1"})
    del penalties
    error_of(model, data(0)).backward()
