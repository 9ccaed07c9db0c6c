"""Penalties that torch differentiates: values and gradients have the core's bits."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastreg  # noqa: E402
from fastreg._autodiff.torch import functions  # noqa: E402
from fastreg.regularizers import L1, L1L2, L2, OrthogonalRegularizer  # noqa: E402

RULE = L1L2(0.03, 0.2)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def leaf(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, dtype=torch.float64)
    return numbers.to(dtype).requires_grad_()


def same(one, other):
    """Return whether two tensors have the same bits, whatever the payload of a NaN."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and bool(((one == other) & (one.signbit() == other.signbit()) | (one != one)).all())
        and torch.equal(one != one, other != other)
    )


def plain(w, l1=0.03, l2=0.2):
    return l1 * w.abs().sum() + l2 * w.square().sum()


# ------------------------------------------------------------------------------------ one tensor


@pytest.mark.parametrize("rule", [L1(0.03), L2(0.2), RULE, L1L2()], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient_are_the_cores(backend, dtype, rule):
    w = leaf((7, 33), dtype)
    value = rule(w, scale=0.5)
    assert value.requires_grad
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert same(value.detach(), rule(w.detach(), scale=0.5))
    value.backward()
    assert same(w.grad, rule.gradient(w, scale=0.5))


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w.T,
        lambda w: w[:, ::3],
        lambda w: w[:1].expand(5, 20),
        lambda w: w.reshape(2, 5, 10, 1).to(memory_format=torch.channels_last),
        lambda w: w[2, 3],
        lambda w: w[:0],
        lambda w: torch.nn.Parameter(w.detach()),
    ],
    ids=["transposed", "strided", "expanded", "channels_last", "0-d", "empty", "parameter"],
)
def test_layouts(make):
    w = make(leaf((5, 20))).detach().requires_grad_()
    value = RULE(w)
    value.backward()
    assert same(value.detach(), RULE(w.detach()))
    assert same(w.grad, RULE.gradient(w))


def test_views_lead_back_to_their_base():
    w = leaf((4, 6))
    RULE(w[1:, ::2]).backward()
    expected = torch.zeros(4, 6)
    expected[1:, ::2] = RULE.gradient(w.detach()[1:, ::2])
    assert same(w.grad, expected)


def test_values_that_are_not_finite():
    w = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0], requires_grad=True)
    for rule in (RULE, L1(0.5), L2(0.5), L1L2()):
        (gradient,) = torch.autograd.grad(rule(w), w)
        assert same(gradient, rule.gradient(w))


@pytest.mark.parametrize("factor", [3.0, -2.0, 0.0, 1e38, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upstream_gradients(dtype, factor):
    w = leaf(50, dtype)
    upstream = torch.tensor(factor, dtype=RULE(w).dtype)
    rule = L1L2(30.0, 2e-5)  # which does not fit float32 with the largest
    (gradient,) = torch.autograd.grad(rule(w), w, upstream)
    if np.isfinite(factor) and abs(factor) < 1e38:
        assert same(gradient, rule.gradient(w, grad_scale=factor))
    else:
        (expected,) = torch.autograd.grad(plain(w.double(), 30.0, 2e-5), w, upstream.double())
        assert torch.equal(gradient.isinf(), expected.isinf())
        assert torch.equal(gradient.isnan(), expected.isnan())


def test_half_precision_keeps_small_gradients_of_a_scaled_loss():
    w = leaf(50, torch.float16)
    (RULE(w, scale=1e-7) * 2.0**16).backward()  # unscaled they are below the smallest float16
    assert w.grad.ne(0).all()
    assert same(w.grad, RULE.gradient(w, scale=1e-7, grad_scale=2.0**16))


def test_values_beyond_float32():
    w = leaf(3)
    assert L1(1e39)(w).item() == float("inf")
    values = functions.values((w, w), ((1e39, 0.0), (1.0, 0.0)), (0, 1), 1.0)
    assert [value.isinf().item() for value in values] == [True, False]


def test_beside_autograd_nothing_changes():
    w = leaf(40)
    with torch.no_grad():
        value = RULE(w)
    assert not value.requires_grad
    assert same(value, RULE(w.detach()))
    assert not RULE.gradient(w).requires_grad
    assert isinstance(RULE.accumulate(w, torch.zeros(40)), float)


def test_a_weight_changed_before_backward_is_noticed():
    w = leaf(5)
    value = RULE(w)
    with torch.no_grad():
        w += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_a_differentiable_scale():
    w, scale = leaf(30), torch.tensor(0.5, requires_grad=True)
    RULE(w, scale=scale).backward()
    assert same(w.grad, RULE.gradient(w, grad_scale=0.5))
    assert same(scale.grad, RULE(w.detach()))


def test_what_is_refused():
    for tensor, words in (
        (torch.eye(3).to_sparse().requires_grad_(), "layout torch.sparse_coo"),
        (torch.ones(3, 3, dtype=torch.complex64, requires_grad=True), "complex64"),
    ):
        for rule in (RULE, OrthogonalRegularizer()):
            with pytest.raises(TypeError, match=f"^w .*{words}"):
                rule(tensor)
    with pytest.raises(TypeError, match=r"^scale must be"):
        RULE(leaf(3), scale="2")
    with pytest.raises(ValueError, match=r"^l1 \* scale must be finite"):
        L1(1e300)(leaf(3), scale=1e300)
    with pytest.raises(ValueError, match=r"l1 \* scale \* grad_scale must be finite in float32"):
        L1(1e39)(leaf(3)).backward()


def test_threads():
    weights = [leaf(5000, seed=seed) for seed in range(4)]
    failures = []

    def work(w):
        for _ in range(20):
            (gradient,) = torch.autograd.grad(RULE(w), w)
            if not same(gradient, RULE.gradient(w)):
                failures.append(w)

    threads = [threading.Thread(target=work, args=(w,)) for w in weights]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --------------------------------------------------------------------------------- second order


def test_derivatives_by_differences():
    w = leaf((3, 5), torch.float64)  # away from 0
    for rule in (RULE, L1(0.5), L2(0.5), OrthogonalRegularizer(0.7)):
        assert torch.autograd.gradcheck(rule, w)
        assert torch.autograd.gradgradcheck(rule, w)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gradient_of_a_gradient(dtype):
    w = leaf(9, dtype)
    factor = torch.tensor(3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(RULE(w) * factor, w, create_graph=True)
    by_weight, by_factor = torch.autograd.grad(gradient.float().sum(), (w, factor))
    assert by_weight.dtype == dtype
    assert torch.allclose(by_weight.float(), torch.full((9,), 3 * 2 * 0.2), rtol=4e-3)
    assert torch.allclose(by_factor, RULE.gradient(w).detach().float().sum(), rtol=1e-2)


def test_a_gradient_penalty_in_training():
    w = leaf(9)
    (gradient,) = torch.autograd.grad(RULE(w), w, create_graph=True)
    gradient.square().sum().backward()
    expected = 2.0 * RULE.gradient(w) * 0.4
    assert torch.allclose(w.grad, expected)


# ------------------------------------------------------------------------------- lists and models


def mixed():
    return [
        leaf((3, 4), torch.float32, 1),
        leaf(0, torch.float32, 2),
        leaf((), torch.float64, 3),
        leaf(70, torch.bfloat16, 4),
        torch.arange(5),
    ]


STRENGTHS, WHICH = ((0.25, 0.5), (0.0, 1.0)), (0, 1, 1, 0, 0)


def test_values_of_a_list():
    weights = mixed()
    rules = [L1L2(*STRENGTHS[i]) for i in WHICH]
    values = functions.values(weights, STRENGTHS, WHICH, 2.0)
    for value, rule, w in zip(values, rules, weights, strict=True):
        assert same(value.detach(), rule(w.detach(), scale=2.0))
    (values[3] * 3.0).backward()
    assert same(weights[3].grad, rules[3].gradient(weights[3], scale=2.0, grad_scale=3.0))
    assert not weights[0].grad.any()
    assert functions.values([], (), (), 1.0) == []


def test_the_total_of_a_list():
    weights = mixed()
    weights[0].requires_grad_(False)
    total = functions.total(weights, STRENGTHS, WHICH, 2.0)
    names = [str(i) for i in range(5)]
    rules = dict(zip(names, (L1L2(*STRENGTHS[i]) for i in WHICH), strict=True))
    penalties = fastreg.attach(dict(zip(names, weights, strict=True)), rules)
    assert total.dtype == torch.float64
    with torch.no_grad():
        assert total.item() == penalties.value(scale=2.0)
    total.backward()
    assert weights[0].grad is None
    for name, w in list(zip(names, weights, strict=True))[1:4]:
        assert same(w.grad, rules[name].gradient(w, scale=2.0))


def test_penalties_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    rules = {"*.weight": RULE, "*.bias": L1(0.5)}
    penalties = fastreg.attach(dict(model.named_parameters()), rules)
    value = penalties.value()
    value.backward()
    with torch.no_grad():
        assert same(value.detach(), torch.tensor(penalties.value(), dtype=torch.float32))
    for name, gradient in penalties.gradient().items():
        assert same(model.get_parameter(name).grad, gradient)


def test_callables_and_other_regularizers_in_a_model():
    a, b, c, d = leaf((3, 4)), leaf(5), leaf((4, 2)), leaf(3)
    tensors = {"a": a, "b": b, "c": c, "d": d}
    rules = {
        "a": RULE,
        "b": lambda w: w.exp().sum().reshape(1),
        "c": OrthogonalRegularizer(0.5),
        "d": lambda w: 3,
    }
    value = fastreg.attach(tensors, rules).value(scale=2.0)
    value.backward()
    assert value.shape == ()
    expected = plain(a) + b.exp().sum() + OrthogonalRegularizer(0.5)(c) + 3
    assert torch.allclose(value, 2.0 * expected)
    assert same(a.grad, RULE.gradient(a, scale=2.0))
    assert torch.allclose(b.grad, 2.0 * b.exp())
    assert torch.allclose(c.grad, OrthogonalRegularizer(0.5).gradient(c, scale=2.0))
    with pytest.raises(TypeError, match=r"the rule of tensors\['0'\] gives must be one number"):
        fastreg.attach([a], lambda w: w).value()


def test_frameworks_do_not_mix():
    tensors = {"a": leaf(3), "b": np.ones(3)}
    with pytest.raises(
        TypeError, match=r"tensors\['b'\] is a numpy.ndarray, but torch follows tensors\['a'\]"
    ):
        fastreg.attach(tensors, "l2").value()


def test_tied_tensors_count_once_where_they_have_no_elements():
    def penalty(w):
        return fastreg.attach({"a": w, "b": w, "c": w * 2.0}, "l2").value()

    w = leaf(5).detach()
    assert torch.allclose(torch.func.grad(penalty)(w), 2 * 0.01 * (w + 4 * w))


# ---------------------------------------------------------------------------------- orthogonal


@pytest.mark.parametrize("mode", ["rows", "columns"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_orthogonal(mode, dtype):
    w = leaf((4, 6), dtype).detach()
    w[1] = 0.0
    w[:, 2] = 0.0
    w[3] *= 100.0
    w.requires_grad_()
    rule = OrthogonalRegularizer(0.7, mode)
    value = rule(w, scale=2.0)
    value.backward()
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-6}.get(dtype, 1e-12)
    expected, gradient = rule.value_and_grad(w.detach(), scale=2.0)
    assert value.dtype == expected.dtype
    assert torch.allclose(value, expected, rtol=1e-6)
    assert torch.allclose(w.grad.double(), gradient.double(), rtol=rounding, atol=rounding * 1e-3)


@pytest.mark.parametrize("shape", [(1, 5), (0, 5), (5, 0), (2, 0)])
def test_orthogonal_without_pairs(shape):
    w = leaf(shape)
    value = OrthogonalRegularizer(1.0)(w)
    value.backward()
    assert value.item() == 0.0
    assert not w.grad.any()


def test_orthogonal_where_it_is_off_and_where_it_is_refused():
    w = torch.full((3, 3), float("nan"), requires_grad=True)
    OrthogonalRegularizer(0.0)(w).backward()
    assert w.grad.tolist() == [[0.0] * 3] * 3
    assert OrthogonalRegularizer(1.0)(w).isnan()
    with pytest.raises(ValueError, match="w must have 2 axes for OrthogonalRegularizer"):
        OrthogonalRegularizer()(leaf(3))


# -------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_training_as_with_the_plain_expression(kind):
    x, y = leaf((16, 6), seed=1).detach(), leaf((16, 2), seed=2).detach()
    weights = []
    for penalty in (RULE, plain):
        w = leaf((6, 2), seed=3)
        optimizer = kind([w], lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            ((x @ w - y).square().mean() + penalty(w)).backward()
            optimizer.step()
        weights.append(w.detach())
    assert torch.allclose(*weights, rtol=1e-6, atol=1e-6)
