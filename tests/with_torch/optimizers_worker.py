"""The processes of test_torch_optimizers_processes.py, as those of sharding_worker.py."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import sharding_worker
import torch
import torch.distributed as dist
from sharding_worker import Net, gathered, line, mine, seeded, sharded, square
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

import fastreg.torch
from fastreg.regularizers import L1, L1L2

RULES = {
    "first.weight": (L1L2(1e-2, 1e-2), "gradient"),
    "*.bias": None,
    "norm.*": None,
    "*": L1(0.02),
}
KINDS = {
    "SGD": (fastreg.torch.SGD, {"lr": 0.2, "momentum": 0.9}),
    "AdamW": (fastreg.torch.AdamW, {"lr": 0.05}),
}


def batch(number):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(8, 6, generator=generator)


def backward(model, number, rows=lambda x: x):
    model.zero_grad()
    model(rows(batch(number))).square().mean().backward()


def trained(model, kind, numbers=range(6), rows=mine, **more):
    """Train, and return the optimizer and the record of each step."""
    make, options = KINDS[kind]
    optimizer = make(model, **options, rules=RULES, max_norm=0.3, **more)
    return optimizer, steps(model, optimizer, numbers, rows)


def steps(model, optimizer, numbers, rows=mine):
    records = []
    for number in numbers:
        backward(model, number, rows)
        optimizer.step()
        records.append(optimizer.last)
    return records


def require_close(model, other):
    for name, one in gathered(other).items():
        torch.testing.assert_close(gathered(model)[name], one, rtol=2e-5, atol=2e-6)


def require_near(records, others):
    for one, other in zip(records, others, strict=True):
        assert one.norm == pytest.approx(other.norm, rel=1e-4)
        assert one.penalty == pytest.approx(other.penalty, rel=1e-4)
        assert (one.zeros, one.skipped, one.size) == (other.zeros, other.skipped, other.size)


def same_in_all(value):
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    assert values == [value] * len(values)


def on_a_mesh(mesh):
    for kind in KINDS:
        model, other = sharded(seeded(Net), mesh), seeded(Net)
        optimizer, records = trained(model, kind)
        _, expected = trained(other, kind, rows=lambda x: x)
        require_near(records, expected)
        same_in_all(records)
        require_close(model, other)
        assert records[-1].zeros > 0
        kept = optimizer.state[model.first.weight]
        assert all(isinstance(x, DTensor) for x in kept.values() if isinstance(x, torch.Tensor))


def fsdp2():
    on_a_mesh(line())


def hsdp():
    on_a_mesh(square("replicate", "shard"))


def half_precision():
    model = sharded(seeded(Net).bfloat16(), line())
    optimizer = fastreg.torch.AdamW(model, rules=RULES)
    model(mine(batch(0).bfloat16())).square().mean().backward()
    optimizer.step()
    for one in optimizer.state.values():
        assert one["exp_avg_sq"].to_local().dtype == torch.float32


def without_a_clip_nothing_is_communicated():
    model = sharded(seeded(Net), line())
    optimizer = fastreg.torch.SGD(model, lr=0.1, rules=RULES)
    backward(model, 0, mine)
    with sharding_worker.CommDebugMode() as communication:
        optimizer.step()
        assert communication.get_total_counts() == 0
        penalty = optimizer.last.penalty
    assert communication.get_total_counts() == 1
    assert optimizer.last.penalty == penalty
    same_in_all(penalty)


def skipped_and_refused_by_all():
    """A gradient that one process has, and only one, is not finite."""
    model = sharded(seeded(Net), line())
    optimizer, _ = trained(model, "AdamW", on_nonfinite="skip")
    before = gathered(model)
    backward(model, 9, mine)
    last = dist.get_rank() == dist.get_world_size() - 1
    if last:
        model.second.weight.grad.to_local()[-1, -1] = math.nan
    taken = optimizer.steps
    optimizer.step()
    assert optimizer.last.skipped
    assert optimizer.steps == taken
    raising = fastreg.torch.SGD(model, lr=0.1, on_nonfinite="raise")
    with pytest.raises(ValueError, match=r"the gradient of the parameter 'second.weight' has 1 el"):
        raising.step()
    assert all(torch.equal(before[name], one) for name, one in gathered(model).items())


def one_refuses_its_state():
    """The others raise as well, none waits, and none has stepped."""
    model = sharded(seeded(Net), line())
    optimizer, _ = trained(model, "AdamW")
    backward(model, 6, mine)
    before = gathered(model)
    kept = optimizer.state[model.first.bias]
    error, text = RuntimeError, r"refused \(the first moment of the parameter 'first.bias' has dtyp"
    good = kept["exp_avg"]
    if dist.get_rank() == 1:
        kept["exp_avg"] = good.double()
        error, text = TypeError, "^the first moment of the parameter 'first.bias' has dtype float64"
    with pytest.raises(error, match=text):
        optimizer.step()
    kept["exp_avg"] = good
    assert all(torch.equal(before[name], one) for name, one in gathered(model).items())
    assert [*{one["step"] for one in optimizer.state.values()}] == [6]
    optimizer.step()
    same_in_all(optimizer.last)


def checkpoints_of_torch():
    """torch.distributed.checkpoint's dicts, whole ones too, into another optimizer."""
    for kind in KINDS:
        model = sharded(seeded(Net), line())
        optimizer, _ = trained(model, kind)
        options = StateDictOptions(full_state_dict=True)
        saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
        weights = copy.deepcopy(model.state_dict())
        expected = steps(model, optimizer, range(6, 9))
        other = sharded(seeded(Net), line())
        other.load_state_dict(weights)
        make, given = KINDS[kind]
        again = make(other, **given, rules=RULES, max_norm=0.3)
        set_optimizer_state_dict(other, again, saved, options=options)
        assert again.steps == 6
        assert steps(other, again, range(6, 9)) == expected


def against_torch():
    """Weights of FSDP2 with torch's own optimizer, which it clips for."""
    model, other = sharded(seeded(Net), line()), sharded(seeded(Net), line())
    optimizer = fastreg.torch.AdamW(model, lr=0.05, max_norm=0.3)
    theirs = torch.optim.AdamW(other.parameters(), lr=0.05)
    for number in range(5):
        backward(model, number, mine)
        optimizer.step()
        backward(other, number, mine)
        norm = nn.utils.clip_grad_norm_(other.parameters(), 0.3).full_tensor().item()
        theirs.step()
        assert optimizer.last.norm == pytest.approx(norm, rel=1e-5)
    require_close(model, other)


WORLDS = {
    2: [
        fsdp2,
        half_precision,
        without_a_clip_nothing_is_communicated,
        skipped_and_refused_by_all,
        one_refuses_its_state,
        checkpoints_of_torch,
        against_torch,
    ],
    4: [hsdp],
}


if __name__ == "__main__":
    sharding_worker.main(WORLDS, *sys.argv[1:])
