"""Accelerate: the penalty joins what ``accelerator.backward`` gets."""

import loops
import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _fresh_state():
    yield
    accelerate.state.AcceleratorState._reset_state(True)


def run(case, way, replay=None):
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(
        cpu=True,
        gradient_accumulation_steps=loops.MICRO,
        mixed_precision="bf16" if case.autocast else "no",
    )
    model = loops.Net()
    inner = loops.optimizer_of(case, model)
    record = loops.Record(model, inner, replay)
    loader = torch.utils.data.DataLoader(loops.batches(way), batch_size=None)
    model, optimizer, loader = accelerator.prepare(model, inner, loader)
    term = loops.term_of(model, way)
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(torch.nn.functional.mse_loss(model(x), y) + term())
            if accelerator.sync_gradients and case.clip == "norm":
                accelerator.clip_grad_norm_(model.parameters(), loops.MAX_NORM)
            elif accelerator.sync_gradients and case.clip == "value":
                accelerator.clip_grad_value_(model.parameters(), loops.MAX_VALUE)
            optimizer.step()
            optimizer.zero_grad()
    return record


test_weights, test_gradients, test_drift = loops.tests_of(run)


def test_a_prepared_optimizer_is_unwrapped():
    model = loops.Net()
    inner = loops.optimizer_of(loops.Case("none"), model)
    model, optimizer = accelerate.Accelerator(cpu=True).prepare(model, inner)
    penalties = loops.attached(model)
    penalties.before_step(optimizer, max_norm=None)
    model(torch.ones(2, 8)).sum().backward()
    optimizer.step()
    assert penalties.last > 0.0
