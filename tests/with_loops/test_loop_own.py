"""A loop of one's own, and one with a GradScaler."""

import loops
import pytest

torch = pytest.importorskip("torch")


def train(case, way, replay, scaler):
    model = loops.Net()
    optimizer = loops.optimizer_of(case, model)
    term = loops.term_of(model, way)
    record = loops.Record(model, optimizer, replay)
    batches = iter(loops.batches(way))
    for _ in range(loops.STEPS):
        optimizer.zero_grad()
        for _ in range(loops.MICRO):
            x, y = next(batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                loss = torch.nn.functional.mse_loss(model(x), y) + term()
            scaler.scale(loss / loops.MICRO).backward()
        scaler.unscale_(optimizer)
        loops.clip(case, model)
        scaler.step(optimizer)
        scaler.update()
    return record


def own(case, way, replay=None):
    return train(case, way, replay, torch.amp.GradScaler("cpu", enabled=False))


def scaled(case, way, replay=None):
    return train(case, way, replay, torch.amp.GradScaler("cpu", 2.0**12, growth_interval=5))


test_own_weights, test_own_gradients, test_own_drift = loops.tests_of(own)
test_scaled_weights, test_scaled_gradients, test_scaled_drift = loops.tests_of(scaled)


def test_what_the_checks_are_for():
    """Added after the clip, or not at all, the penalty fails them."""

    def after_the_clip(case, way, replay=None):
        if way != "fastreg":
            return own(case, way, replay)
        model = loops.Net()
        optimizer = loops.optimizer_of(case, model)
        record = loops.Record(model, optimizer, replay)
        penalties = loops.attached(model)
        batches = iter(loops.batches(way))
        for _ in range(loops.STEPS):
            optimizer.zero_grad()
            for _ in range(loops.MICRO):
                x, y = next(batches)
                (torch.nn.functional.mse_loss(model(x), y) / loops.MICRO).backward()
            loops.clip(case, model)
            penalties.accumulate()
            optimizer.step()
        return record

    loops.check_weights(after_the_clip, loops.Case("none"))
    for clip in ("norm", "value"):
        for check in (loops.check_weights, loops.check_gradients, loops.check_drift):
            with pytest.raises(AssertionError):
                check(after_the_clip, loops.Case(clip))
