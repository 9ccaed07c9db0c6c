"""The processes of test_torch_sharding.py: worlds of 2 and of 4, in which named cases run.

``python sharding_worker.py DIRECTORY`` imports torch once and forks the processes of each world.
Each prints one line of JSON for each case: case, rank, seconds, and the traceback or null.  Nothing
waits forever: collectives and the meeting of ranks between cases time out.
"""

from __future__ import annotations

import datetime
import json
import math
import multiprocessing
import os
import re
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fastreg
from fastreg import regularizers
from fastreg._arrays.torch_shards import local_gradients, local_tensors, summed
from fastreg.torch import attach, kernels

STEPS = 20
SECONDS = datetime.timedelta(seconds=60)
L1, L2 = 1e-3, 2e-3
RULES = {"*norm*": None, "*.bias": regularizers.L1(L1), "*": regularizers.L1L2(L1, L2)}


# ------------------------------------------------------------------------- models and expectations


class Net(nn.Module):
    """Three layers; 3 rows for 2 processes, 5 for 4, and one row that all but one have none of."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.second = nn.Linear(5, 3)
        self.last = nn.Linear(3, 1)

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x)).relu()))


class Rooted(nn.Module):
    """A layer and a parameter beside it."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        return self.layer(x * self.weight)


class Tied(nn.Module):
    """An embedding whose weight is that of the head as well."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def seeded(make):
    torch.manual_seed(0)
    return make()


def data():
    torch.manual_seed(1)
    return torch.randn(8, 6), torch.randn(8, 1)


def mine(x):
    """Return the rows of this process."""
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def sharded(model, mesh, **options):
    for layer in model.children():
        fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def gathered(model):
    return {
        name.removeprefix("module."): whole(parameter).detach().clone()
        for name, parameter in model.named_parameters()
    }


def expected_values(tensors, rules=RULES):
    """Return each tensor's penalty, and the total, from one process that has all elements."""
    penalties = fastreg.attach(tensors, rules)
    return {name: row.penalty for name, row in penalties.report().items()}, penalties.value()


def close(value, expected, tolerance=1e-12):
    value = value.item() if isinstance(value, torch.Tensor) else value
    assert math.isclose(value, expected, rel_tol=tolerance), (value, expected)


def same_weights(model, reference):
    for name, weight in gathered(model).items():
        expected = reference[name]
        assert (weight - expected).abs().max() <= 1e-6, (name, weight, expected)


def plain_penalty(model):
    """Return the penalties of RULES as a loss would have them."""
    total = 0.0
    for name, weight in model.named_parameters():
        if weight.requires_grad and "norm" not in name:
            total = total + L1 * weight.abs().sum()
            if not name.endswith(".bias"):
                total = total + L2 * weight.square().sum()
    return total


def optimizer_of(model, kind):
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.SGD(parameters, lr=0.05) if kind == "sgd" else torch.optim.Adam(parameters)


def trained_alone(kind, freeze=()):
    """Return the weights after the same steps in one process, by the plain expression."""
    model = seeded(Net)
    for name in freeze:
        model.get_parameter(name).requires_grad_(False)
    optimizer = optimizer_of(model, kind)
    x, y = data()
    for _ in range(STEPS):
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(x), y) + plain_penalty(model)).backward()
        optimizer.step()
    return gathered(model)


def train(model, kind, way, micro_batches=1):
    """Train with the penalty in the loss, added after backward, or by a hook before the step."""
    optimizer = optimizer_of(model, kind)
    penalties = attach(model, RULES)
    if way == "hook":
        penalties.before_step(optimizer, max_norm=None)
    x, y = map(mine, data())
    parts = list(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True))
    for step in range(STEPS):
        optimizer.zero_grad()
        for number, (inputs, targets) in enumerate(parts, 1):
            last = number == micro_batches
            # The parameters before the forward pass: until backward those of a root are gathered.
            penalty = penalties.value() if way == "loss" and last else 0.0
            if hasattr(model, "set_requires_gradient_sync"):
                model.set_requires_gradient_sync(last)
            with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
                loss = nn.functional.mse_loss(model(inputs), targets) / micro_batches
                (loss + penalty).backward()
        value = penalties.accumulate() if way == "accumulate" else penalty
        is_checked = step % 10 == 0
        if is_checked:  # gathering takes longer than training
            expected = expected_values(gathered(model))[1]
        optimizer.step()
        if is_checked:
            close(
                penalties.last if way == "hook" else value,
                expected,
                1e-6 if way == "loss" else 1e-12,
            )
    close(value_of(penalties), expected_values(gathered(model))[1])
    return model


def value_of(penalties):
    with torch.no_grad():  # else it is differentiable, in float32
        return penalties.value()


def refused(kind, text, call, *arguments):
    with pytest.raises(kind, match=re.escape(text)):
        call(*arguments)


def line():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def square(*names):
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=names)


# ------------------------------------------------------------------------------- two processes


def fsdp2_sgd_accumulate():
    same_weights(train(sharded(seeded(Net), line()), "sgd", "accumulate"), trained_alone("sgd"))


def fsdp2_adam_hook():
    same_weights(train(sharded(seeded(Net), line()), "adam", "hook"), trained_alone("adam"))


def fsdp2_adam_in_the_loss():
    same_weights(train(sharded(seeded(Net), line()), "adam", "loss"), trained_alone("adam"))


def fsdp2_frozen():
    names = ("first.weight", "second.bias")
    model = seeded(Net)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    model = sharded(model, line())
    optimizer = optimizer_of(model, "sgd")
    penalties = attach(model, RULES)
    x, y = map(mine, data())
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        penalties.accumulate()
        optimizer.step()
    same_weights(model, trained_alone("sgd", names))
    left = {name: w for name, w in gathered(model).items() if name not in names}
    close(value_of(penalties), expected_values(left)[1])
    assert all(model.get_parameter(name).grad is None for name in names)


def ddp(way):
    model = DistributedDataParallel(seeded(Net))
    same_weights(train(model, "sgd", way), trained_alone("sgd"))


def ddp_accumulate():
    ddp("accumulate")


def ddp_hook():
    ddp("hook")


def ddp_in_the_loss():
    ddp("loss")


def ddp_gradient_accumulation():
    for way in ("accumulate", "hook", "loss"):
        model = train(DistributedDataParallel(seeded(Net)), "sgd", way, micro_batches=2)
        same_weights(model, trained_alone("sgd"))


def fsdp2_gradient_accumulation():
    for way in ("hook", "loss"):
        model = train(sharded(seeded(Net), line()), "sgd", way, micro_batches=2)
        same_weights(model, trained_alone("sgd"))


def tied_once():
    model, rule = seeded(Tied), RULES["*"]
    one = expected_values([model.head.weight.detach().clone()], rule)[1]
    fully_shard(model, mesh=line())
    close(value_of(attach(model, rule)), one)
    weight = dict(model.named_parameters())["embedding.weight"]
    with torch.no_grad():
        # The same parameter, another DTensor of the same shard, its transpose; and with a shard
        # that is empty in one of the two processes.
        row = nn.Parameter(distribute_tensor(torch.ones(1, 4), line(), [Shard(0)]))
        # torch 2.14 and later gather a single row to transpose it, which makes another tensor.
        gathered = row.t().placements != (Shard(1),)
        for first, count in ((weight, 1), (row, 2 if gathered else 1)):
            ties = {"one": first, "two": first, "three": first.detach(), "four": first.t()}
            assert f"on {count} of 4" in repr(fastreg.attach(ties, rule)), ties
        other = nn.Parameter(distribute_tensor(torch.ones(1, 4), line(), [Shard(0)]))
        assert "on 2 of 2" in repr(fastreg.attach({"a": row, "b": other}, rule))
        close(fastreg.attach({"a": row, "b": row.detach()}, rule).value(), 4 * (L1 + L2), 1e-6)


def tied_later():
    row, other = (distribute_tensor(torch.ones(1, 4), line(), [Shard(0)]) for _ in range(2))
    tensors = {"a": row, "b": other}
    penalties = fastreg.attach(tensors, RULES["*"])
    close(value_of(penalties), 8 * (L1 + L2), 1e-6)
    tensors["b"] = row.detach()
    close(value_of(penalties), 4 * (L1 + L2), 1e-6)


def values_of_placements():
    """Uneven and empty shards, replicas, and a plain tensor; in one call to `summed`."""
    mesh = line()
    torch.manual_seed(2)
    whole_tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((5, 3), (1, 4), (4, 5))]
    placed = [
        distribute_tensor(whole_tensors[0], mesh, [Shard(0)]),
        distribute_tensor(whole_tensors[1], mesh, [Shard(0)]),
        distribute_tensor(whole_tensors[2], mesh, [Shard(1)]),
        distribute_tensor(whole_tensors[0], mesh, [Replicate()]),
        whole_tensors[1],
    ]
    whole_tensors += whole_tensors[:2]
    reg = regularizers.L1L2(L1, L2)
    local = local_tensors(placed)
    assert all(type(tensor) is torch.Tensor for tensor in local)
    assert local[1].shape == ((1, 4) if dist.get_rank() == 0 else (0, 4))
    expected = [float(reg(tensor)) for tensor in whole_tensors]
    with CommDebugMode() as communication:
        values = summed([float(reg(tensor)) for tensor in local], placed)
    assert communication.get_total_counts() == 1, communication.get_comm_counts()
    assert values[3:] == expected[3:]
    for value, one in zip(values, expected, strict=True):
        close(value, one)
    # The same bits everywhere.
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, values)
    assert all(one == values for one in everywhere)
    vector = torch.tensor([float(reg(tensor)) for tensor in local], dtype=torch.float64)
    kept = vector.clone()
    assert summed(vector, placed).tolist() == values
    assert torch.equal(vector, kept)
    for tensor, one in zip(placed, expected, strict=True):
        close(reg(tensor), one)
    refused(ValueError, "for 5 tensors", summed, [1.0], placed)


def in_your_own_code():
    model = sharded(seeded(Net), line())
    reg, parameters = RULES["*"], list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    slopes = local_gradients([parameter.grad for parameter in parameters], parameters)
    with CommDebugMode() as communication:
        values = [
            reg.accumulate(shard, slope)
            for shard, slope in zip(local_tensors(parameters), slopes, strict=True)
        ]
    assert communication.get_total_counts() == 0
    tensors = list(gathered(model).values())
    close(sum(summed(values, parameters)), expected_values(tensors, reg)[1])
    for parameter, tensor in zip(parameters, tensors, strict=True):
        assert torch.equal(whole(parameter.grad), reg.gradient(tensor))


def nothing_to_sum():
    mesh = line()
    placed = [distribute_tensor(torch.ones(4), mesh, [Replicate()]), torch.ones(2)]
    with CommDebugMode() as communication:
        assert summed([1.5, 2.5], placed) == [1.5, 2.5]
        local_tensors(placed)
    assert communication.get_total_counts() == 0


def a_mesh_of_others():
    """A process that a mesh leaves out has no part of its tensors, and waits for nobody."""
    mesh = DeviceMesh("cpu", [0])
    tensor = DTensor.from_local(torch.ones(3), mesh, [Shard(0)], run_check=False)
    here = 1.0 if dist.get_rank() == 0 else 0.0
    assert summed([here], [tensor]) == [here]


def gradients_are_local():
    model = sharded(seeded(Net), line())
    weight = dict(model.named_parameters())["first.weight"]
    reg = regularizers.L1L2(L1, L2)
    with CommDebugMode() as communication:
        value = reg(weight, scale=0.5)
    assert communication.get_total_counts() == 1
    assert type(value) is torch.Tensor
    assert value.shape == ()
    with CommDebugMode() as communication:
        value.backward()
        made = reg.gradient(weight.detach(), scale=0.5)
    assert communication.get_total_counts() == 0
    everything = weight.full_tensor().detach()
    expected = reg.gradient(everything, scale=0.5)
    for gradient in (weight.grad, made):
        assert gradient.placements == weight.placements
        assert torch.equal(gradient.full_tensor(), expected)
    close(value, float(reg(everything, scale=0.5)), 1e-6)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    reg(weight, scale=scale).backward()
    close(scale.grad, float(reg(everything.double())), 1e-6)


def adds_to_any_loss():
    mesh = line()
    reg = regularizers.L2(0.25)
    for loss_of, placement in (
        (lambda w: w.full_tensor().sum(), Shard(0)),
        (lambda w: w.sum(), Shard(0)),  # a DTensor whose sum is pending
        (lambda w: w.sum(), Replicate()),
    ):
        weight = nn.Parameter(distribute_tensor(torch.ones(4, 2), mesh, [placement]))
        loss = loss_of(weight) + reg(weight)
        assert whole(loss).item() == 10.0
        loss.backward()
        assert weight.grad.placements == weight.placements
        assert torch.equal(weight.grad.full_tensor(), torch.full((4, 2), 1.5))


def mixed_with_plain_tensors():
    placed = nn.Parameter(distribute_tensor(torch.ones(4), line(), [Shard(0)]))
    plain = nn.Parameter(torch.ones(3))
    for tensors in ({"a": plain, "b": placed}, {"a": placed, "b": plain}):
        plain.grad = placed.grad = None
        value = fastreg.attach(tensors, regularizers.L2(0.5)).value()
        assert value.item() == 3.5
        value.backward()
        assert torch.equal(plain.grad, torch.ones(3))
        assert torch.equal(placed.grad.full_tensor(), torch.ones(4))


def twice_differentiable():
    weight = nn.Parameter(distribute_tensor(torch.ones(4), line(), [Shard(0)]))
    (slope,) = torch.autograd.grad(regularizers.L2(0.5)(weight), weight, create_graph=True)
    slope.sum().full_tensor().backward()
    assert torch.equal(weight.grad.full_tensor(), torch.ones(4))


def only_a_value_communicates():
    model = sharded(seeded(Net), line())
    optimizer = optimizer_of(model, "sgd")
    penalties = attach(model, RULES)
    handle = penalties.before_step(optimizer, max_norm=None)
    x, y = map(mine, data())
    nn.functional.mse_loss(model(x), y).backward()
    with CommDebugMode() as communication:
        optimizer.step()
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    with CommDebugMode() as communication:
        first = penalties.last
    assert communication.get_total_counts() == 1, communication.get_comm_counts()
    with CommDebugMode() as communication:
        assert float(penalties.last) == float(first)
    assert communication.get_total_counts() == 0, communication.get_comm_counts()
    handle.remove()
    with CommDebugMode() as communication:
        penalties.value()
    assert communication.get_total_counts() == 1, communication.get_comm_counts()


def report():
    model = sharded(seeded(Net), line())
    with torch.no_grad():
        model.last.weight.mul_(0.0)
    tensors = gathered(model)
    expected = fastreg.attach(tensors, RULES).report()
    made = attach(model, RULES).report()
    assert list(made) == list(expected)
    for name, row in expected.items():
        close(made[name].penalty, row.penalty)
        close(made[name].zeros, row.zeros)
        assert made[name].rule == row.rule
    close(made.total, expected.total)


def proximal_steps():
    """Each process moves its shards; the record is that of the whole parameters, in all."""
    rules = {"*norm*": None, "*.bias": regularizers.L1(0.1), "*": regularizers.L1L2(0.2, 0.3)}
    alone = seeded(Net)
    record = attach(alone, rules).prox(0.5, scale=0.5)
    model = sharded(seeded(Net), line())
    found = attach(model, rules).prox(0.5, scale=0.5)
    for name, weight in gathered(model).items():
        assert torch.equal(weight, alone.get_parameter(name)), name
    close(found.penalty, record.penalty)
    assert found[1:] == record[1:]
    assert found.zeros > 0
    weight = model.first.weight
    reg = regularizers.L1(0.1)
    stepped = reg.prox(weight, 1.0)
    assert stepped.placements == weight.placements
    assert not stepped.requires_grad
    assert torch.equal(whole(stepped), reg.prox(whole(weight).detach(), 1.0))
    # Processes that disagree hear of it.
    other = {"*": regularizers.L1(0.1 + 0.1 * dist.get_rank())}
    refused(RuntimeError, "l1=0.1", attach(model, other).prox, 0.5)


def between_forward_and_backward():
    """The parameters of a root are gathered then, and others than those of the optimizer."""
    model = sharded(seeded(Rooted), line())
    optimizer = optimizer_of(model, "sgd")
    penalties = attach(model, RULES["*"])
    handle = penalties.before_step(optimizer, max_norm=None)
    expected = expected_values(gathered(model), RULES["*"])[1]
    loss = model(mine(data()[0])).sum()
    assert not isinstance(model.weight, DTensor)
    close(value_of(penalties), expected)
    close(penalties.report().total, expected)
    loss.backward()
    assert isinstance(model.weight, DTensor)
    optimizer.step()
    close(penalties.last, expected)
    handle.remove()
    # In the loss, the gradient of a gathered parameter is averaged with the others, once.
    optimizer.zero_grad()
    (0.0 * model(mine(data()[0])).sum() + penalties.value()).backward()
    for name, weight in model.named_parameters():
        slope = RULES["*"].gradient(whole(weight).detach())
        assert (whole(weight.grad) - slope).abs().max() <= 1e-9, name


def between_forward_and_backward_in_bfloat16():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    model = seeded(Rooted)
    torch.nn.init.constant_(model.weight, 1 / 3)
    model, rule = sharded(model, line(), mp_policy=policy), RULES["*"]
    before = value_of(attach(model, rule))
    model(mine(data()[0]))
    assert model.weight.dtype == torch.bfloat16
    # The layer has its own parameters again, in float32.
    value = value_of(attach(model, rule))
    close(value, expected_values(gathered(model), rule)[1])
    assert value != before
    close(value, before, 2**-8)


def rules_that_are_no_sums():
    model = sharded(seeded(Net), line())
    for rule in (regularizers.OrthogonalRegularizer(), lambda w: w.norm()):
        penalties = attach(model, {"first.weight": rule, "*": RULES["*"]})
        with torch.no_grad():
            for call in (penalties.accumulate, penalties.value, penalties.report):
                refused(TypeError, "tensors['first.weight'] is a sharded DTensor", call)
        assert all(parameter.grad is None for parameter in model.parameters())
    refused(TypeError, "w.full_tensor()", regularizers.OrthogonalRegularizer(), model.first.weight)


def pending_sums_are_refused():
    mesh = line()
    tensor = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    text = "tensors['embedding'] is a DTensor with the placements (Partial(sum),)"
    refused(TypeError, text, local_tensors, [tensor], ["embedding"])
    refused(TypeError, "tensors[1] is a DTensor", summed, [0.0, 0.0], [torch.ones(2), tensor])
    refused(TypeError, "Partial", regularizers.L2(0.1), tensor)
    tensors = {"embedding": tensor}
    refused(TypeError, "tensors['embedding']", fastreg.attach, tensors, regularizers.L2(0.1))


def gradients_that_lie_elsewhere():
    mesh = line()
    weight, gradient = (distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]) for _ in range(2))
    (found,) = local_gradients([gradient], [weight])
    assert found.data_ptr() == gradient.to_local().data_ptr()
    for other, kind, text in (
        (torch.ones(4, 4), TypeError, "grads['w'] is a plain tensor, but its tensor is a DTensor"),
        (gradient.redistribute(placements=[Shard(1)]), ValueError, "grads['w'] has the placements"),
        (
            DTensor.from_local(torch.ones(4, 4), mesh, [Partial()]),
            TypeError,
            "parameter.grad.redis",
        ),
    ):
        refused(kind, text, local_gradients, [other], [weight], ["w"])
    plain = torch.ones(2)
    assert local_gradients([plain], [torch.ones(2)])[0] is plain


def pending_tensors_are_awaited():
    weight = distribute_tensor(torch.arange(8.0).reshape(4, 2), line(), [Shard(0)]).requires_grad_()
    pending = weight.redistribute(placements=[Replicate()], async_op=True)
    assert type(pending.to_local()) is not torch.Tensor
    (local,) = local_tensors([pending])
    assert type(local) is torch.Tensor
    assert torch.equal(local, torch.arange(8.0).reshape(4, 2))
    pending = weight.redistribute(placements=[Replicate()], async_op=True)
    value = regularizers.L2(0.5)(pending)
    assert value.item() == 70.0
    value.backward()
    assert torch.equal(weight.grad.full_tensor(), torch.arange(8.0).reshape(4, 2))


def mixed_precision():
    for reduced in (torch.float32, torch.bfloat16):
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=reduced)
        model = sharded(seeded(Net), line(), mp_policy=policy)
        penalties = attach(model, RULES)
        x, y = map(mine, data())
        nn.functional.mse_loss(model(x).float(), y).backward()
        before = {n: whole(p.grad) for n, p in model.named_parameters()}
        close(penalties.accumulate(), expected_values(gathered(model))[1])
        for name, weight in model.named_parameters():
            assert weight.dtype == weight.grad.dtype == torch.float32
            if "norm" not in name:
                rule = RULES["*.bias"] if name.endswith(".bias") else RULES["*"]
                rule.accumulate(whole(weight).detach(), before[name])
            assert torch.equal(whole(weight.grad), before[name]), name


def sequence_parallel():
    """Gradients of replicated parameters are pending sums there: refused until they are taken."""
    mesh = line()
    model = seeded(Net)
    plan = {"first": RowwiseParallel(output_layouts=Shard(1)), "norm": SequenceParallel()}
    parallelize_module(model, mesh, plan)
    out = model.norm(model.first(torch.randn(2, 4, 6).chunk(2, -1)[dist.get_rank()]))
    out.sum().backward()
    names = ("norm.weight", "norm.bias")
    weights = [model.get_parameter(name) for name in names]
    assert not weights[0].grad.placements[0].is_shard()
    refused(
        TypeError,
        "grads['norm.weight'] is a DTensor with the placements (Partial(sum),)",
        local_gradients,
        [weight.grad for weight in weights],
        weights,
        names,
    )
    for weight in weights:
        weight.grad = weight.grad.redistribute(placements=weight.placements)
    assert len(local_gradients([weight.grad for weight in weights], weights)) == 2


def kernels_of_sharded_modules():
    def make():
        return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.LSTM(5, 3), nn.Embedding(7, 4))

    expected = repr(attach(make(), kernels(regularizers.L2(L2))))
    assert "3 of 9 parameters" in expected
    mesh = init_device_mesh("cpu", (2,))
    assert repr(attach(sharded(make(), mesh), kernels(regularizers.L2(L2)))) == expected


def pipeline_stages():
    """One mapping of rules for all stages; each has the parameters that it has."""
    rules = {"0.*": regularizers.L1(L1), "2.weight": regularizers.L2(L2)}
    make = lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))  # noqa: E731
    x, y = data()
    alone = seeded(make)
    whole_penalties, optimizer = attach(alone, rules), torch.optim.SGD(alone.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(alone(x), y).backward()
        expected = whole_penalties.accumulate()
        optimizer.step()

    rank = dist.get_rank()
    part = seeded(make)
    for name in ("2",) if rank == 0 else ("0", "1"):
        delattr(part, name)
    stage = PipelineStage(part, rank, 2, torch.device("cpu"))
    schedule = ScheduleGPipe(stage, 2, loss_fn=nn.functional.mse_loss)
    refused(ValueError, "matches no tensor", attach, part, rules)
    penalties = attach(part, rules, allow_unmatched=True)
    assert penalties.unmatched == [["2.weight"], ["0.*"]][rank]
    everywhere = [None, None]
    dist.all_gather_object(everywhere, penalties.unmatched)
    assert not set.intersection(*map(set, everywhere))
    optimizer = torch.optim.SGD(part.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        schedule.step(*[x][rank:], **({} if rank == 0 else {"target": y}))
        value = torch.tensor(penalties.accumulate(), dtype=torch.float64)
        optimizer.step()
    dist.all_reduce(value)
    close(value, expected, 1e-6)
    for name, weight in part.named_parameters():
        assert (weight - alone.get_parameter(name)).abs().max() <= 1e-6, name


def parts_without_dtensors():
    """Shards that are plain tensors, beside replicas, and gradients in main_grad: Megatron."""
    rule, rank = RULES["*"], dist.get_rank()
    model, part = seeded(Net), seeded(Net)
    part.first.weight = nn.Parameter(model.first.weight.detach().chunk(2)[rank].clone())
    part.first.weight.tensor_model_parallel = True

    def is_part(parameter):
        return getattr(parameter, "tensor_model_parallel", False)

    parts = attach(part, lambda name, p: rule if is_part(p) else None)
    replicas = attach(part, lambda name, p: None if is_part(p) else rule)
    with torch.no_grad():
        value = torch.tensor(parts.value(), dtype=torch.float64)
        dist.all_reduce(value)
        value += replicas.value()
    close(value, expected_values(gathered(model), rule)[1])
    for parameter in part.parameters():
        parameter.main_grad = torch.ones_like(parameter)
    refused(RuntimeError, "parameter.main_grad.add_(rule.gradient(parameter", parts.accumulate)
    for parameter in part.parameters():
        parameter.main_grad.add_(rule.gradient(parameter.detach()))
    expected = {name: 1.0 + rule.gradient(weight) for name, weight in gathered(model).items()}
    expected["first.weight"] = expected["first.weight"].chunk(2)[rank]
    for name, parameter in part.named_parameters():
        assert torch.equal(parameter.main_grad, expected[name]), name


def fsdp1_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is deprecated
        for use_orig_params in (True, False):
            model = FullyShardedDataParallel(
                seeded(Net), use_orig_params=use_orig_params, device_id=torch.device("cpu")
            )
            refused(TypeError, "FSDP1", local_tensors, list(model.parameters()))
            refused(TypeError, "fully_shard (FSDP2)", attach, model, RULES["*"])


# ------------------------------------------------------------------------------- four processes


def hsdp():
    """Replicas are not counted: the all-reduce is among those that share a tensor."""
    model = sharded(seeded(Net), square("replicate", "shard"))
    same_weights(train(model, "sgd", "accumulate"), trained_alone("sgd"))


def hsdp_in_the_loss():
    model = sharded(seeded(Net), square("replicate", "shard"))
    same_weights(train(model, "adam", "loss"), trained_alone("adam"))


def tensor_parallel_under_fsdp2():
    """The rows of the first layer are sharded twice: _StridedShard, which is no Shard."""
    mesh = square("data", "tensor")
    model = seeded(Net)
    expected, total = expected_values(gathered(model))
    parallelize_module(model, mesh["tensor"], {"first": ColwiseParallel()})
    for layer in (model.first, model):
        fully_shard(layer, mesh=mesh["data"])
    weight = model.first.weight
    assert "_StridedShard" in [type(placement).__name__ for placement in weight.placements]
    parameters = dict(model.named_parameters())
    with CommDebugMode() as communication, torch.no_grad():
        value = fastreg.attach(parameters, RULES).value()
    # One for each process group: tensors of the mesh and of its slice share that of "data".
    assert communication.get_total_counts() == 2, communication.get_comm_counts()
    close(value, total, 1e-6)
    close(value_of(attach(model, RULES)), total)
    rule = RULES["*"]
    rule(weight).backward()
    assert weight.grad.placements == weight.placements
    close(rule(weight), expected["first.weight"], 1e-6)
    local = rule.gradient(weight.detach().to_local())
    assert torch.equal(local_gradients([weight.grad], [weight])[0], local)


def two_dimensions():
    mesh = square("one", "other")
    torch.manual_seed(3)
    everything = torch.randn(5, 7, dtype=torch.float64)
    reg = regularizers.L1L2(L1, L2)
    expected = float(reg(everything))
    for placements, count in (
        ([Shard(0), Shard(1)], 2),
        ([Shard(0), Shard(0)], 2),
        ([Replicate(), Shard(0)], 1),
        ([Shard(1), Replicate()], 1),
        ([Replicate(), Replicate()], 0),
    ):
        tensor = distribute_tensor(everything, mesh, placements)
        with CommDebugMode() as communication:
            value = reg(tensor)
        assert communication.get_total_counts() == count, placements
        close(value, expected)
        everywhere = [None] * 4
        dist.all_gather_object(everywhere, value.item())
        assert len(set(everywhere)) == 1, everywhere


WORLDS = {
    2: [
        fsdp2_sgd_accumulate,
        fsdp2_adam_hook,
        fsdp2_adam_in_the_loss,
        fsdp2_frozen,
        fsdp2_gradient_accumulation,
        ddp_accumulate,
        ddp_hook,
        ddp_in_the_loss,
        ddp_gradient_accumulation,
        tied_once,
        tied_later,
        values_of_placements,
        in_your_own_code,
        nothing_to_sum,
        a_mesh_of_others,
        gradients_are_local,
        adds_to_any_loss,
        mixed_with_plain_tensors,
        twice_differentiable,
        only_a_value_communicates,
        report,
        proximal_steps,
        between_forward_and_backward,
        between_forward_and_backward_in_bfloat16,
        rules_that_are_no_sums,
        pending_sums_are_refused,
        gradients_that_lie_elsewhere,
        pending_tensors_are_awaited,
        mixed_precision,
        sequence_parallel,
        kernels_of_sharded_modules,
        fsdp1_is_refused,
        pipeline_stages,
        parts_without_dtensors,
    ],
    4: [hsdp, hsdp_in_the_loss, tensor_parallel_under_fsdp2, two_dimensions],
}


# ------------------------------------------------------------------------------------ the processes


def run(directory, worlds, world, rank, only):
    torch.set_num_threads(1)
    fastreg.set_num_threads(1)
    meeting = dist.FileStore(str(Path(directory, f"meeting{world}")), world)
    meeting.set_timeout(2 * SECONDS)
    groups = 0
    connect(directory, world, rank, groups)
    for case in worlds[world]:
        if only and case.__name__ not in only:
            continue
        start, error = time.monotonic(), None
        try:
            case()
        except (Exception, pytest.fail.Exception):
            error = traceback.format_exc()
        seconds = round(time.monotonic() - start, 3)
        line = {"case": case.__name__, "rank": rank, "seconds": seconds, "error": error}
        os.write(1, (json.dumps(line) + "\n").encode())  # at once, so that lines stay whole
        meeting.set(f"{case.__name__}/{rank}", "good" if error is None else "bad")
        ends = [meeting.get(f"{case.__name__}/{other}") for other in range(world)]
        if b"bad" in ends:  # ranks may be in the middle of different collectives
            groups += 1
            connect(directory, world, rank, groups)
    dist.destroy_process_group()


def connect(directory, world, rank, number):
    if dist.is_initialized():
        dist.destroy_process_group()
    store = Path(directory).resolve() / f"group{world}-{number}"
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=world, timeout=SECONDS
    )


def main(worlds, directory, *only):
    context = multiprocessing.get_context("fork")
    for world in worlds:
        processes = [
            context.Process(target=run, args=(directory, worlds, world, rank, only), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    main(WORLDS, *sys.argv[1:])
