"""fastreg.torch's optimizers in a loop of Accelerate."""

import pytest

torch = pytest.importorskip("torch")

import fastreg.torch  # noqa: E402
from fastreg.regularizers import L1  # noqa: E402


def make(model, kind):
    return kind(model, lr=0.1, rules=fastreg.torch.kernels(L1(1e-2)))


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Linear(4, 2)
    optimizer = make(model, fastreg.torch.AdamW)
    model, wrapped = accelerator.prepare(model, optimizer)
    for _ in range(4):
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(3, 4)).square().mean())
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            wrapped.step()
            wrapped.zero_grad()
    assert wrapped.optimizer is optimizer
    assert (optimizer.steps, optimizer.last.size) == (2, 8)
    wrapped.load_state_dict(wrapped.state_dict())
    assert optimizer.steps == 2
