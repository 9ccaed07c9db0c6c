"""PyTorch: a step of a model, a list of small gradients, and one differentiable tensor."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import fastreg
from fastreg.bench.frameworks.base import Setting, Settings, Variant
from fastreg.bench.frameworks.sizes import L1_STRENGTH, L2_STRENGTH, LEARNING_RATE, Sizes
from fastreg.bench.row import Work
from fastreg.regularizers import L1L2


def settings(sizes: Sizes) -> Settings:
    """Yield the settings of PyTorch."""
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(20260101)
    yield step(torch, sizes)
    yield small_tensors(torch, sizes)
    yield one_tensor(torch, sizes)


def penalty_of(weights: Sequence[Any]) -> Any:
    """Return the penalty as most people write it."""
    total: Any = 0.0
    for w in weights:
        total = total + L1_STRENGTH * w.abs().sum() + L2_STRENGTH * w.square().sum()
    return total


def foreach(torch: Any, weights: Sequence[Any], gradients: Sequence[Any]) -> None:
    """Add the gradients by the multi-tensor operations, without the value."""
    torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=L1_STRENGTH)
    torch._foreach_add_(gradients, weights, alpha=2 * L2_STRENGTH)


def step(torch: Any, sizes: Sizes, device: str = "cpu") -> Setting:
    """Return forward, backward and update of one model, which all variants train."""
    nn, width = torch.nn, sizes.torch_width
    layers = (
        layer for _ in range(sizes.torch_layers) for layer in (nn.Linear(width, width), nn.ReLU())
    )
    model = nn.Sequential(*layers).to(device)
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    x, y = torch.randn(2, sizes.batch, width, device=device).unbind()
    at_start = [p.detach().clone() for p in model.parameters()]

    def start() -> None:
        with torch.no_grad():
            for p, value in zip(model.parameters(), at_start, strict=True):
                p.copy_(value)
                p.grad = None

    def outcome() -> list[Any]:
        return [p.detach().cpu().numpy() for p in model.parameters()]

    def stepper(
        loss_of: Callable[[Any], Any] = lambda loss: loss,
        after_backward: Callable[[], object] = lambda: None,
        prepare: Callable[[Any], object] = lambda optimizer: None,
    ) -> Variant:
        def make() -> Callable[[], object]:
            optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, fused=True)
            kept = prepare(optimizer)

            def call() -> object:
                optimizer.zero_grad()
                loss_of(nn.functional.mse_loss(model(x), y)).backward()
                after_backward()
                optimizer.step()
                return kept

            return call

        return Variant(make, start, outcome)

    def unrecorded() -> None:
        with torch.no_grad():
            foreach(torch, weights, [w.grad for w in weights])

    def added() -> None:
        with torch.no_grad():
            torch._foreach_add_([w.grad for w in weights], weights, alpha=0.05)

    rules = {"*weight": L1L2(L1_STRENGTH, L2_STRENGTH)}

    penalties = fastreg.torch.attach(model, rules)

    def before_step(optimizer: Any) -> object:
        return fastreg.torch.attach(model, rules).before_step(optimizer, max_norm=None)

    work = Work(
        "torch",
        f"step of {sizes.torch_layers} x Linear({width}), batch {sizes.batch}, fused SGD",
        usual="loss += ...",
        bare="no penalty",
        addition="one bare addition",
        measure="fastreg, accumulate",
    )
    return Setting(
        work,
        {
            "no penalty": stepper(),
            "one bare addition": stepper(after_backward=added),
            "loss += ...": stepper(lambda loss: loss + penalty_of(weights)),
            "foreach, no value": stepper(after_backward=unrecorded),
            "fastreg, accumulate": stepper(after_backward=lambda: penalties.accumulate()),
            "fastreg, loss + value()": stepper(lambda loss: loss + penalties.value()),
            "fastreg, before_step": stepper(prepare=before_step),
        },
    )


def small_tensors(torch: Any, sizes: Sizes) -> Setting:
    """Return the gradients of many small parameters, added in place."""
    parameters = torch.nn.ParameterList(
        torch.nn.Parameter(torch.randn(sizes.elements)) for _ in range(sizes.tensors)
    )
    weights = [p.detach() for p in parameters]

    def start() -> None:
        for p in parameters:
            p.grad = torch.zeros_like(p)

    start()
    gradients = [p.grad for p in parameters]

    def again() -> None:
        for gradient in gradients:
            gradient.zero_()

    def in_place() -> Any:
        total: Any = 0.0
        for w, g in zip(weights, gradients, strict=True):
            total = total + L1_STRENGTH * w.abs().sum() + L2_STRENGTH * w.square().sum()
            g.add_(w.sign(), alpha=L1_STRENGTH).add_(w, alpha=2 * L2_STRENGTH)
        return total

    def variant(make: Callable[[], Callable[[], object]]) -> Variant:
        return Variant(make, again, lambda: [gradient.numpy() for gradient in gradients])

    def attached() -> Callable[[], object]:
        penalties = fastreg.torch.attach(parameters, L1L2(L1_STRENGTH, L2_STRENGTH))
        return lambda: penalties.accumulate()

    what = f"{sizes.tensors} parameters of {sizes.elements} elements, added to .grad"
    return Setting(
        Work("torch", what, usual="loop in place"),
        {
            "loop in place": variant(lambda: in_place),
            "foreach, no value": variant(lambda: lambda: foreach(torch, weights, gradients)),
            "fastreg, accumulate": variant(attached),
        },
    )


def one_tensor(torch: Any, sizes: Sizes) -> Setting:
    """Forward and backward of one differentiable tensor."""
    w = torch.randn(sizes.elements, requires_grad=True)
    reg = L1L2(L1_STRENGTH, L2_STRENGTH)

    def plain(w: Any) -> Any:
        return L1_STRENGTH * w.abs().sum() + L2_STRENGTH * w.square().sum()

    def variant(function: Callable[[Any], Any], compiled: bool = False) -> Variant:
        def make() -> Callable[[], object]:
            forward = torch.compile(function, fullgraph=True) if compiled else function

            def call() -> None:
                w.grad = None
                forward(w).backward()

            return call

        return Variant(make, lambda: None, lambda: [w.grad.numpy()])

    variants = {"plain": variant(plain), "fastreg, reg(w)": variant(lambda w: reg(w))}
    if sizes.compiled:
        variants["plain, compiled"] = variant(plain, compiled=True)
        variants["fastreg, compiled"] = variant(lambda w: reg(w), compiled=True)
    what = f"forward and backward of one tensor of {sizes.elements}"
    return Setting(Work("torch", what, usual="plain"), variants)
