"""``loss + penalties.value()``: what a backward pass leaves in ``.grad``, however it is run."""

import sys
import threading

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

import fastreg.torch  # noqa: E402
from fastreg.regularizers import L1L2  # noqa: E402
from fastreg.torch import in_backward  # noqa: E402

STRENGTHS = 1e-2, 3e-2


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def added(monkeypatch):
    """The factors of the gradients that were added at the end of backward passes."""
    factors = []
    add = in_backward._add

    def spy(call, factor):
        factors.append(factor)
        add(call, factor)

    monkeypatch.setattr(in_backward, "_add", spy)
    return factors


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3), torch.nn.Linear(2, 2)
    return torch.nn.Sequential(*layers).to(dtype)  # the last one is used by no loss


def error_of(model):
    x = torch.linspace(-1, 1, 20, dtype=model[0].weight.dtype).reshape(4, 5)
    return model[:3](x).square().mean()


def plain_penalty(model):
    """In float32 at least, as a penalty is."""
    wide = [
        p if p.dtype == torch.float64 else p.float()
        for name, p in model.named_parameters()
        if name.endswith("weight")
    ]
    return sum(STRENGTHS[0] * w.abs().sum() + STRENGTHS[1] * w.square().sum() for w in wide)


def attached(model):
    return fastreg.torch.attach(model, {"*.weight": L1L2(*STRENGTHS)})


def assert_same_gradients(model, expected, rtol=1e-6, atol=1e-7):
    for (name, found), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), name
        if found.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=rtol, atol=atol)


# ------------------------------------------------------------------- an ordinary backward pass


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 1e-6),
        (torch.float64, 1e-14),
        (torch.bfloat16, 2**-7),
        (torch.float16, 2**-10),
    ],
)
def test_gradients_are_those_of_the_sum(dtype, tolerance, added):
    model, expected = network(dtype), network(dtype)
    penalties = attached(model)
    for _ in range(3):  # without gradients, then with all
        term = penalties.value()
        assert term.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert term.shape == ()
        assert term.item() == pytest.approx(plain_penalty(expected).item(), rel=1e-6)
        (error_of(model) + term).backward()
        (error_of(expected) + plain_penalty(expected)).backward()
        assert_same_gradients(model, expected, tolerance, tolerance)
    assert added == [1.0] * 3


def test_the_upstream_gradient_reaches_the_penalty(added):
    model, expected = network(), network()
    penalties = attached(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for micro in range(4):
        scaler.scale((error_of(model) + penalties.value()) / 4).backward()
        ((error_of(expected) + plain_penalty(expected)) / 4).backward()
        if micro == 0:
            (0.5 * penalties.value(scale=3.0)).backward()
            (0.5 * 3.0 * plain_penalty(expected) / 2**12).backward()
    for p in expected.parameters():
        p.grad = None if p.grad is None else p.grad * 2**12
    assert_same_gradients(model, expected, 1e-6, 1e-3)
    assert added == [2.0**10, 0.5] + [2.0**10] * 3


@pytest.mark.parametrize("fused", [False, True])
def test_optimizers_that_a_scaler_unscales_for_and_those_that_do_it_themselves(fused):
    model, expected = network(), network()
    optimizer, plain = (
        torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0, fused=fused)
        for net in (model, expected)
    )
    penalties = attached(model)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2) for _ in "12"]
    for step in range(6):
        for net, one, scaler in ((model, optimizer, scalers[0]), (expected, plain, scalers[1])):
            penalty = penalties.value() if net is model else plain_penalty(net)
            one.zero_grad()
            # one step is skipped
            scaler.scale((error_of(net) + penalty) * (torch.inf if step == 3 else 1.0)).backward()
            scaler.step(one)
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**13
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-5)


@pytest.mark.parametrize("change", ["moved", "converted", "frozen", "tied", "replaced"])
def test_a_module_that_changes_between_the_calls(change):
    model, expected = network(), network()
    penalties = attached(model)
    penalties.value().backward()
    for net in (model, expected):
        net.zero_grad()
        if change == "moved":
            net[0].weight.data = net[0].weight.detach() + 1.0
        elif change == "converted":
            net.double()
        elif change == "frozen":
            net[0].weight.requires_grad_(False)
        elif change == "tied":
            net[0].weight = net[2].weight = torch.nn.Parameter(torch.ones(7, 7))
        else:
            net[0].weight = torch.nn.Parameter(torch.ones(7, 5))
    weights = {id(m.weight): m.weight for m in (expected[0], expected[2], expected[3])}
    trained = [w for w in weights.values() if w.requires_grad]
    wanted = sum(STRENGTHS[0] * w.abs().sum() + STRENGTHS[1] * w.square().sum() for w in trained)
    wanted.backward()
    found = penalties.value()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert found.dtype == wanted.dtype
    found.backward()
    assert_same_gradients(model, expected)


def test_gradients_stay_the_tensors_that_they_are(added):
    model = network()
    penalties = attached(model)
    error_of(model).backward()
    before = [p.grad for p in model[:3].parameters()]
    penalties.value().backward()
    assert all(p.grad is one for p, one in zip(model[:3].parameters(), before, strict=True))
    assert added == [1.0]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.add_(1.0),
        lambda v: v.mul_(3.0),
        lambda v: v.view(1).mul_(3.0),
        lambda v: v.zero_(),
    ],
)
def test_a_loss_that_is_changed_in_place(change, added):
    model, expected = network(), network()
    for net, loss in ((model, attached(model).value()), (expected, plain_penalty(expected))):
        change(loss)
        loss += error_of(net)
        loss.backward()
    assert_same_gradients(model, expected)
    assert len(added) == 1


def test_gradients_of_another_dtype_than_their_parameters():
    if not hasattr(torch.Tensor, "grad_dtype"):
        pytest.skip("torch before 2.10 has none")
    model = network(torch.bfloat16)
    model[0].weight.grad_dtype = torch.float32
    for _ in range(2):
        attached(model).value().backward()
    assert model[0].weight.grad.dtype == torch.float32
    w = model[0].weight.detach().float()
    wanted = 2 * (STRENGTHS[0] * w.sign() + 2 * STRENGTHS[1] * w)
    torch.testing.assert_close(model[0].weight.grad, wanted, rtol=2**-7, atol=0)


def test_a_module_that_torch_swaps_the_tensors_of():
    model = network()
    penalties = attached(model)
    penalties.value().backward()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model[0].weight.grad.dtype == torch.float64
    model.zero_grad()
    penalties.accumulate()


def test_strengths_are_those_of_the_forward_pass():
    model, expected = network(), network()
    penalties = attached(model)
    term = penalties.value()
    penalties.rules["*.weight"].l2 = 7.0
    term.backward()
    plain_penalty(expected).backward()
    assert_same_gradients(model, expected)


@pytest.mark.parametrize("factor", [float("inf"), float("nan"), 1e38])
def test_a_factor_that_gradients_overflow_with(factor):
    """Infinities and NaN, which a GradScaler looks for, as plain operators give them."""
    model, expected = network(), network()
    with torch.no_grad():
        for net in (model, expected):
            net[0].weight.fill_(1e3)
    (attached(model).value() * factor).backward()
    (plain_penalty(expected) * factor).backward()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        if q.grad is not None:
            assert torch.equal(p.grad.isfinite(), q.grad.isfinite())


def test_parameters_that_were_frozen_in_between():
    model, expected = network(), network()
    error_of(model).backward()
    error_of(expected).backward()
    term, plain = attached(model).value(), plain_penalty(expected)
    model[0].weight.requires_grad_(False)
    expected[0].weight.requires_grad_(False)
    term.backward()
    plain.backward()
    assert_same_gradients(model, expected)


def test_sparse_gradients_become_whole_ones(added):
    def embedding():
        torch.manual_seed(0)
        return torch.nn.Embedding(5, 2, sparse=True)

    model, expected = embedding(), embedding()
    penalties = fastreg.torch.attach(model, L1L2(*STRENGTHS))
    rows = torch.tensor([1, 3])
    (model(rows).sum() + penalties.value()).backward()
    w = expected.weight
    penalty = STRENGTHS[0] * w.abs().sum() + STRENGTHS[1] * w.square().sum()
    (expected(rows).sum() + penalty).backward()
    torch.testing.assert_close(model.weight.grad.to_dense(), expected.weight.grad.to_dense())
    assert added == [1.0]


# --------------------------------------------------------- where autograd has to have gradients


@pytest.mark.parametrize("penalty_first", [False, True])
def test_what_else_is_done_at_the_end_of_the_pass_comes_first(penalty_first, added):
    """As DistributedDataParallel does it: callbacks of hooks write what was averaged."""
    engine = torch.autograd.Variable._execution_engine
    model, expected = network(), network()

    def halved():
        model[0].weight.grad *= 0.5

    class Averages(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            engine.queue_callback(halved)
            return upstream

    penalties = attached(model)
    if penalty_first:
        term = penalties.value()
        loss = Averages.apply(error_of(model)) + term
    else:
        loss = Averages.apply(error_of(model)) + penalties.value()
    loss.backward()
    error_of(expected).backward()
    expected[0].weight.grad *= 0.5
    plain_penalty(expected).backward()
    assert_same_gradients(model, expected)
    assert added == [1.0]


def test_hooks_of_parameters_see_the_sum(added):
    model, expected = network(), network()
    seen = {}
    for key, net in (("found", model), ("wanted", expected)):
        seen[key] = []
        net[0].weight.register_hook(lambda g: g * (g.abs() > 1e-2))
        net[2].weight.register_post_accumulate_grad_hook(
            lambda p, key=key: seen[key].append(p.grad.clone())
        )
    (error_of(model) + attached(model).value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    torch.testing.assert_close(seen["found"], seen["wanted"])
    assert added == []


def test_hooks_of_the_nodes_of_parameters_see_the_sum(added):
    """Frameworks that average gradients had them before parameters had hooks of their own."""
    model, expected = network(), network()
    seen = {}
    for key, net in (("found", model), ("wanted", expected)):
        seen[key] = []
        nodes = [torch.autograd.graph.get_gradient_edge(net[at].weight).node for at in (0, 2)]
        nodes[0].register_prehook(lambda upstream: (2 * upstream[0],))
        nodes[1].register_hook(
            lambda *_, key=key, net=net: seen[key].append(net[2].weight.grad.clone())
        )
        penalty = attached(net).value() if net is model else plain_penalty(net)
        (error_of(net) + penalty).backward()
    assert_same_gradients(model, expected)
    torch.testing.assert_close(seen["found"], seen["wanted"])
    assert added == []
    del nodes, penalty
    attached(model).value().backward()  # they are gone with their nodes
    assert added == [1.0]


def test_parameters_that_are_computed_from_others(added):
    """As ``functional_call`` puts them in, and libraries for meta-learning."""

    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.penalties = attached(self.net)

        def forward(self, is_plain):
            penalty = plain_penalty(self.net) if is_plain else self.penalties.value()
            return error_of(self.net) + penalty

    gradients = []
    for is_plain in (False, True):
        step = Step()
        step(is_plain).backward()
        assert len(added) == 1
        step.zero_grad()
        moved = {name: w * (w + 1.0) for name, w in step.named_parameters()}
        torch.func.functional_call(step, moved, (is_plain,)).backward()
        gradients.append([w.grad for w in step.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    assert len(added) == 1


def test_accumulate_has_no_parameters_that_are_computed_from_others():
    model = network()
    penalties = attached(model)
    model[0]._parameters["weight"] = 2.0 * model[0].weight
    with pytest.raises(RuntimeError, match=r"'0\.weight' is computed from other tensors"):
        penalties.accumulate()
    assert model[2].weight.grad is None


def test_the_hook_of_before_step_needs_no_gradient(added):
    """Of other penalties on the same module, which count beside these."""
    model, expected = network(), network()
    others = attached(model)
    handle = others.before_step(torch.optim.SGD(model.parameters(), lr=0.1), max_norm=None)
    assert model[0].weight._post_accumulate_grad_hooks
    (error_of(model) + attached(model).value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    assert added == [1.0]
    handle.remove()


def test_hooks_that_are_gone_are_none(added):
    model = network()
    handles = [
        model[0].weight.register_hook(lambda g: g),
        model[0].weight.register_post_accumulate_grad_hook(lambda p: None),
    ]
    for handle in handles:
        handle.remove()
    attached(model).value().backward()
    assert added == [1.0]


def test_an_optimizer_that_steps_inside_of_the_backward_pass(added):
    apply_in_backward = pytest.importorskip("torch.distributed.optim")._apply_optimizer_in_backward
    model, expected = network(), network()
    apply_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    penalties = attached(model)
    (error_of(model) + penalties.value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        wanted = q if q.grad is None else q - 0.1 * q.grad
        torch.testing.assert_close(p, wanted)
    assert added == []


def test_gradients_that_are_asked_for(added):
    model, expected = network(), network()
    penalties = attached(model)
    weights = [net[0].weight for net in (model, expected)]
    (found,) = torch.autograd.grad(error_of(model) + 2 * penalties.value(), weights[0])
    (wanted,) = torch.autograd.grad(error_of(expected) + 2 * plain_penalty(expected), weights[1])
    torch.testing.assert_close(found, wanted)
    (error_of(model) + penalties.value()).backward(inputs=[weights[0]])
    (error_of(expected) + plain_penalty(expected)).backward(inputs=[weights[1]])
    assert_same_gradients(model, expected)
    assert added == []


def test_gradients_of_gradients():
    model, expected = network(), network()
    for net, penalty in ((model, attached(model).value()), (expected, plain_penalty(expected))):
        grads = torch.autograd.grad(penalty.square(), [net[0].weight], create_graph=True)
        (error_of(net) + grads[0].square().sum()).backward()
    assert_same_gradients(model, expected, 1e-5, 1e-6)


def test_gradients_that_are_recorded(added):
    model = network()
    with pytest.warns(UserWarning, match="create_graph=True"):
        attached(model).value().backward(create_graph=True)
    gradient = model[0].weight.grad
    assert gradient.requires_grad
    model.zero_grad()
    gradient.sum().backward()
    torch.testing.assert_close(model[0].weight.grad, torch.full((7, 5), 2 * STRENGTHS[1]))
    assert added == []


def test_batched_upstream_gradients(added):
    model = network()
    w = model[0].weight
    term = attached(model).value()
    (found,) = torch.autograd.grad(
        term, w, grad_outputs=torch.tensor([1.0, 3.0]), is_grads_batched=True
    )
    slope = STRENGTHS[0] * w.detach().sign() + 2 * STRENGTHS[1] * w.detach()
    torch.testing.assert_close(found, torch.stack([slope, 3 * slope]))
    assert added == []


# --------------------------------------------------------------------------- what goes wrong


def test_parameters_modified_in_between_are_refused():
    model = network()
    term = attached(model).value()
    with torch.no_grad():
        model[2].weight.add_(1.0)
    with pytest.raises(RuntimeError, match=r"'2\.weight' was modified by an in-place operation"):
        term.backward()
    assert model[0].weight.grad is None


def test_a_backward_pass_that_fails_adds_nothing(added):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            raise ArithmeticError("no gradient")

    model = network()
    term = attached(model).value()
    with pytest.raises(ArithmeticError, match="no gradient"):
        (Fails.apply(model[0].bias.sum()) + term).backward()
    assert added == []
    assert model[0].weight.grad is None


def test_gradients_that_are_missing_appear_together_or_not_at_all():
    """A Ctrl-C at any line of what makes them, and any instruction where Python traces those."""
    model = network()
    weights = [model[at].weight for at in (0, 2, 3)]
    term = attached(model).value()
    left = 0

    def trace(frame, *_):
        nonlocal left
        if frame.f_code is in_backward._add_each.__code__:
            frame.f_trace_opcodes = True
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return trace
        return None

    before = sys.gettrace()
    interrupted = 0
    for at in range(1, 1000):
        model.zero_grad()
        left = at
        sys.settrace(trace)
        try:
            term.backward(retain_graph=True)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(before)
        assert len({w.grad is None for w in weights}) == 1, at
        if left > 0:
            break
    assert interrupted > 15
    assert weights[0].grad is not None


def test_a_gradient_whose_memory_was_freed_is_refused():
    """Torch would write to it."""
    model = network()
    attached(model).value().backward()
    for at in (0, 2):
        model[at].weight.grad = torch.zeros_like(model[at].weight)
    model[3].weight.grad = None
    model[2].weight.grad.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"grads\['2\.weight'\] .* memory was freed"):
        attached(model).value().backward()
    assert not model[0].weight.grad.any()
    assert model[3].weight.grad is None


@pytest.mark.parametrize("first", [0, 2])
def test_some_parameters_without_elements_are_refused(first):
    """What was offloaded is on the meta device between forward passes."""
    model = network()
    penalties = attached(model)
    model[first].to("meta")
    for call in (penalties.value, penalties.accumulate):
        with pytest.raises((TypeError, ValueError), match="meta"):
            call()
    assert all(p.grad is None for p in model.parameters())
    with torch.no_grad(), pytest.raises((TypeError, ValueError), match="meta"):
        penalties.value()


def test_a_second_backward_pass_needs_the_graph(added):
    model, expected = network(), network()
    term, plain = attached(model).value(), plain_penalty(expected)
    for _ in range(2):
        term.backward(retain_graph=True)
        plain.backward(retain_graph=True)
    assert_same_gradients(model, expected)
    term.backward()
    with pytest.raises(RuntimeError, match="second time"):
        term.backward()
    assert added == [1.0] * 3


# ------------------------------------------------------------------------------- counted twice


@pytest.mark.parametrize("watched", [False, True])
def test_accumulate_after_the_penalty_in_the_loss_is_refused(watched):
    model = network()
    penalties = attached(model)
    if watched:
        model[0].weight.register_hook(lambda g: g)
    (error_of(model) + penalties.value()).backward()
    before = model[0].weight.grad.clone()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="count twice"):
            penalties.accumulate()
    assert torch.equal(model[0].weight.grad, before)
    # other gradients: of a further pass, and of the next step
    error_of(model).backward()
    penalties.accumulate()
    model.zero_grad()
    error_of(model).backward()
    penalties.accumulate()
    (error_of(model) + penalties.value()).backward()
    model.zero_grad(set_to_none=False)
    penalties.accumulate()


def test_a_step_after_the_penalty_in_the_loss_is_refused():
    """Where before_step came when value() was in a loss already."""
    model = network()
    penalties = attached(model)
    term = penalties.value()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalties.before_step(optimizer, max_norm=None)
    term.backward()
    with pytest.raises(RuntimeError, match=r"count twice with before_step"):
        optimizer.step()
    optimizer.zero_grad()
    error_of(model).backward()
    optimizer.step()


def test_accumulate_while_the_penalty_in_a_loss_is_for_later():
    model = network()
    penalties = attached(model)
    assert penalties.value().requires_grad
    error_of(model).backward()
    penalties.accumulate()


# ------------------------------------------------------------------- other ways to run the pass


def test_in_a_thread(added):
    model, expected = network(), network()
    penalties = attached(model)

    def work():
        (error_of(model) + penalties.value()).backward()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    assert added == [1.0]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_checkpointing(reentrant, inside, added):
    model, expected = network(), network()
    penalties = attached(model)
    x = torch.linspace(-1, 1, 20).reshape(4, 5).requires_grad_()

    def forward(x):
        error = model[:3](x).square().mean()
        return error + penalties.value() if inside else error

    loss = checkpoint(forward, x, use_reentrant=reentrant)
    (loss if inside else loss + penalties.value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    assert added == [1.0]


@pytest.mark.parametrize("check_nan", [False, True])
def test_under_anomaly_detection(check_nan, added):
    model, expected = network(), network()
    term = attached(model).value()
    detection = torch.autograd.detect_anomaly
    with pytest.warns(UserWarning, match="Anomaly"), detection(check_nan):
        (error_of(model) + term).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    assert added == ([] if check_nan else [1.0])


def test_anomaly_detection_finds_nan():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    term = attached(model).value()
    with (
        pytest.warns(UserWarning, match=r"Anomaly|No forward pass information"),
        torch.autograd.detect_anomaly(),
        pytest.raises(RuntimeError, match=r"_InBackward.* returned nan"),
    ):
        term.backward()


def test_a_loss_that_is_compiled(added):
    model, expected = network(), network()
    penalties = attached(model)
    error = torch.compile(error_of, backend="aot_eager")
    (error(model) + penalties.value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected, 1e-5, 1e-6)
    assert added == [1.0]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch._dynamo's
@pytest.mark.parametrize("whole_step", [False, True])
def test_compiled_code_that_asks_for_the_penalty(whole_step, added):
    """It is left out of the graph, the backward pass of a whole step too."""
    model, expected = network(), network()
    penalties = attached(model)

    def loss_of():
        return error_of(model) + penalties.value()

    def step():
        loss_of().backward()

    for _ in range(2):
        if whole_step:
            torch.compile(step, backend="aot_eager")()
        else:
            torch.compile(loss_of, backend="aot_eager")().backward()
        (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected, 1e-5, 1e-6)
    assert added == [1.0] * 2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch._dynamo's
@pytest.mark.parametrize("way", ["accumulate", "before_step"])
def test_compiled_steps_that_add_the_gradients(way):
    """What adds them is left out of the graph."""
    model, expected = network(), network()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, expected)]
    penalties = attached(model)
    if way == "before_step":
        penalties.before_step(optimizers[0], max_norm=None)

    @torch.compile(backend="aot_eager")
    def step():
        optimizers[0].zero_grad()
        error_of(model).backward()
        if way == "accumulate":
            penalties.accumulate()
        optimizers[0].step()

    for _ in range(2):
        step()
        optimizers[1].zero_grad()
        (error_of(expected) + plain_penalty(expected)).backward()
        optimizers[1].step()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch._dynamo's
def test_compiled_code_that_asks_for_the_report():
    penalties = attached(network())
    wanted = penalties.report()["0.weight"].penalty
    compiled = torch.compile(lambda: penalties.report()["0.weight"].penalty, backend="aot_eager")
    assert compiled() == wanted


@pytest.mark.filterwarnings("ignore::UserWarning")  # those of torch._dynamo
def test_a_backward_pass_that_is_compiled(added):
    compiled = pytest.importorskip("torch._dynamo.compiled_autograd")
    model, expected = network(), network()
    penalties = attached(model)
    with compiled._enable(torch.compile(backend="aot_eager")):
        (error_of(model) + penalties.value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected, 1e-5, 1e-6)
    assert added == []


def test_under_autocast(added):
    model, expected = network(), network()
    with torch.autocast("cpu", torch.bfloat16):
        (error_of(model) + attached(model).value()).backward()
        (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    assert added == [1.0]


# ------------------------------------------------------------------------- another torch's engine


@pytest.fixture
def _probed_again():
    in_backward._can_defer.cache_clear()
    yield
    in_backward._can_defer.cache_clear()


class Forgetful:
    """An engine that takes callbacks and never calls them."""

    def queue_callback(self, callback):
        pass


@pytest.mark.usefixtures("_probed_again")
@pytest.mark.parametrize("engine", [None, Forgetful()])
def test_an_engine_that_calls_nothing_back_is_not_trusted(engine, monkeypatch, added):
    monkeypatch.setattr(in_backward, "_engine", engine)
    model, expected = network(), network()
    (error_of(model) + attached(model).value()).backward()
    (error_of(expected) + plain_penalty(expected)).backward()
    assert_same_gradients(model, expected)
    assert added == []
