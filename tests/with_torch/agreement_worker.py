"""The processes of test_torch_agreement.py, as those of sharding_worker.py."""

from __future__ import annotations

import re
import sys

import pytest
import sharding_worker
import torch
import torch.distributed as dist
from sharding_worker import Net, close, expected_values, gathered, line, seeded, sharded, value_of
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import fastreg
from fastreg import regularizers
from fastreg._arrays import torch_shards
from fastreg._arrays.torch_shards import summed
from fastreg.torch import attach


def rank():
    return dist.get_rank()


def refused(call, *texts):
    """Require the error in every process, and that the next collective operation is right."""
    with pytest.raises(RuntimeError, match="the processes disagree about their penalties") as error:
        call()
    for text in texts:
        assert text in str(error.value), error.value
    ones = torch.ones(3)
    dist.all_reduce(ones)
    assert ones.tolist() == 3 * [dist.get_world_size()]


def ways(penalties):
    """Return each way to ask for a value."""

    def without_gradients():
        with torch.no_grad():
            return penalties.value()

    return penalties.value, without_gradients, penalties.accumulate, penalties.report


def differing_strengths():
    model = sharded(seeded(Net), line())
    rules = {"*.bias": regularizers.L1(0.5), "first.*": regularizers.L1(0.25 + rank())}
    text = "'first.weight' is L1(l1=0.25), of the shape (5, 6) in torch.float32 on rank 0, "
    text += "L1(l1=1.25), of the shape (5, 6) in torch.float32 on rank 1"
    for call in ways(attach(model, rules)):
        refused(call, text)
    rules["first.*"].l1 = 0.25
    penalties = attach(model, rules)
    close(value_of(penalties), expected_values(gathered(model), rules)[1])
    if rank() == 0:
        rules["*.bias"].l1 = 0.75  # the plan stays as it is
    for call in ways(penalties):
        refused(call, "'norm.bias' is L1(l1=0.75)")
    rules["*.bias"].l1 = 0.5
    close(value_of(penalties), expected_values(gathered(model), rules)[1])


def differing_steps():
    model = sharded(seeded(Net), line())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalties = attach(model, regularizers.L2(0.5))
    penalties.before_step(optimizer, max_norm=None, scale=1.0 + rank())
    optimizer.step()
    refused(lambda: penalties.last, "scale is 1.0 on rank 0, 2.0 on rank 1")


def frozen_on_one_rank():
    for names in (["first.weight"], [name for name, _ in Net().named_parameters()]):
        model = sharded(seeded(Net), line())
        for name in names if rank() == 1 else ():
            model.get_parameter(name).requires_grad_(False)
        text = "'first.weight' is L2(l2=0.5), of the shape (5, 6) in torch.float32 on rank 0, "
        text += "without a penalty, frozen, of the shape (5, 6) in torch.float32 on rank 1"
        for call in ways(attach(model, regularizers.L2(0.5))):
            refused(call, text)


def frozen_later():
    model = sharded(seeded(Net), line())
    penalties = attach(model, regularizers.L2(0.5))
    close(value_of(penalties), expected_values(gathered(model), regularizers.L2(0.5))[1])
    model.first.weight.requires_grad_(rank() == 0)
    for call in ways(penalties):
        refused(call, "frozen, of the shape (5, 6) in torch.float32 on rank 1")


def differing_rules():
    model = sharded(seeded(Net), line())
    rules = [{"first.weight": "l2"}, {"first.*": "l2", "last.weight": "l1"}][rank()]
    for call in ways(attach(model, rules)):
        refused(call, "'first.bias' is without a penalty", "'last.weight' is without a penalty")
    # Rules without parameters that are sharded on one of the ranks.
    model.plain = nn.Linear(2, 2)
    for call in ways(attach(model, [{"plain.*": "l2"}, "l2"][rank()])):
        refused(call, "'first.weight' is without a penalty")


def tensors_without_names():
    weight = nn.Parameter(distribute_tensor(torch.ones(4), line(), [Shard(0)]))
    rule = regularizers.L1(0.5 * (1 + rank()))
    refused(lambda: rule(weight), "tensors[0] is of the shape (4,), with l1=0.5", "l1=1.0")
    refused(fastreg.attach({"w": weight}, rule).value, "l1=0.5", "l1=1.0")
    tensors = [weight] * (1 + rank())
    refused(lambda: summed([1.0] * len(tensors), tensors), "tensors[1] is nothing on rank 0")
    assert summed([1.0], [weight]) == [2.0]


def more_tensors_than_fit():
    count = 1100
    placed = [distribute_tensor(torch.ones(2), line(), [Shard(0)]) for _ in range(count)]
    values = [float(place) for place in range(count)]
    with CommDebugMode() as communication:
        assert summed(values, placed) == [2.0 * value for value in values]
    assert communication.get_total_counts() == 2, communication.get_comm_counts()
    fewer = placed[: count - 10 * rank()]
    refused(lambda: summed(values[: len(fewer)], fewer), "tensors[1093] is of the shape (2,)")


def a_device_that_nothing_waits_for():
    """What a CUDA device gives is NaN in every process, where the host does not look."""
    may_wait, torch_shards._may_wait = torch_shards._may_wait, lambda tensor: False
    try:
        model = sharded(seeded(Net), line())
        rule = regularizers.L2(0.5)
        penalties = attach(model, rule)
        assert penalties.value().item() > 0
        rule.l2 += rank()
        assert penalties.value().isnan()
        refused(lambda: value_of(penalties), "L2(l2=0.5)")
    finally:
        torch_shards._may_wait = may_wait


def replicas():
    model = DistributedDataParallel(seeded(Net))
    rule = regularizers.L2(0.5)
    penalties = attach(model, {"*first*": rule, "*": None})
    penalties.check()
    if rank() == 0:
        rule.l2 = 0.25
    refused(penalties.check, "'module.first.weight' is L2(l2=0.25)", "L2(l2=0.5)")
    penalties.check(dist.new_subgroups(1)[0])  # of processes that agree with themselves
    rule.l2 = 0.5
    penalties.check()
    with torch.no_grad():
        model.module.first.weight[0, 0] += 1e-3 * rank()
    refused(penalties.check, "the penalty of 'module.first.weight' is")


def sharded_parameters_are_checked():
    model = sharded(seeded(Net), line())
    rule = regularizers.L1(0.5)
    penalties = attach(model, {"first.*": rule, "second.weight": lambda w: w.square().sum()})
    penalties.check()
    rule.l1 += rank()
    refused(penalties.check, "L1(l1=0.5)", "L1(l1=1.5)")


def refused_on_one_rank():
    model = seeded(Net)
    penalties = attach(model, {"first.weight": "l2", "second.weight": "l1"})
    if rank() == 1:
        model.second.weight = model.first.weight
    refused(penalties.check, "attach is nothing on rank 0, refused (")


def callables_of_sharded_parameters():
    model = sharded(seeded(Net), line())
    rule = {"first.weight": lambda w: w.norm(), "last.*": regularizers.L1(0.5)}
    text = re.escape("tensors['first.weight'] is a sharded DTensor")
    penalties = attach(model, rule)
    for call in (*ways(penalties), fastreg.attach(dict(model.named_parameters()), rule).value):
        with pytest.raises(TypeError, match=text):
            call()
    # What every process has the whole of is right.
    weight = nn.Parameter(distribute_tensor(torch.full((4,), 2.0), line(), [Replicate()]))
    assert fastreg.attach({"w": weight}, lambda w: w.square().sum()).value().item() == 16.0


# ------------------------------------------------------------------------------- four processes


def hsdp_learns_it_everywhere():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = sharded(seeded(Net), mesh)
    penalties = attach(model, regularizers.L2(0.5))
    close(value_of(penalties), expected_values(gathered(model), regularizers.L2(0.5))[1])
    model.first.weight.requires_grad_(rank() != 3)
    for call in ways(penalties):
        refused(call, "'first.weight' is L2(l2=0.5), of", "torch.float32 on rank 3")


def two_dimensions_learn_it_everywhere():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = seeded(Net)
    parallelize_module(model, mesh["tensor"], {"first": ColwiseParallel()})
    for layer in (model.first, model):
        fully_shard(layer, mesh=mesh["data"])
    penalties = attach(model, regularizers.L2(0.5))
    with torch.no_grad():
        tensors = {name: weight.full_tensor() for name, weight in model.named_parameters()}
    close(value_of(penalties), expected_values(tensors, regularizers.L2(0.5))[1])
    # On rank 3 nothing that is left has shards over two dimensions.
    model.first.requires_grad_(rank() != 3)
    for call in ways(penalties):
        refused(call, "'first.weight' is L2(l2=0.5), of", "torch.float32 on rank 3")


WORLDS = {
    2: [
        differing_strengths,
        differing_steps,
        frozen_on_one_rank,
        frozen_later,
        differing_rules,
        tensors_without_names,
        more_tensors_than_fit,
        a_device_that_nothing_waits_for,
        replicas,
        sharded_parameters_are_checked,
        refused_on_one_rank,
        callables_of_sharded_parameters,
    ],
    4: [hsdp_learns_it_everywhere, two_dimensions_learn_it_everywhere],
}

if __name__ == "__main__":
    sharding_worker.main(WORLDS, *sys.argv[1:])
